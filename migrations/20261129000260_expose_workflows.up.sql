-- Workflows as agents (A2A) and as tools (MCP), and the conversation of a run.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_definitions ADD COLUMN expose jsonb;
COMMENT ON COLUMN workflow_definitions.expose IS
    'Of the newest version: the protocols by which the workflow is offered besides the REST API; null: none.';

ALTER TABLE workflow_runs ADD COLUMN context_id text;
COMMENT ON COLUMN workflow_runs.context_id IS
    'Label of the conversation that the run belongs to, as an A2A client gave it; null: the run is one by itself.';
