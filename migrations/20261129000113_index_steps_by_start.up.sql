-- no-transaction
-- Serves db::runs::steps, and whatever looks for the steps of a run. Takes the place of idx_step_run_id.
CREATE INDEX CONCURRENTLY IF NOT EXISTS step_executions_by_start ON step_executions (run_id, started_at, id);
