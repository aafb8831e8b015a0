-- Heartbeats get a number: a replica that shows the latest one has replayed it.

ALTER TABLE processes ADD COLUMN heartbeat bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN processes.heartbeat IS 'Number of the last heartbeat; a process uses each number once.';
