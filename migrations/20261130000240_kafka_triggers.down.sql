SET LOCAL lock_timeout = '2s';

ALTER TABLE dead_letters DROP COLUMN trigger_id;
COMMENT ON COLUMN dead_letters.digest IS 'SHA-256 of key and value.';
DROP TABLE kafka_groups_to_delete;
DROP TABLE kafka_triggers;
