//! Statement that writes batched changes of runs.

use std::time::Duration;

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

use super::{Change, RECORDS_ITSELF};
use crate::db::{Error, monitoring};

/// Handling of rows that another session has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// Skip them, so that one locked row does not delay the others.
    Skip,
    /// Wait for them, up to the session's `lock_timeout`.
    Wait,
}

/// Parts of [`write()`] that few changes need.
#[derive(Clone, Copy)]
struct Parts {
    /// Insert a row for observers.
    updates: bool,
    /// Codes of failed runs.
    failures: bool,
    /// Times of the attempts that follow failed ones.
    retries: bool,
}

/// SQL of [`write()`].
fn write_sql(locked: Locked, has: Parts) -> String {
    // `IS TRUE` hides the conditions on a status from the status index. That index changes with every statement, so it
    // is full of dead entries and its statistics are always wrong. Rows are found by their keys.
    let skip = if locked == Locked::Skip { "SKIP LOCKED" } else { "" };
    let (updates_parameter, updates_column, insert_updates) = if has.updates {
        let insert_updates = ", outgoing AS (
            INSERT INTO monitoring_outbox (id, owner, updates)
            SELECT $23, $24, array_agg(updates ORDER BY run_id, nth) FROM held WHERE updates IS NOT NULL HAVING count(*) > 0
            ON CONFLICT (id) DO NOTHING
        )";
        (", $22::text[]", ", updates", insert_updates)
    } else {
        ("", "", "")
    };
    let more = [(has.failures, "run_code", "text[]"), (has.retries, "pause_secs", "float8[]")];
    let more: Vec<_> =
        more.into_iter().filter(|(is_there, ..)| *is_there).zip(if has.updates { 25 } else { 22 }..).collect();
    let more_parameters: Vec<_> = more.iter().map(|((_, _, of), number)| format!(", ${number}::{of}")).collect();
    let more_columns: Vec<_> = more.iter().flat_map(|((_, name, _), _)| [", ", name]).collect();
    let (more_parameters, more_columns) = (more_parameters.concat(), more_columns.concat());
    let set_code = if has.failures { ", error_code = run_code" } else { "" };
    let set_next = if has.retries {
        ", next_attempt_at = now() AT TIME ZONE 'UTC' + make_interval(secs => pause_secs)"
    } else {
        ""
    };
    format!(
        "WITH {RECORDS_ITSELF}, change AS MATERIALIZED (
            SELECT c.* FROM session, unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
                $16::text[], $17::text[], $18::float8[], $19::float8[], $20::int[], $21::text[]{updates_parameter}{more_parameters})
                AS c (run_id, lease_token, ended_id, ended_status, output, step_error, begun_id, step_id, step_name,
                    agent_name, input, parent_step_id, branch_name, join_policy, place, run_status, run_error,
                    nth, call_ms, http_status, call_fault{updates_column}{more_columns})
        ), held AS MATERIALIZED (
            SELECT c.*, r.organization_id FROM change c
            JOIN workflow_runs r ON r.run_id = c.run_id AND r.lease_token = c.lease_token
                AND (r.status = 'RUNNING') IS TRUE
            ORDER BY r.run_id FOR NO KEY UPDATE OF r {skip}
        ), ended AS (
            UPDATE step_executions s
            SET status = ended_status, completed_at = now() AT TIME ZONE 'UTC', output_data = output::jsonb,
                error_message = step_error{set_next}
            FROM held WHERE s.id = ended_id AND (s.status IN ('PENDING', 'RUNNING')) IS TRUE
            RETURNING s.run_id, s.step_id, s.id, s.agent_name, s.status, s.error_message, nth,
                extract(epoch FROM s.completed_at - s.started_at) * 1000 AS ms, call_ms, http_status, call_fault
        ), closed AS (
            -- Open attempts of a failing run: they exist only after an internal error or at the run's time limit. An
            -- abandoned step may also have begun to wait afterwards.
            UPDATE step_executions s
            SET status = CASE run_status WHEN 'FAILED' THEN 'FAILED' ELSE 'SKIPPED' END,
                completed_at = now() AT TIME ZONE 'UTC', error_message = run_error
            FROM held WHERE (run_status = 'FAILED' OR (run_status = 'COMPLETED'
                    -- For EXISTS, the planner may read the whole table.
                    AND (SELECT true FROM step_waits w WHERE w.run_id = held.run_id LIMIT 1) IS NOT NULL))
                AND s.run_id = held.run_id AND (s.status IN ('PENDING', 'RUNNING')) IS TRUE
                AND NOT EXISTS (SELECT 1 FROM held h WHERE h.ended_id = s.id)
            RETURNING s.run_id, s.step_id, s.id, s.agent_name, s.status, s.error_message, nth,
                extract(epoch FROM s.completed_at - s.started_at) * 1000 AS ms
        ), begun AS (
            INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at,
                completed_at, output_data, error_message, parent_step_id, branch_name, join_policy, place)
            SELECT begun_id, run_id, step_id, step_name, agent_name,
                CASE WHEN ended_id = begun_id THEN ended_status ELSE 'RUNNING' END, input::jsonb,
                -- Attempts are identified and listed by their begin.
                now() AT TIME ZONE 'UTC' + nth * interval '1 microsecond',
                CASE WHEN ended_id = begun_id THEN now() AT TIME ZONE 'UTC' + nth * interval '1 microsecond' END,
                CASE WHEN ended_id = begun_id THEN output::jsonb END,
                CASE WHEN ended_id = begun_id THEN step_error END, parent_step_id, branch_name, join_policy, place
            FROM held WHERE begun_id IS NOT NULL
            ON CONFLICT (id) DO NOTHING
            RETURNING run_id, step_id, id, agent_name, status, error_message,
                extract(epoch FROM started_at - now() AT TIME ZONE 'UTC') * 1e6 AS nth
        ), finished AS (
            UPDATE workflow_runs r
            SET status = run_status, error_message = coalesce(run_error, r.error_message),
                completed_at = now() AT TIME ZONE 'UTC', updated_at = now() AT TIME ZONE 'UTC',
                executor_id = NULL, lease_token = NULL{set_code}
            FROM held WHERE r.run_id = held.run_id AND run_status IS NOT NULL
            RETURNING r.run_id, r.status, CASE WHEN r.status = 'FAILED' THEN r.error_message END AS error_message, nth
        ), recorded AS (
            INSERT INTO run_events (run_id, kind, step_id, attempt_id, agent_name, http_status, duration_ms, detail)
            SELECT run_id, kind, step_id, id, nullif(agent_name, ''), http_status, ms, detail FROM (
                SELECT nth, 1, run_id, CASE WHEN call_fault IS NULL THEN 'agent.answered' ELSE 'agent.failed' END, step_id,
                    id, agent_name, http_status, call_ms, call_fault FROM ended WHERE call_ms IS NOT NULL
                UNION ALL SELECT nth, 2, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, ms,
                    error_message FROM ended
                UNION ALL SELECT nth, 2, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, ms,
                    error_message FROM closed
                UNION ALL SELECT nth, 3, run_id, 'attempt.started', step_id, id, agent_name, NULL, NULL, NULL FROM begun
                UNION ALL SELECT nth, 4, run_id, 'attempt.' || lower(status), step_id, id, agent_name, NULL, 0,
                    error_message FROM begun WHERE status <> 'RUNNING'
                UNION ALL SELECT nth, 5, run_id, 'run.' || lower(status), NULL, NULL, NULL, NULL, NULL, error_message
                    FROM finished
            ) AS event (nth, part, run_id, kind, step_id, id, agent_name, http_status, ms, detail) ORDER BY nth, part
        ){insert_updates}
        SELECT run_id, agent_name, (SELECT a.xmin::text::int8 FROM agents a
            WHERE agent_name <> '' AND a.name = agent_name AND a.organization_id = held.organization_id) AS agent_version
        FROM held"
    )
}

