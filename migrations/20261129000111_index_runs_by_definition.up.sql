-- no-transaction
-- Serves db::runs::list by workflow_definition_id, together with workflow_runs_by_workflow: where the two ids differ,
-- which they do only in runs of other programs.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_definition
    ON workflow_runs (organization_id, workflow_definition_id, created_at, run_id)
    WHERE workflow_definition_id <> workflow_id;
