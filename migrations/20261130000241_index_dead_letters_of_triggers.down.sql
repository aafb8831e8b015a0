-- no-transaction
DROP INDEX CONCURRENTLY IF EXISTS dead_letters_of_triggers;
