-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS workflow_runs_by_trigger;
