-- The hash of an entry is computed when the entry is written, and the entries of a statement wait for their seal in one row:
-- sealing reads no entry, and writes and deletes few rows. A change of an entry before its seal is detected too.
SET LOCAL lock_timeout = '2s';

-- STABLE, as its parts are, so that the planner can inline it: a call costs twice as much.
ALTER FUNCTION audit_entry_hash(audit_logs) STABLE;

CREATE TABLE audit_unsealed_batches (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    organization_id text NOT NULL,
    entry_ids uuid[] NOT NULL,
    entry_ats timestamp[] NOT NULL,
    entry_hashes bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE audit_unsealed_batches IS 'Audit entries that no seal covers yet: those of an organisation that one statement wrote.';
COMMENT ON COLUMN audit_unsealed_batches.xid IS 'Transaction that wrote the entries.';
COMMENT ON COLUMN audit_unsealed_batches.organization_id IS 'Organisation of the entries.';
COMMENT ON COLUMN audit_unsealed_batches.entry_ids IS 'Ids of the entries.';
COMMENT ON COLUMN audit_unsealed_batches.entry_ats IS 'Their created_at.';
COMMENT ON COLUMN audit_unsealed_batches.entry_hashes IS 'Their audit_entry_hash, one after the other.';
-- Serves db::audit::seal: the batches since the last seal, without the deleted ones that an old snapshot keeps.
CREATE INDEX audit_unsealed_batches_by_transaction ON audit_unsealed_batches (xid);

-- Takes the same lock as a seal, so that none is between two tables.
SELECT pg_advisory_xact_lock(hashtextextended('audit_seals', 0));
INSERT INTO audit_unsealed_batches (organization_id, entry_ids, entry_ats, entry_hashes)
SELECT u.organization_id, array_agg(u.entry_id), array_agg(u.entry_at),
    string_agg(coalesce((SELECT audit_entry_hash(a) FROM audit_logs a WHERE a.id = u.entry_id AND a.created_at = u.entry_at),
        decode(repeat('00', 32), 'hex')), '')
FROM audit_unsealed u GROUP BY u.organization_id;

-- Roles that may seal keep that right.
CREATE TEMPORARY TABLE sealing_roles ON COMMIT DROP AS
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS role, privilege_type AS privilege
FROM pg_class, aclexplode(relacl)
WHERE pg_class.oid = 'audit_unsealed'::regclass AND grantee <> relowner AND privilege_type IN ('SELECT', 'DELETE');
DROP TABLE audit_unsealed;

-- For readers of the previous release, which counts and reports these entries; sealing is left to this release.
CREATE VIEW audit_unsealed AS
    SELECT organization_id, entry.id AS entry_id, entry.at AS entry_at
    FROM audit_unsealed_batches, unnest(entry_ids, entry_ats) AS entry (id, at);
COMMENT ON VIEW audit_unsealed IS 'Audit entries that no seal covers yet.';

DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN SELECT * FROM sealing_roles LOOP
        EXECUTE format('GRANT %s ON audit_unsealed_batches TO %s', granted.privilege, granted.role);
        IF granted.privilege = 'SELECT' THEN
            EXECUTE format('GRANT SELECT ON audit_unsealed TO %s', granted.role);
        END IF;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION queue_for_seal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO audit_unsealed_batches (organization_id, entry_ids, entry_ats, entry_hashes)
    SELECT organization_id, array_agg(id), array_agg(created_at), string_agg(audit_entry_hash(added::audit_logs), '')
    FROM added GROUP BY organization_id;
    RETURN NULL;
END
$$;
