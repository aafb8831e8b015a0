-- Calls of agents by the hour, for GET /agents/{id}/stats.
SET LOCAL lock_timeout = '2s';

CREATE TABLE agent_hours (
    agent_id uuid NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
    hour timestamptz NOT NULL,
    calls bigint NOT NULL,
    failures bigint NOT NULL,
    latency bigint[] NOT NULL,
    tokens bigint,
    cost numeric,
    CONSTRAINT agent_hours_pkey PRIMARY KEY (agent_id, hour)
) WITH (fillfactor = 50);
CREATE INDEX agent_hours_hour ON agent_hours (hour);
COMMENT ON TABLE agent_hours IS
    'Calls of an agent in an hour. Executors add to it every few seconds; deleted after 8 days.';
COMMENT ON COLUMN agent_hours.agent_id IS 'The agent.';
COMMENT ON COLUMN agent_hours.hour IS 'Begin of the hour; a call counts in the hour in which it ended.';
COMMENT ON COLUMN agent_hours.calls IS 'Calls that were made.';
COMMENT ON COLUMN agent_hours.failures IS 'Calls without an output.';
COMMENT ON COLUMN agent_hours.latency IS
    'Calls by their duration: each element counts those of up to 5 ms, up to that times the square root of 2, and so on.';
COMMENT ON COLUMN agent_hours.tokens IS 'Tokens of the calls; null: none were counted.';
COMMENT ON COLUMN agent_hours.cost IS 'Cost of the calls; null: none was counted.';
