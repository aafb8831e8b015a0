-- Limits of runs, and what they use of them. A run without limits whose agents tell no usage has no row here.
SET LOCAL lock_timeout = '2s';

ALTER TABLE workflow_runs ADD COLUMN limits jsonb;
COMMENT ON COLUMN workflow_runs.limits IS
    'Limits of the run itself, as its start or its last retry gave them; an empty object: only those of the runs above it; null: only those of the definition, if it has any.';

CREATE TABLE run_usage (
    run_id varchar(255) PRIMARY KEY REFERENCES workflow_runs (run_id) ON DELETE CASCADE,
    calls bigint NOT NULL DEFAULT 0,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost numeric NOT NULL DEFAULT 0,
    steps bigint NOT NULL DEFAULT 0,
    millis bigint NOT NULL DEFAULT 0,
    total_calls bigint NOT NULL DEFAULT 0,
    total_input_tokens bigint NOT NULL DEFAULT 0,
    total_output_tokens bigint NOT NULL DEFAULT 0,
    total_cost numeric NOT NULL DEFAULT 0,
    total_steps bigint NOT NULL DEFAULT 0,
    total_millis bigint NOT NULL DEFAULT 0,
    limits jsonb,
    exceeded text
) WITH (fillfactor = 70);
COMMENT ON TABLE run_usage IS 'What a run has used, if it has limits, or if its agents told a usage or have a price.';
COMMENT ON COLUMN run_usage.run_id IS 'The run.';
COMMENT ON COLUMN run_usage.calls IS 'Counted calls of agents: the sum of its rows in call_usage.';
COMMENT ON COLUMN run_usage.input_tokens IS 'Input tokens: the sum of its rows in call_usage.';
COMMENT ON COLUMN run_usage.output_tokens IS 'Output tokens: the sum of its rows in call_usage.';
COMMENT ON COLUMN run_usage.cost IS 'Cost, without a currency: the sum of its rows in call_usage.';
COMMENT ON COLUMN run_usage.steps IS 'Attempts of steps; counted only for a run with limits, its own or of a run above it.';
COMMENT ON COLUMN run_usage.millis IS 'Execution time in milliseconds, as last noted; only for a run with limits.';
COMMENT ON COLUMN run_usage.total_calls IS 'Calls together with those of its sub-runs.';
COMMENT ON COLUMN run_usage.total_input_tokens IS 'Input tokens together with those of its sub-runs.';
COMMENT ON COLUMN run_usage.total_output_tokens IS 'Output tokens together with those of its sub-runs.';
COMMENT ON COLUMN run_usage.total_cost IS 'Cost together with that of its sub-runs.';
COMMENT ON COLUMN run_usage.total_steps IS 'Attempts together with those of its sub-runs.';
COMMENT ON COLUMN run_usage.total_millis IS 'Execution time together with that of its sub-runs.';
COMMENT ON COLUMN run_usage.limits IS 'The limits in force: the smaller ones of the definition and of the run; null: none.';
COMMENT ON COLUMN run_usage.exceeded IS 'Name of the limit that a call or a step of the run, or of a sub-run, did not fit into; null: none.';

CREATE TABLE call_usage (
    attempt_id varchar(255) PRIMARY KEY,
    row_id varchar(255) NOT NULL,
    run_id varchar(255) NOT NULL REFERENCES workflow_runs (run_id) ON DELETE CASCADE,
    step_id varchar(255) NOT NULL,
    organization_id text NOT NULL,
    workflow_id varchar(255) NOT NULL,
    agent_name text NOT NULL,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cost numeric NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE call_usage IS 'What one call of an agent has used.';
COMMENT ON COLUMN call_usage.attempt_id IS
    'The attempt as the agent knows it: an attempt that was interrupted and repeated by another executor keeps it, so it counts once.';
COMMENT ON COLUMN call_usage.row_id IS 'The attempt (step_executions.id).';
COMMENT ON COLUMN call_usage.run_id IS 'The run.';
COMMENT ON COLUMN call_usage.step_id IS 'The step.';
COMMENT ON COLUMN call_usage.organization_id IS 'Organisation of the run.';
COMMENT ON COLUMN call_usage.workflow_id IS 'Workflow of the run.';
COMMENT ON COLUMN call_usage.agent_name IS 'The agent that was called.';
COMMENT ON COLUMN call_usage.input_tokens IS 'Input tokens, as the answer says.';
COMMENT ON COLUMN call_usage.output_tokens IS 'Output tokens, as the answer says.';
COMMENT ON COLUMN call_usage.cost IS 'Cost by the price of the agent at the time of the call, exact to twelve decimal places, without a currency.';
COMMENT ON COLUMN call_usage.at IS 'When it was noted.';
CREATE INDEX call_usage_run ON call_usage (run_id, row_id);
CREATE INDEX call_usage_workflow ON call_usage (organization_id, workflow_id, at);

CREATE TABLE call_reservations (
    account_id varchar(255) NOT NULL REFERENCES run_usage (run_id) ON DELETE CASCADE,
    attempt_id varchar(255) NOT NULL,
    run_id varchar(255) NOT NULL,
    tokens bigint NOT NULL,
    cost numeric NOT NULL,
    CONSTRAINT call_reservations_pkey PRIMARY KEY (account_id, attempt_id)
);
COMMENT ON TABLE call_reservations IS 'What calls under way have reserved of the limits of a run.';
COMMENT ON COLUMN call_reservations.account_id IS 'The run with the limits: the calling run, or one above it.';
COMMENT ON COLUMN call_reservations.attempt_id IS 'The attempt (call_usage.attempt_id).';
COMMENT ON COLUMN call_reservations.run_id IS 'The calling run.';
COMMENT ON COLUMN call_reservations.tokens IS 'Reserved tokens.';
COMMENT ON COLUMN call_reservations.cost IS 'Reserved cost of tokens.';
CREATE INDEX call_reservations_attempt ON call_reservations (attempt_id);
