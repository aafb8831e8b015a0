-- The last result of `check invariants --record`, which the API shows in its metrics.
SET LOCAL lock_timeout = '2s';

CREATE TABLE invariant_checks (
    name text CONSTRAINT invariant_checks_pkey PRIMARY KEY,
    violations bigint,
    checked_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE invariant_checks IS 'Result of the last recorded check of the invariants, a row for each of them.';
COMMENT ON COLUMN invariant_checks.name IS 'Name of the invariant.';
COMMENT ON COLUMN invariant_checks.violations IS 'Violations that were found. NULL: it could not be checked completely.';
COMMENT ON COLUMN invariant_checks.checked_at IS 'Time of the check.';
