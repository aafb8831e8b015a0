SET LOCAL lock_timeout = '2s';

ALTER TABLE step_executions DROP COLUMN next_attempt_at;
