-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS workflow_definitions_exposed;
