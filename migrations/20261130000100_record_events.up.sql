-- Events for programs outside: what webhooks and the Kafka topic of events tell. A row is written by the transaction
-- that changes the state, whichever program writes it, and only if it is wanted: the organisation has an endpoint, or
-- there is a topic. Otherwise a statement that writes runs pays one look at two empty tables.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs
    ADD COLUMN retries integer NOT NULL DEFAULT 0,
    ADD COLUMN error_code text;
COMMENT ON COLUMN workflow_runs.retries IS 'How often the run was started again after it had ended.';
COMMENT ON COLUMN workflow_runs.error_code IS
    'Cause of the failure as a code, as in the metric workflow_error_total; null: it has not failed, or nothing is known.';

-- Endpoints of webhooks. The migration of the webhooks adds everything else.
CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    organization_id text NOT NULL
);
CREATE INDEX webhooks_by_organization ON webhooks (organization_id);
COMMENT ON TABLE webhooks IS 'Endpoints to which events are sent. As long as an organisation has one, its events are recorded.';
COMMENT ON COLUMN webhooks.id IS 'Id of the endpoint.';
COMMENT ON COLUMN webhooks.organization_id IS 'Organisation whose events it gets.';

CREATE TABLE event_topics (
    topic text PRIMARY KEY,
    wanted_at timestamptz NOT NULL DEFAULT now(),
    owner uuid
);
COMMENT ON TABLE event_topics IS
    'The Kafka topic of events, KAFKA_EVENTS_TOPIC; at most one row. As long as there is one, events of all organisations are recorded.';
COMMENT ON COLUMN event_topics.topic IS 'Name of the topic.';
COMMENT ON COLUMN event_topics.wanted_at IS 'When an API process with this setting was last seen.';
COMMENT ON COLUMN event_topics.owner IS
    'The process (processes.id) that sends the events, one at a time, which keeps the order within a run. A dead one is replaced.';

CREATE SEQUENCE webhook_events_position;

