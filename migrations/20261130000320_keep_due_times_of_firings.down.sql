SET LOCAL lock_timeout = '2s';

ALTER TABLE trigger_firings DROP COLUMN due_at;
