SET LOCAL statement_timeout = 0;

ALTER TABLE step_executions RESET (fillfactor);
CREATE INDEX IF NOT EXISTS idx_step_status ON step_executions (status);
CREATE INDEX IF NOT EXISTS idx_step_run_id ON step_executions (run_id);
CREATE INDEX IF NOT EXISTS workflow_runs_parent ON workflow_runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS workflow_runs_queued ON workflow_runs (organization_id) WHERE status = 'PENDING';
CREATE INDEX IF NOT EXISTS idx_run_workflow_definition_id ON workflow_runs (workflow_definition_id);
CREATE INDEX IF NOT EXISTS idx_run_status ON workflow_runs (status);
