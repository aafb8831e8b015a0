-- Rows are taken and freed without reading the whole backlog.
SET LOCAL lock_timeout = '2s';

-- Serves db::monitoring::take. A row that is sent from memory is never in it.
CREATE INDEX monitoring_outbox_free ON monitoring_outbox (id) WHERE owner IS NULL;
-- Serves db::monitoring::free. As small as what the executors have in memory.
CREATE INDEX monitoring_outbox_owned ON monitoring_outbox (owner) WHERE owner IS NOT NULL;
