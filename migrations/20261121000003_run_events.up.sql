-- The log of each run, filled by triggers, so that it is the same whoever writes the shared tables. The creation of a
-- run has no row here: it is read from the run's own row, and starting runs costs nothing more.
SET LOCAL lock_timeout = '2s';

-- Writers take no lock for the order: the transactions that change one run may well run side by side (a cancellation
-- and the reference executor's step), and whichever lock a trigger waited for, somebody could hold it who waits for
-- the step row that fired it. So a row says in `id` in which order rows were written, which is not the order in which
-- they become visible; its place in the log it gets from its first reader (db::events::number), behind all that were
-- numbered before. A reader that has seen a place never meets an unseen smaller one.
CREATE TABLE run_events (
    id bigint GENERATED ALWAYS AS IDENTITY,
    run_id varchar(255) NOT NULL,            -- no foreign key: its check would lock the run's row
    seq integer,                             -- the place, from 1 without gaps; null: not read yet
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,                      -- subject and what happened to it, such as attempt.failed
    step_id varchar(255),                    -- this and the next two: of an attempt and its agent
    attempt_id varchar(255),                 -- step_executions.id
    agent_name varchar(255),
    http_status integer,                     -- of an agent's answer
    duration_ms float8,
    detail text,                             -- an error message, or a status that has no kind of its own
    -- Serves every look at a run's rows, also at those without a place, which it puts last.
    CONSTRAINT run_events_order UNIQUE (run_id, seq)
);

-- These run with the rights of their owner: a program that may write the shared tables need not know of this one.
CREATE FUNCTION record_run_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO run_events (run_id, kind, detail) VALUES (
        NEW.run_id,
        CASE
            WHEN TG_OP = 'UPDATE' AND NEW.status = OLD.status THEN 'run.taken_over'
            WHEN NEW.status = 'PENDING' THEN 'run.retried'
            WHEN NEW.status = 'RUNNING' THEN 'run.started'
            WHEN NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED') THEN 'run.' || lower(NEW.status)
            ELSE 'run.changed'
        END,
        CASE
            WHEN NEW.status IN ('FAILED', 'CANCELLED') THEN NEW.error_message
            WHEN NEW.status NOT IN ('PENDING', 'RUNNING', 'COMPLETED') THEN NEW.status
        END);
    RETURN NULL;
END
$$;
-- A statement that records what it does itself, many rows at once and with more detail, says so by this setting. That
-- is what the executor's two frequent ones do: a trigger for each of their rows would cost more than all the rest.
CREATE TRIGGER workflow_runs_insert_is_recorded AFTER INSERT ON workflow_runs FOR EACH ROW
    WHEN (NEW.status <> 'PENDING' AND current_setting('workflow_api.records', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_run_change();
CREATE TRIGGER workflow_runs_update_is_recorded AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN ((NEW.status <> OLD.status OR NEW.lease_token <> OLD.lease_token)
        AND current_setting('workflow_api.records', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_run_change();

CREATE FUNCTION record_attempt() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO run_events (run_id, kind, step_id, attempt_id, agent_name, duration_ms, detail) VALUES (
        NEW.run_id,
        CASE
            WHEN NEW.status = 'RUNNING' THEN 'attempt.started'
            WHEN NEW.status IN ('COMPLETED', 'FAILED', 'SKIPPED') THEN 'attempt.' || lower(NEW.status)
            ELSE 'attempt.changed'
        END,
        NEW.step_id, NEW.id, NEW.agent_name,
        -- The writer's clock may say anything, and its write must not fail here.
        CASE WHEN isfinite(NEW.started_at) AND isfinite(NEW.completed_at)
            THEN extract(epoch FROM NEW.completed_at - NEW.started_at) * 1000 END,
        CASE
            WHEN NEW.status = 'FAILED' THEN NEW.error_message
            WHEN NEW.status NOT IN ('RUNNING', 'COMPLETED', 'SKIPPED') THEN NEW.status
        END);
    RETURN NULL;
END
$$;
CREATE TRIGGER step_executions_insert_is_recorded AFTER INSERT ON step_executions FOR EACH ROW
    WHEN (current_setting('workflow_api.records', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_attempt();
CREATE TRIGGER step_executions_update_is_recorded AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (NEW.status <> OLD.status AND current_setting('workflow_api.records', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_attempt();

-- A run's log goes with the run.
CREATE FUNCTION forget_run_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM run_events e USING gone WHERE e.run_id = gone.run_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_delete_forgets AFTER DELETE ON workflow_runs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION forget_run_events();
