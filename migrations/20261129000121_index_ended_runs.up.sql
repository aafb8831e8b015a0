-- no-transaction
-- Serves db::retention::ended: ended runs in the order of their ends. A run enters it once, when it ends. The columns are
-- none that change while a run goes on, so updates of such a run stay as cheap as they were.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_ended
    ON workflow_runs ((coalesce(greatest(completed_at, cancelled_at), created_at)))
    WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED');
