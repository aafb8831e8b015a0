-- no-transaction
-- Serves db::callbacks::list of open ones. Answered ones leave it, and waits without a callback are not in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS step_waits_open
    ON step_waits (organization_id, created_at, id) WHERE token IS NOT NULL AND answered_at IS NULL;
