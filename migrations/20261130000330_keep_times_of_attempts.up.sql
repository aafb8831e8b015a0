-- A failed attempt says when the next one begins.
SET LOCAL lock_timeout = '2s';

ALTER TABLE step_executions ADD COLUMN next_attempt_at timestamp;
COMMENT ON COLUMN step_executions.next_attempt_at IS
    'Of a failed attempt: when the next one at the step begins, or was to begin; null: none follows, or it is not known.';
