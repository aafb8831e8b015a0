-- How many runs there are, maintained: the totals of lists without a scan. See docs/adr/0018.
SET LOCAL lock_timeout = '2s';

-- What each statement has changed, a row for each group of runs that it touched. Writers only append, so that none of
-- them waits for another one. db::run_counts::fold adds the rows to the two tables below and deletes them.
CREATE TABLE run_count_changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    organization_id text NOT NULL,
    workflow_id varchar(255) NOT NULL,
    workflow_name varchar(255) NOT NULL,
    status varchar(50) NOT NULL,
    runs bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000);
COMMENT ON TABLE run_count_changes IS 'Changes of the numbers of runs that no fold has added up yet; see run_count_folds.';
COMMENT ON COLUMN run_count_changes.xid IS 'Transaction that made the change.';
COMMENT ON COLUMN run_count_changes.organization_id IS 'Organisation of the runs.';
COMMENT ON COLUMN run_count_changes.workflow_id IS 'workflow_id of the runs.';
COMMENT ON COLUMN run_count_changes.workflow_name IS 'workflow_name of the runs.';
COMMENT ON COLUMN run_count_changes.status IS 'Status of the runs.';
COMMENT ON COLUMN run_count_changes.runs IS 'How many there are more; negative: fewer.';
-- Serves the views below and the fold: what no fold has seen, without the rows that it has deleted and that are still
-- stored because somebody reads an old snapshot.
CREATE INDEX run_count_changes_unseen ON run_count_changes (xid);

