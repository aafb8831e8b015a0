-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS step_executions_by_start;
