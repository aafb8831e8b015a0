-- no-transaction
-- Serves db::runs::list by workflow, sorted by updated_at: the ended runs, which enter it once.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_ended_by_workflow_and_update
    ON workflow_runs (organization_id, workflow_id, status, updated_at, run_id)
    WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED');
