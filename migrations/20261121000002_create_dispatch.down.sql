SET LOCAL lock_timeout = '2s';

DROP TRIGGER workflow_runs_terminal_is_final ON workflow_runs;
DROP FUNCTION keep_terminal_run();
DROP TABLE idempotency_keys, outbox, processes;
ALTER TABLE workflow_runs
    DROP COLUMN workflow_version, DROP COLUMN workflow_plan, DROP COLUMN correlation_id, DROP COLUMN execution_event_id,
    DROP COLUMN executor_id, DROP COLUMN lease_token, DROP COLUMN redispatch_at;
ALTER TABLE agents DROP COLUMN circuit_breaker_config;
