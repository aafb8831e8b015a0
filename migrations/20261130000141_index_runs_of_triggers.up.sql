-- no-transaction
-- Serves db::runs::list by trigger. The columns never change, and runs without a trigger are not in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_trigger
    ON workflow_runs (organization_id, trigger_id, created_at, run_id) WHERE trigger_id IS NOT NULL;
