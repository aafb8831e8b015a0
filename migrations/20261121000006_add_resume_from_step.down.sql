SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs DROP COLUMN resume_from_step, DROP COLUMN resumed_at;
