-- Schedules: how far each has fired, and backfills.
SET LOCAL lock_timeout = '2s';

CREATE TABLE trigger_schedules (
    trigger_id uuid PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    due_at timestamptz,
    processed_until timestamptz NOT NULL,
    remaining integer,
    buffered timestamptz[] NOT NULL DEFAULT '{}',
    failures_since timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX trigger_schedules_due ON trigger_schedules (due_at) WHERE due_at IS NOT NULL;
COMMENT ON TABLE trigger_schedules IS 'State of each trigger of the kind schedule.';
COMMENT ON COLUMN trigger_schedules.trigger_id IS 'The trigger.';
COMMENT ON COLUMN trigger_schedules.due_at IS 'When there is something to do for it; null: it is paused, or has ended.';
COMMENT ON COLUMN trigger_schedules.processed_until IS
    'Nominal instant up to which all firings are decided. It moves in the transaction that starts the runs.';
COMMENT ON COLUMN trigger_schedules.remaining IS 'Number of firings that are left; null: no limit.';
COMMENT ON COLUMN trigger_schedules.buffered IS 'Nominal instants whose runs wait for the end of another run.';
COMMENT ON COLUMN trigger_schedules.failures_since IS 'Runs that were created earlier do not count as failures in a row.';

CREATE TABLE trigger_backfills (
    id uuid PRIMARY KEY,
    trigger_id uuid NOT NULL REFERENCES triggers (id) ON DELETE CASCADE,
    state text NOT NULL,
    from_at timestamptz NOT NULL,
    to_at timestamptz NOT NULL,
    overlap text NOT NULL,
    force boolean NOT NULL,
    total integer NOT NULL,
    processed_until timestamptz NOT NULL,
    started integer NOT NULL DEFAULT 0,
    present integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    created_by varchar(255) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
) WITH (fillfactor = 70);
CREATE INDEX trigger_backfills_of_trigger ON trigger_backfills (trigger_id, created_at);
CREATE INDEX trigger_backfills_running ON trigger_backfills (id) WHERE state = 'running';
COMMENT ON TABLE trigger_backfills IS
    'Jobs that start the runs of a schedule for a range of time. Of each trigger, those beyond the latest 20 are deleted.';
COMMENT ON COLUMN trigger_backfills.id IS 'Id of the job.';
COMMENT ON COLUMN trigger_backfills.trigger_id IS 'The trigger.';
COMMENT ON COLUMN trigger_backfills.state IS 'running, completed or stopped.';
COMMENT ON COLUMN trigger_backfills.from_at IS 'Begin of the range, inclusive.';
COMMENT ON COLUMN trigger_backfills.to_at IS 'End of the range, exclusive.';
COMMENT ON COLUMN trigger_backfills.overlap IS 'allow, or buffer_all: one run after the other.';
COMMENT ON COLUMN trigger_backfills.force IS 'Whether runs are started for instants that have one.';
COMMENT ON COLUMN trigger_backfills.total IS 'Number of firings in the range when the job was created.';
COMMENT ON COLUMN trigger_backfills.processed_until IS 'Nominal instant up to which all firings are decided.';
COMMENT ON COLUMN trigger_backfills.started IS 'Number of runs that it has started.';
COMMENT ON COLUMN trigger_backfills.present IS 'Number of firings whose run existed.';
COMMENT ON COLUMN trigger_backfills.failed IS 'Number of firings that failed to start.';
COMMENT ON COLUMN trigger_backfills.created_by IS 'User who created it.';
COMMENT ON COLUMN trigger_backfills.created_at IS 'Time of creation.';
COMMENT ON COLUMN trigger_backfills.ended_at IS 'When it was completed or stopped.';
