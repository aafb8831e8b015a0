-- Keys by which programs prove who they are. A row stays when its key is revoked: it says who could do what, and when.
SET LOCAL lock_timeout = '2s';

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    prefix text NOT NULL,               -- its beginning, wf_<environment>
    last_four text NOT NULL,            -- its end
    hash bytea NOT NULL,                -- SHA-256 of all of it; the key itself is nowhere
    role text NOT NULL,
    scopes text[],                      -- of the role's permissions only these; null: all of them
    workflows text[],                   -- only for workflows of these names; null: for all
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,             -- from then on it does not count; null: never
    revoked_at timestamptz,
    revoked_by text,
    last_used_at timestamptz,           -- a minute old or two at most, while it is used
    CONSTRAINT api_keys_hash UNIQUE (hash),
    CONSTRAINT api_keys_hash_is_sha256 CHECK (octet_length(hash) = 32),
    CONSTRAINT api_keys_role CHECK (role IN ('viewer', 'operator', 'editor', 'admin', 'executor')),
    CONSTRAINT api_keys_revoked_by_somebody CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);
-- A name is free again when its key is revoked. It is also what keeps a repeated request from making a second key.
CREATE UNIQUE INDEX api_keys_name_in_use ON api_keys (name) WHERE revoked_at IS NULL;
