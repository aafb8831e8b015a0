//! The stage `throttle`: runs of a key start at a rate. The generic cell rate algorithm: `busy_until` is the time at
//! which the rate would be unused, and each start moves it by the mean time between two of them. A start is possible
//! as long as it is not further ahead than a burst allows. All times are of the database's clock; if that goes back,
//! a key waits for one burst at most.

use sqlx::PgConnection;

use super::{Columns, Controlled, Decided, MAX_RUNS, Refusal, pass, settle_arrived};
use crate::{
    db::Error,
    workflow::{Throttle, ThrottlePolicy},
};

/// What happens to the runs of a key that come too early.
fn refusal(of: &Controlled<'_>) -> Refusal {
    match &of.flow.throttle {
        Some(Throttle { limit, period_seconds, policy: ThrottlePolicy::Drop, .. }) => {
            let message = format!("Dropped: runs of the workflow are throttled to {limit} in {period_seconds} s");
            Refusal { state: "dropped", message }
        }
        _ => Refusal { state: "", message: String::new() },
    }
}

/// Decides for the runs of these keys.
pub(super) async fn decide(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<Decided, Error> {
    let mut decided = Decided::default();
    let (chosen, places) = first(&mut *conn, keys).await?;
    let passed = pass(&mut *conn, &chosen).await?;
    let mut starts = vec![0_i64; keys.len()];
    for (run_id, is_admitted) in &passed {
        *(if *is_admitted { &mut decided.admitted } else { &mut decided.passed }) += 1;
        if let Some(at) = chosen.iter().position(|chosen| chosen == run_id) {
            starts[places[at]] += 1;
        }
    }
    count_starts(&mut *conn, keys, &starts).await?;
    let refusals: Vec<Refusal> = keys.iter().map(refusal).collect();
    (decided.queued, decided.dropped) = settle_arrived(&mut *conn, keys, &refusals).await?;
    wake_when_possible(&mut *conn, keys).await?;
    Ok(decided)
}

/// Mean times between two starts, and bursts. Without a throttle there is no time between them.
fn rates(keys: &[Controlled<'_>]) -> (Vec<f64>, Vec<i32>) {
    let of = |of: &Controlled<'_>| {
        of.flow.throttle.as_ref().map_or((0.0, i32::MAX), |throttle| (throttle.interval_secs(), throttle.burst))
    };
    keys.iter().map(of).unzip()
}

/// The first runs of each key that may start now, by priority and age, each with the index of its key.
async fn first(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<(Vec<String>, Vec<usize>), Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let (intervals, bursts) = rates(keys);
    let sql = "
        SELECT c.run_id, k.place
        FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::int[]) WITH ORDINALITY
            AS k (organization_id, workflow_name, flow_key, secs, burst, place)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN secs = 0 THEN $6::bigint
                ELSE least($6::bigint, burst - ceil(greatest(extract(epoch FROM (
                    SELECT busy_until FROM flow_throttles t
                    WHERE t.organization_id = k.organization_id AND t.workflow_name = k.workflow_name
                        AND t.flow_key = k.flow_key) - now()), 0)::float8 / secs - 1e-6))::bigint END AS free) AS room
        CROSS JOIN LATERAL (
            SELECT held.* FROM (VALUES ('arrived'), ('queued')) AS state (name) CROSS JOIN LATERAL (
                SELECT run_id, priority, created_at FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'throttle' AND r.flow_key = k.flow_key AND r.flow_state = state.name
                    AND r.paused_at IS NULL AND r.status IN ('PENDING', 'RUNNING')
                ORDER BY priority DESC, created_at, run_id LIMIT greatest(room.free, 0)) AS held
            ORDER BY priority DESC, created_at, run_id LIMIT greatest(room.free, 0)) AS c";
    let found: Vec<(String, i64)> = sqlx::query_as(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(intervals)
        .bind(bursts)
        .bind(MAX_RUNS)
        .fetch_all(conn)
        .await?;
    Ok(found.into_iter().map(|(run_id, place)| (run_id, usize::try_from(place - 1).unwrap_or_default())).unzip())
}

/// Uses up the rates of these keys by so many starts. A time that is further ahead than that is one of a clock that has
/// gone back.
async fn count_starts(conn: &mut PgConnection, keys: &[Controlled<'_>], starts: &[i64]) -> Result<(), Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let (intervals, bursts) = rates(keys);
    let sql = "
        WITH k AS MATERIALIZED (
            SELECT organization_id, workflow_name, flow_key, starts * make_interval(secs => secs) AS used,
                make_interval(secs => secs * burst) AS most
            FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::int[], $6::bigint[])
                AS k (organization_id, workflow_name, flow_key, secs, burst, starts)
            WHERE secs > 0
        ), bounded AS (
            UPDATE flow_throttles t SET busy_until = least(greatest(busy_until, now()) + used, now() + most)
            FROM k WHERE t.organization_id = k.organization_id AND t.workflow_name = k.workflow_name AND t.flow_key = k.flow_key
                AND (used > '0' OR busy_until > now() + most)
        )
        INSERT INTO flow_throttles (organization_id, workflow_name, flow_key, busy_until)
        SELECT organization_id, workflow_name, flow_key, now() + used FROM k
        WHERE used > '0' AND NOT EXISTS (
            SELECT FROM flow_throttles t
            WHERE t.organization_id = k.organization_id AND t.workflow_name = k.workflow_name AND t.flow_key = k.flow_key)";
    sqlx::query(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(intervals)
        .bind(bursts)
        .bind(starts)
        .execute(conn)
        .await?;
    Ok(())
}

/// Lets the loop look at those of these keys that have queued runs, when the next one may start.
async fn wake_when_possible(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<(), Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let (intervals, bursts) = rates(keys);
    let sql = "
        INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key, due_at)
        SELECT k.organization_id, k.workflow_name, 'throttle', k.flow_key,
            greatest(now(), t.busy_until - make_interval(secs => secs * (burst - 1)))
        FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::int[])
            AS k (organization_id, workflow_name, flow_key, secs, burst)
        JOIN flow_throttles t ON t.organization_id = k.organization_id AND t.workflow_name = k.workflow_name
            AND t.flow_key = k.flow_key
        WHERE secs > 0 AND (
            SELECT true FROM workflow_runs r
            WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                AND r.flow_stage = 'throttle' AND r.flow_key = k.flow_key AND r.flow_state = 'queued'
                AND r.paused_at IS NULL AND r.status IN ('PENDING', 'RUNNING')
            LIMIT 1) IS NOT NULL";
    sqlx::query(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(intervals)
        .bind(bursts)
        .execute(conn)
        .await?;
    Ok(())
}
