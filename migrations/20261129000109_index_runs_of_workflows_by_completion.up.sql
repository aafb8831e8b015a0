-- no-transaction
-- Serves db::runs::list by workflow, sorted by completed_at: the completed runs, which enter it once.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_workflow_and_completion
    ON workflow_runs (organization_id, workflow_id, status, completed_at, run_id) WHERE completed_at IS NOT NULL;
