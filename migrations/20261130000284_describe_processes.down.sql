ALTER TABLE processes DROP COLUMN version, DROP COLUMN host, DROP COLUMN active_runs, DROP COLUMN consumer_lag;
