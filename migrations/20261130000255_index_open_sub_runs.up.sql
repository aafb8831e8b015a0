-- no-transaction
-- Serves db::family: what the sub-runs of a run wait for. Has no entry of a run that is no sub-run.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_open_sub_runs
    ON workflow_runs (parent_run_id) WHERE parent_run_id IS NOT NULL AND status = 'RUNNING';
