SET LOCAL lock_timeout = '2s';

COMMENT ON TABLE webhook_trigger_deliveries IS
    'Deliveries that have started a run, for seven days: a repeat starts no second one.';
COMMENT ON COLUMN webhook_trigger_deliveries.delivery_hash IS 'SHA-256 of the id of the delivery.';
COMMENT ON COLUMN webhook_trigger_deliveries.run_id IS 'Run that it has started; it may be deleted.';
CREATE OR REPLACE FUNCTION record_event_of_dead_letter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM record_event(NEW.organization_id, 'dead_letter.created', NULL, jsonb_build_object('dead_letter',
        jsonb_build_object('id', NEW.id, 'topic', NEW.topic, 'partition', NEW.partition, 'offset', NEW.record_offset,
            'reason', NEW.reason, 'run_id', NEW.run_id)));
    RETURN NULL;
END
$$;
