-- no-transaction
-- Serves db::kafka_triggers::open_letters. Dead letters of executors are not in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS dead_letters_of_triggers
    ON dead_letters (trigger_id) WHERE trigger_id IS NOT NULL AND status = 'open';
