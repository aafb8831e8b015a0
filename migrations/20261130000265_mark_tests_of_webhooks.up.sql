-- Tests of an endpoint are deliveries that no recovery sends again.
SET LOCAL lock_timeout = '2s';

ALTER TABLE webhook_deliveries ADD COLUMN is_test boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN webhook_deliveries.is_test IS
    'Whether it is a test of the endpoint: it says nothing about the endpoint, and no recovery sends it again.';
