-- Heartbeats tell what a process is and does, for the list of processes. A process of the previous release tells nothing.
SET LOCAL lock_timeout = '2s';

ALTER TABLE processes
    ADD COLUMN version text,
    ADD COLUMN host text,
    ADD COLUMN active_runs bigint,
    ADD COLUMN consumer_lag bigint;
COMMENT ON COLUMN processes.version IS 'Version of its program.';
COMMENT ON COLUMN processes.host IS 'Name of its host; in a container that of the container.';
COMMENT ON COLUMN processes.active_runs IS 'Runs that it drives; null: it is no executor.';
COMMENT ON COLUMN processes.consumer_lag IS
    'Records in its partitions of Kafka that it has not processed yet; null: not known, or it is no executor.';