CREATE TABLE webhook_events (
    id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    position bigint NOT NULL DEFAULT nextval('webhook_events_position'),
    organization_id text NOT NULL,
    event_type text NOT NULL,
    run_id varchar(255),
    seq integer,
    workflow_name varchar(255),
    data jsonb NOT NULL CONSTRAINT webhook_events_data_object CHECK (jsonb_typeof(data) = 'object'),
    log_kind text,
    log_until bigint,
    attempt_id varchar(255),
    traceparent text,
    to_fan_out boolean NOT NULL,
    to_publish boolean NOT NULL,
    CONSTRAINT webhook_events_pkey PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE webhook_events IS
    'Events for webhooks and for the Kafka topic of events, a partition for each day; WEBHOOK_RETENTION_DAYS.';
COMMENT ON COLUMN webhook_events.id IS 'UUIDv7. On the wire: evt_ and its 32 hexadecimal digits.';
COMMENT ON COLUMN webhook_events.created_at IS 'When it was recorded.';
COMMENT ON COLUMN webhook_events.position IS
    'Order in which events were recorded. Those of a run become visible in this order, if its row was locked for them.';
COMMENT ON COLUMN webhook_events.organization_id IS 'Organisation of the event.';
COMMENT ON COLUMN webhook_events.event_type IS 'Type, such as run.completed.';
COMMENT ON COLUMN webhook_events.run_id IS 'Run of the event; null: it is about no run.';
COMMENT ON COLUMN webhook_events.seq IS
    'Place of the event in the run''s log (run_events.seq). Its first reader finds it; null: no run, no reader yet, or the run is gone.';
COMMENT ON COLUMN webhook_events.workflow_name IS 'Workflow of the event, if it has one.';
COMMENT ON COLUMN webhook_events.data IS 'Member data of the envelope, without seq and links.';
COMMENT ON COLUMN webhook_events.log_kind IS
    'Kind of the log entry that the place is of (run_events.kind); null: the last entry before the event.';
COMMENT ON COLUMN webhook_events.log_until IS 'The entry is the last one whose run_events.id is not greater than this.';
COMMENT ON COLUMN webhook_events.attempt_id IS 'Attempt of that entry, if it is of one.';
COMMENT ON COLUMN webhook_events.traceparent IS 'traceparent of the run.';
COMMENT ON COLUMN webhook_events.to_fan_out IS 'Whether deliveries to endpoints have yet to be made from it.';
COMMENT ON COLUMN webhook_events.to_publish IS 'Whether it has yet to be sent to the Kafka topic of events.';
-- What readers have not seen yet, which they find by the flag: ids and positions say when a row was written, not when
-- it became visible, so a reader that remembered the last one would miss rows that were committed late.
CREATE INDEX webhook_events_to_fan_out ON webhook_events (position) WHERE to_fan_out;
CREATE INDEX webhook_events_to_publish ON webhook_events (position) WHERE to_publish;
-- Serves searches in the events of an organisation.
CREATE INDEX webhook_events_by_creation ON webhook_events (organization_id, created_at, id);
-- Takes the events of days without a partition: no write ever fails for the lack of one.
CREATE TABLE webhook_events_other_days PARTITION OF webhook_events DEFAULT;
COMMENT ON TABLE webhook_events_other_days IS 'Events of days for which no API process had made a partition.';

-- A UUIDv7: PostgreSQL makes them from version 18 on.
CREATE FUNCTION new_event_id(at timestamptz) RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;

-- What started a run: kind, id, at and depth. The migration of the triggers replaces it.
CREATE FUNCTION event_trigger_of_run(run workflow_runs) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT NULL::jsonb
$$;

-- Time as the API writes it; null for infinity, which other programs may write.
CREATE FUNCTION event_time(at timestamp) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
$$;

-- Records events of runs, each with the members that its type adds to the data. For callers that have found that
-- an endpoint or a topic wants them. Returns their ids.
CREATE FUNCTION record_run_events(run_ids varchar[], types text[], log_kinds text[], attempts varchar[], members jsonb[])
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
-- It has the rights of its owner, and is there for the functions below.
REVOKE EXECUTE ON FUNCTION record_run_events FROM PUBLIC;

-- Records an event in the caller's transaction, if an endpoint or a topic wants it. Returns its id; null: none does.
-- `data` has the members that the type adds; those of the run, and organization_id, are added here. A run that is not
-- there has no event.
CREATE FUNCTION record_event(organization text, type text, run varchar, data jsonb, workflow varchar DEFAULT NULL)
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

-- Counts retries, whichever program writes the status.
CREATE FUNCTION count_retry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.retries := OLD.retries + 1;
    NEW.error_code := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER workflow_runs_retry_is_counted BEFORE UPDATE ON workflow_runs FOR EACH ROW
    WHEN (OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED') AND NEW.status = 'PENDING')
    EXECUTE FUNCTION count_retry();

-- Changes of runs, once for each statement: without endpoints and topics, a statement of many runs costs one look.
-- Old and new rows are grouped instead of joined: sessions of executors join by nested loops only.
CREATE FUNCTION record_events_of_runs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM event_topics) THEN
        PERFORM record_run_events(array_agg(run_id), array_agg(type), array_agg(log_kind),
            array_agg(NULL::varchar), array_agg(NULL::jsonb))
        FROM (
            SELECT run_id, type, CASE WHEN type NOT IN ('run.paused', 'run.resumed') THEN type END AS log_kind
            FROM (
                SELECT run_id, CASE
                    WHEN status = before THEN CASE WHEN was_paused AND NOT is_paused THEN 'run.resumed'
                        WHEN is_paused AND NOT was_paused THEN 'run.paused' END
                    WHEN status = 'PENDING' THEN CASE WHEN before IN ('COMPLETED', 'FAILED', 'CANCELLED') THEN 'run.retried' END
                    WHEN status = 'RUNNING' THEN 'run.started'
                    WHEN status IN ('COMPLETED', 'FAILED', 'CANCELLED') THEN 'run.' || lower(status) END AS type
                FROM (
                    SELECT run_id, max(status) FILTER (WHERE is_new) AS status,
                        max(status) FILTER (WHERE NOT is_new) AS before,
                        bool_or(is_paused) FILTER (WHERE is_new) AS is_paused,
                        bool_or(is_paused) FILTER (WHERE NOT is_new) AS was_paused
                    FROM (
                        SELECT true AS is_new, run_id, status, paused_at IS NOT NULL AS is_paused FROM added
                        UNION ALL SELECT false, run_id, status, paused_at IS NOT NULL FROM gone
                    ) AS version GROUP BY run_id
                ) AS run
            ) AS typed WHERE type IS NOT NULL
        ) AS event HAVING count(*) > 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_update_is_told AFTER UPDATE ON workflow_runs REFERENCING OLD TABLE AS gone NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION record_events_of_runs();

-- An executor of another program may insert the run that it begins. Ended runs are inserted from the archive only.
CREATE FUNCTION record_event_of_new_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM event_topics) THEN
        PERFORM record_run_events(ARRAY[NEW.run_id], ARRAY['run.started'], ARRAY['run.started'], ARRAY[NULL]::varchar[],
            ARRAY[NULL]::jsonb[]);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_insert_is_told AFTER INSERT ON workflow_runs FOR EACH ROW
    WHEN (NEW.status = 'RUNNING') EXECUTE FUNCTION record_event_of_new_run();

