-- no-transaction
-- Serves db::runs::list sorted by updated_at: the runs that have not ended, which are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_open_by_update
    ON workflow_runs (organization_id, status, updated_at, run_id)
    WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED');
