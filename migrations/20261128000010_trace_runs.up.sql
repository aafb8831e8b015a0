-- The trace that a run belongs to, for the header of all that is sent about it.
SET LOCAL lock_timeout = '2s';

-- W3C `traceparent` of the request that started the run; null: it named none, and the run has a trace of its own.
ALTER TABLE workflow_runs ADD COLUMN traceparent text;

COMMENT ON COLUMN workflow_runs.traceparent IS
    'W3C traceparent of the request that started the run; null: it named none, and the run has a trace of its own.';
