SET LOCAL lock_timeout = '2s';

ALTER TABLE step_executions DROP COLUMN agent_task;

-- What is known of MCP servers is read again.
DELETE FROM agent_cards WHERE protocol_seen NOT IN ('0.3', '1.0');
ALTER TABLE agent_cards DROP CONSTRAINT agent_cards_protocol_known;
ALTER TABLE agent_cards ADD CONSTRAINT agent_cards_protocol_known CHECK (protocol_seen IN ('0.3', '1.0'));
COMMENT ON TABLE agent_cards IS 'What executors know about an A2A agent: its card, and the version that it speaks.';
COMMENT ON COLUMN agent_cards.card IS 'The card; null: none was found.';
COMMENT ON COLUMN agent_cards.protocol_seen IS 'Version in which the agent answered last: 0.3 or 1.0.';
