SET LOCAL lock_timeout = '2s';

DROP FUNCTION audit_members(jsonb, text[]);
DROP FUNCTION body_digest(jsonb);
