//! Deletion of ended runs whose retention is over, in batches.
//!
//! All processes share the work through one row, `run_retention`: the process that executes a batch has a token in
//! it. So batches run one after the other, with pauses between them, however many processes there are. The token only
//! coordinates the processes; which runs are deleted does not depend on it.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row as _, postgres::PgRow, types::Json};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Error, Pool, Transaction, audit};
use crate::{
    access::{Actor, OrganizationId},
    input::{member, to_raw},
    retention::{Member, Policies, Range, Scan},
    timestamp::Timestamp,
};

/// End of a run, as in the index `workflow_runs_ended`. A run without an end time counts from its creation here; for
/// those, [`families`] reads the time of the last change.
const ENDED_AT: &str = "coalesce(greatest(completed_at, cancelled_at), created_at)";
/// Condition of that index: terminal states.
const HAS_ENDED: &str = "status IN ('COMPLETED', 'FAILED', 'CANCELLED')";

/// Maximum number of rows that one statement deletes.
const SLICE: i64 = 20_000;
/// Maximum number of runs of families that are read together.
const MAX_FAMILY: i64 = 100_000;
/// Time limit of a statement that reads rows for the archive: those of one run can have some gigabytes.
const EXPORT_TIMEOUT: &str = "5min";

/// Reads the time of the database and the retention policies.
pub async fn policies(pool: &Pool, default_days: i32) -> Result<(NaiveDateTime, Policies), Error> {
    let mut connection = pool.acquire().await?;
    let now = sqlx::query_scalar("SELECT now() AT TIME ZONE 'UTC'").fetch_one(&mut *connection).await?;
    let sql = "SELECT id, retention_days FROM organizations WHERE retention_days IS NOT NULL";
    let organizations: Vec<(String, i32)> = sqlx::query_as(sql).fetch_all(&mut *connection).await?;
    // The newest version of each name counts, regardless of its status.
    let sql = "
        SELECT d.organization_id, d.name, d.retention_days FROM workflow_definitions d
        WHERE d.retention_days IS NOT NULL AND NOT EXISTS (
            SELECT FROM workflow_definitions n
            WHERE n.name = d.name AND n.organization_id = d.organization_id AND n.version > d.version)";
    let workflows: Vec<(String, String, i32)> = sqlx::query_as(sql).fetch_all(&mut *connection).await?;
    let workflows = workflows.into_iter().map(|(organization, name, days)| ((organization, name), days)).collect();
    Ok((now, Policies { default_days, organizations: organizations.into_iter().collect(), workflows }))
}

/// Runs of one organisation that a pass has deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Number of runs.
    pub runs: u64,
    /// End of the run that ended first.
    pub first: Option<NaiveDateTime>,
    /// End of the run that ended last.
    pub last: Option<NaiveDateTime>,
}

/// Pass: deletion of all runs whose retention is over at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// Start of its first batch that deleted runs.
    #[serde(default)]
    pub started_at: Option<DateTime<Utc>>,
    /// Its end; `None` while it is in progress.
    #[serde(default)]
    pub ended_at: Option<DateTime<Utc>>,
    /// Deleted rows by table.
    #[serde(default)]
    pub rows: BTreeMap<String, u64>,
    /// Deleted runs by organisation.
    #[serde(default)]
    pub organizations: BTreeMap<String, Deleted>,
    /// Whether the runs are in the archive.
    #[serde(default)]
    pub is_archived: bool,
}

/// Permission to execute the next batch.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Claim {
    /// The token.
    pub holder: Uuid,
    /// Scan positions.
    #[sqlx(json)]
    pub scan: Scan,
    /// The current pass.
    #[sqlx(json)]
    pub pass: Pass,
}

/// Claims the next batch for `lease_secs`, if one is due. With `at_once` it also claims one that is not due yet, unless
/// another process executes one.
pub async fn claim(db: impl PgExecutor<'_>, lease_secs: f64, at_once: bool) -> Result<Option<Claim>, Error> {
    let sql = "UPDATE run_retention SET holder = $1, next_at = now() + make_interval(secs => $2)
               WHERE next_at <= now() OR ($3 AND holder IS NULL) RETURNING holder, scan, pass";
    Ok(sqlx::query_as(sql).bind(Uuid::new_v4()).bind(lease_secs).bind(at_once).fetch_optional(db).await?)
}

