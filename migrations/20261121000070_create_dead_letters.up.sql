-- Records of the execution and cancellation topics that no executor can use, kept until somebody has decided on them.
SET LOCAL lock_timeout = '2s';

CREATE TABLE dead_letters (
    id uuid PRIMARY KEY,
    organization_id text NOT NULL DEFAULT 'default',  -- that of the run, if the record names one that exists
    run_id text,                            -- as the record or its key says; null: neither says anything
    topic text NOT NULL,                    -- this and the next two: where the record stood
    partition integer NOT NULL,
    record_offset bigint NOT NULL,
    sent_at timestamptz,                    -- of the record
    key bytea,
    value bytea,                            -- null: there was none, or the letter was discarded
    headers jsonb NOT NULL DEFAULT '[]',    -- of the record: [name, value in base64 or null], in their order
    digest bytea NOT NULL,                  -- SHA-256 of key and value: offsets begin again in a topic made anew
    bytes bigint NOT NULL,                  -- size of the value
    reason text NOT NULL,                   -- a code
    detail text NOT NULL,                   -- for people
    status text NOT NULL DEFAULT 'open'
        CONSTRAINT dead_letters_status_known CHECK (status IN ('open', 'redriving', 'redriven', 'discarded')),
    corrected bytea,                        -- what is sent instead of the value
    resolved_by text,                       -- who asked for the redrive or the discard
    resolved_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    copy_at timestamptz DEFAULT now(),      -- when the copy to the dead-letter topic is next tried; null: it is done
    redrive_at timestamptz,                 -- the same for sending the record again
    CONSTRAINT dead_letters_of_a_record UNIQUE (topic, partition, record_offset, digest)
);
-- Serves the list of an organisation.
CREATE INDEX dead_letters_by_creation ON dead_letters (organization_id, created_at, id);
-- Serve db::dead_letters::take: what is still to be sent.
CREATE INDEX dead_letters_to_copy ON dead_letters (copy_at) WHERE copy_at IS NOT NULL;
CREATE INDEX dead_letters_to_redrive ON dead_letters (redrive_at) WHERE redrive_at IS NOT NULL;
