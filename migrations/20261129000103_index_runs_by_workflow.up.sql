-- no-transaction
-- Serves db::runs::list by workflow_id or by names, with a status or merged over all. Takes the place of
-- idx_run_workflow_definition_id.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_workflow
    ON workflow_runs (organization_id, workflow_id, status, created_at, run_id);
