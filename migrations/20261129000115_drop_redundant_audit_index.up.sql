-- idx_audit_logs_entity_id finds the entries of an object as well, and every start of a run wrote both.
SET LOCAL lock_timeout = '2s';

DROP INDEX IF EXISTS idx_audit_logs_entity;
