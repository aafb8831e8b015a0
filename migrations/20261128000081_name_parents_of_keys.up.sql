-- A key that was made by a key, or by a token of one, falls with it.
SET LOCAL lock_timeout = '2s';

ALTER TABLE api_keys
    ADD COLUMN parent_id uuid CONSTRAINT api_keys_parent REFERENCES api_keys (id),
                                             -- the key that made it; null: none did
    ADD CONSTRAINT api_keys_parent_is_another CHECK (parent_id <> id);
-- Serves db::api_keys::revoke.
CREATE INDEX api_keys_parent ON api_keys (parent_id) WHERE parent_id IS NOT NULL;

COMMENT ON COLUMN api_keys.parent_id IS 'The key that made it, itself or by a token; it is revoked with that one. Null: none did.';
