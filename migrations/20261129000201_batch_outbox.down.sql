SET LOCAL lock_timeout = '2s';

DROP VIEW outbox_messages;
INSERT INTO outbox (run_id, event_id, kind, created_at)
SELECT message.run_id, message.event_id, 'execution', created_at
FROM outbox_batches, unnest(run_ids, event_ids) AS message (run_id, event_id) ON CONFLICT DO NOTHING;
DROP TABLE outbox_batches;
