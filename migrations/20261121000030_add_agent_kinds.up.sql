-- How agents are spoken to besides A2A. The reference deployment's rows and inserts keep their meaning.
ALTER TABLE agents
    ADD COLUMN kind varchar(50) NOT NULL DEFAULT 'a2a',  -- a2a, http or openai
    ADD COLUMN config jsonb;                             -- what the kind needs; null where it needs nothing
