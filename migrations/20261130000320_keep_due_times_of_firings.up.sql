-- Firings keep the jittered time too: it says when a schedule was to fire.
SET LOCAL lock_timeout = '2s';

ALTER TABLE trigger_firings ADD COLUMN due_at timestamptz;
COMMENT ON COLUMN trigger_firings.due_at IS 'When it was due, with jitter; null: as nominal_at.';
