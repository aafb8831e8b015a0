-- no-transaction
-- Serves db::runs::list sorted by updated_at, alone and by status: the ended runs, which enter it once.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_ended_by_update
    ON workflow_runs (organization_id, status, updated_at, run_id) WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED');
