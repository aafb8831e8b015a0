-- no-transaction
-- Serves db::runs::list by status, alone or several merged, and whatever looks for open runs. Takes the place of
-- idx_run_status and workflow_runs_queued.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_status
    ON workflow_runs (status, organization_id, created_at, run_id);
