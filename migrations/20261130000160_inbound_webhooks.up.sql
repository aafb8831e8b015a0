-- Webhook triggers: their addresses and the deliveries that have started runs.
SET LOCAL lock_timeout = '2s';

CREATE TABLE webhook_triggers (
    trigger_id uuid PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    token_hash bytea NOT NULL,
    token_at timestamptz NOT NULL DEFAULT now(),
    refused bigint NOT NULL DEFAULT 0,
    refused_at timestamptz,
    refused_for text,
    CONSTRAINT webhook_triggers_token UNIQUE (token_hash)
) WITH (fillfactor = 70);
COMMENT ON TABLE webhook_triggers IS 'Addresses of the triggers of the kind webhook, and what was refused there.';
COMMENT ON COLUMN webhook_triggers.trigger_id IS 'The trigger.';
COMMENT ON COLUMN webhook_triggers.token_hash IS 'SHA-256 of the token in its address. The token itself is not stored.';
COMMENT ON COLUMN webhook_triggers.token_at IS 'When the token was made.';
COMMENT ON COLUMN webhook_triggers.refused IS 'Number of refused deliveries; at most one a second is counted.';
COMMENT ON COLUMN webhook_triggers.refused_at IS 'Time of the last one.';
COMMENT ON COLUMN webhook_triggers.refused_for IS 'Why that one was refused. Only the owner of the trigger learns it.';

-- No foreign key: a trigger with many deliveries is deleted at once, and these expire by themselves.
CREATE TABLE webhook_trigger_deliveries (
    trigger_id uuid NOT NULL,
    delivery_hash bytea NOT NULL,
    run_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (trigger_id, delivery_hash)
);
CREATE INDEX webhook_trigger_deliveries_created ON webhook_trigger_deliveries (created_at);
COMMENT ON TABLE webhook_trigger_deliveries IS
    'Deliveries that have started a run, for seven days: a repeat starts no second one.';
COMMENT ON COLUMN webhook_trigger_deliveries.trigger_id IS 'Trigger that received it; it may be deleted.';
COMMENT ON COLUMN webhook_trigger_deliveries.delivery_hash IS 'SHA-256 of the id of the delivery.';
COMMENT ON COLUMN webhook_trigger_deliveries.run_id IS 'Run that it has started; it may be deleted.';
COMMENT ON COLUMN webhook_trigger_deliveries.created_at IS 'When it arrived first.';
