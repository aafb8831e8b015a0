-- A cancellation reaches all that is inside of a run, also what begins at the same moment. And what earlier
-- cancellations have missed is closed.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

-- A step that is given up takes its sub-run with it, and that one its own: in the same transaction, whoever writes it.
CREATE OR REPLACE FUNCTION cancel_sub_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    -- The statement around may record what it does itself; it knows nothing of this.
    records text := current_setting('workflow_api.records', true);
    child varchar(255) := (SELECT child_run_id FROM step_waits WHERE attempt_id = NEW.id);
BEGIN
    IF child IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('workflow_api.records', '', true);
    UPDATE workflow_runs
    SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
        cancelled_by = 'system', error_message = 'Cancelled: the run around it needs it no more',
        executor_id = NULL, lease_token = NULL, wake_at = NULL
    WHERE run_id = child AND status IN ('PENDING', 'RUNNING');
    -- Another statement has another snapshot: whoever held the run while the first one waited for it may have begun
    -- steps of it. Nobody begins any from now on.
    IF FOUND THEN
        UPDATE step_executions
        SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC', error_message = 'the run was cancelled'
        WHERE run_id = child AND status IN ('PENDING', 'RUNNING');
    END IF;
    PERFORM set_config('workflow_api.records', coalesce(records, ''), true);
    RETURN NULL;
END
$$;

-- Both look for open rows by the index on the status, however many rows there are besides. A sub-run that was retried
-- goes on without the run around it.
UPDATE workflow_runs r
SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
    cancelled_by = 'system', error_message = 'Cancelled: the run around it needs it no more',
    executor_id = NULL, lease_token = NULL, wake_at = NULL
FROM step_waits w JOIN step_executions s ON s.id = w.attempt_id
WHERE r.status IN ('PENDING', 'RUNNING') AND r.parent_run_id IS NOT NULL
    AND w.run_id = r.parent_run_id AND w.child_run_id = r.run_id AND s.status IN ('FAILED', 'SKIPPED')
    AND NOT EXISTS (SELECT FROM run_events e WHERE e.run_id = r.run_id AND e.kind = 'run.retried');
UPDATE step_executions s
SET status = 'FAILED', completed_at = now() AT TIME ZONE 'UTC', error_message = 'the run was cancelled'
FROM workflow_runs r
WHERE s.status IN ('PENDING', 'RUNNING') AND r.run_id = s.run_id AND r.status = 'CANCELLED';
