-- Health of agents as the last check found it, so that the audit trail has a change once.
SET LOCAL lock_timeout = '2s';

CREATE TABLE agent_health (
    agent_id uuid PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    url_digest bytea NOT NULL,
    is_healthy boolean NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE agent_health IS
    'Health of an agent as GET /agents/{id}/health found it last. A change is an entry in the audit trail.';
COMMENT ON COLUMN agent_health.agent_id IS 'The agent.';
COMMENT ON COLUMN agent_health.url_digest IS
    'SHA-256 of the URL that was checked, since a URL can contain secrets; a row for another one counts as absent.';
COMMENT ON COLUMN agent_health.is_healthy IS 'Whether the agent was healthy.';
COMMENT ON COLUMN agent_health.since IS 'When that was first found.';
