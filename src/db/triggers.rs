//! Triggers, and their last firings.

use std::{collections::HashMap, ops::ControlFlow};

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{
    Error,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
};
use crate::{access::OrganizationId, timestamp::Timestamp, trigger::Labels};

/// Maximum number of firings of a trigger that are kept.
const KEPT_FIRINGS: i64 = 100;

/// Row of `triggers`.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct TriggerRow {
    pub id: Uuid,
    pub organization_id: String,
    pub name: String,
    pub kind: String,
    pub workflow_name: String,
    pub workflow_version: Option<i32>,
    pub input: Option<Json<Box<RawValue>>>,
    pub priority: i16,
    pub labels: Json<Labels>,
    pub config: Json<Box<RawValue>>,
    pub secrets: Option<Json<Box<RawValue>>>,
    pub enabled: bool,
    pub note: Option<String>,
    pub counters: Json<HashMap<String, i64>>,
    pub last_fired_at: Option<Timestamp>,
    pub created_by: String,
    pub updated_by: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl TriggerRow {
    /// Revision of the definition, which differs after every change by a user.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{:x}", self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }

    /// Organisation of the trigger and of its runs.
    #[must_use]
    pub fn organization(&self) -> OrganizationId {
        OrganizationId::stored(&self.organization_id)
    }
}

const COLUMNS: &str =
    "id, organization_id, name, kind, workflow_name, workflow_version, input, priority, labels, config, secrets,
    enabled, note, counters, last_fired_at AT TIME ZONE 'UTC' AS last_fired_at, created_by, updated_by,
    created_at AT TIME ZONE 'UTC' AS created_at, updated_at AT TIME ZONE 'UTC' AS updated_at";

pub(super) fn select(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM triggers{rest}")
}

/// Finds the organisation's trigger by id.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// The trigger with the token of this hash in its address, of whatever organisation.
pub async fn by_webhook_token(db: impl PgExecutor<'_>, hash: &[u8]) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE id = (SELECT trigger_id FROM webhook_triggers WHERE token_hash = $1)");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(hash).fetch_optional(db).await?)
}

/// The organisation's webhook trigger of that name.
pub async fn webhook_by_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE organization_id = $1 AND name = $2 AND kind = 'webhook'");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(name).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends. The lock is that of a deletion: one that is taken by
/// [`hold`] is waited for here, and not with the row in hand.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// As [`find`], and keeps the trigger from being deleted until the transaction ends. It may be changed meanwhile, and
/// other transactions may hold it too.
pub async fn hold(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE id = $1 AND organization_id = $2 FOR KEY SHARE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Whether the trigger is not paused. After [`record`] in the same transaction, that stays so until its end.
pub async fn is_enabled(conn: &mut PgConnection, id: Uuid) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM triggers WHERE id = $1 AND enabled)";
    Ok(sqlx::query_scalar(sql).bind(id).fetch_one(conn).await?)
}

/// Locks a trigger by id alone, unless another transaction has locked it.
pub async fn lock_free(conn: &mut PgConnection, id: Uuid) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(conn).await?)
}

