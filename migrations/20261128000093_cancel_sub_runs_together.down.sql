SET LOCAL lock_timeout = '2s';
CREATE OR REPLACE TRIGGER workflow_runs_end_wakes_parent AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (NEW.parent_run_id IS NOT NULL AND NEW.status <> OLD.status
        AND NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
    EXECUTE FUNCTION wake_parent_run();
DROP TRIGGER workflow_runs_update_reaches_steps ON workflow_runs;
DROP FUNCTION close_cancelled_run();
CREATE OR REPLACE TRIGGER step_executions_end_cancels_sub_run AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status IN ('FAILED', 'SKIPPED'))
    EXECUTE FUNCTION cancel_sub_run();
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
DROP FUNCTION cancel_runs(varchar[]);
