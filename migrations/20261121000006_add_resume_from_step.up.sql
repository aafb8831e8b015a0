-- A retry may name the step to go on from, although it and others after it were completed before.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs ADD COLUMN resume_from_step varchar(255), ADD COLUMN resumed_at timestamp;
COMMENT ON COLUMN workflow_runs.resume_from_step IS
    'From this step on, only attempts that began at resumed_at or later count as done; null: all count.';
COMMENT ON COLUMN workflow_runs.resumed_at IS 'When the retry that named resume_from_step was accepted.';
