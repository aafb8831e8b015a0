//! Invariants of triggers and of outgoing webhooks.

use super::{REPORT, Scan};

/// What a trigger needs besides its row.
pub(super) fn triggers() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT id, kind, ARRAY[id]::text[] AS place FROM triggers WHERE id > ($1::text[])[1]::uuid ORDER BY id LIMIT $2
        ), violated AS (
            SELECT 'triggers_can_fire' AS name, id::text AS id FROM part
            WHERE (kind = 'schedule' AND NOT EXISTS (SELECT FROM trigger_schedules s WHERE s.trigger_id = part.id))
                OR (kind = 'webhook' AND NOT EXISTS (SELECT FROM webhook_triggers w WHERE w.trigger_id = part.id))
        ) {REPORT}"
    );
    Scan { names: &["triggers_can_fire"], start: &["00000000-0000-0000-0000-000000000000"], sql }
}

/// The endpoints, each with one look at its deliveries, by the index of those that are to be sent.
pub(super) fn webhooks() -> Scan {
    let sql = format!(
        "WITH part AS MATERIALIZED (
            SELECT id, ARRAY[id]::text[] AS place FROM webhooks WHERE id > ($1::text[])[1]::uuid ORDER BY id LIMIT $2
        ), violated AS (
            SELECT 'webhook_deliveries_go_on' AS name, id::text AS id FROM part
            -- A row without an address is of no endpoint: tests write such ones.
            WHERE NOT EXISTS (SELECT FROM webhook_states s WHERE s.webhook_id = part.id)
                    AND EXISTS (SELECT FROM webhooks w WHERE w.id = part.id AND w.url <> '')
                OR EXISTS (SELECT FROM webhook_deliveries d
                    WHERE d.webhook_id = part.id AND d.state = 'pending' AND d.due_at IS NULL)
        ) {REPORT}"
    );
    Scan { names: &["webhook_deliveries_go_on"], start: &["00000000-0000-0000-0000-000000000000"], sql }
}
