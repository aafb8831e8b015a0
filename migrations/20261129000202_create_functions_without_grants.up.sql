-- These functions had parameters of this service in their definitions. A role that is no superuser could neither create
-- nor restore such functions without a grant by a superuser. They set the parameters in their bodies instead.
SET LOCAL lock_timeout = '2s';

CREATE OR REPLACE FUNCTION cancel_runs(run_ids varchar[]) RETURNS void
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

CREATE OR REPLACE FUNCTION close_cancelled_run() RETURNS trigger
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
