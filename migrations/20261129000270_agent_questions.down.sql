SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

DROP TRIGGER step_executions_end_gives_up_question ON step_executions;
DROP FUNCTION give_up_question();
-- The release before asks such agents anew. Their steps count as interrupted, and parked runs go on at once.
UPDATE step_executions s
SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC',
    error_message = 'interrupted: the executor stopped while the step ran'
FROM step_waits w WHERE w.question IS NOT NULL AND s.id = w.attempt_id AND s.status = 'PENDING';
UPDATE workflow_runs r SET wake_at = now()
FROM step_waits w WHERE w.question IS NOT NULL AND r.run_id = w.run_id AND r.status = 'RUNNING' AND r.wake_at > now();
DELETE FROM step_waits WHERE question IS NOT NULL;
ALTER TABLE step_waits DROP COLUMN question, DROP COLUMN round, DROP COLUMN cancel_at, DROP COLUMN cancels;
