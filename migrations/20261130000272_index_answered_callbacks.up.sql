-- no-transaction
-- Serves db::callbacks::list of answered ones.
CREATE INDEX CONCURRENTLY IF NOT EXISTS step_waits_answered
    ON step_waits (organization_id, answered_at, id) WHERE answered_at IS NOT NULL;
