-- Events of dead letters of triggers are part of a chain of runs, and so is its end.
SET LOCAL lock_timeout = '2s';

CREATE OR REPLACE FUNCTION record_event_of_dead_letter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    is_given boolean;
    given text;
    depth integer := 0;
BEGIN
    IF NEW.trigger_id IS NOT NULL THEN
        -- As trigger::kafka::Record reads it: one more than the record has; what is no number is beyond every limit.
        SELECT true, btrim(encode(decode(h.header ->> 1, 'base64'), 'escape')) INTO is_given, given
        FROM jsonb_array_elements(NEW.headers) WITH ORDINALITY AS h (header, place)
        WHERE lower(h.header ->> 0) = 'webhook-depth' ORDER BY place DESC LIMIT 1;
        IF is_given THEN
            depth := CASE WHEN given ~ '^[0-9]{1,4}$' THEN given::integer + 1 ELSE 32767 END;
        END IF;
        -- At the end of a chain nothing is told that could go on with it (trigger::MAX_CHAIN).
        IF depth > 16 THEN
            RETURN NULL;
        END IF;
    END IF;
    PERFORM record_event(NEW.organization_id, 'dead_letter.created', NULL, jsonb_build_object(
        'dead_letter', jsonb_build_object('id', NEW.id, 'topic', NEW.topic, 'partition', NEW.partition, 'offset',
            NEW.record_offset, 'reason', NEW.reason, 'run_id', NEW.run_id),
        'trigger', CASE WHEN NEW.trigger_id IS NOT NULL THEN
            jsonb_build_object('kind', 'kafka', 'id', NEW.trigger_id, 'depth', depth) END));
    RETURN NULL;
END
$$;

COMMENT ON TABLE webhook_trigger_deliveries IS
    'Deliveries that have started a run, or failed to, for seven days: a repeat starts no second one, nor tells it again.';
COMMENT ON COLUMN webhook_trigger_deliveries.delivery_hash IS
    'SHA-256 of the id of the delivery; of one that has failed, SHA-256 of the word failed and that.';
COMMENT ON COLUMN webhook_trigger_deliveries.run_id IS
    'Run that it has started; it may be deleted. Empty: of a delivery that has failed.';
