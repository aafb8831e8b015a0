-- Deadlines of runs, and the silence of workflows: what is noticed because nothing has happened.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_definitions
    ADD COLUMN deadline_seconds integer,
    ADD COLUMN deadline_action text,
    ADD COLUMN silence_hours integer;
COMMENT ON COLUMN workflow_definitions.deadline_seconds IS
    'Deadline of runs, in seconds from their creation or their last retry; null: none.';
COMMENT ON COLUMN workflow_definitions.deadline_action IS
    'What happens to a run that misses its deadline, besides the event: notify, nothing; cancel. Null: notify.';
COMMENT ON COLUMN workflow_definitions.silence_hours IS
    'Hours without a completed run of the workflow after which an event tells of it; null: never. Of the newest version.';

ALTER TABLE workflow_runs
    ADD COLUMN deadline_seconds integer,
    ADD COLUMN deadline_action text,
    ADD COLUMN deadline_at timestamptz,
    ADD COLUMN deadline_due_at timestamptz,
    ADD COLUMN deadline_missed_at timestamptz;
COMMENT ON COLUMN workflow_runs.deadline_seconds IS 'Length of the deadline; null: none.';
COMMENT ON COLUMN workflow_runs.deadline_action IS 'As workflow_definitions.deadline_action.';
COMMENT ON COLUMN workflow_runs.deadline_at IS 'When the run should have ended, by the clock of the database; null: no deadline.';
COMMENT ON COLUMN workflow_runs.deadline_due_at IS
    'When the deadline is looked at next: at its time, and again until the run that is to be cancelled has ended. Null: never.';
COMMENT ON COLUMN workflow_runs.deadline_missed_at IS 'When it was found that the run had not ended in time; null: not.';

-- A retry gives the run its whole deadline again, whichever program writes the status.
CREATE OR REPLACE FUNCTION count_retry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.retries := OLD.retries + 1;
    NEW.error_code := NULL;
    IF NEW.deadline_seconds IS NOT NULL THEN
        NEW.deadline_at := now() + make_interval(secs => NEW.deadline_seconds);
        NEW.deadline_due_at := NEW.deadline_at;
        NEW.deadline_missed_at := NULL;
    END IF;
    RETURN NEW;
END
$$;

CREATE TABLE workflow_silences (
    organization_id text NOT NULL,
    workflow_name varchar(255) NOT NULL,
    watched_since timestamptz NOT NULL DEFAULT now(),
    last_success_at timestamptz,
    silent_since timestamptz,
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT workflow_silences_pkey PRIMARY KEY (organization_id, workflow_name)
);
CREATE INDEX workflow_silences_due ON workflow_silences (due_at);
COMMENT ON TABLE workflow_silences IS
    'Workflows whose silence is watched, that is those with silence_hours. A trigger on the definitions adds them.';
COMMENT ON COLUMN workflow_silences.organization_id IS 'Organisation of the workflow.';
COMMENT ON COLUMN workflow_silences.workflow_name IS 'Name of the workflow.';
COMMENT ON COLUMN workflow_silences.watched_since IS 'When the watch began: a workflow without any success is silent since then.';
COMMENT ON COLUMN workflow_silences.last_success_at IS 'Last success that is known; the run itself may have been deleted since.';
COMMENT ON COLUMN workflow_silences.silent_since IS
    'Since when it is silent, if it was found to be: the event is recorded. Null: it is not.';
COMMENT ON COLUMN workflow_silences.due_at IS 'When it is looked at next.';

-- A definition that gets silence_hours, or other ones, is looked at soon; what is no longer wanted is removed then.
CREATE FUNCTION watch_silence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO workflow_silences (organization_id, workflow_name) VALUES (NEW.organization_id, NEW.name)
    ON CONFLICT (organization_id, workflow_name) DO UPDATE SET due_at = least(workflow_silences.due_at, now());
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_definitions_insert_is_watched AFTER INSERT ON workflow_definitions FOR EACH ROW
    WHEN (NEW.silence_hours IS NOT NULL) EXECUTE FUNCTION watch_silence();
CREATE TRIGGER workflow_definitions_update_is_watched AFTER UPDATE ON workflow_definitions FOR EACH ROW
    WHEN (NEW.silence_hours IS NOT NULL AND (NEW.silence_hours IS DISTINCT FROM OLD.silence_hours OR NEW.status <> OLD.status))
    EXECUTE FUNCTION watch_silence();
