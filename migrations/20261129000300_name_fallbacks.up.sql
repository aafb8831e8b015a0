-- Agents that are called in the place of one that does not work.
SET LOCAL lock_timeout = '2s';

ALTER TABLE agents ADD COLUMN fallbacks text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN agents.fallbacks IS
    'Names of agents of the same organisation that are called, in this order, when the agent does not work.';
