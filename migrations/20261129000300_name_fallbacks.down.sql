SET LOCAL lock_timeout = '2s';

ALTER TABLE agents DROP COLUMN fallbacks;
