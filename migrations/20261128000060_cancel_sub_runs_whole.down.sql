CREATE OR REPLACE FUNCTION cancel_sub_run() RETURNS trigger
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
