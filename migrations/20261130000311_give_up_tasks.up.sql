-- Tasks of agents whose run was cancelled. The executor that follows a task cancels it at the agent; if it has died, another
-- executor does so.
SET LOCAL lock_timeout = '2s';

CREATE TABLE given_up_tasks (
    attempt_id varchar(255) NOT NULL,
    run_id varchar(255) NOT NULL,
    organization_id text NOT NULL,
    correlation_id text,
    agent_name varchar(255) NOT NULL,
    task jsonb NOT NULL,
    cancel_at timestamptz NOT NULL,
    cancels smallint NOT NULL DEFAULT 0,
    CONSTRAINT given_up_tasks_pkey PRIMARY KEY (attempt_id)
);
CREATE INDEX given_up_tasks_due ON given_up_tasks (cancel_at);
COMMENT ON TABLE given_up_tasks IS
    'Task of an agent that nobody waits for any more, since its run was cancelled; deleted once the agent has heard of it.';
COMMENT ON COLUMN given_up_tasks.attempt_id IS 'Attempt at which the task is kept (step_executions.agent_task).';
COMMENT ON COLUMN given_up_tasks.run_id IS 'Its run.';
COMMENT ON COLUMN given_up_tasks.organization_id IS 'Organisation of the run.';
COMMENT ON COLUMN given_up_tasks.correlation_id IS 'Correlation id of the run.';
COMMENT ON COLUMN given_up_tasks.agent_name IS 'Name of the agent.';
COMMENT ON COLUMN given_up_tasks.task IS 'Kind of the agent, and its id of the task.';
COMMENT ON COLUMN given_up_tasks.cancel_at IS
    'When an executor shall cancel the task, unless the one that follows it has done so.';
COMMENT ON COLUMN given_up_tasks.cancels IS 'How often an executor has tried.';

-- Whichever program cancels the run. The task of a step that was interrupted is kept at the attempt before.
CREATE FUNCTION give_up_task() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO given_up_tasks (attempt_id, run_id, organization_id, correlation_id, agent_name, task, cancel_at)
    SELECT s.id, s.run_id, r.organization_id, r.correlation_id, s.agent_name, s.agent_task, now() + interval '10 s'
    FROM step_executions s JOIN workflow_runs r ON r.run_id = s.run_id
    WHERE s.run_id = NEW.run_id AND s.agent_task IS NOT NULL AND s.step_id = NEW.step_id
        AND s.place IS NOT DISTINCT FROM NEW.place AND s.agent_name = NEW.agent_name
        AND (s.id = NEW.id OR s.error_message = 'interrupted: the executor stopped while the step ran')
    ORDER BY s.started_at DESC, s.id DESC LIMIT 1
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER step_executions_end_gives_up_task AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (OLD.status = 'RUNNING' AND NEW.status = 'FAILED' AND NEW.agent_name <> ''
        AND NEW.error_message = 'the run was cancelled')
    EXECUTE FUNCTION give_up_task();