/// As [`lock`], by name.
pub async fn lock_by_name(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    name: &str,
) -> Result<Option<TriggerRow>, Error> {
    let sql = select(" WHERE name = $1 AND organization_id = $2 FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(name).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Workflow of the organisation's trigger.
pub async fn workflow_name(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<String>, Error> {
    let sql = "SELECT workflow_name FROM triggers WHERE id = $1 AND organization_id = $2";
    Ok(sqlx::query_scalar(sql).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Visits the organisation's triggers with this prefix of the name, by name, until `each` breaks.
pub async fn all(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    prefix: &str,
    mut each: impl FnMut(TriggerRow) -> ControlFlow<()> + Send,
) -> Result<(), Error> {
    let sql = select(" WHERE organization_id = $1 AND starts_with(name, $2) ORDER BY name");
    let mut rows = sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(prefix).fetch(conn);
    while let Some(row) = rows.try_next().await? {
        if each(row).is_break() {
            break;
        }
    }
    Ok(())
}

/// Filter of a list of triggers.
#[derive(Debug)]
pub struct Filter<'a> {
    /// Organisation of the triggers.
    pub organization: &'a OrganizationId,
    /// Accepted kinds; all if empty.
    pub kinds: Vec<String>,
    /// Exact name.
    pub name: Option<&'a str>,
    /// Prefix of the name.
    pub name_prefix: Option<&'a str>,
    /// Exact name of the workflow.
    pub workflow_name: Option<&'a str>,
    /// Whether they fire; `None`: either.
    pub enabled: Option<bool>,
}

/// Sort order: creation.
const ORDER: Order = Order { column: "created_at", ascending: true };

impl ListRow for TriggerRow {
    const TABLE: Table = Table {
        name: "triggers",
        columns: COLUMNS,
        id: "id",
        is_found_by_value: false,
        large: &["input", "labels", "config", "secrets", "note"],
    };
}

/// Page of the organisation's triggers in the order of their creation.
pub async fn list(conn: &mut PgConnection, filter: &Filter<'_>, page: &PageRequest) -> Result<Page<TriggerRow>, Error> {
    let mut conditions = Conditions::organization(filter.organization)
        .one_of("kind", &filter.kinds)
        .equal("name", filter.name)
        .prefix("name", filter.name_prefix)
        .equal("workflow_name", filter.workflow_name);
    if let Some(enabled) = filter.enabled {
        conditions = conditions.holds(if enabled { "enabled" } else { "NOT enabled" });
    }
    list::fetch(conn, &Plan::short(conditions, ORDER), page, None).await
}

/// Number of the organisation's triggers. Locks it against other transactions that add to it.
pub async fn count_locked(conn: &mut PgConnection, organization: &OrganizationId) -> Result<i64, Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('quota/' || $1 || '/triggers', 0))";
    sqlx::query(sql).bind(organization.as_str()).execute(&mut *conn).await?;
    let sql = "SELECT count(*) FROM triggers WHERE organization_id = $1";
    Ok(sqlx::query_scalar(sql).bind(organization.as_str()).fetch_one(conn).await?)
}

/// Inserts a row. A duplicate name is an [`Error::Conflict`].
pub async fn insert(conn: &mut PgConnection, row: &TriggerRow) -> Result<(), Error> {
    let sql =
        "INSERT INTO triggers (id, name, workflow_name, workflow_version, input, priority, labels, config, secrets,
                   enabled, note, updated_by, updated_at, organization_id, kind, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";
    let query = bind_changeable(sqlx::query(sql), row).bind(&row.organization_id).bind(&row.kind);
    query.bind(&row.created_by).bind(row.created_at.as_naive_utc().and_utc()).execute(conn).await?;
    Ok(())
}

/// Writes the definition of a row that the caller has locked by [`lock`]. A duplicate name is an [`Error::Conflict`].
pub async fn update(conn: &mut PgConnection, row: &TriggerRow) -> Result<(), Error> {
    let sql = "UPDATE triggers SET name = $2, workflow_name = $3, workflow_version = $4, input = $5, priority = $6, labels = $7,
                   config = $8, secrets = $9, enabled = $10, note = $11, updated_by = $12, updated_at = $13
               WHERE id = $1";
    bind_changeable(sqlx::query(sql), row).execute(conn).await?;
    Ok(())
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// Binds the id and the columns that can change, $1 to $13.
fn bind_changeable<'q>(query: Query<'q>, row: &'q TriggerRow) -> Query<'q> {
    query
        .bind(row.id)
        .bind(&row.name)
        .bind(&row.workflow_name)
        .bind(row.workflow_version)
        .bind(&row.input)
        .bind(row.priority)
        .bind(&row.labels)
        .bind(&row.config)
        .bind(&row.secrets)
        .bind(row.enabled)
        .bind(&row.note)
        .bind(&row.updated_by)
        .bind(row.updated_at.as_naive_utc().and_utc())
}

/// Pauses a trigger that the caller has locked, on behalf of the service.
pub async fn pause(conn: &mut PgConnection, id: Uuid, note: &str, by: &str) -> Result<(), Error> {
    let sql =
        "UPDATE triggers SET enabled = false, note = $2, updated_by = $3, updated_at = clock_timestamp() WHERE id = $1";
    sqlx::query(sql).bind(id).bind(note).bind(by).execute(conn).await?;
    Ok(())
}

/// Deletes a row that the caller has locked by [`lock`], with its firings. Its runs stay.
pub async fn delete(conn: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM triggers WHERE id = $1").bind(id).execute(conn).await?;
    Ok(())
}

/// Firing, as it is kept.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct FiringRow {
    pub nominal_at: DateTime<Utc>,
    pub due_at: Option<DateTime<Utc>>,
    pub fired_at: DateTime<Utc>,
    pub cause: String,
    pub outcome: String,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub run_id: Option<String>,
}

/// Last firings of these triggers, the latest first, at most `limit` of each.
pub async fn last_firings(
    db: impl PgExecutor<'_>,
    ids: &[Uuid],
    limit: i64,
) -> Result<HashMap<Uuid, Vec<FiringRow>>, Error> {
    #[derive(sqlx::FromRow)]
    struct Of {
        trigger_id: Uuid,
        #[sqlx(flatten)]
        firing: FiringRow,
    }
    let sql = "SELECT t.id AS trigger_id, f.nominal_at, f.due_at, f.fired_at, f.cause, f.outcome, f.reason, f.detail,
                   f.run_id
               FROM unnest($1::uuid[]) AS t (id) CROSS JOIN LATERAL (
                   SELECT * FROM trigger_firings WHERE trigger_id = t.id ORDER BY id DESC LIMIT $2) AS f
               ORDER BY f.id DESC";
    let rows: Vec<Of> = sqlx::query_as(sql).bind(ids).bind(limit).fetch_all(db).await?;
    let mut firings: HashMap<Uuid, Vec<FiringRow>> = HashMap::new();
    for Of { trigger_id, firing } in rows {
        firings.entry(trigger_id).or_default().push(firing);
    }
    Ok(firings)
}

/// How a trigger fares: its last firing, what became of its run, and why its topic cannot be read.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migrations")]
pub struct HealthRow {
    pub trigger_id: Uuid,
    pub nominal_at: Option<DateTime<Utc>>,
    pub outcome: Option<String>,
    pub reason: Option<String>,
    pub detail: Option<String>,
    pub run_id: Option<String>,
    /// Status of that run, unless it is deleted.
    pub run_status: Option<String>,
    pub error: Option<String>,
    pub error_at: Option<DateTime<Utc>>,
}

/// How each of these triggers fares.
pub async fn health(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<HashMap<Uuid, HealthRow>, Error> {
    let sql =
        "SELECT t.id AS trigger_id, f.nominal_at, f.outcome, f.reason, f.detail, f.run_id, r.status AS run_status,
                   k.error, k.error_at
               FROM unnest($1::uuid[]) AS t (id) LEFT JOIN LATERAL (
                   SELECT * FROM trigger_firings WHERE trigger_id = t.id ORDER BY id DESC LIMIT 1) AS f ON true
               LEFT JOIN workflow_runs r ON r.run_id = f.run_id
               LEFT JOIN kafka_triggers k ON k.trigger_id = t.id";
    let rows: Vec<HealthRow> = sqlx::query_as(sql).bind(ids).fetch_all(db).await?;
    Ok(rows.into_iter().map(|row| (row.trigger_id, row)).collect())
}

/// What is written of firings.
#[derive(Debug, Default)]
pub struct NewFirings<'a> {
    /// Firings in their order; only the latest are kept.
    pub firings: &'a [FiringRow],
    /// What is added to the counters.
    pub counts: &'a [(&'static str, i64)],
}

