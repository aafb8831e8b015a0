-- Pieces of outputs that agents stream, on their way from an executor to the event streams of the API. They are
-- deleted some seconds after their attempt has ended, so the table is nearly always empty.
SET LOCAL lock_timeout = '2s';

CREATE TABLE step_deltas (
    run_id varchar(255) NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    attempt_id varchar(255) NOT NULL,
    step_id varchar(255) NOT NULL,
    artifact_id text,
    append boolean NOT NULL,
    text text,
    data jsonb,
    at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT step_deltas_pkey PRIMARY KEY (run_id, id)
) WITH (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE step_deltas IS
    'Piece of an output that an agent streams, for the event stream of the run. Deleted some seconds after its attempt has ended.';
COMMENT ON COLUMN step_deltas.run_id IS 'The run.';
COMMENT ON COLUMN step_deltas.id IS 'Number; within a run the pieces are in this order.';
COMMENT ON COLUMN step_deltas.attempt_id IS 'The attempt (step_executions.id).';
COMMENT ON COLUMN step_deltas.step_id IS 'The step.';
COMMENT ON COLUMN step_deltas.artifact_id IS 'The agent''s id of the artifact; null: the agent has none.';
COMMENT ON COLUMN step_deltas.append IS 'Whether the piece continues the artifact; false: it begins it anew.';
COMMENT ON COLUMN step_deltas.text IS 'Text of the piece.';
COMMENT ON COLUMN step_deltas.data IS 'JSON of the piece, if it is no text.';
COMMENT ON COLUMN step_deltas.at IS 'When it was written.';
