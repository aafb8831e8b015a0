-- no-transaction
-- Serves db::watches::miss_deadlines: no run without a deadline is in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_deadlines
    ON workflow_runs (deadline_due_at) WHERE deadline_due_at IS NOT NULL;
