SET LOCAL lock_timeout = '2s';

ALTER TABLE idempotency_keys RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE run_events RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE step_executions RESET (autovacuum_vacuum_scale_factor);
ALTER TABLE workflow_runs RESET (autovacuum_vacuum_scale_factor);
DROP TABLE storage_samples;
DROP TABLE run_retention;
ALTER TABLE workflow_runs DROP COLUMN kept_until;
ALTER TABLE organizations DROP COLUMN retention_days;
ALTER TABLE workflow_definitions DROP COLUMN retention_days;
