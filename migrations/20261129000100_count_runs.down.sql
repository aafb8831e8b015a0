SET LOCAL lock_timeout = '2s';

DROP TRIGGER workflow_runs_truncate_is_counted ON workflow_runs;
DROP TRIGGER workflow_runs_delete_is_counted ON workflow_runs;
DROP TRIGGER workflow_runs_update_is_counted ON workflow_runs;
DROP TRIGGER workflow_runs_insert_is_counted ON workflow_runs;
DROP FUNCTION recount_runs;
DROP FUNCTION count_runs;
DROP VIEW run_totals;
DROP VIEW run_counts;
DROP TABLE run_count_folds;
DROP TABLE run_totals_folded;
DROP TABLE run_counts_folded;
DROP TABLE run_count_changes;
