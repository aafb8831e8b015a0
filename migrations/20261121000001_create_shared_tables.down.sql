-- On a database that was adopted from the reference deployment the tables are that deployment's: they stay.
SET LOCAL lock_timeout = '2s';

DO $$
BEGIN
    IF to_regclass('alembic_version') IS NULL THEN
        DROP TABLE ai_chat_sessions, audit_logs, step_executions, workflow_runs, workflow_steps,
            workflow_definitions, agents;
    END IF;
END
$$;
