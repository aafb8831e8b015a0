-- Runs that wait for something outside of them, without an executor: what they wait for, and what brings them back.
-- Also what callers may ask of a run: a pause, a priority; and runs that are steps of others.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

ALTER TABLE workflow_runs
    ADD COLUMN priority smallint NOT NULL DEFAULT 5,
    ADD COLUMN parked_at timestamptz,
    ADD COLUMN wake_at timestamptz,
    ADD COLUMN claimed_at timestamp,
    ADD COLUMN paused_at timestamptz,
    ADD COLUMN parent_run_id varchar(255),
    ADD COLUMN parent_step_id varchar(255),
    ADD COLUMN nesting smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN workflow_runs.priority IS 'From 0 to 9: of what waits for an executor, higher ones are first.';
COMMENT ON COLUMN workflow_runs.parked_at IS 'Since when the run is parked; the time until it is taken up does not count for its limit.';
COMMENT ON COLUMN workflow_runs.wake_at IS
    'Of a run that no executor holds: when one shall take it up; infinity: when a row of run_wakes asks for it. Null: not parked.';
COMMENT ON COLUMN workflow_runs.claimed_at IS
    'When the run was claimed or taken over last. For one that was parked since, attempts that failed later have failed for good.';
COMMENT ON COLUMN workflow_runs.paused_at IS 'Since when a caller wants no further step to begin.';
COMMENT ON COLUMN workflow_runs.parent_run_id IS 'The run of which this one is a step; with parent_step_id.';
COMMENT ON COLUMN workflow_runs.nesting IS 'How many runs are around this one.';
-- Serves db::executions::wake. In no index entry is a run that was never parked.
CREATE INDEX workflow_runs_wake ON workflow_runs (wake_at) WHERE wake_at IS NOT NULL AND paused_at IS NULL;
-- Serves the list of a run's sub-runs.
CREATE INDEX workflow_runs_parent ON workflow_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
-- Without statistics the new columns would count as full, and the looks for parked runs would read the whole table.
ANALYZE workflow_runs (wake_at, paused_at, parent_run_id);

-- What the step attempts that are PENDING wait for, one row each; and callbacks whose address was given out before
-- their step began. Rows go with their run.
CREATE TABLE step_waits (
    id uuid NOT NULL DEFAULT gen_random_uuid() CONSTRAINT step_waits_pkey PRIMARY KEY,
    run_id varchar(255) NOT NULL,            -- no foreign key: its check would lock the run's row
    place text NOT NULL,                     -- as step_executions.place; of the main chain the step's id
    step_id varchar(255) NOT NULL,
    attempt_id varchar(255) CONSTRAINT step_waits_attempt UNIQUE,
                                             -- step_executions.id; null: the step has not begun
    created_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz,                      -- when the waiting is over, or given up
    token text,                              -- of a callback: whoever has it may answer
    token_hash bytea CONSTRAINT step_waits_token_hash UNIQUE,
                                             -- SHA-256 of it, by which it is looked up
    approval jsonb,                          -- of a callback that wants a decision: role
    answered_at timestamptz,
    answered_by varchar(255),
    answer jsonb,
    child_run_id varchar(255),               -- of a sub-workflow: its run
    CONSTRAINT step_waits_token_whole CHECK ((token IS NULL) = (token_hash IS NULL)),
    CONSTRAINT step_waits_answer_whole CHECK ((answered_at IS NULL) = (answer IS NULL))
);
CREATE INDEX step_waits_run ON step_waits (run_id, place);

-- Runs that something has come for. A queue beside the runs, so that whoever brings it need not lock the run's row: the
-- end of a sub-run would otherwise lock upwards what a cancellation locks downwards.
CREATE TABLE run_wakes (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT run_wakes_pkey PRIMARY KEY,
    run_id varchar(255) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX run_wakes_run ON run_wakes (run_id);

-- The end of a sub-run wakes the run around it, whoever writes it.
CREATE FUNCTION wake_parent_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO run_wakes (run_id) VALUES (NEW.parent_run_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_end_wakes_parent AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (NEW.parent_run_id IS NOT NULL AND NEW.status <> OLD.status
        AND NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
    EXECUTE FUNCTION wake_parent_run();

-- A step that is given up takes its sub-run with it, and that one its own: in the same transaction, whoever writes it.
CREATE FUNCTION cancel_sub_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    -- The statement around may record what it does itself; it knows nothing of this.
    records text := current_setting('workflow_api.records', true);
BEGIN
    PERFORM set_config('workflow_api.records', '', true);
    WITH cancelled AS (
        UPDATE workflow_runs r
        SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
            cancelled_by = 'system', error_message = 'Cancelled: the run around it needs it no more',
            executor_id = NULL, lease_token = NULL, wake_at = NULL
        FROM step_waits w
        WHERE w.attempt_id = NEW.id AND r.run_id = w.child_run_id AND r.status IN ('PENDING', 'RUNNING')
        RETURNING r.run_id
    )
    UPDATE step_executions s SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC',
        error_message = 'the run was cancelled'
    FROM cancelled WHERE s.run_id = cancelled.run_id AND s.status IN ('PENDING', 'RUNNING');
    PERFORM set_config('workflow_api.records', coalesce(records, ''), true);
    RETURN NULL;
END
$$;
CREATE TRIGGER step_executions_end_cancels_sub_run AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status IN ('FAILED', 'SKIPPED'))
    EXECUTE FUNCTION cancel_sub_run();

-- What belongs to a run goes with it.
CREATE FUNCTION forget_run_waits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM step_waits w USING gone WHERE w.run_id = gone.run_id;
    DELETE FROM run_wakes w USING gone WHERE w.run_id = gone.run_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_delete_forgets_waits AFTER DELETE ON workflow_runs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION forget_run_waits();