/// Stores scan and pass, and renews the claim for `lease_secs`. False if the claim was lost.
pub async fn keep(db: impl PgExecutor<'_>, claim: &Claim, lease_secs: f64) -> Result<bool, Error> {
    let sql =
        "UPDATE run_retention SET scan = $2, pass = $3, next_at = now() + make_interval(secs => $4) WHERE holder = $1";
    let kept = sqlx::query(sql)
        .bind(claim.holder)
        .bind(Json(&claim.scan))
        .bind(Json(&claim.pass))
        .bind(lease_secs)
        .execute(db);
    Ok(kept.await?.rows_affected() == 1)
}

/// Releases the claim. The next batch is due in `pause_secs`.
pub async fn release(db: impl PgExecutor<'_>, holder: Uuid, pause_secs: f64) -> Result<(), Error> {
    let sql = "UPDATE run_retention SET holder = NULL, next_at = now() + make_interval(secs => $2) WHERE holder = $1";
    sqlx::query(sql).bind(holder).bind(pause_secs).execute(db).await?;
    Ok(())
}

/// Records that the archive could be written, or the reason why not.
pub async fn note_archive(db: impl PgExecutor<'_>, failure: Option<&str>) -> Result<(), Error> {
    let sql = "UPDATE run_retention SET archive_error = $1::text,
                   archive_failed_since = CASE WHEN $1::text IS NOT NULL THEN coalesce(archive_failed_since, now()) END
               WHERE $1::text IS NOT NULL OR archive_error IS NOT NULL";
    sqlx::query(sql).bind(failure).execute(db).await?;
    Ok(())
}

/// Ends the pass, with an entry of the audit trail for each organisation of which runs were deleted. The next one is
/// due in `pause_secs`.
pub async fn end_pass(pool: &Pool, claim: &Claim, pause_secs: f64, has_audit: bool) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    let sql =
        "UPDATE run_retention SET holder = NULL, next_at = now() + make_interval(secs => $2), scan = $3, pass = '{}',
                   last_pass = CASE WHEN $4 THEN $5 || jsonb_build_object('ended_at', now()) ELSE last_pass END
               WHERE holder = $1";
    let has_deleted = !claim.pass.organizations.is_empty();
    let ended = sqlx::query(sql)
        .bind(claim.holder)
        .bind(pause_secs)
        .bind(Json(&claim.scan))
        .bind(has_deleted)
        .bind(Json(&claim.pass))
        .execute(&mut *transaction)
        .await?;
    if ended.rows_affected() == 1 && has_audit {
        for (organization, deleted) in &claim.pass.organizations {
            record(&mut transaction, organization, deleted, claim.pass.is_archived).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// Records in the audit trail of the organisation which of its runs were deleted.
async fn record(
    conn: &mut PgConnection,
    organization: &str,
    deleted: &Deleted,
    is_archived: bool,
) -> Result<(), Error> {
    let actor = Actor { organization: OrganizationId::stored(organization), ..Actor::system() };
    let time = |at: Option<NaiveDateTime>| at.map(Timestamp::from);
    let after = to_raw(&serde_json::json!({
        "count": deleted.runs, "reason": "retention", "ended_from": time(deleted.first), "ended_to": time(deleted.last),
        "archived": is_archived,
    }));
    // The entry concerns many runs, so it names none.
    let entry = audit::Entry {
        entity_type: "run",
        entity_id: Uuid::nil(),
        entity_name: "",
        action: "expire",
        before: None,
        after: Some(&after),
    };
    audit::insert(conn, &actor, entry, Timestamp::now()).await
}

/// Begins a transaction in which rows are found by their keys, even if the tables were small when last analysed.
async fn begin_by_index(pool: &Pool) -> Result<Transaction, Error> {
    let mut transaction = pool.begin().await?;
    let sql = "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
                   set_config('enable_mergejoin', 'off', true)";
    sqlx::query(sql).execute(&mut *transaction).await?;
    Ok(transaction)
}

/// Ended run.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Ended {
    pub run_id: String,
    pub organization_id: String,
    pub workflow_name: String,
    pub ended_at: NaiveDateTime,
}

/// The first `limit` runs that ended in the range, and all others that ended at the same time as the last of these.
pub async fn ended(pool: &Pool, range: Range, limit: i64) -> Result<Vec<Ended>, Error> {
    let sql = format!(
        "SELECT run_id, organization_id, workflow_name, {ENDED_AT} AS ended_at FROM workflow_runs
         WHERE {HAS_ENDED} AND {ENDED_AT} > coalesce($1, '-infinity'::timestamp) AND {ENDED_AT} <= $2
         ORDER BY {ENDED_AT} FETCH FIRST ($3) ROWS WITH TIES"
    );
    let mut transaction = begin_by_index(pool).await?;
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(range.after).bind(range.until).bind(limit);
    let rows = rows.fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(rows)
}

impl FromRow<'_, PgRow> for Member {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            run_id: row.try_get("run_id")?,
            root_run_id: row.try_get("root_run_id")?,
            organization: row.try_get("organization")?,
            workflow: row.try_get("workflow")?,
            ended_at: row.try_get("ended_at")?,
            status: row.try_get("status")?,
            kept_until: row.try_get("kept_until")?,
            steps: row.try_get("steps")?,
            stamp: row.try_get("stamp")?,
        })
    }
}

