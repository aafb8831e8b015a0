SET LOCAL lock_timeout = '2s';

ALTER TABLE webhook_deliveries DROP COLUMN is_test;
