-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS step_waits_open;
