SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

CREATE OR REPLACE FUNCTION forget_run_waits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM step_waits w USING gone WHERE w.run_id = gone.run_id;
    DELETE FROM run_wakes w USING gone WHERE w.run_id = gone.run_id;
    RETURN NULL;
END
$$;

DROP INDEX workflow_runs_wake_turns;
DROP TABLE sub_run_counts;
