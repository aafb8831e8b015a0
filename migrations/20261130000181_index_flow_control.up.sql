-- no-transaction
-- Serves db::flow: the slots and the queue of a key. It has only runs that are under flow control and have not ended.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_flow
    ON workflow_runs (organization_id, workflow_name, flow_stage, flow_key, flow_state, priority DESC, created_at,
    run_id)
    WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING');
