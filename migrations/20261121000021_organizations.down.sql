-- Stops if two organisations have an agent or a workflow of the same name: one of them has to go first.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

-- Without organisations a name is used once, and a key is valid for everything.
DO $$
DECLARE
    named record;
BEGIN
    SELECT * INTO named FROM (
        SELECT 'agent' AS kind, name, min(organization_id) AS one, max(organization_id) AS other FROM agents GROUP BY name
        UNION ALL
        SELECT 'workflow', name, min(organization_id), max(organization_id) FROM workflow_definitions GROUP BY name
    ) AS named WHERE one <> other ORDER BY kind, name LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'the organisations % and % both have the % "%": rename or delete it in one of them first',
            named.one, named.other, named.kind, named.name;
    END IF;
END
$$;
DELETE FROM api_keys WHERE organization_id <> 'default';

DROP INDEX workflow_definitions_by_creation;
CREATE INDEX workflow_definitions_by_creation ON workflow_definitions (created_at, id);
DROP INDEX agents_by_creation;
CREATE INDEX agents_by_creation ON agents (created_at, id);
DROP INDEX workflow_runs_by_creation;
CREATE INDEX workflow_runs_by_creation ON workflow_runs (created_at, run_id);

DROP INDEX api_keys_name_in_use;
CREATE UNIQUE INDEX api_keys_name_in_use ON api_keys (name) WHERE revoked_at IS NULL;
DROP INDEX idx_workflow_definitions_name_version;
CREATE UNIQUE INDEX idx_workflow_definitions_name_version ON workflow_definitions (name, version);
ALTER TABLE agents DROP CONSTRAINT agents_name_key;
DROP INDEX ix_agents_name;
CREATE UNIQUE INDEX ix_agents_name ON agents (name);
ALTER TABLE agents ADD CONSTRAINT agents_name_key UNIQUE (name);

ALTER TABLE api_keys DROP COLUMN organization_id;
ALTER TABLE workflow_runs DROP COLUMN organization_id;
ALTER TABLE workflow_definitions DROP COLUMN organization_id;
ALTER TABLE agents DROP COLUMN organization_id;
DROP TABLE organizations;
