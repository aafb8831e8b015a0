-- Triggers: what starts runs without a client.
SET LOCAL lock_timeout = '2s';

CREATE TABLE triggers (
    id uuid PRIMARY KEY,
    organization_id varchar(100) NOT NULL,
    name varchar(200) NOT NULL,
    kind text NOT NULL,
    workflow_name varchar(255) NOT NULL,
    workflow_version integer,
    input jsonb,
    priority smallint NOT NULL,
    labels jsonb NOT NULL,
    config jsonb NOT NULL,
    secrets jsonb,
    enabled boolean NOT NULL,
    note text,
    counters jsonb NOT NULL DEFAULT '{}',
    last_fired_at timestamptz,
    created_by varchar(255) NOT NULL,
    updated_by varchar(255) NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT triggers_name UNIQUE (organization_id, name)
) WITH (fillfactor = 70);
CREATE INDEX triggers_created ON triggers (organization_id, created_at, id);
COMMENT ON TABLE triggers IS 'What starts runs of a workflow without a client: schedules, Kafka records, webhooks.';
COMMENT ON COLUMN triggers.id IS 'Id; the ids of its runs are derived from it.';
COMMENT ON COLUMN triggers.organization_id IS 'Organisation of the trigger and of its runs.';
COMMENT ON COLUMN triggers.name IS 'Name, unique in the organisation.';
COMMENT ON COLUMN triggers.kind IS 'schedule, kafka or webhook.';
COMMENT ON COLUMN triggers.workflow_name IS 'Name of the workflow that it starts. The workflow may be missing.';
COMMENT ON COLUMN triggers.workflow_version IS 'Version that it starts; null: the newest one.';
COMMENT ON COLUMN triggers.input IS 'Input of its runs, with references to what has happened; null: all of that.';
COMMENT ON COLUMN triggers.priority IS 'Priority of its runs.';
COMMENT ON COLUMN triggers.labels IS 'Texts by name, for its owners.';
COMMENT ON COLUMN triggers.config IS 'When it fires, in the normal form of its kind.';
COMMENT ON COLUMN triggers.secrets IS 'Secrets of its kind, sealed by the vault; null: none.';
COMMENT ON COLUMN triggers.enabled IS 'Whether it fires; false: it is paused.';
COMMENT ON COLUMN triggers.note IS 'Why it is paused, or anything else.';
COMMENT ON COLUMN triggers.counters IS 'Numbers by name of what has happened; an absent one is 0.';
COMMENT ON COLUMN triggers.last_fired_at IS 'When it was last due, whether a run started or not.';
COMMENT ON COLUMN triggers.created_by IS 'User who created it.';
COMMENT ON COLUMN triggers.updated_by IS 'User who changed it last.';
COMMENT ON COLUMN triggers.created_at IS 'Time of creation.';
COMMENT ON COLUMN triggers.updated_at IS 'Time of the last change by a user.';

CREATE TABLE trigger_firings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trigger_id uuid NOT NULL REFERENCES triggers (id) ON DELETE CASCADE,
    nominal_at timestamptz NOT NULL,
    fired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    cause text NOT NULL,
    outcome text NOT NULL,
    reason text,
    detail text,
    run_id text
);
CREATE INDEX trigger_firings_latest ON trigger_firings (trigger_id, id);
COMMENT ON TABLE trigger_firings IS 'Last firings of each trigger; of a trigger with more than 100, the oldest are deleted.';
COMMENT ON COLUMN trigger_firings.id IS 'Order of the firings.';
COMMENT ON COLUMN trigger_firings.trigger_id IS 'The trigger.';
COMMENT ON COLUMN trigger_firings.nominal_at IS 'When it was due, without jitter.';
COMMENT ON COLUMN trigger_firings.fired_at IS 'When that was processed.';
COMMENT ON COLUMN trigger_firings.cause IS 'event (of its kind), manual or backfill.';
COMMENT ON COLUMN trigger_firings.outcome IS 'started, present (a run of that id existed), failed_to_start, and further ones of its kind.';
COMMENT ON COLUMN trigger_firings.reason IS 'Code of the reason why no run started.';
COMMENT ON COLUMN trigger_firings.detail IS 'That reason for people.';
COMMENT ON COLUMN trigger_firings.run_id IS 'The run, if there is one.';

ALTER TABLE workflow_runs
    ADD COLUMN trigger_kind text,
    ADD COLUMN trigger_id uuid,
    ADD COLUMN trigger_at timestamptz,
    ADD COLUMN chain_depth smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN workflow_runs.trigger_kind IS 'Kind of the trigger that started the run; null: a client did, or another run.';
COMMENT ON COLUMN workflow_runs.trigger_id IS 'Trigger that started the run; it may be deleted.';
COMMENT ON COLUMN workflow_runs.trigger_at IS 'When the trigger was due, without jitter.';
COMMENT ON COLUMN workflow_runs.chain_depth IS
    'Number of runs before it in a chain of which each has caused the next one by an event; sub-runs have that of their parent.';

-- What started a run, as events of runs tell it. The depth of a sub-run is told too: its events go on with the chain.
CREATE OR REPLACE FUNCTION event_trigger_of_run(run workflow_runs) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN run.trigger_kind IS NOT NULL OR run.chain_depth > 0 THEN jsonb_build_object(
        'kind', run.trigger_kind, 'id', run.trigger_id, 'at', event_time(run.trigger_at AT TIME ZONE 'UTC'),
        'depth', run.chain_depth) END
$$;