/// Families of these runs: with the runs that contain them and with their sub-runs. Families whose outermost run has
/// not ended are left out. The runs of a family follow each other, inner runs before outer ones.
pub async fn families(pool: &Pool, run_ids: &[String]) -> Result<Vec<Member>, Error> {
    let sql = format!(
        "WITH RECURSIVE ancestor AS (
             SELECT run_id, parent_run_id FROM workflow_runs WHERE run_id = ANY ($1)
             UNION SELECT r.run_id, r.parent_run_id FROM ancestor JOIN workflow_runs r ON r.run_id = ancestor.parent_run_id
         ), member AS (
             SELECT r.run_id AS root_run_id, r.run_id, 0 AS depth
             FROM ancestor JOIN workflow_runs r ON r.run_id = ancestor.run_id
             WHERE r.{HAS_ENDED} AND NOT EXISTS (SELECT FROM workflow_runs p WHERE p.run_id = ancestor.parent_run_id)
             UNION ALL
             SELECT member.root_run_id, r.run_id, depth + 1 FROM member JOIN workflow_runs r ON r.parent_run_id = member.run_id
         )
         SELECT member.root_run_id, r.run_id, r.organization_id AS organization, r.workflow_name AS workflow,
             coalesce(greatest(r.completed_at, r.cancelled_at), r.updated_at) AS ended_at, r.status,
             r.kept_until AT TIME ZONE 'UTC' AS kept_until, r.xmin::text AS stamp,
             (SELECT count(*) FROM step_executions s WHERE s.run_id = r.run_id) AS steps
         FROM member JOIN workflow_runs r ON r.run_id = member.run_id
         ORDER BY member.root_run_id, depth DESC, r.run_id LIMIT $2"
    );
    let mut transaction = begin_by_index(pool).await?;
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(run_ids).bind(MAX_FAMILY + 1).fetch_all(&mut *transaction).await;
    let mut members: Vec<Member> = rows?;
    transaction.commit().await?;
    if members.len() > usize::try_from(MAX_FAMILY).unwrap_or(usize::MAX) {
        // The last family can be incomplete.
        let last = members.last().map(|member| member.root_run_id.clone()).unwrap_or_default();
        members.retain(|member| member.root_run_id != last);
        if members.is_empty() {
            tracing::error!(run_id = last, "the run is kept: it has more than {MAX_FAMILY} sub-runs");
        }
    }
    Ok(members)
}

impl Pass {
    /// Adds deleted runs and rows.
    fn add<'a>(&mut self, runs: impl Iterator<Item = &'a Member>, rows: &Rows) {
        self.started_at.get_or_insert_with(|| Timestamp::now().as_naive_utc().and_utc());
        for (table, count) in rows {
            *self.rows.entry((*table).to_owned()).or_default() += count;
        }
        for run in runs {
            let of = self.organizations.entry(run.organization.clone()).or_default();
            of.runs += 1;
            of.first = Some(of.first.map_or(run.ended_at, |first| first.min(run.ended_at)));
            of.last = of.last.max(Some(run.ended_at));
        }
    }
}

/// Numbers of rows by table.
pub type Rows = BTreeMap<&'static str, u64>;

