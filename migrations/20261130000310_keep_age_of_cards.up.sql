-- How long the card of an agent is used before it is requested again, so that all executors do as its server says.
SET LOCAL lock_timeout = '2s';

ALTER TABLE agent_cards ADD COLUMN valid_seconds integer;
COMMENT ON COLUMN agent_cards.valid_seconds IS
    'Seconds after checked_at for which the result counts, within the limits of executors; null: 5 minutes.';
