-- no-transaction
-- Serves db::runs::list by context. The columns never change, and most runs have none.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_by_context
    ON workflow_runs (organization_id, context_id) WHERE context_id IS NOT NULL;