/// Deletes the runs whose stamps are unchanged, with all their rows; of a family all or none. `guards` are outermost
/// runs
/// that are deleted later: if one of them has changed, none of its sub-runs is deleted. The pass of the claim is
/// updated in the same transaction. `None` if the claim was lost; then nothing is deleted.
pub async fn delete(
    pool: &Pool,
    claim: &mut Claim,
    members: &[Member],
    guards: &[Member],
    lease_secs: f64,
) -> Result<Option<Rows>, Error> {
    let mut transaction = begin_by_index(pool).await?;
    let sql = "
        SELECT r.run_id FROM workflow_runs r JOIN unnest($1::text[], $2::text[]) AS m (run_id, stamp) ON r.run_id = m.run_id
        WHERE r.xmin::text = m.stamp FOR UPDATE OF r SKIP LOCKED";
    let all = || members.iter().chain(guards);
    let ids: Vec<&str> = all().map(|member| member.run_id.as_str()).collect();
    let stamps: Vec<&str> = all().map(|member| member.stamp.as_str()).collect();
    let held: Vec<String> = sqlx::query_scalar(sql).bind(ids).bind(stamps).fetch_all(&mut *transaction).await?;
    let held: HashSet<String> = held.into_iter().collect();
    let changed: HashSet<&str> =
        all().filter(|member| !held.contains(&member.run_id)).map(|member| member.root_run_id.as_str()).collect();
    let run_ids: Vec<String> = members
        .iter()
        .filter(|member| !changed.contains(member.root_run_id.as_str()))
        .map(|member| member.run_id.clone())
        .collect();
    let mut rows = Rows::new();
    for (table, sql) in [
        (
            "step_executions",
            "DELETE FROM step_executions WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM step_executions WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "run_events",
            "DELETE FROM run_events WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_events WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "step_waits",
            "DELETE FROM step_waits WHERE ctid = ANY (ARRAY(SELECT ctid FROM step_waits WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "run_wakes",
            "DELETE FROM run_wakes WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_wakes WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "idempotency_keys",
            "DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM idempotency_keys WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "outbox",
            "DELETE FROM outbox WHERE ctid = ANY (ARRAY(SELECT ctid FROM outbox WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "call_usage",
            "DELETE FROM call_usage WHERE ctid = ANY (ARRAY(SELECT ctid FROM call_usage WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        (
            "run_usage",
            "DELETE FROM run_usage WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_usage WHERE run_id = ANY ($1) LIMIT $2))",
        ),
        // The last one: its triggers delete the other rows of a run.
        (
            "workflow_runs",
            "DELETE FROM workflow_runs WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM workflow_runs WHERE run_id = ANY ($1) LIMIT $2))",
        ),
    ] {
        rows.insert(table, delete_all(&mut transaction, sql, &run_ids).await?);
    }
    let deleted: HashSet<String> = run_ids.into_iter().collect();
    claim.pass.add(members.iter().filter(|member| deleted.contains(&member.run_id)), &rows);
    if !keep(&mut *transaction, claim, lease_secs).await? {
        transaction.rollback().await?;
        return Ok(None);
    }
    transaction.commit().await?;
    Ok(Some(rows))
}

/// Deletes the rows of the runs in one table, with statements that are bounded so that each ends within its time limit.
async fn delete_all(conn: &mut PgConnection, sql: &'static str, run_ids: &[String]) -> Result<u64, Error> {
    let mut deleted = 0;
    loop {
        let slice = sqlx::query(sql).bind(run_ids).bind(SLICE).execute(&mut *conn).await?.rows_affected();
        deleted += slice;
        if slice < SLICE.unsigned_abs() {
            return Ok(deleted);
        }
    }
}

/// Sends all rows of the runs, each as a line for the archive, without data that only a live run needs, such as the
/// tokens of its callbacks. Ends early if the channel is closed.
pub async fn export(pool: &Pool, run_ids: &[String], lines: mpsc::Sender<String>) -> Result<(), Error> {
    use futures_util::TryStreamExt as _;
    let mut transaction = super::snapshot(pool).await?;
    let sql = "SELECT set_config('enable_seqscan', 'off', true), set_config('statement_timeout', $1, true)";
    sqlx::query(sql).bind(EXPORT_TIMEOUT).execute(&mut *transaction).await?;
    for sql in [
        "SELECT json_build_object('table', 'workflow_runs', 'run_id', run_id, 'row', row_to_json(r))::text
         FROM workflow_runs r WHERE run_id = ANY ($1)",
        "SELECT json_build_object('table', 'step_executions', 'run_id', run_id, 'row', row_to_json(s))::text
         FROM (SELECT * FROM step_executions WHERE run_id = ANY ($1) ORDER BY run_id, started_at, id) s",
        "SELECT json_build_object('table', 'run_events', 'run_id', run_id, 'row', row_to_json(e))::text
         FROM (SELECT * FROM run_events WHERE run_id = ANY ($1) ORDER BY run_id, id) e",
        "SELECT json_build_object('table', 'step_waits', 'run_id', run_id, 'row',
             to_jsonb(w) - 'token' - 'token_hash')::text
         FROM step_waits w WHERE run_id = ANY ($1)",
        "SELECT json_build_object('table', 'run_usage', 'run_id', run_id, 'row', row_to_json(u))::text
         FROM run_usage u WHERE run_id = ANY ($1)",
        "SELECT json_build_object('table', 'call_usage', 'run_id', run_id, 'row', row_to_json(c))::text
         FROM (SELECT * FROM call_usage WHERE run_id = ANY ($1) ORDER BY run_id, at, attempt_id) c",
    ] {
        let mut rows = sqlx::query_scalar(sql).bind(run_ids).fetch(&mut *transaction);
        while let Some(line) = rows.try_next().await? {
            if lines.send(line).await.is_err() {
                return Ok(());
            }
        }
    }
    transaction.commit().await?;
    Ok(())
}

