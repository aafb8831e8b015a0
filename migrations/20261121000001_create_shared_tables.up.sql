-- The tables shared with the reference deployment's executor and scripts. Each statement does nothing on a
-- database which that deployment created, so that it is adopted in place with its data; its own bookkeeping
-- (alembic_version) is neither read nor written. Timestamps are UTC without zone, as its programs expect.
SET LOCAL lock_timeout = '2s';

CREATE TABLE IF NOT EXISTS agents (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL CONSTRAINT agents_name_key UNIQUE,
    url varchar(512) NOT NULL,
    description text,
    auth_type varchar(50),
    auth_config jsonb,                       -- a JSON null counts as absent, here and in retry_config
    timeout_ms integer NOT NULL DEFAULT 30000,
    retry_config jsonb,
    status varchar(50) NOT NULL DEFAULT 'active',
    created_by varchar(255),
    updated_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX IF NOT EXISTS ix_agents_name ON agents (name);
CREATE INDEX IF NOT EXISTS idx_agents_name ON agents (name);
CREATE INDEX IF NOT EXISTS idx_agents_status ON agents (status);
CREATE INDEX IF NOT EXISTS ix_agents_status ON agents (status);

CREATE TABLE IF NOT EXISTS workflow_definitions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    description text,
    version integer NOT NULL DEFAULT 1,
    workflow_data jsonb NOT NULL,            -- the plan, sent verbatim in execution requests
    status varchar(50) NOT NULL DEFAULT 'active',
    created_by varchar(255),
    updated_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX IF NOT EXISTS idx_workflow_definitions_name_version ON workflow_definitions (name, version);
CREATE INDEX IF NOT EXISTS idx_workflow_definitions_name ON workflow_definitions (name);
CREATE INDEX IF NOT EXISTS idx_workflow_definitions_status ON workflow_definitions (status);
CREATE INDEX IF NOT EXISTS idx_workflow_definitions_version ON workflow_definitions (version);
CREATE INDEX IF NOT EXISTS ix_workflow_definitions_name ON workflow_definitions (name);
CREATE INDEX IF NOT EXISTS ix_workflow_definitions_status ON workflow_definitions (status);

CREATE TABLE IF NOT EXISTS workflow_steps (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id uuid NOT NULL REFERENCES workflow_definitions (id) ON DELETE CASCADE,
    step_id varchar(255) NOT NULL,
    agent_id uuid REFERENCES agents (id),
    next_step_id varchar(255),
    input_mapping jsonb,
    step_order integer,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
COMMENT ON TABLE workflow_steps IS 'Written by nobody; kept for programs that expect the table.';
CREATE UNIQUE INDEX IF NOT EXISTS idx_workflow_steps_workflow_step ON workflow_steps (workflow_id, step_id);
CREATE INDEX IF NOT EXISTS idx_workflow_steps_workflow_id ON workflow_steps (workflow_id);
CREATE INDEX IF NOT EXISTS ix_workflow_steps_workflow_id ON workflow_steps (workflow_id);

CREATE TABLE IF NOT EXISTS workflow_runs (
    run_id varchar(255) PRIMARY KEY,
    workflow_id varchar(255) NOT NULL,
    workflow_name varchar(255) NOT NULL,
    workflow_definition_id varchar(255),
    status varchar(50) NOT NULL,
    input_data jsonb,
    triggered_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at timestamp,
    cancelled_at timestamp,
    cancelled_by varchar(255),
    error_message text
);
CREATE INDEX IF NOT EXISTS idx_run_status ON workflow_runs (status);
CREATE INDEX IF NOT EXISTS idx_run_workflow_definition_id ON workflow_runs (workflow_definition_id);

CREATE TABLE IF NOT EXISTS step_executions (
    id varchar(255) PRIMARY KEY,
    run_id varchar(255) NOT NULL REFERENCES workflow_runs (run_id),
    step_id varchar(255) NOT NULL,           -- several rows a step are normal: one an attempt
    step_name varchar(255) NOT NULL,
    agent_name varchar(255) NOT NULL,
    status varchar(50) NOT NULL,
    input_data jsonb NOT NULL,
    output_data jsonb,
    started_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at timestamp,
    error_message text,
    parent_step_id varchar(255),
    branch_name varchar(255),
    join_policy varchar(50)
);
CREATE INDEX IF NOT EXISTS idx_step_run_id ON step_executions (run_id);
CREATE INDEX IF NOT EXISTS idx_step_status ON step_executions (status);
CREATE INDEX IF NOT EXISTS idx_step_branch ON step_executions (run_id, parent_step_id, branch_name);

CREATE TABLE IF NOT EXISTS audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    entity_type varchar(50) NOT NULL,        -- agent, workflow, run
    entity_id uuid NOT NULL,                 -- of a run: the UUID in its id, or a UUIDv5 of the id
    action varchar(50) NOT NULL,             -- create, update, delete, execute, retry, cancel
    user_id varchar(255),
    changes jsonb,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_audit_logs_action ON audit_logs (action);
CREATE INDEX IF NOT EXISTS idx_audit_logs_created_at ON audit_logs (created_at);
CREATE INDEX IF NOT EXISTS idx_audit_logs_entity_id ON audit_logs (entity_id);
CREATE INDEX IF NOT EXISTS idx_audit_logs_entity_type ON audit_logs (entity_type);
CREATE INDEX IF NOT EXISTS idx_audit_logs_entity ON audit_logs (entity_type, entity_id);
CREATE INDEX IF NOT EXISTS idx_audit_logs_user_id ON audit_logs (user_id);

CREATE TABLE IF NOT EXISTS ai_chat_sessions (
    id uuid PRIMARY KEY,
    user_id varchar(255),
    status varchar(50) NOT NULL,
    created_at timestamp NOT NULL,
    updated_at timestamp NOT NULL,
    expires_at timestamp NOT NULL,
    current_workflow json,
    workflow_history json,
    messages json NOT NULL
);
CREATE INDEX IF NOT EXISTS ix_ai_chat_sessions_user_id ON ai_chat_sessions (user_id);
CREATE INDEX IF NOT EXISTS ix_ai_chat_sessions_status ON ai_chat_sessions (status);
CREATE INDEX IF NOT EXISTS ix_ai_chat_sessions_expires_at ON ai_chat_sessions (expires_at);
