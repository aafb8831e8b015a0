-- no-transaction
-- Serves db::exposed: the exposed workflows of an organisation by name. They are few.
CREATE INDEX CONCURRENTLY IF NOT EXISTS workflow_definitions_exposed
    ON workflow_definitions (organization_id, name) WHERE expose IS NOT NULL;