/// Records firings of a trigger, and adds to its counters. The row of the trigger is written last: whoever fires it too
/// waits from then on until the transaction ends.
pub async fn record(conn: &mut PgConnection, id: Uuid, new: NewFirings<'_>) -> Result<(), Error> {
    /// Values of one column for all firings.
    fn column<'r, T>(firings: &'r [FiringRow], of: impl Fn(&'r FiringRow) -> T) -> Vec<T> {
        firings.iter().map(of).collect()
    }
    let NewFirings { firings, counts } = new;
    let kept = usize::try_from(KEPT_FIRINGS).unwrap_or(usize::MAX);
    let firings = &firings[firings.len().saturating_sub(kept)..];
    if !firings.is_empty() {
        sqlx::query(
            "INSERT INTO trigger_firings (trigger_id, nominal_at, due_at, fired_at, cause, outcome, reason, detail, run_id)
             SELECT $1, * FROM unnest($2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::text[], $6::text[],
                 $7::text[], $8::text[], $9::text[])",
        )
        .bind(id)
        .bind(column(firings, |firing| firing.nominal_at))
        .bind(column(firings, |firing| firing.due_at))
        .bind(column(firings, |firing| firing.fired_at))
        .bind(column(firings, |firing| firing.cause.as_str()))
        .bind(column(firings, |firing| firing.outcome.as_str()))
        .bind(column(firings, |firing| firing.reason.as_deref()))
        .bind(column(firings, |firing| firing.detail.as_deref()))
        .bind(column(firings, |firing| firing.run_id.as_deref()))
        .execute(&mut *conn)
        .await?;
        // What another transaction deletes at this moment is not waited for.
        let sql = "DELETE FROM trigger_firings WHERE id = ANY (ARRAY(
                       SELECT id FROM trigger_firings WHERE trigger_id = $1 AND id <= (
                           SELECT id FROM trigger_firings WHERE trigger_id = $1 ORDER BY id DESC OFFSET $2 LIMIT 1)
                       FOR UPDATE SKIP LOCKED))";
        sqlx::query(sql).bind(id).bind(KEPT_FIRINGS).execute(&mut *conn).await?;
    }
    if firings.is_empty() && counts.is_empty() {
        return Ok(());
    }
    let (names, numbers): (Vec<&str>, Vec<i64>) = counts.iter().copied().unzip();
    let last = firings.iter().map(|firing| firing.fired_at).max();
    sqlx::query(
        "UPDATE triggers t SET last_fired_at = greatest(last_fired_at, $4), counters = t.counters || (
             SELECT coalesce(jsonb_object_agg(name, coalesce((t.counters ->> name)::bigint, 0) + number), '{}')
             FROM unnest($2::text[], $3::bigint[]) AS c (name, number))
         WHERE id = $1",
    )
    .bind(id)
    .bind(names)
    .bind(numbers)
    .bind(last)
    .execute(conn)
    .await?;
    Ok(())
}