-- Failed attempts, except those that end because their run is cancelled.
CREATE FUNCTION record_event_of_attempt() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF (EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM event_topics))
        AND NOT EXISTS (SELECT FROM workflow_runs r WHERE r.run_id = NEW.run_id AND r.status = 'CANCELLED') THEN
        PERFORM record_run_events(ARRAY[NEW.run_id], ARRAY['step.failed'], ARRAY['attempt.failed'], ARRAY[NEW.id],
            ARRAY[jsonb_build_object(
                'step', jsonb_build_object('id', NEW.step_id, 'attempt_id', NEW.id, 'agent_name', nullif(NEW.agent_name, '')),
                'error', jsonb_build_object(
                    'code', NULL, 'step_id', NEW.step_id, 'message', left(NEW.error_message, 4096)))]);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER step_executions_insert_is_told AFTER INSERT ON step_executions FOR EACH ROW
    WHEN (NEW.status = 'FAILED' AND current_setting('workflow_api.restores', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_event_of_attempt();
CREATE TRIGGER step_executions_update_is_told AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (NEW.status = 'FAILED' AND OLD.status <> 'FAILED') EXECUTE FUNCTION record_event_of_attempt();

-- Callbacks and questions of agents whose answer a step has begun to wait for.
CREATE FUNCTION record_event_of_wait() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM webhooks) OR EXISTS (SELECT FROM event_topics) THEN
        PERFORM record_run_events(ARRAY[NEW.run_id], ARRAY['run.waiting'], ARRAY['attempt.waiting'], ARRAY[NEW.attempt_id],
            ARRAY[jsonb_build_object('waiting', jsonb_build_object(
                'kind', CASE WHEN NEW.question IS NULL THEN 'callback' ELSE 'question' END,
                'step_id', NEW.step_id, 'attempt_id', NEW.attempt_id,
                'due_at', event_time(NEW.due_at AT TIME ZONE 'UTC')))]);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER step_waits_insert_is_told AFTER INSERT ON step_waits FOR EACH ROW
    WHEN (NEW.attempt_id IS NOT NULL AND NEW.token_hash IS NOT NULL AND NEW.answered_at IS NULL
        AND current_setting('workflow_api.restores', true) IS DISTINCT FROM 'itself')
    EXECUTE FUNCTION record_event_of_wait();
CREATE TRIGGER step_waits_update_is_told AFTER UPDATE ON step_waits FOR EACH ROW
    WHEN (OLD.attempt_id IS NULL AND NEW.attempt_id IS NOT NULL AND NEW.token_hash IS NOT NULL AND NEW.answered_at IS NULL)
    EXECUTE FUNCTION record_event_of_wait();

-- A circuit breaker that opens or closes, also one that is closed by hand. One that goes on trial tells nothing.
CREATE FUNCTION record_event_of_breaker() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM record_event(a.organization_id,
        CASE WHEN TG_OP = 'DELETE' OR NEW.state = 'closed' THEN 'agent.recovered' ELSE 'agent.unavailable' END, NULL,
        jsonb_build_object('agent', jsonb_build_object('id', a.id, 'name', a.name), 'source', 'circuit_breaker'))
    FROM agents a WHERE a.id = OLD.agent_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER circuit_breakers_update_is_told AFTER UPDATE ON circuit_breakers FOR EACH ROW
    WHEN ((OLD.state = 'closed') <> (NEW.state = 'closed')) EXECUTE FUNCTION record_event_of_breaker();
CREATE TRIGGER circuit_breakers_delete_is_told AFTER DELETE ON circuit_breakers FOR EACH ROW
    WHEN (OLD.state <> 'closed') EXECUTE FUNCTION record_event_of_breaker();

CREATE FUNCTION record_event_of_dead_letter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM record_event(NEW.organization_id, 'dead_letter.created', NULL, jsonb_build_object('dead_letter',
        jsonb_build_object('id', NEW.id, 'topic', NEW.topic, 'partition', NEW.partition, 'offset', NEW.record_offset,
            'reason', NEW.reason, 'run_id', NEW.run_id)));
    RETURN NULL;
END
$$;
CREATE TRIGGER dead_letters_insert_is_told AFTER INSERT ON dead_letters FOR EACH ROW
    EXECUTE FUNCTION record_event_of_dead_letter();

-- Finds the places of these events, none of which is older than `since`, in the logs of their runs. Log entries get
-- their numbers when they are first read (db::events::number), and this is a reader.
CREATE FUNCTION place_events(ids uuid[], since timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    runs varchar[];
BEGIN
    SELECT array_agg(DISTINCT run_id) INTO runs FROM webhook_events
    WHERE id = ANY (ids) AND created_at >= since AND run_id IS NOT NULL AND seq IS NULL;
    -- Of two that number the same log, the constraint refuses one, which then sees what the other one has numbered.
    FOR round IN 1..100 LOOP
        EXIT WHEN runs IS NULL;
        BEGIN
            WITH unnumbered AS MATERIALIZED (
                SELECT ctid AS location, id, run_id FROM run_events
                WHERE run_id = ANY (runs) AND seq IS NULL ORDER BY run_id, id FOR UPDATE
            ), numbered AS (
                SELECT location, u.run_id, row_number() OVER (PARTITION BY u.run_id ORDER BY u.id)
                    + coalesce((SELECT max(seq) FROM run_events e WHERE e.run_id = u.run_id), 0) AS number
                FROM unnumbered u
            )
            UPDATE run_events e SET seq = number FROM numbered n WHERE e.ctid = location AND e.run_id = n.run_id;
            EXIT;
        EXCEPTION WHEN unique_violation THEN
            IF round = 100 THEN
                RAISE;
            END IF;
        END;
    END LOOP;
    WITH event AS MATERIALIZED (
        SELECT id, run_id, log_kind, log_until, attempt_id FROM webhook_events
        WHERE id = ANY (ids) AND created_at >= since AND run_id IS NOT NULL AND seq IS NULL
    ), entry AS MATERIALIZED (
        SELECT run_id, id, seq, kind, attempt_id FROM run_events WHERE run_id = ANY (runs) AND seq IS NOT NULL
    ), place AS (
        SELECT event.id, coalesce(
            max(entry.seq) FILTER (WHERE entry.kind = event.log_kind
                AND (event.attempt_id IS NULL OR entry.attempt_id = event.attempt_id)),
            max(entry.seq)) AS seq
        FROM event JOIN entry ON entry.run_id = event.run_id AND entry.id <= event.log_until
        GROUP BY event.id
    )
    UPDATE webhook_events e SET seq = place.seq FROM place WHERE e.id = place.id AND e.created_at >= since;
END
$$;

-- Takes the next events whose deliveries have yet to be made, at most `most`, with their places in the logs; in no
-- order. For one process at a time, so that those of a run are taken in their order: the lock ends with the caller's
-- transaction, which has to make the deliveries. Nothing, while another process takes some.
CREATE FUNCTION take_events(most integer) RETURNS SETOF webhook_events
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    ids uuid[];
    since timestamptz;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('take_events', 0)) THEN
        RETURN;
    END IF;
    SELECT array_agg(id), min(created_at) INTO ids, since
    FROM (SELECT id, created_at FROM webhook_events WHERE to_fan_out ORDER BY position LIMIT most) AS next;
    IF ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM place_events(ids, since);
    RETURN QUERY UPDATE webhook_events SET to_fan_out = false WHERE id = ANY (ids) AND created_at >= since RETURNING *;
END
$$;

-- Makes the partitions of the next days, and drops one whose day is over. Waits for other sessions only a moment; what
-- it could not do, the next call does. Returns the name of a dropped partition. The first day is one that no event can
-- be of yet: one that is about to enter the default partition while a partition of its day is attached would be
-- refused, and with it the statement that has caused it.
CREATE FUNCTION keep_event_partitions(kept_days integer, first_day integer DEFAULT 2) RETURNS text
-- Bounds are rendered in the session's zone.
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '100ms' AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    cutoff timestamptz := now() - make_interval(days => kept_days);
    day date;
    part record;
    is_pending boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('keep_event_partitions', 0)) THEN
        RETURN NULL;
    END IF;
    FOR day IN SELECT today + n FROM generate_series(first_day, 8) AS n LOOP
        CONTINUE WHEN to_regclass(format('webhook_events_%s', to_char(day, 'YYYY_MM_DD'))) IS NOT NULL;
        BEGIN
            -- Attached afterwards, which locks no other day. A day that has events already keeps them where they are.
            EXECUTE format('CREATE TABLE %I (LIKE webhook_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                'webhook_events_' || to_char(day, 'YYYY_MM_DD'));
            EXECUTE format('ALTER TABLE webhook_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                'webhook_events_' || to_char(day, 'YYYY_MM_DD'), day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
        EXCEPTION WHEN check_violation OR lock_not_available THEN
            CONTINUE;
        END;
    END LOOP;
    -- Bounded: another call deletes the next ones.
    DELETE FROM webhook_events_other_days WHERE (id, created_at) IN (
        SELECT id, created_at FROM webhook_events_other_days
        WHERE created_at < cutoff AND NOT to_fan_out AND NOT (to_publish AND EXISTS (SELECT FROM event_topics))
        LIMIT 5000);
    FOR part IN
        SELECT relname, substring(pg_get_expr(relpartbound, oid) FROM $re$TO \('([^']+)'\)$re$)::timestamptz AS upper_bound
        FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = 'webhook_events'::regclass ORDER BY 2
    LOOP
        CONTINUE WHEN part.upper_bound IS NULL OR part.upper_bound > cutoff;
        -- Events that a reader has not seen are kept, however old they are.
        EXECUTE format('SELECT EXISTS (SELECT FROM %1$I WHERE to_fan_out)
            OR (EXISTS (SELECT FROM event_topics) AND EXISTS (SELECT FROM %1$I WHERE to_publish))', part.relname)
            INTO is_pending;
        CONTINUE WHEN is_pending;
        BEGIN
            EXECUTE format('DROP TABLE %I', part.relname);
            RETURN part.relname;
        EXCEPTION WHEN lock_not_available THEN
            RETURN NULL;
        END;
    END LOOP;
    RETURN NULL;
END
$$;
-- No event is written yet, so today can have a partition. Nothing is dropped here.
SELECT keep_event_partitions(1000000, 0);
