-- Push notifications of A2A agents: an executor that waits for a task gives the agent an address and a token. Whichever
-- process of the API receives the notification notes it here, and the executor queries the task. Empty unless agents
-- with push notifications work on tasks.
SET LOCAL lock_timeout = '2s';

CREATE TABLE agent_pushes (
    id uuid NOT NULL,
    token_hash bytea NOT NULL,
    attempt_id varchar(255) NOT NULL,
    waiter uuid NOT NULL,
    is_notified boolean NOT NULL DEFAULT false,
    expires_at timestamptz NOT NULL,
    CONSTRAINT agent_pushes_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX agent_pushes_attempt ON agent_pushes (attempt_id);
-- Literally what executors look for; nearly always empty.
CREATE INDEX agent_pushes_notified ON agent_pushes (waiter) WHERE is_notified;
COMMENT ON TABLE agent_pushes IS
    'Address at which an A2A agent may report that a task has changed. Deleted when its attempt has ended, or ten minutes after it has expired.';
COMMENT ON COLUMN agent_pushes.id IS 'Id in the path of the address.';
COMMENT ON COLUMN agent_pushes.token_hash IS 'SHA-256 of the token, which only the agent knows.';
COMMENT ON COLUMN agent_pushes.attempt_id IS 'Message whose task the agent reports on: the attempt, and its question if it answers one.';
COMMENT ON COLUMN agent_pushes.waiter IS 'Executor that waits for the task; a random id for each start of a process.';
COMMENT ON COLUMN agent_pushes.is_notified IS 'Whether the agent has sent a notification that the executor has not seen yet.';
COMMENT ON COLUMN agent_pushes.expires_at IS 'Time from which notifications are refused.';
