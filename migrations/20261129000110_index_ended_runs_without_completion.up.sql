-- no-transaction
-- Serves db::runs::list sorted by completed_at: ended runs that have none, which only other programs write. Otherwise it
-- is empty, and says so at once.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_ended_without_completion
    ON workflow_runs (organization_id, status, created_at, run_id)
    WHERE completed_at IS NULL AND status IN ('COMPLETED', 'FAILED');
