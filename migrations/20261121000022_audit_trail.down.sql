SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

CREATE TABLE audit_logs_plain (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    entity_type varchar(50) NOT NULL,
    entity_id uuid NOT NULL,
    action varchar(50) NOT NULL,
    user_id varchar(255),
    changes jsonb,
    created_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP
);
INSERT INTO audit_logs_plain
    SELECT id, entity_type, entity_id, action, user_id, changes, created_at, updated_at FROM audit_logs;
DROP FUNCTION audit_entry_hash(audit_logs);
DROP TABLE audit_logs, audit_unsealed, audit_seals, audit_retention;
DROP FUNCTION audit_seal_hash(text, bigint, bytea, bytea), queue_for_seal(), refuse_audit_change(), keep_audit_partitions(integer);
ALTER TABLE audit_logs_plain RENAME TO audit_logs;
ALTER INDEX audit_logs_plain_pkey RENAME TO audit_logs_pkey;
CREATE INDEX idx_audit_logs_action ON audit_logs (action);
CREATE INDEX idx_audit_logs_created_at ON audit_logs (created_at);
CREATE INDEX idx_audit_logs_entity_id ON audit_logs (entity_id);
CREATE INDEX idx_audit_logs_entity_type ON audit_logs (entity_type);
CREATE INDEX idx_audit_logs_entity ON audit_logs (entity_type, entity_id);
CREATE INDEX idx_audit_logs_user_id ON audit_logs (user_id);
