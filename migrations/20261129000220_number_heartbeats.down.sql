ALTER TABLE processes DROP COLUMN heartbeat;
