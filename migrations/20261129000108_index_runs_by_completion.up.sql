-- no-transaction
-- Serves db::runs::list sorted by completed_at, alone and by status: the completed runs, which enter it once.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_completion
    ON workflow_runs (organization_id, status, completed_at, run_id) WHERE completed_at IS NOT NULL;
