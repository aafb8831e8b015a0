-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS workflow_runs_open_by_update;
