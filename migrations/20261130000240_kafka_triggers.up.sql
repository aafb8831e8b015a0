-- Triggers of the kind kafka: their consumer groups, and dead letters of their records.
SET LOCAL lock_timeout = '2s';

CREATE TABLE kafka_triggers (
    trigger_id uuid PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    group_id text NOT NULL,
    started_at timestamptz,
    starting_until timestamptz,
    free_at timestamptz NOT NULL DEFAULT '-infinity',
    error text,
    error_at timestamptz,
    CONSTRAINT kafka_triggers_group UNIQUE (group_id)
) WITH (fillfactor = 70);
COMMENT ON TABLE kafka_triggers IS 'State of each trigger of the kind kafka. How far it has read is kept by its consumer group.';
COMMENT ON COLUMN kafka_triggers.trigger_id IS 'The trigger.';
COMMENT ON COLUMN kafka_triggers.group_id IS 'Consumer group in which all processes read its topic.';
COMMENT ON COLUMN kafka_triggers.started_at IS
    'When its member start was applied to the group; null: it is applied before the topic is read.';
COMMENT ON COLUMN kafka_triggers.starting_until IS 'Until when one process has the right to apply start.';
COMMENT ON COLUMN kafka_triggers.free_at IS 'From when on max_per_second allows another run.';
COMMENT ON COLUMN kafka_triggers.error IS 'Why the topic could not be read; null: it can.';
COMMENT ON COLUMN kafka_triggers.error_at IS 'When that was noticed last.';

CREATE TABLE kafka_groups_to_delete (
    group_id text PRIMARY KEY,
    delete_at timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0
);
COMMENT ON TABLE kafka_groups_to_delete IS
    'Consumer groups of deleted triggers that the brokers still have. A row is given up after a day of attempts.';
COMMENT ON COLUMN kafka_groups_to_delete.group_id IS 'The group.';
COMMENT ON COLUMN kafka_groups_to_delete.delete_at IS 'When its deletion is tried next.';
COMMENT ON COLUMN kafka_groups_to_delete.attempts IS 'Number of attempts so far.';

ALTER TABLE dead_letters ADD COLUMN trigger_id uuid;
COMMENT ON COLUMN dead_letters.trigger_id IS
    'Trigger that could not use the record; it may be deleted. Null: the record was one for executors.';
COMMENT ON COLUMN dead_letters.digest IS 'SHA-256 of key and value; for the record of a trigger, also of its id and of the time.';
