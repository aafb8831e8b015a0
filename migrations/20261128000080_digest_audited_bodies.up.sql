-- The audit trail is never deleted from, and read by those who may not read what it is about: of bodies (inputs of runs,
-- definitions, answers) it has the SHA-256 and the size. Entries that are there stay as they are.
SET LOCAL lock_timeout = '2s';

-- Of a body as the database, and so the API, renders it.
CREATE FUNCTION body_digest(body jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_build_object('bytes', length(rendered), 'sha256', encode(sha256(rendered), 'hex'))
    FROM (SELECT convert_to(body::text, 'UTF8') AS rendered OFFSET 0) AS once
$$;

-- The members of an object with the digests of those that are bodies, and of what is as long as one.
CREATE FUNCTION audit_members(members jsonb, bodies text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN jsonb_typeof(members) = 'object' THEN coalesce((
        SELECT jsonb_object_agg(key, CASE
            WHEN value <> 'null' AND (key = ANY (bodies) OR octet_length(value::text) > 4096) THEN body_digest(value)
            ELSE value END)
        FROM jsonb_each(members)), '{}') ELSE members END
$$;
