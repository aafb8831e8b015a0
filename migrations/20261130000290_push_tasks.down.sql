SET LOCAL lock_timeout = '2s';

-- Records events of runs, each with the members that its type adds to the data. For callers that have found that
-- an endpoint or a topic wants them. Returns their ids.
CREATE OR REPLACE FUNCTION record_run_events(run_ids varchar[], types text[], log_kinds text[], attempts varchar[], members jsonb[])
RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
-- Rows are found by their keys, however small the tables were when the plans were made.
SET enable_seqscan = off
AS $$
DECLARE
    recorded uuid[];
    has_topic boolean := EXISTS (SELECT FROM event_topics);
    -- Entries that are written later, of the same runs too, have greater ids.
    log_end bigint := (SELECT last_value FROM run_events_id_seq);
BEGIN
    WITH inserted AS (INSERT INTO webhook_events (id, created_at, organization_id, event_type, run_id, workflow_name, data,
        log_kind, log_until, attempt_id, traceparent, to_fan_out, to_publish)
    SELECT new_event_id(at), at, organization_id, type, run_id, workflow_name,
        jsonb_build_object(
            'organization_id', organization_id,
            'run_id', run_id,
            'status', status,
            'workflow', jsonb_build_object(
                'id', coalesce(workflow_definition_id, workflow_id), 'name', workflow_name, 'version', workflow_version),
            'attempt', retries + 1,
            'parent_run_id', parent_run_id,
            'trigger', started_by,
            'error', CASE WHEN status IN ('FAILED', 'CANCELLED') THEN jsonb_build_object(
                'code', CASE status WHEN 'FAILED' THEN coalesce(error_code,
                    (SELECT 'budget_exceeded' FROM run_usage u WHERE u.run_id = run.run_id AND u.exceeded IS NOT NULL)) END,
                'step_id', CASE status WHEN 'FAILED' THEN substring(error_message FROM '^Step ''(.+?)'' failed: ') END,
                'message', left(error_message, 4096)) END,
            'started_at', event_time(execution_started_at),
            'ended_at', event_time(CASE WHEN status IN ('COMPLETED', 'FAILED', 'CANCELLED')
                THEN coalesce(CASE status WHEN 'CANCELLED' THEN cancelled_at END, completed_at, updated_at) END)
        ) || coalesce(extra, '{}'),
        log_kind, log_end, attempt_id, traceparent, has_endpoint, has_topic
    FROM (
        SELECT r.*, event_trigger_of_run(r) AS started_by, e.type, e.log_kind, e.attempt_id, e.extra,
            clock_timestamp() AS at,
            EXISTS (SELECT FROM webhooks w WHERE w.organization_id = r.organization_id) AS has_endpoint
        FROM unnest(run_ids, types, log_kinds, attempts, members) WITH ORDINALITY
            AS e (run_id, type, log_kind, attempt_id, extra, place)
        JOIN workflow_runs r ON r.run_id = e.run_id
        ORDER BY place
    ) AS run
    WHERE has_topic OR has_endpoint RETURNING id)
    SELECT array_agg(id) INTO recorded FROM inserted;
    RETURN recorded;
END
$$;

-- Records an event in the caller's transaction, if an endpoint or a topic wants it. Returns its id; null: none does.
-- `data` has the members that the type adds; those of the run, and organization_id, are added here. A run that is not
-- there has no event.
CREATE OR REPLACE FUNCTION record_event(organization text, type text, run varchar, data jsonb, workflow varchar DEFAULT NULL)
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    at timestamptz := clock_timestamp();
    has_endpoint boolean := EXISTS (SELECT FROM webhooks w WHERE w.organization_id = organization);
    has_topic boolean := EXISTS (SELECT FROM event_topics);
    recorded uuid;
BEGIN
    IF NOT has_endpoint AND NOT has_topic THEN
        RETURN NULL;
    END IF;
    IF run IS NOT NULL THEN
        RETURN (record_run_events(ARRAY[run], ARRAY[type], ARRAY[NULL], ARRAY[NULL]::varchar[], ARRAY[data]))[1];
    END IF;
    recorded := new_event_id(at);
    INSERT INTO webhook_events (id, created_at, organization_id, event_type, workflow_name, data, to_fan_out, to_publish)
    VALUES (recorded, at, organization, type, workflow,
        jsonb_build_object('organization_id', organization) || coalesce(data, '{}'), has_endpoint, has_topic);
    RETURN recorded;
END
$$;

DROP TABLE task_pushes;
-- What is left of notifications would be of no endpoint.
DELETE FROM webhook_deliveries WHERE push_id IS NOT NULL;
DELETE FROM webhooks WHERE lane IS NOT NULL;
ALTER TABLE webhook_deliveries DROP COLUMN push_id;
DROP INDEX webhooks_lanes;
ALTER TABLE webhooks DROP COLUMN lane;
