//! Missed deadlines of runs and silence of workflows: events that time causes. Each statement may run in any number of
//! processes: rows are locked, and those that another one has locked are left to it. Times are those of the database.

use sqlx::PgExecutor;

use super::{Error, Pool};
use crate::timestamp::Timestamp;

/// Maximum number of runs or workflows that one statement looks at.
pub const MAX_DUE: i64 = 200;
/// Time after which a run that should be cancelled is looked at again.
const CANCEL_AGAIN_SECS: f64 = 10.0;
/// Interval of looks at a workflow that is silent, for its next success.
const SILENT_EVERY_SECS: f64 = 60.0;

/// Run whose deadline was due.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "said by the names")]
pub struct DueRun {
    pub run_id: String,
    pub organization_id: String,
    pub deadline_seconds: i32,
    /// Whether this look has found it missed.
    pub is_new: bool,
    /// Whether the run is to be cancelled.
    pub is_cancelled: bool,
}

/// Looks at runs whose deadline is due: those that have not ended have missed it, which is recorded as an event, once. A
/// run that is to be cancelled stays due until it has ended, in case that the caller cannot cancel it.
pub async fn miss_deadlines(db: &Pool) -> Result<Vec<DueRun>, Error> {
    let mut transaction = super::begin(db).await?;
    let sql = "
        WITH due AS MATERIALIZED (
            SELECT run_id, (status IN ('PENDING', 'RUNNING')) IS TRUE AS is_open, deadline_missed_at IS NULL AS is_new,
                (deadline_action = 'cancel') IS TRUE AS is_cancelled
            FROM workflow_runs WHERE deadline_due_at <= now() ORDER BY deadline_due_at LIMIT $1
            FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE workflow_runs r
        SET deadline_missed_at = CASE WHEN is_open THEN coalesce(deadline_missed_at, now()) ELSE deadline_missed_at END,
            deadline_due_at = CASE WHEN is_open AND is_cancelled THEN now() + make_interval(secs => $2) END
        FROM due WHERE r.run_id = due.run_id
        RETURNING r.run_id, r.organization_id, coalesce(deadline_seconds, 0) AS deadline_seconds, is_open AND is_new AS is_new,
            is_open AND is_cancelled AS is_cancelled";
    let due: Vec<DueRun> =
        sqlx::query_as(sql).bind(MAX_DUE).bind(CANCEL_AGAIN_SECS).fetch_all(&mut *transaction).await?;
    let missed: Vec<&str> = due.iter().filter(|run| run.is_new).map(|run| run.run_id.as_str()).collect();
    if !missed.is_empty() {
        let sql = "
            SELECT record_event(organization_id, 'run.deadline_missed', run_id, jsonb_build_object('deadline', jsonb_build_object(
                'seconds', deadline_seconds, 'at', event_time(deadline_at AT TIME ZONE 'UTC'),
                'action', coalesce(deadline_action, 'notify'))))
            FROM workflow_runs WHERE run_id = ANY ($1)";
        sqlx::query(sql).bind(missed).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(due)
}

/// Looks at workflows whose silence is due: those without a success for so many hours are silent, which is recorded as
/// an event, once until the next success. Returns how many were looked at.
pub async fn find_silence(db: impl PgExecutor<'_>) -> Result<u64, Error> {
    // The newest version of a name says whether it is watched. Runs have the id of a definition, of which a name can
    // have several.
    let sql = "
        WITH due AS MATERIALIZED (
            SELECT * FROM workflow_silences WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
        ), found AS MATERIALIZED (
            SELECT due.*, newest.id, newest.version, newest.silence_hours,
                greatest(due.last_success_at, (
                    SELECT max(last.completed_at) AT TIME ZONE 'UTC' FROM workflow_definitions d CROSS JOIN LATERAL (
                        SELECT r.completed_at FROM workflow_runs r
                        WHERE r.organization_id = d.organization_id AND r.workflow_id = d.id::text AND r.status = 'COMPLETED'
                            AND r.completed_at IS NOT NULL
                        ORDER BY r.completed_at DESC LIMIT 1) AS last
                    WHERE d.organization_id = due.organization_id AND d.name = due.workflow_name)) AS success
            FROM due LEFT JOIN LATERAL (
                SELECT d.id, d.version, d.status, d.silence_hours FROM workflow_definitions d
                WHERE d.organization_id = due.organization_id AND d.name = due.workflow_name
                ORDER BY d.version DESC LIMIT 1) AS newest ON newest.status = 'active'
        ), state AS MATERIALIZED (
            SELECT *, greatest(success, watched_since) AS since,
                greatest(success, watched_since) + make_interval(hours => silence_hours) AS ends
            FROM found WHERE silence_hours IS NOT NULL
        ), forgotten AS (
            DELETE FROM workflow_silences s USING found
            WHERE s.organization_id = found.organization_id AND s.workflow_name = found.workflow_name
                AND found.silence_hours IS NULL
        ), looked AS (
            UPDATE workflow_silences s
            SET last_success_at = success, silent_since = CASE WHEN ends <= now() THEN since END,
                due_at = CASE WHEN ends <= now() THEN now() + make_interval(secs => $2) ELSE ends END
            FROM state WHERE s.organization_id = state.organization_id AND s.workflow_name = state.workflow_name
        ), told AS MATERIALIZED (
            SELECT record_event(organization_id, 'workflow.silent', NULL, jsonb_build_object(
                'workflow', jsonb_build_object('id', id, 'name', workflow_name, 'version', version),
                'silence', jsonb_build_object('hours', silence_hours, 'since', event_time(since AT TIME ZONE 'UTC'),
                    'last_success_at', event_time(success AT TIME ZONE 'UTC'))), workflow_name)
            FROM state WHERE ends <= now() AND silent_since IS DISTINCT FROM since
        )
        SELECT (SELECT count(*) FROM due) + (SELECT 0 * count(*) FROM told)";
    let looked: i64 = sqlx::query_scalar(sql).bind(MAX_DUE).bind(SILENT_EVERY_SECS).fetch_one(db).await?;
    Ok(looked.unsigned_abs())
}

/// Silence of a workflow, as far as it is known.
#[derive(Clone, Copy, Debug, Default, sqlx::FromRow)]
pub struct Silence {
    /// Time since which it is silent, if it was found to be, and has not had a success since.
    pub silent_since: Option<Timestamp>,
    /// Time of the last success.
    pub last_success_at: Option<Timestamp>,
}

/// Silence of the workflow with that name.
pub async fn silence(db: impl PgExecutor<'_>, organization: &str, name: &str) -> Result<Silence, Error> {
    let sql = "
        SELECT CASE WHEN success IS NULL OR silent_since >= success THEN silent_since END AT TIME ZONE 'UTC' AS silent_since,
            success AT TIME ZONE 'UTC' AS last_success_at
        FROM (
            SELECT s.silent_since, greatest(s.last_success_at, (
                SELECT max(last.completed_at) AT TIME ZONE 'UTC' FROM workflow_definitions d CROSS JOIN LATERAL (
                    SELECT r.completed_at FROM workflow_runs r
                    WHERE r.organization_id = d.organization_id AND r.workflow_id = d.id::text AND r.status = 'COMPLETED'
                        AND r.completed_at IS NOT NULL
                    ORDER BY r.completed_at DESC LIMIT 1) AS last
                WHERE d.organization_id = s.organization_id AND d.name = s.workflow_name)) AS success
            FROM workflow_silences s WHERE s.organization_id = $1 AND s.workflow_name = $2) AS known";
    Ok(sqlx::query_as(sql).bind(organization).bind(name).fetch_optional(db).await?.unwrap_or_default())
}
