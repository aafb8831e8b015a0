//! Invariants of flow control.

use super::{REPORT, Scan};

/// The keys of flow control with runs that have not ended. A lower limit may be exceeded by runs that were admitted
/// before it was set, and a key that has just become free is looked at within moments.
pub(super) fn keys() -> Scan {
    let sql = format!(
        "WITH RECURSIVE next AS (
            (SELECT organization_id, workflow_name, flow_stage, flow_key FROM workflow_runs
             WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING')
                 AND (organization_id, workflow_name, flow_stage, flow_key) > (($1::text[])[1], ($1::text[])[2], ($1::text[])[3], ($1::text[])[4])
             ORDER BY organization_id, workflow_name, flow_stage, flow_key LIMIT 1)
            UNION ALL SELECT found.* FROM next CROSS JOIN LATERAL (
                SELECT organization_id, workflow_name, flow_stage, flow_key FROM workflow_runs r
                WHERE flow_state IS NOT NULL AND status IN ('PENDING', 'RUNNING')
                    AND (r.organization_id, r.workflow_name, r.flow_stage, r.flow_key)
                        > (next.organization_id, next.workflow_name, next.flow_stage, next.flow_key)
                ORDER BY organization_id, workflow_name, flow_stage, flow_key LIMIT 1) AS found
        ), part AS MATERIALIZED (
            SELECT k.*, ARRAY[organization_id, workflow_name, flow_stage, flow_key]::text[] AS place
            FROM (SELECT * FROM next LIMIT $2) AS k
        ), counted AS (
            SELECT part.*, d.most, d.updated_at, run.* FROM part
                LEFT JOIN LATERAL (
                    SELECT (flow_control #>> '{{concurrency,limit}}')::int AS most, updated_at FROM workflow_definitions d
                    WHERE d.name = part.workflow_name AND d.organization_id = part.organization_id
                    ORDER BY version DESC LIMIT 1) AS d ON true
                CROSS JOIN LATERAL (
                    SELECT count(*) FILTER (WHERE flow_state = 'admitted') AS slots,
                        max(flow_at) FILTER (WHERE flow_state = 'admitted') AS admitted_at,
                        min(flow_at) FILTER (WHERE flow_state IN ('arrived', 'queued') AND paused_at IS NULL
                            AND coalesce(flow_due, '-infinity') <= now()) AS held_at
                    FROM workflow_runs r
                    WHERE r.organization_id = part.organization_id AND r.workflow_name = part.workflow_name
                        AND r.flow_stage = part.flow_stage AND r.flow_key = part.flow_key AND flow_state IS NOT NULL
                        AND status IN ('PENDING', 'RUNNING')) AS run
        ), violated AS (
            SELECT rule.name, concat_ws(' ', organization_id, workflow_name, flow_stage, flow_key) AS id
            FROM counted CROSS JOIN LATERAL (VALUES
                ('slots_are_within_their_limit', flow_stage = 'concurrency' AND slots > most
                    AND admitted_at > updated_at AT TIME ZONE 'UTC' + interval '10 s'),
                ('held_runs_have_a_reason', held_at < now() - interval '10 s'
                    AND (flow_stage <> 'concurrency' OR (slots < most) IS NOT FALSE)
                    AND NOT EXISTS (SELECT FROM flow_wakes w
                        WHERE w.organization_id = counted.organization_id AND w.workflow_name = counted.workflow_name
                            AND w.flow_stage = counted.flow_stage AND w.flow_key = counted.flow_key))
            ) AS rule (name, is_violated) WHERE rule.is_violated
        ) {REPORT}"
    );
    let names = &["slots_are_within_their_limit", "held_runs_have_a_reason"];
    Scan { names, start: &["", "", "", ""], sql }
}
