SET LOCAL lock_timeout = '2s';

CREATE OR REPLACE FUNCTION event_trigger_of_run(run workflow_runs) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT NULL::jsonb
$$;
ALTER TABLE workflow_runs
    DROP COLUMN chain_depth,
    DROP COLUMN trigger_at,
    DROP COLUMN trigger_id,
    DROP COLUMN trigger_kind;
DROP TABLE trigger_firings;
DROP TABLE triggers;
