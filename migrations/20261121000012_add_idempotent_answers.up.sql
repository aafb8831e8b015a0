ALTER TABLE idempotency_keys ADD COLUMN answer jsonb;
COMMENT ON COLUMN idempotency_keys.answer IS
    'The first answer, where it cannot be read from the resource: what an import has done.';
