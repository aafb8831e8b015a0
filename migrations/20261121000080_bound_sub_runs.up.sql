-- How many runs a run has begun, with those that they have begun; and the parked runs in the order of their turns.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

CREATE TABLE sub_run_counts (
    root_run_id varchar(255) CONSTRAINT sub_run_counts_pkey PRIMARY KEY,
                                             -- the outermost run; no foreign key: its check would lock the run's row
    begun integer NOT NULL
);

-- Serves db::executions::wake, as workflow_runs_wake serves the look before it.
CREATE INDEX workflow_runs_wake_turns ON workflow_runs (organization_id, workflow_id, priority, wake_at)
    WHERE wake_at IS NOT NULL AND paused_at IS NULL;

CREATE OR REPLACE FUNCTION forget_run_waits() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM step_waits w USING gone WHERE w.run_id = gone.run_id;
    DELETE FROM run_wakes w USING gone WHERE w.run_id = gone.run_id;
    DELETE FROM sub_run_counts c USING gone WHERE c.root_run_id = gone.run_id;
    RETURN NULL;
END
$$;
