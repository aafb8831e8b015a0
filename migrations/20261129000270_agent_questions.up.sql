-- Questions of agents: a step waits for the answer, which is sent to the agent's task.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

ALTER TABLE step_waits
    ADD COLUMN question jsonb,
    ADD COLUMN round smallint,
    ADD COLUMN cancel_at timestamptz,
    ADD COLUMN cancels smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN step_waits.question IS
    'Of an agent that has asked back: its name, the state of its task, what it says, the schema of the answer, its ids of task and conversation, the role that answers; null: no agent asks.';
COMMENT ON COLUMN step_waits.round IS
    'Of a question of an agent: its number within the attempt, from 1. Earlier ones have no attempt_id any more.';
COMMENT ON COLUMN step_waits.cancel_at IS
    'Of a question that nobody needs answered any more: when an executor shall cancel the task of the agent. Null: not, or it was cancelled.';
COMMENT ON COLUMN step_waits.cancels IS 'How often an executor has tried to cancel the task of the agent.';

-- A step that is given up while its agent has an unfinished task leaves that task to the executors, whichever program
-- writes it. Only such steps are PENDING and have an agent.
CREATE FUNCTION give_up_question() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE step_waits SET cancel_at = now() WHERE attempt_id = NEW.id AND question IS NOT NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER step_executions_end_gives_up_question AFTER UPDATE ON step_executions FOR EACH ROW
    WHEN (OLD.status = 'PENDING' AND NEW.status IN ('FAILED', 'SKIPPED') AND NEW.agent_name <> '')
    EXECUTE FUNCTION give_up_question();
