-- Monitoring updates that Kafka does not have yet: a row for each statement of an executor's journal, with all that it
-- causes, deleted once the broker has acknowledged it. The owner has the updates in memory and sends them from there.
SET LOCAL lock_timeout = '2s';

CREATE TABLE monitoring_outbox (
    id uuid PRIMARY KEY,
    owner uuid,                             -- processes.id of the executor that sends it; null: anyone may take it
    updates text[] NOT NULL,                -- each a JSON array of record values, in their order
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