CREATE TABLE run_counts_folded (
    organization_id text NOT NULL,
    workflow_id varchar(255) NOT NULL,
    workflow_name varchar(255) NOT NULL,
    status varchar(50) NOT NULL,
    runs bigint NOT NULL,
    CONSTRAINT run_counts_folded_pkey PRIMARY KEY (organization_id, workflow_id, workflow_name, status)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE run_counts_folded IS 'Numbers of runs by workflow and status, up to the last fold. View: run_counts.';
COMMENT ON COLUMN run_counts_folded.organization_id IS 'Organisation of the runs.';
COMMENT ON COLUMN run_counts_folded.workflow_id IS 'workflow_id of the runs.';
COMMENT ON COLUMN run_counts_folded.workflow_name IS 'workflow_name of the runs.';
COMMENT ON COLUMN run_counts_folded.status IS 'Status of the runs.';
COMMENT ON COLUMN run_counts_folded.runs IS 'How many there are.';
-- Serves db::run_counts::groups: lists by the name of the workflow or by its beginning.
CREATE INDEX run_counts_folded_by_name ON run_counts_folded (organization_id, workflow_name text_pattern_ops);

CREATE TABLE run_totals_folded (
    organization_id text NOT NULL,
    status varchar(50) NOT NULL,
    runs bigint NOT NULL,
    CONSTRAINT run_totals_folded_pkey PRIMARY KEY (organization_id, status)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE run_totals_folded IS 'Numbers of runs by status, up to the last fold. View: run_totals.';
COMMENT ON COLUMN run_totals_folded.organization_id IS 'Organisation of the runs.';
COMMENT ON COLUMN run_totals_folded.status IS 'Status of the runs.';
COMMENT ON COLUMN run_totals_folded.runs IS 'How many there are.';

-- Only the row with the highest id is used, and found first: the ones before it are deleted, and may still be stored.
CREATE TABLE run_count_folds (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT run_count_folds_pkey PRIMARY KEY,
    next_xid xid8 NOT NULL,
    open_xids xid8[] NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
COMMENT ON TABLE run_count_folds IS 'Which changes the folded numbers contain; the last row counts.';
COMMENT ON COLUMN run_count_folds.id IS 'Number of the fold.';
COMMENT ON COLUMN run_count_folds.next_xid IS 'The changes of all transactions before this one are contained, except those in open_xids.';
COMMENT ON COLUMN run_count_folds.open_xids IS 'Transactions before next_xid that had not ended.';
COMMENT ON COLUMN run_count_folds.at IS 'When it was done.';

-- The upper bound lets the planner expect few rows, for which it takes the index.
CREATE VIEW run_counts AS
    SELECT organization_id, workflow_id, workflow_name, status, runs FROM run_counts_folded
    UNION ALL
    SELECT organization_id, workflow_id, workflow_name, status, runs FROM run_count_changes
    WHERE xid >= (SELECT next_xid FROM run_count_folds ORDER BY id DESC LIMIT 1) AND xid <= '18446744073709551615'
    UNION ALL
    SELECT organization_id, workflow_id, workflow_name, status, runs FROM run_count_changes
    WHERE xid = ANY (ARRAY(
        SELECT unnest(open_xids) FROM (SELECT open_xids FROM run_count_folds ORDER BY id DESC LIMIT 1) AS fold));
COMMENT ON VIEW run_counts IS 'Numbers of runs by workflow and status. A group has several rows, which add up.';
CREATE VIEW run_totals AS
    SELECT organization_id, status, runs FROM run_totals_folded
    UNION ALL
    SELECT organization_id, status, runs FROM run_count_changes
    WHERE xid >= (SELECT next_xid FROM run_count_folds ORDER BY id DESC LIMIT 1) AND xid <= '18446744073709551615'
    UNION ALL
    SELECT organization_id, status, runs FROM run_count_changes
    WHERE xid = ANY (ARRAY(
        SELECT unnest(open_xids) FROM (SELECT open_xids FROM run_count_folds ORDER BY id DESC LIMIT 1) AS fold));
COMMENT ON VIEW run_totals IS 'Numbers of runs by status. A group has several rows, which add up.';

-- After every statement that writes runs, whoever sends it; with the rights of the owner.
CREATE FUNCTION count_runs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO run_count_changes (organization_id, workflow_id, workflow_name, status, runs)
        SELECT organization_id, workflow_id, workflow_name, status, count(*) FROM added GROUP BY 1, 2, 3, 4;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO run_count_changes (organization_id, workflow_id, workflow_name, status, runs)
        SELECT organization_id, workflow_id, workflow_name, status, sum(run.runs) FROM (
            SELECT organization_id, workflow_id, workflow_name, status, 1 AS runs FROM added
            UNION ALL SELECT organization_id, workflow_id, workflow_name, status, -1 FROM gone) AS run
        GROUP BY 1, 2, 3, 4 HAVING sum(run.runs) <> 0;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO run_count_changes (organization_id, workflow_id, workflow_name, status, runs)
        SELECT organization_id, workflow_id, workflow_name, status, -count(*) FROM gone GROUP BY 1, 2, 3, 4;
    ELSE
        -- TRUNCATE, beside which nobody writes runs.
        INSERT INTO run_count_changes (organization_id, workflow_id, workflow_name, status, runs)
        SELECT organization_id, workflow_id, workflow_name, status, -sum(runs) FROM run_counts
        GROUP BY 1, 2, 3, 4 HAVING sum(runs) <> 0;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER workflow_runs_insert_is_counted AFTER INSERT ON workflow_runs REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_runs();
CREATE TRIGGER workflow_runs_update_is_counted AFTER UPDATE ON workflow_runs REFERENCING OLD TABLE AS gone NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_runs();
CREATE TRIGGER workflow_runs_delete_is_counted AFTER DELETE ON workflow_runs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION count_runs();
CREATE TRIGGER workflow_runs_truncate_is_counted AFTER TRUNCATE ON workflow_runs
    FOR EACH STATEMENT EXECUTE FUNCTION count_runs();
-- Also for whoever loads runs with session_replication_role = replica.
ALTER TABLE workflow_runs ENABLE ALWAYS TRIGGER workflow_runs_insert_is_counted;
ALTER TABLE workflow_runs ENABLE ALWAYS TRIGGER workflow_runs_update_is_counted;
ALTER TABLE workflow_runs ENABLE ALWAYS TRIGGER workflow_runs_delete_is_counted;
ALTER TABLE workflow_runs ENABLE ALWAYS TRIGGER workflow_runs_truncate_is_counted;

-- Counts all runs, and forgets the numbers that were there. Nobody waits for it: what is written meanwhile is a change
-- that the count does not contain, which the snapshot tells.
CREATE FUNCTION recount_runs() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- One fold at a time; see db::run_counts::fold.
    PERFORM pg_advisory_xact_lock(hashtextextended('run_counts', 0));
    DELETE FROM run_counts_folded;
    DELETE FROM run_totals_folded;
    DELETE FROM run_count_folds;
    WITH counted AS (
        SELECT organization_id, workflow_id, workflow_name, status, count(*) AS runs FROM workflow_runs GROUP BY 1, 2, 3, 4
    ), by_status AS (
        INSERT INTO run_totals_folded SELECT organization_id, status, sum(runs) FROM counted GROUP BY 1, 2
    ), contained AS (
        INSERT INTO run_count_folds (next_xid, open_xids)
        SELECT pg_snapshot_xmax(pg_current_snapshot()), ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()))
    ), forgotten AS (
        DELETE FROM run_count_changes
    )
    INSERT INTO run_counts_folded SELECT * FROM counted;
END
$$;
-- It reads the whole table, and is for its owner.
REVOKE EXECUTE ON FUNCTION recount_runs FROM PUBLIC;
