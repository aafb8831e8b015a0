-- What executors know about A2A agents: their cards, and the version that they speak.
SET LOCAL lock_timeout = '2s';

CREATE TABLE agent_cards (
    agent_id uuid PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
    url_digest bytea NOT NULL,
    card jsonb,
    etag text,
    signature text
        CONSTRAINT agent_cards_signature_known CHECK (signature IN ('valid', 'invalid', 'absent', 'unchecked')),
    problem text,
    fetched_at timestamptz,
    checked_at timestamptz,
    changed_at timestamptz,
    changed_members text[],
    protocol_seen text CONSTRAINT agent_cards_protocol_known CHECK (protocol_seen IN ('0.3', '1.0')),
    seen_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE agent_cards IS 'What executors know about an A2A agent: its card, and the version that it speaks.';
COMMENT ON COLUMN agent_cards.agent_id IS 'The agent.';
COMMENT ON COLUMN agent_cards.url_digest IS 'SHA-256 of the URL for which the row was written, since a URL can contain secrets; a row for another one counts as absent.';
COMMENT ON COLUMN agent_cards.card IS 'The card; null: none was found.';
COMMENT ON COLUMN agent_cards.etag IS 'The ETag of the card, for the next request.';
COMMENT ON COLUMN agent_cards.signature IS 'Whether a key of the agent has signed the card: valid, invalid, absent, unchecked.';
COMMENT ON COLUMN agent_cards.problem IS 'Why there is no card, or why it was not read again.';
COMMENT ON COLUMN agent_cards.fetched_at IS 'When the card was read, or found to be unchanged.';
COMMENT ON COLUMN agent_cards.checked_at IS 'When the card was last requested.';
COMMENT ON COLUMN agent_cards.changed_at IS 'When the card last differed from the one before.';
COMMENT ON COLUMN agent_cards.changed_members IS 'The members in which it differed then.';
COMMENT ON COLUMN agent_cards.protocol_seen IS 'Version in which the agent answered last: 0.3 or 1.0.';
COMMENT ON COLUMN agent_cards.seen_at IS 'When that was noted; executors note it once an hour, and when it changes.';
COMMENT ON COLUMN agent_cards.updated_at IS 'When the row was last changed.';
