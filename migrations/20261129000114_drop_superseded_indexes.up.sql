-- Indexes whose work others do now. Four are of the shared tables' first schema: the reference deployment's executor
-- and scripts look runs up by run_id and steps by run_id or id, and create indexes only together with the table.
SET LOCAL lock_timeout = '2s';

DROP INDEX IF EXISTS idx_run_status;                  -- workflow_runs_by_status begins with the same column
DROP INDEX IF EXISTS idx_run_workflow_definition_id;  -- workflow_runs_by_workflow: workflow_id is the same id
DROP INDEX IF EXISTS workflow_runs_queued;            -- workflow_runs_by_status: status, then organisation
DROP INDEX IF EXISTS workflow_runs_parent;            -- workflow_runs_by_parent begins with the same column
DROP INDEX IF EXISTS idx_step_run_id;                 -- step_executions_by_start begins with the same column
-- No query looks for steps of all runs by their status. Without it, no index has a column that the end of an attempt
-- changes, so that the row changes in its page alone (HOT), where there is room for it.
DROP INDEX IF EXISTS idx_step_status;
ALTER TABLE step_executions SET (fillfactor = 70);
