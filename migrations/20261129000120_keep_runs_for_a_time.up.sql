-- Retention: how long ended runs are kept, the state of their deletion, and daily sizes of the tables.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_definitions ADD COLUMN retention_days integer
    CONSTRAINT workflow_definitions_retention_range CHECK (retention_days BETWEEN 0 AND 36500);
COMMENT ON COLUMN workflow_definitions.retention_days IS
    'Of the newest version: days for which ended runs of the workflow are kept. 0: for ever; null: as the organisation says.';
-- Serves db::retention::policies.
CREATE INDEX workflow_definitions_retention ON workflow_definitions (name, organization_id) WHERE retention_days IS NOT NULL;

ALTER TABLE organizations ADD COLUMN retention_days integer
    CONSTRAINT organizations_retention_range CHECK (retention_days BETWEEN 0 AND 36500);
COMMENT ON COLUMN organizations.retention_days IS
    'Days for which ended runs are kept. 0: for ever; null: RUN_RETENTION_DAYS.';

ALTER TABLE workflow_runs ADD COLUMN kept_until timestamptz;
COMMENT ON COLUMN workflow_runs.kept_until IS
    'Of a run that was restored from the archive: it is not deleted again before.';

-- One row. Whoever makes the next batch holds it by a token, for a time.
CREATE TABLE run_retention (
    is_only boolean NOT NULL DEFAULT true CONSTRAINT run_retention_pkey PRIMARY KEY CONSTRAINT run_retention_one_row CHECK (is_only),
    holder uuid,
    next_at timestamptz NOT NULL DEFAULT now(),
    scan jsonb NOT NULL DEFAULT '{}',
    pass jsonb NOT NULL DEFAULT '{}',
    last_pass jsonb,
    archive_failed_since timestamptz,
    archive_error text
) WITH (fillfactor = 50);
INSERT INTO run_retention DEFAULT VALUES;
COMMENT ON TABLE run_retention IS 'State of the deletion of old runs, shared by all processes. One row.';
COMMENT ON COLUMN run_retention.is_only IS 'Always true: there is one row.';
COMMENT ON COLUMN run_retention.holder IS 'Token of the process that makes a batch; null: none does.';
COMMENT ON COLUMN run_retention.next_at IS 'When the next batch may begin; with a holder: when its token ends.';
COMMENT ON COLUMN run_retention.scan IS 'Up to which end of a run all runs were looked at, for each retention in days.';
COMMENT ON COLUMN run_retention.pass IS 'The pass under way: its begin, and what it has deleted of each organisation.';
COMMENT ON COLUMN run_retention.last_pass IS 'The same of the last pass that deleted something, with its end.';
COMMENT ON COLUMN run_retention.archive_failed_since IS 'Since when the archive cannot be written; nothing is deleted meanwhile.';
COMMENT ON COLUMN run_retention.archive_error IS 'Why it cannot be written.';

CREATE TABLE storage_samples (
    day date NOT NULL,
    table_name text NOT NULL,
    sampled_at timestamptz NOT NULL DEFAULT now(),
    bytes bigint NOT NULL,
    row_estimate bigint NOT NULL,
    CONSTRAINT storage_samples_pkey PRIMARY KEY (day, table_name)
);
COMMENT ON TABLE storage_samples IS 'Size of each table, once a day, to tell how it grows.';
COMMENT ON COLUMN storage_samples.day IS 'The day (UTC).';
COMMENT ON COLUMN storage_samples.table_name IS 'The table; of a partitioned one all partitions together.';
COMMENT ON COLUMN storage_samples.sampled_at IS 'When the size was taken.';
COMMENT ON COLUMN storage_samples.bytes IS 'Table, indexes and large values.';
COMMENT ON COLUMN storage_samples.row_estimate IS 'Number of rows as the statistics have it.';

-- What retention deletes is vacuumed in parts of a twentieth of the table, not of a fifth.
ALTER TABLE workflow_runs SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE step_executions SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE run_events SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE idempotency_keys SET (autovacuum_vacuum_scale_factor = 0.05);
