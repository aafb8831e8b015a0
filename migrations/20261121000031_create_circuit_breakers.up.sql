-- The circuit breakers that are not closed or have counted failures lately, one an agent. An agent without a row has a
-- closed one. Executors change a row under its lock, and read it together with the agent's.
CREATE TABLE circuit_breakers (
    agent_id uuid PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    state text NOT NULL DEFAULT 'closed'
        CONSTRAINT circuit_breakers_state_known CHECK (state IN ('closed', 'open', 'half_open')),
    opened_at timestamptz,                        -- of one that is not closed
    calls jsonb NOT NULL DEFAULT '[]',            -- of the window, by the second: breaker::Calls; while closed
    probes jsonb NOT NULL DEFAULT '[]',           -- under way, with the ends of their leases: breaker::Probe; while half open
    probes_succeeded integer NOT NULL DEFAULT 0,  -- since it is half open
    updated_at timestamptz NOT NULL DEFAULT now()
);