/// Change that was written.
#[derive(sqlx::FromRow)]
pub struct LeaseState {
    /// Id of the run.
    pub run_id: String,
    /// Agent of the step that begins in it; empty for a step that calls none.
    pub agent_name: Option<String>,
    /// [`crate::db::agents::AgentWithBreaker::version`] of that agent when the step began; `None` if it does not exist.
    pub agent_version: Option<i64>,
}

/// Writes changes in one statement, several of one run in their order. A run that is not in the answer is not owned any
/// more or is locked; nothing was written for it. Repeating a change is safe. `outgoing` has the updates for observers;
/// those of written changes are stored.
#[expect(clippy::disallowed_methods, reason = "the journal has a connection of its own, and closes it on an abort")]
pub async fn write(
    conn: &mut PgConnection,
    changes: &[Change],
    locked: Locked,
    outgoing: Option<&monitoring::Outgoing>,
) -> Result<Vec<LeaseState>, Error> {
    let codes: Vec<Option<&str>> =
        changes.iter().map(|change| Some(change.finished.as_ref()?.failure.as_ref()?.code)).collect();
    let pauses: Vec<Option<f64>> =
        changes.iter().map(|change| Some(change.ended.as_ref()?.pause?.as_secs_f64())).collect();
    let has = Parts {
        updates: outgoing.is_some(),
        failures: codes.iter().any(Option::is_some),
        retries: pauses.iter().any(Option::is_some),
    };
    let sql = write_sql(locked, has);
    let calls = || changes.iter().map(|change| change.ended.as_ref()?.call);
    let text = |of: fn(&Change) -> Option<&str>| changes.iter().map(of).collect::<Vec<_>>();
    let lease_tokens: Vec<Uuid> = changes.iter().map(|change| change.lease_token).collect();
    let nth: Vec<f64> =
        changes.chunk_by(|a, b| a.run_id == b.run_id).flat_map(|of_run| (0..of_run.len()).map(|n| n as f64)).collect();
    let query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(text(|change| Some(&change.run_id)))
        .bind(lease_tokens)
        .bind(text(|change| change.ended.as_ref().map(|step| step.id.as_str())))
        .bind(text(|change| change.ended.as_ref().map(|step| step.end.status())))
        .bind(text(|change| change.ended.as_ref()?.end.output().map(RawValue::get)))
        .bind(text(|change| change.ended.as_ref()?.end.reason()))
        .bind(text(|change| change.begun.as_ref().map(|step| step.id.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.step_id.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.step_name.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.agent_name.as_str())))
        .bind(text(|change| change.begun.as_ref().map(|step| step.input.get())))
        .bind(text(|change| Some(change.nested()?.parent_step_id.as_str())))
        .bind(text(|change| Some(change.nested()?.branch_name.as_str())))
        .bind(text(|change| change.nested()?.join_policy))
        .bind(text(|change| Some(change.nested()?.path.as_str())))
        .bind(text(|change| change.finished.as_ref().map(|run| run.status.as_str())))
        .bind(text(|change| change.finished.as_ref()?.error_message.as_deref()))
        .bind(nth)
        .bind(calls().map(|call| Some(call?.duration_ms)).collect::<Vec<_>>())
        .bind(calls().map(|call| call?.http_status.map(i32::from)).collect::<Vec<_>>())
        .bind(calls().map(|call| call?.fault).collect::<Vec<_>>());
    let query = match outgoing {
        Some(outgoing) => query.bind(&outgoing.updates).bind(outgoing.id).bind(outgoing.owner),
        None => query,
    };
    let query = if has.failures { query.bind(codes) } else { query };
    let query = if has.retries { query.bind(pauses) } else { query };
    if locked == Locked::Skip {
        return Ok(query.fetch_all(conn).await?);
    }
    // Rows that others inserted during the wait for the lock are visible to a later statement only.
    let mut transaction = conn.begin().await?;
    let run_ids = text(|change| Some(&change.run_id));
    let sql = "SELECT FROM workflow_runs WHERE run_id = ANY ($1) ORDER BY run_id FOR NO KEY UPDATE";
    sqlx::query(sql).bind(run_ids).execute(&mut *transaction).await?;
    let held = query.fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(held)
}

/// Prepares a dedicated session with that statement time-out. The planner makes each plan once, when the tables may be
/// small, and is forced to use indexes, since they grow.
pub async fn prepare_session(conn: &mut PgConnection, statement_timeout: Duration) -> Result<(), Error> {
    let sql = "SELECT set_config(name, 'off', false)
               FROM unnest(ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_mergejoin']) AS name
               UNION ALL SELECT set_config('plan_cache_mode', 'force_generic_plan', false)
               UNION ALL SELECT set_config('statement_timeout', $1, false)";
    sqlx::query(sql).bind(statement_timeout.as_millis().to_string()).execute(conn).await?;
    Ok(())
}
