-- Agents that are tools of MCP servers: what is known of the servers, and the tasks of agents that a run can resume.
SET LOCAL lock_timeout = '2s';

ALTER TABLE agent_cards DROP CONSTRAINT agent_cards_protocol_known;
ALTER TABLE agent_cards ADD CONSTRAINT agent_cards_protocol_known
    CHECK (protocol_seen IN ('0.3', '1.0', '2025-03-26', '2025-06-18', '2025-11-25', '2026-07-28'));
COMMENT ON TABLE agent_cards IS
    'What executors know about an agent: the card of an A2A agent, or the tools of an MCP server, and the version that it speaks.';
COMMENT ON COLUMN agent_cards.card IS 'The card, or the MCP server with its tools; null: none was found.';
COMMENT ON COLUMN agent_cards.protocol_seen IS
    'Version in which the agent answered last: of A2A 0.3 or 1.0, of MCP the date of the revision.';

ALTER TABLE step_executions ADD COLUMN agent_task jsonb;
COMMENT ON COLUMN step_executions.agent_task IS
    'Task that the attempt has created at an agent of kind responses or mcp, for the attempt that repeats this one after the death of its executor: kind of the agent, and its id of the task.';
