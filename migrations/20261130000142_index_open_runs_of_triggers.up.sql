-- no-transaction
-- Serves db::triggers::open_runs. Runs without a trigger are not in it, and ended runs leave it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_open_of_trigger
    ON workflow_runs (trigger_id) WHERE trigger_id IS NOT NULL AND status IN ('PENDING', 'RUNNING');
