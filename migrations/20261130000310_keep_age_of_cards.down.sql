SET LOCAL lock_timeout = '2s';

ALTER TABLE agent_cards DROP COLUMN valid_seconds;