/// Status of the deletion.
#[derive(Debug, sqlx::FromRow)]
pub struct Status {
    /// Time of the database.
    pub now: NaiveDateTime,
    /// Scan positions.
    #[sqlx(json)]
    pub scan: Scan,
    /// The current pass.
    #[sqlx(json)]
    pub pass: Pass,
    /// The last pass that deleted runs.
    pub last_pass: Option<Json<Pass>>,
    /// Time since which the archive cannot be written.
    pub archive_failed_since: Option<DateTime<Utc>>,
    /// Reason why it cannot be written.
    pub archive_error: Option<String>,
}

/// Reads the status of the deletion.
pub async fn status(db: impl PgExecutor<'_>) -> Result<Status, Error> {
    let sql = "SELECT now() AT TIME ZONE 'UTC' AS now, scan, pass, last_pass, archive_failed_since, archive_error FROM run_retention";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}

/// Columns that are restored from the archive, by table.
pub struct Columns(HashMap<&'static str, Vec<String>>);

/// Prepares a transaction that restores rows from the archive: triggers record no changes and no events in it.
pub async fn begin_restore(conn: &mut PgConnection) -> Result<Columns, Error> {
    // Between two rows much of the archive may have to be read.
    let sql = "SELECT set_config('workflow_api.records', 'itself', true), set_config('workflow_api.restores', 'itself', true),
                   set_config('idle_in_transaction_session_timeout', '5min', true)";
    sqlx::query(sql).execute(&mut *conn).await?;
    let mut columns = HashMap::new();
    for table in ["workflow_runs", "step_executions", "run_events", "step_waits", "run_usage", "call_usage"] {
        let sql = "SELECT column_name::text FROM information_schema.columns
                   WHERE table_schema = current_schema() AND table_name = $1 AND is_identity = 'NO'";
        columns.insert(table, sqlx::query_scalar(sql).bind(table).fetch_all(&mut *conn).await?);
    }
    Ok(Columns(columns))
}

/// Whether a run with this id exists in any organisation.
pub async fn exists(conn: &mut PgConnection, run_id: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM workflow_runs WHERE run_id = $1)";
    Ok(sqlx::query_scalar(sql).bind(run_id).fetch_one(conn).await?)
}

/// Restores a row from the archive: the columns that still exist, the others with their defaults.
pub async fn restore(conn: &mut PgConnection, columns: &Columns, table: &str, row: &RawValue) -> Result<(), Error> {
    // Tables of a later release are skipped.
    let Some((table, known)) = columns.0.get_key_value(table) else { return Ok(()) };
    let names = known.iter().filter(|name| member(row, name).is_some());
    let names: Vec<String> = names.map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    let names = names.join(", ");
    let sql = format!("INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_populate_record(NULL::{table}, $1)");
    sqlx::query(AssertSqlSafe(sql)).bind(Json(row)).execute(conn).await?;
    Ok(())
}

/// Keeps the runs for this many days from now, regardless of their retention.
pub async fn keep_restored(conn: &mut PgConnection, run_ids: &[String], days: i32) -> Result<(), Error> {
    let sql = "UPDATE workflow_runs SET kept_until = now() + make_interval(days => $2) WHERE run_id = ANY ($1)";
    sqlx::query(sql).bind(run_ids).bind(days).execute(conn).await?;
    Ok(())
}
