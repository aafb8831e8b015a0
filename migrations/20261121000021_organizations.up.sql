-- Organisations: whose everything is. What programs write that know nothing of them, belongs to the default one.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

CREATE TABLE organizations (
    id text PRIMARY KEY,                -- in tokens, in paths and in organization_id columns; never changed
    name text NOT NULL,                 -- for people
    status text NOT NULL DEFAULT 'active',
    max_agents integer,                 -- this and the next three: quotas; null: that of the settings
    max_workflows integer,
    max_api_keys integer,
    max_queued_runs integer,
    created_by text NOT NULL,
    updated_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT organizations_id_form CHECK (id ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    CONSTRAINT organizations_status_known CHECK (status IN ('active', 'suspended')),
    CONSTRAINT organizations_default_is_active CHECK (id <> 'default' OR status = 'active'),
    CONSTRAINT organizations_quotas_positive CHECK (least(max_agents, max_workflows, max_api_keys, max_queued_runs) >= 0)
);
CREATE INDEX organizations_by_creation ON organizations (created_at, id);
INSERT INTO organizations (id, name, created_by, updated_by) VALUES ('default', 'Default', 'system', 'system');

ALTER TABLE agents ADD COLUMN organization_id text NOT NULL DEFAULT 'default';
ALTER TABLE workflow_definitions ADD COLUMN organization_id text NOT NULL DEFAULT 'default';
ALTER TABLE workflow_runs ADD COLUMN organization_id text NOT NULL DEFAULT 'default';
ALTER TABLE api_keys ADD COLUMN organization_id text NOT NULL DEFAULT 'default';

-- Names are unique in an organisation.
ALTER TABLE agents DROP CONSTRAINT IF EXISTS agents_name_key;
DROP INDEX IF EXISTS ix_agents_name;
CREATE UNIQUE INDEX ix_agents_name ON agents (name, organization_id);
ALTER TABLE agents ADD CONSTRAINT agents_name_key UNIQUE (name, organization_id);
DROP INDEX IF EXISTS idx_workflow_definitions_name_version;
CREATE UNIQUE INDEX idx_workflow_definitions_name_version ON workflow_definitions (name, version, organization_id);
DROP INDEX api_keys_name_in_use;
CREATE UNIQUE INDEX api_keys_name_in_use ON api_keys (name, organization_id) WHERE revoked_at IS NULL;

-- The lists are those of one organisation.
DROP INDEX workflow_runs_by_creation;
CREATE INDEX workflow_runs_by_creation ON workflow_runs (organization_id, created_at, run_id);
DROP INDEX agents_by_creation;
CREATE INDEX agents_by_creation ON agents (organization_id, created_at, id);
DROP INDEX workflow_definitions_by_creation;
CREATE INDEX workflow_definitions_by_creation ON workflow_definitions (organization_id, created_at, id);
