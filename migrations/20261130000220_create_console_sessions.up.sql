-- Sessions of the console: a browser that has signed in sends a cookie instead of an API key or a token.
SET LOCAL lock_timeout = '2s';

CREATE TABLE console_sessions (
    id uuid PRIMARY KEY,
    secret_hash bytea NOT NULL UNIQUE,
    organization_id text NOT NULL,
    subject text NOT NULL,
    api_key_id uuid,
    sealed_token bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CHECK (num_nonnulls(api_key_id, sealed_token) = 1)
);
CREATE INDEX console_sessions_by_subject ON console_sessions (organization_id, subject, created_at);
CREATE INDEX console_sessions_by_expiry ON console_sessions (expires_at);

COMMENT ON TABLE console_sessions IS
    'Browsers that are signed in to the console. Signing out deletes the row; expired rows are deleted within a minute.';
COMMENT ON COLUMN console_sessions.id IS 'Id of the session, in the audit trail.';
COMMENT ON COLUMN console_sessions.secret_hash IS 'SHA-256 of the secret in the cookie, which is stored nowhere.';
COMMENT ON COLUMN console_sessions.organization_id IS 'Organisation of who has signed in.';
COMMENT ON COLUMN console_sessions.subject IS 'Who has signed in: the subject of the token, or api-key: and the name of the key.';
COMMENT ON COLUMN console_sessions.api_key_id IS
    'API key that was used. The session has its rights, and ends with it. Null: a token was used.';
COMMENT ON COLUMN console_sessions.sealed_token IS
    'Token that was used, encrypted with a key that is derived from the secret in the cookie. It is verified again at '
    'each use, so the session ends with it, or with the key that signed it. Null: an API key was used.';
COMMENT ON COLUMN console_sessions.created_at IS 'When it began.';
COMMENT ON COLUMN console_sessions.expires_at IS 'When it ends at the latest.';