/// Workflow that a trigger starts.
#[derive(Debug, sqlx::FromRow)]
pub struct Startable {
    /// Id of its definition.
    pub id: Uuid,
    /// Status of the definition.
    pub status: String,
    /// See [`PinnedDefinition::stamp`](super::workflows::PinnedDefinition::stamp).
    pub stamp: String,
}

/// The definition of that name and version; without a version, the newest one.
pub async fn definition(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    (name, version): (&str, Option<i32>),
) -> Result<Option<Startable>, Error> {
    let sql = "SELECT id, status, xmin::text AS stamp FROM workflow_definitions
               WHERE organization_id = $1 AND name = $2 AND ($3::int IS NULL OR version = $3)
               ORDER BY version DESC LIMIT 1";
    Ok(sqlx::query_as(sql).bind(organization.as_str()).bind(name).bind(version).fetch_optional(conn).await?)
}

/// Runs of the trigger that have not ended, paused ones included, the oldest first; at most `limit`.
pub async fn open_runs(conn: &mut PgConnection, id: Uuid, limit: i64) -> Result<Vec<String>, Error> {
    let sql = "SELECT run_id FROM workflow_runs
               WHERE trigger_id = $1 AND trigger_id IS NOT NULL AND status IN ('PENDING', 'RUNNING')
               ORDER BY created_at, run_id LIMIT $2";
    Ok(sqlx::query_scalar(sql).bind(id).bind(limit).fetch_all(conn).await?)
}

/// The database's clock.
pub async fn now(db: impl PgExecutor<'_>) -> Result<DateTime<Utc>, Error> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(db).await?)
}
