-- no-transaction
-- Serves db::questions: the tasks of agents that have to be cancelled. They are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS step_waits_cancel ON step_waits (cancel_at) WHERE cancel_at IS NOT NULL;
