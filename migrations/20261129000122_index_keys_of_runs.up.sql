-- no-transaction
-- Serves db::retention::delete: the keys of a run go with it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS idempotency_keys_run ON idempotency_keys (run_id);
