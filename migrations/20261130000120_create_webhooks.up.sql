-- Outgoing webhooks: endpoints, the deliveries of events to them, and the attempts of each delivery. Endpoints and their
-- state are two tables: a delivery changes the state, and neither the endpoint's version nor its row.
SET LOCAL lock_timeout = '2s';

-- Rows without these values, which nothing but tests has, take no events.
ALTER TABLE webhooks
    ADD COLUMN name text NOT NULL DEFAULT '',
    ADD COLUMN url text NOT NULL DEFAULT '',
    ADD COLUMN event_types text[] NOT NULL DEFAULT '{}',
    ADD COLUMN workflow_names text[],
    ADD COLUMN filter text,
    ADD COLUMN payload text NOT NULL DEFAULT 'thin',
    ADD COLUMN ordering text NOT NULL DEFAULT 'none',
    ADD COLUMN signature text NOT NULL DEFAULT 'hmac',
    ADD COLUMN sealed jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN secret_hint text NOT NULL DEFAULT '',
    ADD COLUMN secret_created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN public_key text,
    ADD COLUMN max_in_flight integer NOT NULL DEFAULT 8,
    ADD COLUMN rate_per_second integer,
    ADD COLUMN enabled boolean NOT NULL DEFAULT true,
    ADD COLUMN disabled_reason text,
    ADD COLUMN disabled_at timestamptz,
    ADD COLUMN created_by text NOT NULL DEFAULT 'system',
    ADD COLUMN updated_by text NOT NULL DEFAULT 'system',
    ADD COLUMN created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX webhooks_of_organizations ON webhooks (organization_id, created_at, id);
COMMENT ON COLUMN webhooks.name IS 'Name for people.';
COMMENT ON COLUMN webhooks.url IS 'Where deliveries are sent.';
COMMENT ON COLUMN webhooks.event_types IS 'Types of events: a type, GROUP.* or *.';
COMMENT ON COLUMN webhooks.workflow_names IS 'Only events of workflows with these names; null: all events.';
COMMENT ON COLUMN webhooks.filter IS 'Condition on the envelope; null: none.';
COMMENT ON COLUMN webhooks.payload IS 'thin, or full with input and output.';
COMMENT ON COLUMN webhooks.ordering IS 'none, or per_run.';
COMMENT ON COLUMN webhooks.signature IS 'hmac or ed25519.';
COMMENT ON COLUMN webhooks.sealed IS
    'Secrets with their ends, and custom headers; encrypted with the first key of ENCRYPTION_KEY, if there is one.';
COMMENT ON COLUMN webhooks.secret_hint IS 'The first characters of the current secret.';
COMMENT ON COLUMN webhooks.secret_created_at IS 'Time when the current secret was set.';
COMMENT ON COLUMN webhooks.public_key IS 'Public key of an ed25519 secret.';
COMMENT ON COLUMN webhooks.max_in_flight IS 'Maximum number of deliveries that are sent at a time.';
COMMENT ON COLUMN webhooks.rate_per_second IS 'Maximum number of deliveries a second; null: no limit.';
COMMENT ON COLUMN webhooks.enabled IS 'Whether deliveries are sent; while not, new ones are held.';
COMMENT ON COLUMN webhooks.disabled_reason IS 'Why it is disabled: by_user, gone, no_success; null while enabled.';
COMMENT ON COLUMN webhooks.disabled_at IS 'Time when it was disabled; null while enabled.';
COMMENT ON COLUMN webhooks.created_by IS 'User who created it.';
COMMENT ON COLUMN webhooks.updated_by IS 'User who changed it last.';
COMMENT ON COLUMN webhooks.created_at IS 'Time of creation.';
COMMENT ON COLUMN webhooks.updated_at IS 'Time of the last change of the definition.';

