-- Callbacks of all runs of an organisation, as a list: the organisation of a callback, which its run has, beside it.
SET LOCAL lock_timeout = '2s';

ALTER TABLE step_waits ADD COLUMN organization_id varchar(100);
COMMENT ON COLUMN step_waits.organization_id IS 'Of a callback: organisation of the run. Null for other waits.';

-- A trigger, so that the callbacks of every program have it. Waits for a time or for a run cost nothing.
CREATE FUNCTION set_organization_of_wait() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    NEW.organization_id := (SELECT organization_id FROM workflow_runs WHERE run_id = NEW.run_id);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION set_organization_of_wait() IS 'Copies the organisation of a run to its callbacks.';
CREATE TRIGGER step_waits_organization BEFORE INSERT ON step_waits FOR EACH ROW
    WHEN (NEW.token IS NOT NULL OR NEW.answered_at IS NOT NULL) EXECUTE FUNCTION set_organization_of_wait();

UPDATE step_waits w SET organization_id = r.organization_id FROM workflow_runs r
WHERE r.run_id = w.run_id AND (w.token IS NOT NULL OR w.answered_at IS NOT NULL);
