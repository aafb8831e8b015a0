-- The execution requests of runs that one statement starts are one row, which is deleted when all of them are acknowledged:
-- a row for each was an index entry more to write, to find and to delete for every run.
SET LOCAL lock_timeout = '2s';

CREATE TABLE outbox_batches (
    id uuid CONSTRAINT outbox_batches_pkey PRIMARY KEY,
    owner uuid NOT NULL,
    run_ids text[] NOT NULL,
    event_ids uuid[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE outbox_batches IS
    'Outbox: execution requests that are in the memory of one process. When that process is dead, they become rows of outbox.';
COMMENT ON COLUMN outbox_batches.id IS 'Id of the batch.';
COMMENT ON COLUMN outbox_batches.owner IS 'Process (processes.id) that sends the requests.';
COMMENT ON COLUMN outbox_batches.run_ids IS 'Runs of the requests.';
COMMENT ON COLUMN outbox_batches.event_ids IS 'Their event ids, in the same order.';
COMMENT ON COLUMN outbox_batches.created_at IS 'Time of the start of the runs.';

CREATE VIEW outbox_messages AS
    SELECT run_id, event_id, kind, owner, created_at FROM outbox
    UNION ALL
    SELECT message.run_id, message.event_id, 'execution', owner, created_at
    FROM outbox_batches, unnest(run_ids, event_ids) AS message (run_id, event_id);
COMMENT ON VIEW outbox_messages IS
    'Messages that Kafka may not have acknowledged yet: rows of outbox, and the requests in outbox_batches.';
