-- The audit trail: more of who did what, a partition a month so that old entries go by whole months, nobody who may
-- change an entry, and a chain of hashes for each organisation, by which it shows if somebody did all the same.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

ALTER TABLE audit_logs
    ADD COLUMN organization_id text NOT NULL DEFAULT 'default',
    ADD COLUMN entity_name text,            -- of an agent or a workflow its name, of a run its id, …
    ADD COLUMN outcome text NOT NULL DEFAULT 'success' CONSTRAINT audit_logs_outcome_known CHECK (outcome IN ('success', 'denied')),
    ADD COLUMN previous jsonb,              -- what the members of `changes` were before
    ADD COLUMN key_id uuid,                 -- the API key, if it was one
    ADD COLUMN address text,                -- of the client
    ADD COLUMN correlation_id text;         -- of the request

-- The old table becomes the partition of all that was.
ALTER TABLE audit_logs RENAME TO audit_logs_before;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT conname FROM pg_constraint WHERE conrelid = 'audit_logs_before'::regclass AND contype = 'p' LOOP
        EXECUTE format('ALTER TABLE audit_logs_before DROP CONSTRAINT %I', name);
    END LOOP;
    FOR name IN SELECT indexrelid::regclass FROM pg_index WHERE indrelid = 'audit_logs_before'::regclass LOOP
        EXECUTE format('DROP INDEX %s', name);
    END LOOP;
END
$$;
CREATE TABLE audit_logs (
    LIKE audit_logs_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    CONSTRAINT audit_logs_pkey PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
DO $$
DECLARE
    -- The month after the last entry, and not before this one.
    until timestamp := date_trunc('month', greatest(
        (SELECT max(created_at) + interval '1 month' FROM audit_logs_before), now() AT TIME ZONE 'UTC'));
BEGIN
    EXECUTE format('ALTER TABLE audit_logs ATTACH PARTITION audit_logs_before FOR VALUES FROM (MINVALUE) TO (%L)', until);
END
$$;
CREATE INDEX idx_audit_logs_action ON audit_logs (action);
-- Serves the list of an organisation.
CREATE INDEX idx_audit_logs_created_at ON audit_logs (organization_id, created_at, id);
CREATE INDEX idx_audit_logs_entity_id ON audit_logs (entity_id);
CREATE INDEX idx_audit_logs_entity_type ON audit_logs (entity_type);
CREATE INDEX idx_audit_logs_entity ON audit_logs (entity_type, entity_id);
CREATE INDEX idx_audit_logs_user_id ON audit_logs (user_id);

-- What an entry says, as 32 bytes.
CREATE FUNCTION audit_entry_hash(entry audit_logs) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(convert_to(jsonb_build_array(entry.id, entry.organization_id, entry.entity_type, entry.entity_id,
        entry.entity_name, entry.action, entry.outcome, entry.user_id, entry.key_id, entry.address,
        entry.correlation_id, entry.changes, entry.previous, entry.created_at)::text, 'UTF8'))
$$;

-- Entries that no seal covers yet; written by the trigger, emptied by whoever seals. No index: it is short, and read whole.
CREATE TABLE audit_unsealed (
    organization_id text NOT NULL,
    entry_id uuid NOT NULL,
    entry_at timestamp NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- The chain. A seal covers some entries and, by the hash of the seal before it, all seals before.
CREATE TABLE audit_seals (
    organization_id text NOT NULL,
    number bigint NOT NULL,                 -- from 1 without gaps in each organisation
    sealed_at timestamptz NOT NULL DEFAULT now(),
    entry_ids uuid[] NOT NULL,
    entry_ats timestamp[] NOT NULL,         -- their created_at
    entry_hashes bytea NOT NULL,            -- their audit_entry_hash, one after the other; of a missing one zeros
    previous bytea NOT NULL,                -- hash of the seal before; of the first one zeros
    hash bytea NOT NULL,                    -- audit_seal_hash of the columns above
    CONSTRAINT audit_seals_pkey PRIMARY KEY (organization_id, number, sealed_at)
) PARTITION BY RANGE (sealed_at);

CREATE FUNCTION audit_seal_hash(organization_id text, number bigint, entry_hashes bytea, previous bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(convert_to(organization_id, 'UTF8') || int8send(number) || previous || entry_hashes)
$$;

-- Up to where entries have gone because of their age.
CREATE TABLE audit_retention (
    dropped_before timestamp NOT NULL
);
INSERT INTO audit_retention VALUES ('-infinity');

CREATE FUNCTION queue_for_seal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO audit_unsealed (organization_id, entry_id, entry_at) SELECT organization_id, id, created_at FROM added;
    RETURN NULL;
END
$$;
CREATE TRIGGER audit_logs_are_sealed AFTER INSERT ON audit_logs REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION queue_for_seal();

CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_logs_append_only BEFORE UPDATE OR DELETE ON audit_logs
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_seals_append_only BEFORE UPDATE OR DELETE ON audit_seals
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_logs_not_truncated BEFORE TRUNCATE ON audit_logs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_seals_not_truncated BEFORE TRUNCATE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();
CREATE TRIGGER audit_logs_not_truncated BEFORE TRUNCATE ON audit_logs_before
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change();

-- Makes the partitions of this month and the next three, and drops those that hold nothing younger than `kept_days`.
-- Runs with the rights of its owner: the service's role needs none over the tables but to read and to add.
CREATE FUNCTION keep_audit_partitions(kept_days integer) RETURNS void
-- Bounds are rendered in the session's zone.
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET timezone = 'UTC' AS $$
DECLARE
    this_month timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
    cutoff timestamp := now() AT TIME ZONE 'UTC' - make_interval(days => kept_days);
    of text;
    part record;
    begins timestamp;
    ends timestamp;
BEGIN
    -- One at a time.
    PERFORM pg_advisory_xact_lock(hashtextextended('keep_audit_partitions', 0));
    FOREACH of IN ARRAY ARRAY['audit_logs', 'audit_seals'] LOOP
        -- The first month that is in no partition, and this one if there is none at all.
        SELECT coalesce(max(upper_bound), this_month) INTO begins FROM (
            SELECT substring(pg_get_expr(relpartbound, oid) FROM $re$TO \('([^']+)'\)$re$)::timestamp AS upper_bound
            FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = of::regclass) AS bounds;
        WHILE begins < this_month + interval '4 months' LOOP
            ends := begins + interval '1 month';
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                of || to_char(begins, '_YYYY_MM'), of, begins || '+00', ends || '+00');
            EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()',
                of || '_not_truncated', of || to_char(begins, '_YYYY_MM'));
            begins := ends;
        END LOOP;
        FOR part IN
            SELECT relname, substring(pg_get_expr(relpartbound, oid) FROM $re$TO \('([^']+)'\)$re$)::timestamp AS upper_bound
            FROM pg_class JOIN pg_inherits ON inhrelid = oid WHERE inhparent = of::regclass
        LOOP
            IF part.upper_bound <= cutoff THEN
                EXECUTE format('DROP TABLE %I', part.relname);
                IF of = 'audit_logs' THEN
                    UPDATE audit_retention SET dropped_before = greatest(dropped_before, part.upper_bound);
                END IF;
            END IF;
        END LOOP;
    END LOOP;
END
$$;
-- Nothing is dropped here.
SELECT keep_audit_partitions(1000000);

-- What was there is sealed first.
INSERT INTO audit_unsealed (organization_id, entry_id, entry_at) SELECT organization_id, id, created_at FROM audit_logs;
