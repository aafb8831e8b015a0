-- Push notifications of workflows as A2A agents. They are deliveries as those of webhooks, made from the same events. The
-- rows of `webhooks` that they belong to are queues of an organisation, of a fixed number: what is due is found queue by
-- queue, and a row for each configuration would make that as long as there are tasks.
SET LOCAL lock_timeout = '2s';

ALTER TABLE webhooks ADD COLUMN lane smallint;
CREATE UNIQUE INDEX webhooks_lanes ON webhooks (organization_id, lane) WHERE lane IS NOT NULL;
COMMENT ON COLUMN webhooks.lane IS
    'Null: an endpoint. Otherwise this is a queue of push notifications, for receivers whose host and port have this number.';

ALTER TABLE webhook_deliveries ADD COLUMN push_id uuid;
COMMENT ON COLUMN webhook_deliveries.push_id IS 'The configuration (task_pushes.id) of a push notification; null: of a webhook.';

CREATE TABLE task_pushes (
    id uuid PRIMARY KEY,
    organization_id text NOT NULL,
    run_id varchar(255) NOT NULL,
    name text NOT NULL,
    url text NOT NULL,
    scheme text,
    protocol text NOT NULL,
    sealed jsonb NOT NULL,
    webhook_id uuid NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT task_pushes_of_runs UNIQUE (run_id, name)
);
CREATE INDEX task_pushes_of_lanes ON task_pushes (webhook_id);
COMMENT ON TABLE task_pushes IS
    'Configurations of push notifications: where A2A clients are told of a task. Removed when the task has ended and all is sent.';
COMMENT ON COLUMN task_pushes.id IS 'Id in this database.';
COMMENT ON COLUMN task_pushes.organization_id IS 'Organisation of the run.';
COMMENT ON COLUMN task_pushes.run_id IS 'Run that is the task.';
COMMENT ON COLUMN task_pushes.name IS 'Id of the configuration for clients.';
COMMENT ON COLUMN task_pushes.url IS 'Where notifications are sent.';
COMMENT ON COLUMN task_pushes.scheme IS 'Scheme of the header Authorization; null: none was asked for.';
COMMENT ON COLUMN task_pushes.protocol IS 'Version of A2A in which it was made, and in which notifications are written.';
COMMENT ON COLUMN task_pushes.sealed IS
    'Headers with the token and the credentials; encrypted with the first key of ENCRYPTION_KEY, if there is one.';
COMMENT ON COLUMN task_pushes.webhook_id IS 'Queue of its notifications.';
COMMENT ON COLUMN task_pushes.created_by IS 'User who made it.';
COMMENT ON COLUMN task_pushes.created_at IS 'When it was made, or replaced: it is told of what happens later.';

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
            EXISTS (SELECT FROM webhooks w WHERE w.organization_id = r.organization_id AND w.lane IS NULL)
                OR EXISTS (SELECT FROM task_pushes p WHERE p.run_id = r.run_id)
                -- A question of a sub-run is one of the runs around it.
                OR e.type = 'run.waiting' AND r.parent_run_id IS NOT NULL AND EXISTS (
                    WITH RECURSIVE around (run_id) AS (
                        SELECT r.parent_run_id
                        UNION ALL
                        SELECT a.parent_run_id FROM around JOIN workflow_runs a ON a.run_id = around.run_id
                        WHERE a.parent_run_id IS NOT NULL
                    )
                    SELECT FROM around JOIN task_pushes p ON p.run_id = around.run_id
                ) AS has_endpoint
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
    has_endpoint boolean := EXISTS (SELECT FROM webhooks w WHERE w.organization_id = organization AND w.lane IS NULL);
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
