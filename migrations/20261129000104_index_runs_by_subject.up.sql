-- no-transaction
-- Serves db::runs::list by triggered_by: the ended runs, which enter it once. The others are checked.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_ended_by_subject
    ON workflow_runs (organization_id, triggered_by, created_at, run_id)
    WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED');
