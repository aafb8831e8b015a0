//! The stage `debounce`: of several starts in a row of a key, the last one counts. It takes the place of the pending
//! run before it, and begins when its key has been quiet for a period, or when the row has lasted long enough.

use sqlx::PgConnection;

use super::{Columns, Controlled, Decided, MAX_RUNS, pass};
use crate::db::Error;

/// Periods, and maximum waits if there are any. Without a debounce, the pending run begins at once.
fn periods(keys: &[Controlled<'_>]) -> (Vec<i32>, Vec<Option<i32>>) {
    let of = |of: &Controlled<'_>| {
        of.flow.debounce.as_ref().map_or((0, None), |debounce| (debounce.period_seconds, debounce.max_wait_seconds))
    };
    keys.iter().map(of).unzip()
}

/// Decides for the runs of these keys.
pub(super) async fn decide(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<Decided, Error> {
    let (replaced, queued) = keep_last(&mut *conn, keys).await?;
    let due = due(&mut *conn, keys).await?;
    let passed = pass(&mut *conn, &due).await?;
    let admitted = passed.iter().filter(|(_, is_admitted)| *is_admitted).count();
    Ok(Decided { admitted, passed: passed.len() - admitted, queued, replaced, ..Decided::default() })
}

/// Keeps the last run of each key, and cancels the others. One that has just arrived is due after a period; a time
/// that is further ahead is one of a clock that has gone back. Returns how many were cancelled, and how many wait
/// anew.
async fn keep_last(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<(usize, usize), Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let (periods, most) = periods(keys);
    let sql = "
        WITH open AS MATERIALIZED (
            SELECT r.run_id, r.flow_state, make_interval(secs => k.period) AS period, make_interval(secs => k.most) AS most,
                row_number() OVER of_key AS nth, min((r.flow_rest ->> 'since')::timestamptz) OVER all_of_key AS since
            FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::int[])
                AS k (organization_id, workflow_name, flow_key, period, most)
            CROSS JOIN LATERAL (
                SELECT run_id, flow_state, flow_rest, created_at FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'debounce' AND r.flow_key = k.flow_key AND r.flow_state IN ('arrived', 'queued')
                    AND r.status IN ('PENDING', 'RUNNING')
                ORDER BY flow_state = 'arrived' DESC, created_at DESC, run_id DESC LIMIT $6) AS r
            WINDOW all_of_key AS (PARTITION BY k.organization_id, k.workflow_name, k.flow_key),
                -- What has arrived is newer, whatever the clocks of other processes say.
                of_key AS (PARTITION BY k.organization_id, k.workflow_name, k.flow_key
                    ORDER BY r.flow_state = 'arrived' DESC, r.created_at DESC, r.run_id DESC)
        ), replaced AS (
            UPDATE workflow_runs r
            SET status = 'CANCELLED', cancelled_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                cancelled_by = 'system', error_message = 'Cancelled: a later start within the debounce period replaces it',
                flow_state = 'replaced', flow_at = now(), flow_due = NULL
            FROM open WHERE r.run_id = open.run_id AND nth > 1 AND (r.status = 'PENDING') IS TRUE
            RETURNING r.run_id
        ), pending AS (
            UPDATE workflow_runs r
            SET flow_state = 'queued', flow_at = now(), flow_due = least(now() + period, coalesce(since, now()) + most),
                flow_rest = coalesce(flow_rest, '{}') || jsonb_build_object('since', coalesce(since, now()))
            FROM open
            WHERE r.run_id = open.run_id AND nth = 1 AND (r.status = 'PENDING') IS TRUE
                AND (r.flow_state = 'arrived' OR r.flow_due > now() + period)
            RETURNING r.run_id, open.flow_state AS before
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, detail)
            SELECT run_id, 'run.queued', 'debounce' FROM pending WHERE before = 'arrived'
        )
        SELECT (SELECT count(*) FROM replaced), (SELECT count(*) FROM pending WHERE before = 'arrived')";
    let (replaced, queued): (i64, i64) = sqlx::query_as(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .bind(periods)
        .bind(most)
        .bind(MAX_RUNS)
        .fetch_one(conn)
        .await?;
    Ok((usize::try_from(replaced).unwrap_or_default(), usize::try_from(queued).unwrap_or_default()))
}

/// The pending runs of these keys that are due. The loop looks at the others when they are.
async fn due(conn: &mut PgConnection, keys: &[Controlled<'_>]) -> Result<Vec<String>, Error> {
    let of = Columns::of(keys.iter().map(|controlled| controlled.key));
    let sql = "
        WITH pending AS MATERIALIZED (
            SELECT r.*, r.flow_due <= now() AS is_due FROM unnest($1::text[], $2::text[], $3::text[]) AS k (organization_id, workflow_name, flow_key)
            CROSS JOIN LATERAL (
                SELECT run_id, organization_id, workflow_name, flow_key, flow_due FROM workflow_runs r
                WHERE r.organization_id = k.organization_id AND r.workflow_name = k.workflow_name
                    AND r.flow_stage = 'debounce' AND r.flow_key = k.flow_key AND r.flow_state = 'queued'
                    AND r.paused_at IS NULL AND r.status IN ('PENDING', 'RUNNING')
                LIMIT 1) AS r
        ), woken AS (
            INSERT INTO flow_wakes (organization_id, workflow_name, flow_stage, flow_key, due_at)
            SELECT organization_id, workflow_name, 'debounce', flow_key, flow_due FROM pending WHERE NOT is_due
        )
        SELECT run_id FROM pending WHERE is_due";
    Ok(sqlx::query_scalar(sql)
        .bind(of.organization_id)
        .bind(of.workflow_name)
        .bind(of.flow_key)
        .fetch_all(conn)
        .await?)
}
