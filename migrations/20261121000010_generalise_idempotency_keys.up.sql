-- Keys of every request that creates something, not only of starts of runs. The column keeps its name, since programs
-- of the release before write it while they are being replaced.
SET LOCAL lock_timeout = '2s';

COMMENT ON COLUMN idempotency_keys.run_id IS
    'What the first request made: the id of a run, an agent or a workflow, as its route (in scope) says.';
