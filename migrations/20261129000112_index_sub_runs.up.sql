-- no-transaction
-- Serves db::runs::list by parent_run_id, in its order. Takes the place of workflow_runs_parent.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_parent
    ON workflow_runs (parent_run_id, created_at, run_id) WHERE parent_run_id IS NOT NULL;
