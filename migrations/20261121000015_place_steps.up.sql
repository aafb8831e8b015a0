-- Where an attempt stands among nested steps, so that a run goes on exactly where it was, and since when a run is
-- executed, so that its time limit outlives the process.
SET LOCAL lock_timeout = '2s';

ALTER TABLE step_executions ADD COLUMN place text;
COMMENT ON COLUMN step_executions.place IS
    'Of a nested attempt: the way from the main chain, <step>/<branch>/…/<step> (docs/executor.md); null: main chain.';
ALTER TABLE workflow_runs ADD COLUMN execution_started_at timestamp;
COMMENT ON COLUMN workflow_runs.execution_started_at IS
    'When the run was claimed first since it was started or retried: MAX_WORKFLOW_DURATION_MS counts from here.';
