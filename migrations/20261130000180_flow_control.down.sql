SET LOCAL lock_timeout = '2s';

-- The release before finds held runs by its sweep for lost messages, and starts them all.
UPDATE workflow_runs SET redispatch_at = NULL
WHERE status = 'PENDING' AND flow_state IN ('arrived', 'queued');
-- A held sub-run is woken.
UPDATE workflow_runs SET wake_at = now()
WHERE status = 'PENDING' AND flow_state IN ('arrived', 'queued') AND parent_run_id IS NOT NULL;

DROP TRIGGER workflow_runs_end_frees_slot ON workflow_runs;
DROP FUNCTION free_flow_slot();
DROP TABLE flow_wakes, flow_throttles;
ALTER TABLE workflow_runs DROP COLUMN flow_stage, DROP COLUMN flow_state, DROP COLUMN flow_key, DROP COLUMN flow_at,
    DROP COLUMN flow_due, DROP COLUMN flow_rest;
ALTER TABLE workflow_definitions DROP COLUMN flow_control;
