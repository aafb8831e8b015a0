SET LOCAL lock_timeout = '2s';

SELECT pg_advisory_xact_lock(hashtextextended('audit_seals', 0));
DROP VIEW audit_unsealed;
CREATE TABLE audit_unsealed (
    organization_id text NOT NULL,
    entry_id uuid NOT NULL,
    entry_at timestamp NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
COMMENT ON TABLE audit_unsealed IS 'Audit entries that no seal covers yet.';
INSERT INTO audit_unsealed (organization_id, entry_id, entry_at)
SELECT organization_id, entry.id, entry.at FROM audit_unsealed_batches, unnest(entry_ids, entry_ats) AS entry (id, at);
DROP TABLE audit_unsealed_batches;

CREATE OR REPLACE FUNCTION queue_for_seal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO audit_unsealed (organization_id, entry_id, entry_at) SELECT organization_id, id, created_at FROM added;
    RETURN NULL;
END
$$;
ALTER FUNCTION audit_entry_hash(audit_logs) IMMUTABLE;
