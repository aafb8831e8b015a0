SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs DROP COLUMN execution_started_at;
ALTER TABLE step_executions DROP COLUMN place;
