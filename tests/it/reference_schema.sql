-- The schema of the reference deployment, as its users' databases have it, with a little data.
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('002_ai_chat_sessions');

CREATE TABLE workflow_runs (
    run_id varchar(255) PRIMARY KEY, workflow_id varchar(255) NOT NULL, workflow_name varchar(255) NOT NULL,
    workflow_definition_id varchar(255), status varchar(50) NOT NULL, input_data jsonb, triggered_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    completed_at timestamp, cancelled_at timestamp, cancelled_by varchar(255), error_message text
);
CREATE INDEX idx_run_status ON workflow_runs (status);
CREATE INDEX idx_run_workflow_definition_id ON workflow_runs (workflow_definition_id);

CREATE TABLE step_executions (
    id varchar(255) PRIMARY KEY, run_id varchar(255) NOT NULL REFERENCES workflow_runs (run_id),
    step_id varchar(255) NOT NULL, step_name varchar(255) NOT NULL, agent_name varchar(255) NOT NULL,
    status varchar(50) NOT NULL, input_data jsonb NOT NULL, output_data jsonb,
    started_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, completed_at timestamp, error_message text,
    parent_step_id varchar(255), branch_name varchar(255), join_policy varchar(50)
);
CREATE INDEX idx_step_run_id ON step_executions (run_id);
CREATE INDEX idx_step_status ON step_executions (status);
CREATE INDEX idx_step_branch ON step_executions (run_id, parent_step_id, branch_name);

CREATE TABLE agents (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL CONSTRAINT agents_name_key UNIQUE,
    url varchar(512) NOT NULL, description text, auth_type varchar(50), auth_config jsonb,
    timeout_ms integer NOT NULL DEFAULT 30000, retry_config jsonb, status varchar(50) NOT NULL DEFAULT 'active',
    created_by varchar(255), updated_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX ix_agents_name ON agents (name);
CREATE INDEX idx_agents_name ON agents (name);
CREATE INDEX idx_agents_status ON agents (status);
CREATE INDEX ix_agents_status ON agents (status);

CREATE TABLE workflow_definitions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL, description text,
    version integer NOT NULL DEFAULT 1, workflow_data jsonb NOT NULL, status varchar(50) NOT NULL DEFAULT 'active',
    created_by varchar(255), updated_by varchar(255),
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX idx_workflow_definitions_name_version ON workflow_definitions (name, version);
CREATE INDEX idx_workflow_definitions_name ON workflow_definitions (name);
CREATE INDEX idx_workflow_definitions_status ON workflow_definitions (status);
CREATE INDEX idx_workflow_definitions_version ON workflow_definitions (version);
CREATE INDEX ix_workflow_definitions_name ON workflow_definitions (name);
CREATE INDEX ix_workflow_definitions_status ON workflow_definitions (status);

CREATE TABLE workflow_steps (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workflow_id uuid NOT NULL REFERENCES workflow_definitions (id) ON DELETE CASCADE, step_id varchar(255) NOT NULL,
    agent_id uuid REFERENCES agents (id), next_step_id varchar(255), input_mapping jsonb, step_order integer,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE UNIQUE INDEX idx_workflow_steps_workflow_step ON workflow_steps (workflow_id, step_id);
CREATE INDEX idx_workflow_steps_workflow_id ON workflow_steps (workflow_id);
CREATE INDEX ix_workflow_steps_workflow_id ON workflow_steps (workflow_id);

CREATE TABLE audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), entity_type varchar(50) NOT NULL, entity_id uuid NOT NULL,
    action varchar(50) NOT NULL, user_id varchar(255), changes jsonb,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_audit_logs_action ON audit_logs (action);
CREATE INDEX idx_audit_logs_created_at ON audit_logs (created_at);
CREATE INDEX idx_audit_logs_entity_id ON audit_logs (entity_id);
CREATE INDEX idx_audit_logs_entity_type ON audit_logs (entity_type);
CREATE INDEX idx_audit_logs_entity ON audit_logs (entity_type, entity_id);
CREATE INDEX idx_audit_logs_user_id ON audit_logs (user_id);

CREATE TABLE ai_chat_sessions (
    id uuid PRIMARY KEY, user_id varchar(255), status varchar(50) NOT NULL, created_at timestamp NOT NULL,
    updated_at timestamp NOT NULL, expires_at timestamp NOT NULL, current_workflow json, workflow_history json,
    messages json NOT NULL
);

INSERT INTO agents (id, name, url, auth_type, auth_config, retry_config) VALUES
    ('11111111-1111-1111-1111-111111111111', 'old-agent', 'http://old:8080/', 'none', 'null',
     '{"max_retries": 3, "initial_delay_ms": 1000, "max_delay_ms": 30000, "backoff_multiplier": 2.0}');
INSERT INTO workflow_definitions (id, name, version, workflow_data, created_by) VALUES
    ('22222222-2222-2222-2222-222222222222', 'old-workflow', 4, '{"workflow_id": "wf-old-workflow-1",
     "name": "old-workflow", "version": "4", "start_step": "a", "steps": {"a": {"id": "a", "type": "agent",
     "agent_name": "old-agent", "next_step": null, "input_mapping": {}}}}', 'system');
INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data) VALUES
    ('run-33333333-3333-3333-3333-333333333333', '22222222-2222-2222-2222-222222222222', 'old-workflow',
     '22222222-2222-2222-2222-222222222222', 'FAILED', '{"n": 1}'),
    ('test-run-1', 'wf-old-workflow-1', 'old-workflow', NULL, 'PENDING', NULL);
INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data) VALUES
    ('s-1', 'run-33333333-3333-3333-3333-333333333333', 'a', 'old-agent', 'old-agent', 'FAILED', 'null');
