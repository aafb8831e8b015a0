ALTER TABLE workflow_runs DROP COLUMN traceparent;
