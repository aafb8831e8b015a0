//! The stage `concurrency`: a limited number of runs of a key have a slot, from their admission to their end.

use sqlx::PgConnection;

use super::{Columns, Controlled, Decided, MAX_RUNS, Refusal, pass, settle_arrived};
use crate::{
    db::Error,
    workflow::{Concurrency, ConcurrencyPolicy},
};

/// Number of repeats if runs are cancelled or paused while they are admitted.
const ATTEMPTS: usize = 5;

/// Limit of a key. Without one, all its runs may start.
fn limit(of: &Controlled<'_>) -> i32 {
    of.flow.concurrency.as_ref().map_or(i32::MAX, |concurrency| concurrency.limit)
}

/// What happens to the runs of a key that find no slot.
fn refusal(of: &Controlled<'_>) -> Refusal {
    match &of.flow.concurrency {
        Some(Concurrency { limit, policy: ConcurrencyPolicy::Skip, .. }) => {
            let key = &of.key.flow_key;
            let with_key = if key.is_empty() { String::new() } else { format!(" with the key {key:?}") };
            let message = format!(
                "Skipped: as many runs of the workflow{with_key} are under way as its concurrency allows ({limit})"
            );
            Refusal { state: "skipped", message }
        }
        _ => Refusal { state: "", message: String::new() },
    }
}

/// Decides for the runs of these keys.
pub(super) async fn decide(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<Decided, Error> {
    let mut decided = Decided::default();
    let is_replacing = |of: &&Controlled<'_>| {
        of.flow.concurrency.as_ref().is_some_and(|concurrency| concurrency.policy == ConcurrencyPolicy::CancelRunning)
    };
    let replacing: Vec<_> = keys.iter().filter(is_replacing).collect();
    if !replacing.is_empty() {
        decided.replaced = cancel_replaced(&mut *conn, &replacing).await?;
    }
    for _ in 0..ATTEMPTS {
        let chosen = first(&mut *conn, keys).await?;
        let passed = pass(&mut *conn, &chosen).await?.len();
        decided.admitted += passed;
        if passed == chosen.len() {
            break;
        }
    }
    let refusals: Vec<Refusal> = keys.iter().map(refusal).collect();
    (decided.queued, decided.skipped) = settle_arrived(&mut *conn, keys, &refusals).await?;
    Ok(decided)
}

/// The first runs of each key for which there are free slots: those of a higher priority before others, then the older
/// ones. A paused run is passed over.
async fn first(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<Vec<String>, Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let limits: Vec<i32> = keys.iter().map(limit).collect();
    let sql = "
        SELECT c.run_id
        FROM unnest($1::text[], $2::text[], $3::text[], $4::int[]) AS k (organization_id, workflow_name, flow_key, most)
        CROSS JOIN LATERAL (
            SELECT least($5, k.most - count(*)) AS free FROM (
                SELECT FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'concurrency' AND r.flow_key = k.flow_key AND r.flow_state = 'admitted'
                    AND r.status IN ('PENDING', 'RUNNING')
                LIMIT k.most) AS slot) AS room
        CROSS JOIN LATERAL (
            SELECT held.* FROM (VALUES ('arrived'), ('queued')) AS state (name) CROSS JOIN LATERAL (
                SELECT run_id, priority, created_at FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'concurrency' AND r.flow_key = k.flow_key AND r.flow_state = state.name
                    AND r.paused_at IS NULL AND r.status IN ('PENDING', 'RUNNING')
                ORDER BY priority DESC, created_at, run_id LIMIT greatest(room.free, 0)) AS held
            ORDER BY priority DESC, created_at, run_id LIMIT greatest(room.free, 0)) AS c";
    Ok(sqlx::query_scalar(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(limits)
        .bind(MAX_RUNS)
        .fetch_all(conn)
        .await?)
}

/// Cancels the oldest runs of these keys if newer ones have arrived, so that no more than the limit are left.
async fn cancel_replaced(conn: &mut PgConnection, keys: &[&Controlled<'_>]) -> Result<usize, Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let limits: Vec<i32> = keys.iter().map(|controlled| limit(controlled)).collect();
    let sql = "
        WITH victim AS (
            SELECT v.run_id
            FROM unnest($1::text[], $2::text[], $3::text[], $4::int[]) AS k (organization_id, workflow_name, flow_key, most)
            CROSS JOIN LATERAL (
                SELECT run_id FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'concurrency' AND r.flow_key = k.flow_key
                    AND r.flow_state IN ('arrived', 'queued', 'admitted') AND r.status IN ('PENDING', 'RUNNING')
                -- What has arrived is newer, whatever the clocks of other processes say.
                ORDER BY flow_state = 'arrived' DESC, created_at DESC, run_id DESC OFFSET k.most LIMIT $5) AS v
            WHERE (
                SELECT true FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'concurrency' AND r.flow_key = k.flow_key AND r.flow_state = 'arrived'
                    AND r.status IN ('PENDING', 'RUNNING')
                LIMIT 1) IS NOT NULL
        ), held AS MATERIALIZED (
            SELECT run_id, flow_state FROM workflow_runs
            WHERE run_id IN (SELECT run_id FROM victim) AND (status IN ('PENDING', 'RUNNING')) IS TRUE
            ORDER BY run_id FOR NO KEY UPDATE
        ), cancelled AS (
            UPDATE workflow_runs r
            SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                cancelled_by = 'system', error_message = 'Cancelled: a newer run of the same concurrency key replaces it',
                executor_id = NULL, lease_token = NULL, wake_at = NULL, flow_state = 'replaced', flow_at = now()
            FROM held WHERE r.run_id = held.run_id
            RETURNING r.run_id, held.flow_state AS before
        ), message AS (
            -- Executors know of those only that were admitted.
            INSERT INTO outbox (run_id, event_id, kind, cancelled_by, reason, created_at)
            SELECT run_id, gen_random_uuid(), 'cancellation', 'system',
                'a newer run of the same concurrency key replaces it', clock_timestamp()
            FROM cancelled WHERE before = 'admitted'
        )
        SELECT count(*) FROM cancelled";
    let cancelled: i64 = sqlx::query_scalar(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(limits)
        .bind(MAX_RUNS)
        .fetch_one(conn)
        .await?;
    Ok(usize::try_from(cancelled).unwrap_or_default())
}
