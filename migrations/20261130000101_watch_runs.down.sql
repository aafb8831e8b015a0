SET LOCAL lock_timeout = '2s';

DROP TRIGGER workflow_definitions_update_is_watched ON workflow_definitions;
DROP TRIGGER workflow_definitions_insert_is_watched ON workflow_definitions;
DROP FUNCTION watch_silence;
DROP TABLE workflow_silences;
CREATE OR REPLACE FUNCTION count_retry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.retries := OLD.retries + 1;
    NEW.error_code := NULL;
    RETURN NEW;
END
$$;
ALTER TABLE workflow_runs DROP COLUMN deadline_seconds, DROP COLUMN deadline_action, DROP COLUMN deadline_at,
    DROP COLUMN deadline_due_at, DROP COLUMN deadline_missed_at;
ALTER TABLE workflow_definitions DROP COLUMN deadline_seconds, DROP COLUMN deadline_action, DROP COLUMN silence_hours;
