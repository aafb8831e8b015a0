SET LOCAL lock_timeout = '2s';

DROP TRIGGER workflow_runs_insert_is_recorded ON workflow_runs;
DROP TRIGGER workflow_runs_update_is_recorded ON workflow_runs;
DROP TRIGGER workflow_runs_delete_forgets ON workflow_runs;
DROP TRIGGER step_executions_insert_is_recorded ON step_executions;
DROP TRIGGER step_executions_update_is_recorded ON step_executions;
DROP FUNCTION record_run_change(), record_attempt(), forget_run_events();
DROP TABLE run_events;
