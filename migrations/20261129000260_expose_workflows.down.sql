SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs DROP COLUMN context_id;
ALTER TABLE workflow_definitions DROP COLUMN expose;
