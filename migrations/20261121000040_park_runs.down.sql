SET LOCAL lock_timeout = '2s';

DROP TRIGGER workflow_runs_delete_forgets_waits ON workflow_runs;
DROP TRIGGER step_executions_end_cancels_sub_run ON step_executions;
DROP TRIGGER workflow_runs_end_wakes_parent ON workflow_runs;
DROP FUNCTION forget_run_waits();
DROP FUNCTION cancel_sub_run();
DROP FUNCTION wake_parent_run();
DROP TABLE run_wakes;
DROP TABLE step_waits;
-- Indexes go with their columns.
ALTER TABLE workflow_runs
    DROP COLUMN priority, DROP COLUMN parked_at, DROP COLUMN wake_at, DROP COLUMN claimed_at, DROP COLUMN paused_at,
    DROP COLUMN parent_run_id, DROP COLUMN parent_step_id, DROP COLUMN nesting;
