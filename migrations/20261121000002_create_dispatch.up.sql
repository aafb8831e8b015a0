-- What this service adds: columns that the reference executor need not know (all nullable), and its own tables.
SET LOCAL lock_timeout = '2s';

ALTER TABLE agents ADD COLUMN IF NOT EXISTS circuit_breaker_config jsonb;

ALTER TABLE workflow_runs
    ADD COLUMN workflow_version integer,
    ADD COLUMN workflow_plan jsonb,
    ADD COLUMN correlation_id varchar(128),
    ADD COLUMN execution_event_id uuid,
    ADD COLUMN executor_id uuid,
    ADD COLUMN lease_token uuid,
    ADD COLUMN redispatch_at timestamptz,
    ADD CONSTRAINT workflow_runs_lease_whole CHECK ((executor_id IS NULL) = (lease_token IS NULL));
COMMENT ON COLUMN workflow_runs.workflow_version IS
    'With workflow_name, the definition row that holds the content which this run is pinned to; null: not started by this API.';
COMMENT ON COLUMN workflow_runs.workflow_plan IS
    'The plan of a run that no stored definition holds, kept from its message when it was claimed.';
COMMENT ON COLUMN workflow_runs.correlation_id IS 'Of the request that started the run.';
COMMENT ON COLUMN workflow_runs.execution_event_id IS
    'event_id of the execution request, the same when the request is sent again; a retry makes a new one.';
COMMENT ON COLUMN workflow_runs.executor_id IS
    'The process (processes.id) that executes the run; the lease lasts as long as that process beats.';
COMMENT ON COLUMN workflow_runs.lease_token IS
    'Of this claim: every write of the executor names it, so that one who lost the run changes nothing.';
COMMENT ON COLUMN workflow_runs.redispatch_at IS
    'When the execution request may next be sent again if the run is still PENDING; null: not sent again yet.';

-- Processes that own work. One that has not beaten for a while is dead: its outbox rows and runs are taken over.
CREATE TABLE processes (
    id uuid PRIMARY KEY,                     -- made at registration, so a process that was declared dead comes back as another
    role text NOT NULL CONSTRAINT processes_role_known CHECK (role IN ('serve', 'executor')),
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Messages to publish, inserted by the statement that causes them, deleted once the broker has acknowledged them.
-- A row holds no payload: the relay has it in memory, and makes it again from the run and its definition otherwise.
CREATE TABLE outbox (
    run_id varchar(255) NOT NULL,            -- also the message key: order is kept within a run
    event_id uuid NOT NULL,                  -- stable across repeats, for consumers to drop what they know
    kind text NOT NULL CONSTRAINT outbox_kind_known CHECK (kind IN ('execution', 'cancellation')),
    owner uuid,                              -- processes.id of the relay that holds it; null: anyone may take it
    cancelled_by text,                       -- this and the next: cancellation only
    reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT outbox_pkey PRIMARY KEY (run_id, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
-- Serves db::outbox::take: the rows that nobody owns.
CREATE INDEX outbox_free ON outbox (created_at) WHERE owner IS NULL;

-- The first answer to a request with an Idempotency-Key, for its repeats.
CREATE TABLE idempotency_keys (
    scope text NOT NULL,                     -- the caller and the route with its object
    key varchar(255) NOT NULL,
    fingerprint bytea NOT NULL,              -- SHA-256 of the body: the same key with another body is refused
    run_id varchar(255) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, key)
);
-- Serves db::idempotency::expire.
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- A terminal state is final for everyone, also for the reference executor, which writes its states blindly. Its
-- statement still counts one row, as its client library demands. PENDING is the way back: only a retry writes it.
CREATE FUNCTION keep_terminal_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN OLD;
END
$$;
CREATE TRIGGER workflow_runs_terminal_is_final BEFORE UPDATE ON workflow_runs
    FOR EACH ROW
    WHEN (OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND NEW.status NOT IN (OLD.status, 'PENDING'))
    EXECUTE FUNCTION keep_terminal_run();
