-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS workflow_runs_open_sub_runs;
