DROP TABLE call_reservations;
DROP TABLE call_usage;
DROP TABLE run_usage;
ALTER TABLE workflow_runs DROP COLUMN limits;
