-- Flow control at start: how many runs of a workflow, or of a key of it, are under way at a time, how fast they
-- start, and which of several in a row does. See docs/adr/0030.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

ALTER TABLE workflow_definitions ADD COLUMN flow_control jsonb;
COMMENT ON COLUMN workflow_definitions.flow_control IS
    'Flow control of the workflow, the same in all rows of a name, so that the stamp of any row proves it; null: none.';

ALTER TABLE workflow_runs
    ADD COLUMN flow_stage text,
    ADD COLUMN flow_state text,
    ADD COLUMN flow_key text,
    ADD COLUMN flow_at timestamptz,
    ADD COLUMN flow_due timestamptz,
    ADD COLUMN flow_rest jsonb;
COMMENT ON COLUMN workflow_runs.flow_stage IS
    'Stage of flow control that the run has reached: debounce, throttle, concurrency. Null: it is not controlled.';
COMMENT ON COLUMN workflow_runs.flow_state IS
    'What the stage has decided. Of a PENDING run: arrived (nothing yet) or queued: it is held, and has no message. '
    'admitted: it may run; in the stage concurrency it has a slot until it ends. skipped, replaced, dropped: why it was cancelled.';
COMMENT ON COLUMN workflow_runs.flow_key IS 'Value of the key of the stage for the input of the run; empty: the whole workflow.';
COMMENT ON COLUMN workflow_runs.flow_at IS 'Since when flow_state is what it is.';
COMMENT ON COLUMN workflow_runs.flow_due IS 'Of a debounced run: when it goes on.';
COMMENT ON COLUMN workflow_runs.flow_rest IS
    'Keys of the stages to come, by stage; and of a debounced run since when its key has been waiting.';

-- Without statistics the new columns would count as full.
ANALYZE workflow_runs (flow_stage, flow_state, flow_key);

-- Keys of which a run may go on now. The end of a run only adds a row here, and waits for no lock: the loop of the API
-- that admits runs takes the rows (db::flow). A lost row is found by its slow walk through the held runs.
CREATE TABLE flow_wakes (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT flow_wakes_pkey PRIMARY KEY,
    organization_id text NOT NULL,
    workflow_name varchar(255) NOT NULL,
    flow_stage text NOT NULL,
    flow_key text NOT NULL,
    due_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE flow_wakes IS 'Keys of flow control of which a held run may go on; emptied by the loop that admits runs.';
COMMENT ON COLUMN flow_wakes.id IS 'Number of the row.';
COMMENT ON COLUMN flow_wakes.organization_id IS 'Organisation of the workflow.';
COMMENT ON COLUMN flow_wakes.workflow_name IS 'Name of the workflow.';
COMMENT ON COLUMN flow_wakes.flow_stage IS 'Stage of the key.';
COMMENT ON COLUMN flow_wakes.flow_key IS 'The key, as in workflow_runs.flow_key.';
COMMENT ON COLUMN flow_wakes.due_at IS 'When the run may go on.';
-- Serves db::flow::work: what is due.
CREATE INDEX flow_wakes_due ON flow_wakes (due_at);
-- Serves db::flow::admit, which deletes the rows of a key.
CREATE INDEX flow_wakes_key ON flow_wakes (organization_id, workflow_name, flow_stage, flow_key);

-- Until when the runs of a throttled key that were admitted use up its rate ("theoretical arrival time"). Rows that say
-- no more than an absent one are deleted.
CREATE TABLE flow_throttles (
    organization_id text NOT NULL,
    workflow_name varchar(255) NOT NULL,
    flow_key text NOT NULL,
    busy_until timestamptz NOT NULL,
    CONSTRAINT flow_throttles_pkey PRIMARY KEY (organization_id, workflow_name, flow_key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE flow_throttles IS 'How much of the rate of a throttled key is used up.';
COMMENT ON COLUMN flow_throttles.organization_id IS 'Organisation of the workflow.';
COMMENT ON COLUMN flow_throttles.workflow_name IS 'Name of the workflow.';
COMMENT ON COLUMN flow_throttles.flow_key IS 'The key, as in workflow_runs.flow_key.';
COMMENT ON COLUMN flow_throttles.busy_until IS 'When the rate would be unused, if no further run came.';
-- Serves db::flow::forget_throttles.
CREATE INDEX flow_throttles_busy_until ON flow_throttles (busy_until);

-- The end of an admitted run frees its slot, whichever program writes it, the reference executor too. A run without flow control
-- costs the test of one column.
CREATE FUNCTION free_flow_slot() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key)
    VALUES (OLD.organization_id, OLD.workflow_name, OLD.flow_stage, OLD.flow_key);
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_end_frees_slot AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (OLD.flow_state = 'admitted' AND OLD.flow_stage = 'concurrency' AND NEW.status <> OLD.status
        AND NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
    EXECUTE FUNCTION free_flow_slot();
