-- A cancellation closes the sub-runs of a run together, level by level, instead of each by triggers of its own: some
-- thousand of them took longer than a statement may. And it reaches them whoever writes the status of the run.
SET LOCAL lock_timeout = '2s';

-- Cancels runs with their open steps and all runs inside of them. Each statement has a snapshot of its own: whoever held
-- a run while the first one waited for it may have begun steps of it. Nobody begins any from now on.
CREATE FUNCTION cancel_runs(run_ids varchar[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
-- Rows are found by their keys, however small the tables were when the plans were made. `IS TRUE` hides the conditions
-- on a status from its index, which is full of dead entries.
SET enable_seqscan = off
AS $$
DECLARE
    records text := current_setting('workflow_api.records', true);
    cancels text := current_setting('workflow_api.cancels', true);
    cancelled varchar[];
BEGIN
    -- It records in the runs' logs what it does, and the triggers below have nothing to do.
    PERFORM set_config('workflow_api.records', 'itself', true), set_config('workflow_api.cancels', 'itself', true);
    WHILE run_ids <> '{}' LOOP
        WITH held AS MATERIALIZED (
            SELECT run_id FROM workflow_runs
            WHERE run_id = ANY (run_ids) AND (status IN ('PENDING', 'RUNNING')) IS TRUE
            ORDER BY run_id FOR NO KEY UPDATE
        ), closed AS (
            UPDATE workflow_runs r
            SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                cancelled_by = 'system', error_message = 'Cancelled: the run around it needs it no more',
                executor_id = NULL, lease_token = NULL, wake_at = NULL
            FROM held WHERE r.run_id = held.run_id
            RETURNING r.run_id, r.error_message
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, detail) SELECT run_id, 'run.cancelled', error_message FROM closed
        )
        SELECT coalesce(array_agg(run_id), '{}') INTO cancelled FROM closed;
        WITH closed AS (
            UPDATE step_executions
            SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC', error_message = 'the run was cancelled'
            WHERE run_id = ANY (cancelled) AND (status IN ('PENDING', 'RUNNING')) IS TRUE
            RETURNING id, run_id, step_id, agent_name, started_at, completed_at, error_message
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, step_id, attempt_id, agent_name, duration_ms, detail)
            SELECT run_id, 'attempt.failed', step_id, id, agent_name,
                CASE WHEN isfinite(started_at) THEN extract(epoch FROM completed_at - started_at) * 1000 END, error_message
            FROM closed
        )
        SELECT coalesce(array_agg(w.child_run_id), '{}') INTO run_ids
        FROM closed JOIN step_waits w ON w.attempt_id = closed.id WHERE w.child_run_id IS NOT NULL;
    END LOOP;
    PERFORM set_config('workflow_api.records', coalesce(records, ''), true),
        set_config('workflow_api.cancels', coalesce(cancels, ''), true);
END
$$;
-- It has the rights of its owner, and is there for the triggers only.
REVOKE EXECUTE ON FUNCTION cancel_runs FROM PUBLIC;

-- A step that is given up takes its sub-run with it: in the same transaction, whoever writes it. The first one takes
-- those of all steps that were given up by the same statement; the others find nothing to do.
CREATE OR REPLACE FUNCTION cancel_sub_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM step_waits w JOIN workflow_runs r ON r.run_id = w.child_run_id
               WHERE w.attempt_id = NEW.id AND (r.status IN ('PENDING', 'RUNNING')) IS TRUE) THEN
        PERFORM cancel_runs(array_agg(w.child_run_id))
        FROM step_executions s JOIN step_waits w ON w.attempt_id = s.id
        WHERE s.run_id = NEW.run_id AND w.child_run_id IS NOT NULL
            AND (s.id = NEW.id OR (s.status = NEW.status AND s.completed_at = NEW.completed_at));
        INSERT INTO run_wakes (run_id)
        SELECT run_id FROM workflow_runs WHERE run_id = NEW.run_id AND (status IN ('PENDING', 'RUNNING')) IS TRUE;
    END IF;
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER step_executions_end_cancels_sub_run AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status IN ('FAILED', 'SKIPPED')
        AND current_setting('workflow_api.cancels', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION cancel_sub_run();

-- The steps of a run that is cancelled are closed with it. Its name puts this trigger behind the one that records the
-- cancellation.
CREATE FUNCTION close_cancelled_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    -- The statement around may record what it does itself; it knows nothing of this.
    records text := current_setting('workflow_api.records', true);
BEGIN
    PERFORM set_config('workflow_api.records', '', true);
    UPDATE step_executions
    SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC', error_message = 'the run was cancelled'
    WHERE run_id = NEW.run_id AND (status IN ('PENDING', 'RUNNING')) IS TRUE;
    PERFORM set_config('workflow_api.records', coalesce(records, ''), true);
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_update_reaches_steps AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (OLD.status IN ('PENDING', 'RUNNING') AND NEW.status = 'CANCELLED'
        AND current_setting('workflow_api.cancels', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION close_cancelled_run();

-- A run that is cancelled with the one around it wakes nobody.
CREATE OR REPLACE TRIGGER workflow_runs_end_wakes_parent AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (NEW.parent_run_id IS NOT NULL AND NEW.status <> OLD.status
        AND NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED')
        AND current_setting('workflow_api.cancels', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION wake_parent_run();
