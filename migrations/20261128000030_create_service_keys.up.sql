-- Random keys that the service makes for itself and that all its processes share. What they sign goes to clients and
-- comes back: cursors of lists, tickets for event streams.
CREATE TABLE service_keys (
    name text PRIMARY KEY,        -- what it is for
    key bytea NOT NULL,           -- 32 random bytes
    created_at timestamptz NOT NULL DEFAULT now()
);
