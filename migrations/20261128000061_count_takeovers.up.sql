-- A run that ends whoever executes it must not end one executor after the other.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs ADD COLUMN takeovers smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN workflow_runs.takeovers IS
    'How often the run was taken over from an executor that died since a step of it last ended, or it was parked; MAX_RUN_TAKEOVERS. One less for each that handed it over before it stopped.';
