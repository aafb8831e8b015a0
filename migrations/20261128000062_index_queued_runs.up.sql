-- no-transaction
-- Serves db::organizations::count: the queued runs of one organisation, whatever waits of the others.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_runs_queued ON workflow_runs (organization_id) WHERE status = 'PENDING';
