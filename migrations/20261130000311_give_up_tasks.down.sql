SET LOCAL lock_timeout = '2s';

DROP TRIGGER step_executions_end_gives_up_task ON step_executions;
DROP FUNCTION give_up_task();
DROP TABLE given_up_tasks;