CREATE TABLE webhook_states (
    webhook_id uuid PRIMARY KEY REFERENCES webhooks ON DELETE CASCADE,
    failing_since timestamptz,
    last_failure_at timestamptz,
    last_success_at timestamptz,
    failures integer NOT NULL DEFAULT 0,
    timeouts integer NOT NULL DEFAULT 0,
    served_at timestamptz NOT NULL DEFAULT '-infinity',
    next_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE webhook_states IS 'How an endpoint fares, a row for each.';
COMMENT ON COLUMN webhook_states.webhook_id IS 'The endpoint.';
COMMENT ON COLUMN webhook_states.failing_since IS 'First failure since the last success; null: none.';
COMMENT ON COLUMN webhook_states.last_failure_at IS 'Last failed attempt.';
COMMENT ON COLUMN webhook_states.last_success_at IS 'Last successful attempt.';
COMMENT ON COLUMN webhook_states.failures IS 'Failed attempts since the last success.';
COMMENT ON COLUMN webhook_states.timeouts IS 'Attempts in a row that timed out; from five on one is sent at a time.';
COMMENT ON COLUMN webhook_states.served_at IS 'When deliveries were last taken; the endpoint served longest ago is next.';
COMMENT ON COLUMN webhook_states.next_at IS 'Time from which the rate allows the next delivery.';

CREATE SEQUENCE webhook_delivery_places;
CREATE TABLE webhook_deliveries (
    id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    webhook_id uuid NOT NULL,
    organization_id text NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    event_at timestamptz NOT NULL,
    run_id text,
    seq integer,
    place bigint NOT NULL DEFAULT nextval('webhook_delivery_places'),
    body text NOT NULL,
    traceparent text,
    depth integer NOT NULL DEFAULT 0,
    state text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    schedule_from integer NOT NULL DEFAULT 0,
    is_single boolean NOT NULL DEFAULT false,
    due_at timestamptz,
    lease uuid,
    leased_until timestamptz,
    status_code integer,
    error text,
    ended_at timestamptz,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
-- What is due, endpoint by endpoint.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, due_at, place) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (webhook_id) WHERE lease IS NOT NULL;
CREATE INDEX webhook_deliveries_of_runs ON webhook_deliveries (webhook_id, run_id, place) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_of_webhooks ON webhook_deliveries (webhook_id, created_at, id);
CREATE INDEX webhook_deliveries_of_events ON webhook_deliveries (event_id, webhook_id);
COMMENT ON TABLE webhook_deliveries IS 'Events on their way to an endpoint, and what became of them; a partition a day.';
COMMENT ON COLUMN webhook_deliveries.id IS 'Id of the delivery.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'Time of its creation; decides on the partition.';
COMMENT ON COLUMN webhook_deliveries.webhook_id IS 'The endpoint, which may be deleted.';
COMMENT ON COLUMN webhook_deliveries.organization_id IS 'Organisation of the event and of the endpoint.';
COMMENT ON COLUMN webhook_deliveries.event_id IS 'The event; webhook-id on the wire.';
COMMENT ON COLUMN webhook_deliveries.event_type IS 'Type of the event.';
COMMENT ON COLUMN webhook_deliveries.event_at IS 'Time of the event.';
COMMENT ON COLUMN webhook_deliveries.run_id IS 'Run of the event, if it is about one.';
COMMENT ON COLUMN webhook_deliveries.seq IS 'Place of the event in the log of its run.';
COMMENT ON COLUMN webhook_deliveries.place IS 'Place in the order of the events of a run.';
COMMENT ON COLUMN webhook_deliveries.body IS 'The bytes that are signed and sent at each attempt.';
COMMENT ON COLUMN webhook_deliveries.traceparent IS 'W3C traceparent of the run.';
COMMENT ON COLUMN webhook_deliveries.depth IS 'Number of triggers that led to the run.';
COMMENT ON COLUMN webhook_deliveries.state IS
    'pending: to be sent. held: the endpoint was disabled when it came. delivered, failed: ended.';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Number of attempts that have ended.';
COMMENT ON COLUMN webhook_deliveries.schedule_from IS 'Number of attempts before the schedule began, or began again.';
COMMENT ON COLUMN webhook_deliveries.is_single IS 'Whether it fails with its next attempt, without the schedule.';
COMMENT ON COLUMN webhook_deliveries.due_at IS 'Time of the next attempt; null: none.';
COMMENT ON COLUMN webhook_deliveries.lease IS 'Token of the process that sends it; null: none.';
COMMENT ON COLUMN webhook_deliveries.leased_until IS 'Time from which another process may send it.';
COMMENT ON COLUMN webhook_deliveries.status_code IS 'HTTP status of the last answer.';
COMMENT ON COLUMN webhook_deliveries.error IS 'Why the last attempt failed.';
COMMENT ON COLUMN webhook_deliveries.ended_at IS 'Time when it was delivered, or failed.';

CREATE TABLE webhook_attempts (
    id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    number integer NOT NULL,
    started_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    outcome text NOT NULL,
    status_code integer,
    error text,
    content_type text,
    retry_after text,
    answer text,
    is_internal boolean NOT NULL,
    PRIMARY KEY (delivery_id, id, created_at)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE webhook_attempts IS 'Attempts of deliveries; a partition a day.';
COMMENT ON COLUMN webhook_attempts.id IS 'Id of the attempt.';
COMMENT ON COLUMN webhook_attempts.delivery_id IS 'The delivery.';
COMMENT ON COLUMN webhook_attempts.created_at IS 'Time of the delivery''s creation: both are dropped on the same day.';
COMMENT ON COLUMN webhook_attempts.number IS 'Number of the attempt, from 1.';
COMMENT ON COLUMN webhook_attempts.started_at IS 'Time when it began.';
COMMENT ON COLUMN webhook_attempts.duration_ms IS 'How long it took, in milliseconds.';
COMMENT ON COLUMN webhook_attempts.outcome IS 'success, status, timeout, network or not_allowed.';
COMMENT ON COLUMN webhook_attempts.status_code IS 'HTTP status of the answer.';
COMMENT ON COLUMN webhook_attempts.error IS 'Why it failed.';
COMMENT ON COLUMN webhook_attempts.content_type IS 'Header content-type of the answer.';
COMMENT ON COLUMN webhook_attempts.retry_after IS 'Header retry-after of the answer.';
COMMENT ON COLUMN webhook_attempts.answer IS 'Beginning of the answer, as text.';
COMMENT ON COLUMN webhook_attempts.is_internal IS
    'Whether the address is allowed by EGRESS_ALLOW only: the answer is shown to administrators.';

CREATE TABLE webhook_replays (
    id uuid PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    which text NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    event_types text[],
    phase text NOT NULL,
    after_at timestamptz,
    after_id uuid,
    replayed bigint NOT NULL DEFAULT 0,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
CREATE INDEX webhook_replays_open ON webhook_replays (created_at, id) WHERE ended_at IS NULL;
CREATE INDEX webhook_replays_of_webhooks ON webhook_replays (webhook_id, created_at);
COMMENT ON TABLE webhook_replays IS 'Recoveries of an endpoint: background work that sends deliveries again.';
COMMENT ON COLUMN webhook_replays.id IS 'Id of the recovery.';
COMMENT ON COLUMN webhook_replays.webhook_id IS 'The endpoint.';
COMMENT ON COLUMN webhook_replays.which IS 'failed, missing or all.';
COMMENT ON COLUMN webhook_replays.since IS 'Events from this time on.';
COMMENT ON COLUMN webhook_replays.until IS 'Events before this time.';
COMMENT ON COLUMN webhook_replays.event_types IS 'Only events of these types; null: all that the endpoint takes.';
COMMENT ON COLUMN webhook_replays.phase IS 'What is read now: deliveries, then events without one.';
COMMENT ON COLUMN webhook_replays.after_at IS 'Place that was reached: time.';
COMMENT ON COLUMN webhook_replays.after_id IS 'Place that was reached: id.';
COMMENT ON COLUMN webhook_replays.replayed IS 'Number of deliveries that are sent again so far.';
COMMENT ON COLUMN webhook_replays.created_by IS 'User who asked for it.';
COMMENT ON COLUMN webhook_replays.created_at IS 'Time of the request.';
COMMENT ON COLUMN webhook_replays.ended_at IS 'Time when all was done; null: under way.';

-- Take what is of days without a partition: no write ever fails for the lack of one.
CREATE TABLE webhook_deliveries_other_days PARTITION OF webhook_deliveries DEFAULT;
COMMENT ON TABLE webhook_deliveries_other_days IS 'Deliveries of days for which no API process had made a partition.';
CREATE TABLE webhook_attempts_other_days PARTITION OF webhook_attempts DEFAULT;
COMMENT ON TABLE webhook_attempts_other_days IS 'Attempts of days for which no API process had made a partition.';

-- Makes the partitions of the next days, and drops those of one day before the retention, but not while an enabled
-- endpoint is still to get something of it. Returns the partition that was dropped, so that the caller asks again. What was
-- on its way into a default partition while its day is attached would be refused; so the days begin after tomorrow.
CREATE FUNCTION keep_webhook_partitions(kept_days integer, first_day integer DEFAULT 2) RETURNS text
-- Bounds are rendered in the session's zone.
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' SET lock_timeout = '100ms' AS $$
DECLARE
    today date := (now() AT TIME ZONE 'UTC')::date;
    cutoff timestamptz := ((now() AT TIME ZONE 'UTC')::date - kept_days)::timestamp AT TIME ZONE 'UTC';
    day date;
    parent text;
    is_wanted boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('keep_webhook_partitions', 0)) THEN
        RETURN NULL;
    END IF;
    FOR day, parent IN
        SELECT today + n, p FROM generate_series(first_day, 8) AS n,
            unnest(ARRAY['webhook_deliveries', 'webhook_attempts']) AS p ORDER BY 1
    LOOP
        CONTINUE WHEN to_regclass(parent || to_char(day, '_YYYYMMDD')) IS NOT NULL;
        BEGIN
            -- Attached afterwards, which locks no other day. A day that has rows already keeps them where they are.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                parent || to_char(day, '_YYYYMMDD'), parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent, parent || to_char(day, '_YYYYMMDD'), day || ' 00:00:00+00', (day + 1) || ' 00:00:00+00');
        EXCEPTION WHEN check_violation OR lock_not_available THEN
            CONTINUE;
        END;
    END LOOP;
    -- Bounded: another call deletes the next ones.
    DELETE FROM webhook_deliveries_other_days WHERE (id, created_at) IN (
        SELECT d.id, d.created_at FROM webhook_deliveries_other_days d
        WHERE d.created_at < cutoff AND NOT (d.state = 'pending' AND EXISTS (
            SELECT FROM webhooks w WHERE w.id = d.webhook_id AND w.enabled))
        LIMIT 5000);
    DELETE FROM webhook_attempts_other_days WHERE (delivery_id, id, created_at) IN (
        SELECT a.delivery_id, a.id, a.created_at FROM webhook_attempts_other_days a
        WHERE a.created_at < cutoff AND NOT EXISTS (
            SELECT FROM webhook_deliveries d WHERE d.id = a.delivery_id AND d.created_at = a.created_at)
        LIMIT 5000);
    FOR day IN
        SELECT DISTINCT to_date(right(c.relname, 8), 'YYYYMMDD') FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('webhook_deliveries'::regclass, 'webhook_attempts'::regclass) AND c.relname ~ '_[0-9]{8}$'
        ORDER BY 1
    LOOP
        EXIT WHEN day::timestamp AT TIME ZONE 'UTC' >= cutoff;
        SELECT EXISTS (SELECT FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
            WHERE d.created_at >= day::timestamp AT TIME ZONE 'UTC'
                AND d.created_at < (day + 1)::timestamp AT TIME ZONE 'UTC' AND d.state = 'pending' AND w.enabled)
            INTO is_wanted;
        CONTINUE WHEN is_wanted;
        BEGIN
            EXECUTE format('DROP TABLE IF EXISTS %I, %I',
                to_char(day, '"webhook_attempts_"YYYYMMDD'), to_char(day, '"webhook_deliveries_"YYYYMMDD'));
            RETURN to_char(day, '"webhook_deliveries_"YYYYMMDD');
        EXCEPTION WHEN lock_not_available THEN
            RETURN NULL;
        END;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION keep_webhook_partitions IS 'Makes and drops the partitions of webhook_deliveries and webhook_attempts.';
-- No delivery is written yet, so today can have a partition. Nothing is dropped here.
SELECT keep_webhook_partitions(1000000, 0);
