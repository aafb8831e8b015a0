SET LOCAL lock_timeout = '2s';

-- The program of before knows keys of executes alone.
DELETE FROM idempotency_keys WHERE scope NOT LIKE 'execute %';
COMMENT ON COLUMN idempotency_keys.run_id IS NULL;
