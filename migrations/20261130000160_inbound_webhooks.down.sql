SET LOCAL lock_timeout = '2s';

DROP TABLE webhook_trigger_deliveries;
DROP TABLE webhook_triggers;
