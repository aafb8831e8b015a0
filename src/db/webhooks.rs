//! Endpoints of outgoing webhooks: their rows and their states. The submodules have the deliveries.

pub mod deliveries;
pub mod fan_out;
pub mod pushes;
pub mod replays;
pub mod sending;

use chrono::TimeDelta;
use serde_json::{json, value::RawValue};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor, Postgres, postgres::PgArguments, query::Query, types::Json};
use uuid::Uuid;

use super::{
    Error, Pool, audit,
    list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
    webhook_events,
};
use crate::{
    access::{Actor, OrganizationId},
    input,
    timestamp::Timestamp,
    vault::{DecryptError, Vault},
    webhook::Sealed,
};

/// A delivery has the time at which its transaction began, which may be before that of an event that it saw.
const FAN_OUT_MARGIN: TimeDelta = TimeDelta::minutes(1);

/// Row of `webhooks`. It has no `Debug`, since `sealed` holds secrets.
#[derive(Clone, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct WebhookRow {
    pub id: Uuid,
    pub organization_id: String,
    pub name: String,
    pub url: String,
    pub event_types: Vec<String>,
    pub workflow_names: Option<Vec<String>>,
    pub filter: Option<String>,
    pub payload: String,
    pub ordering: String,
    pub signature: String,
    pub sealed: Json<Box<RawValue>>,
    pub secret_hint: String,
    pub secret_created_at: Timestamp,
    pub public_key: Option<String>,
    pub max_in_flight: i32,
    pub rate_per_second: Option<i32>,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    pub disabled_at: Option<Timestamp>,
    pub created_by: String,
    pub updated_by: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

const COLUMNS: &str =
    "id, organization_id, name, url, event_types, workflow_names, filter, payload, ordering, signature,
    sealed, secret_hint, secret_created_at AT TIME ZONE 'UTC' AS secret_created_at, public_key, max_in_flight,
    rate_per_second, enabled, disabled_reason, disabled_at AT TIME ZONE 'UTC' AS disabled_at, created_by, updated_by,
    created_at AT TIME ZONE 'UTC' AS created_at, updated_at AT TIME ZONE 'UTC' AS updated_at";

impl WebhookRow {
    /// Revision of the definition, which differs after every change.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{:x}", self.updated_at.as_naive_utc().and_utc().timestamp_micros())
    }

    /// Secrets and custom headers.
    pub fn opened(&self, vault: &Vault) -> Result<Sealed, DecryptError> {
        open(vault, self.id, &self.sealed.0)
    }
}

/// Decrypts secrets and custom headers of an endpoint.
pub fn open(vault: &Vault, id: Uuid, sealed: &RawValue) -> Result<Sealed, DecryptError> {
    let opened = vault.decrypt(id, sealed)?;
    // Only this module writes the column.
    Ok(serde_json::from_str(opened.get()).unwrap_or_default())
}

/// Secrets and custom headers as they are stored.
#[must_use]
pub fn seal(vault: &Vault, id: Uuid, sealed: &Sealed) -> Json<Box<RawValue>> {
    Json(vault.encrypt(id, &input::to_raw(sealed)))
}

/// Finds the organisation's endpoint. Here and below queues of push notifications are none.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WebhookRow>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM webhooks WHERE id = $1 AND organization_id = $2 AND lane IS NULL");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// As [`find`], and locks the row until the transaction ends. The fan-out waits for it, and it for the fan-out.
pub async fn lock(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<WebhookRow>, Error> {
    let sql =
        format!("SELECT {COLUMNS} FROM webhooks WHERE id = $1 AND organization_id = $2 AND lane IS NULL FOR UPDATE");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

impl ListRow for WebhookRow {
    const TABLE: Table =
        Table { name: "webhooks", columns: COLUMNS, id: "id", is_found_by_value: false, large: &["filter", "sealed"] };
}

/// Page of the organisation's endpoints in the order of their creation.
pub async fn list(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    page: &PageRequest,
) -> Result<Page<WebhookRow>, Error> {
    let order = Order { column: "created_at", ascending: true };
    let conditions = Conditions::organization(organization).holds("lane IS NULL");
    list::fetch(conn, &Plan::short(conditions, order), page, None).await
}

/// All endpoints of the organisation; there are few.
pub async fn all(db: impl PgExecutor<'_>, organization: &OrganizationId) -> Result<Vec<WebhookRow>, Error> {
    let sql =
        format!("SELECT {COLUMNS} FROM webhooks WHERE organization_id = $1 AND lane IS NULL ORDER BY created_at, id");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).fetch_all(db).await?)
}

/// The organisation's endpoints with this prefix of the name, by name.
pub async fn all_named(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    prefix: &str,
) -> Result<Vec<WebhookRow>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM webhooks
         WHERE organization_id = $1 AND lane IS NULL AND starts_with(name, $2) ORDER BY name, created_at, id"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(prefix).fetch_all(conn).await?)
}

/// As [`lock`], those of that name: a name is for people, and several may have the same.
pub async fn lock_by_name(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    name: &str,
) -> Result<Vec<WebhookRow>, Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM webhooks WHERE organization_id = $1 AND lane IS NULL AND name = $2 ORDER BY id FOR UPDATE"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(organization.as_str()).bind(name).fetch_all(conn).await?)
}

/// Number of the organisation's endpoints. Others that add one wait until the transaction ends.
pub async fn count_alone(conn: &mut PgConnection, organization: &OrganizationId) -> Result<i64, Error> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended('webhooks/' || $1, 0))";
    sqlx::query(sql).bind(organization.as_str()).execute(&mut *conn).await?;
    let sql = "SELECT count(*) FROM webhooks WHERE organization_id = $1 AND lane IS NULL";
    Ok(sqlx::query_scalar(sql).bind(organization.as_str()).fetch_one(conn).await?)
}

/// Inserts an endpoint with its state.
pub async fn insert(conn: &mut PgConnection, row: &WebhookRow) -> Result<(), Error> {
    let sql = "WITH added AS (
                   INSERT INTO webhooks (id, name, url, event_types, workflow_names, filter, payload, ordering, sealed,
                       secret_hint, secret_created_at, public_key, max_in_flight, rate_per_second, enabled,
                       disabled_reason, disabled_at, updated_by, updated_at, organization_id, signature, created_by,
                       created_at)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 AT TIME ZONE 'UTC', $12, $13, $14, $15, $16,
                       $17 AT TIME ZONE 'UTC', $18, $19 AT TIME ZONE 'UTC', $20, $21, $22, $23 AT TIME ZONE 'UTC')
                   RETURNING id
               )
               INSERT INTO webhook_states (webhook_id) SELECT id FROM added";
    let query = bind_changeable(sqlx::query(sql), row).bind(&row.organization_id).bind(&row.signature);
    query.bind(&row.created_by).bind(row.created_at).execute(conn).await?;
    Ok(())
}

/// Writes all columns that can change of a row that the caller has locked by [`lock`].
pub async fn update(conn: &mut PgConnection, row: &WebhookRow) -> Result<(), Error> {
    let sql =
        "UPDATE webhooks SET name = $2, url = $3, event_types = $4, workflow_names = $5, filter = $6, payload = $7,
                   ordering = $8, sealed = $9, secret_hint = $10, secret_created_at = $11 AT TIME ZONE 'UTC',
                   public_key = $12, max_in_flight = $13, rate_per_second = $14, enabled = $15, disabled_reason = $16,
                   disabled_at = $17 AT TIME ZONE 'UTC', updated_by = $18, updated_at = $19 AT TIME ZONE 'UTC'
               WHERE id = $1";
    bind_changeable(sqlx::query(sql), row).execute(conn).await?;
    Ok(())
}

/// Binds the id and the columns that can change, $1 to $19.
fn bind_changeable<'q>(
    query: Query<'q, Postgres, PgArguments>,
    row: &'q WebhookRow,
) -> Query<'q, Postgres, PgArguments> {
    query
        .bind(row.id)
        .bind(&row.name)
        .bind(&row.url)
        .bind(&row.event_types)
        .bind(&row.workflow_names)
        .bind(&row.filter)
        .bind(&row.payload)
        .bind(&row.ordering)
        .bind(&row.sealed)
        .bind(&row.secret_hint)
        .bind(row.secret_created_at)
        .bind(&row.public_key)
        .bind(row.max_in_flight)
        .bind(row.rate_per_second)
        .bind(row.enabled)
        .bind(&row.disabled_reason)
        .bind(row.disabled_at)
        .bind(&row.updated_by)
        .bind(row.updated_at)
}

/// Deletes an endpoint with its state and its recoveries. Its deliveries stay until their partition is dropped, and are
/// not sent.
pub async fn delete(conn: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM webhooks WHERE id = $1").bind(id).execute(conn).await?;
    Ok(())
}

/// How an endpoint fares.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct StateRow {
    pub webhook_id: Uuid,
    pub failing_since: Option<Timestamp>,
    pub last_failure_at: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    pub failures: i32,
}

/// States of these endpoints.
pub async fn states(db: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<Vec<StateRow>, Error> {
    let sql = "SELECT webhook_id, failing_since AT TIME ZONE 'UTC' AS failing_since,
                   last_failure_at AT TIME ZONE 'UTC' AS last_failure_at,
                   last_success_at AT TIME ZONE 'UTC' AS last_success_at, failures
               FROM webhook_states WHERE webhook_id = ANY ($1)";
    Ok(sqlx::query_as(sql).bind(ids).fetch_all(db).await?)
}

/// Begins to count failures anew, as for an endpoint that is enabled.
pub async fn reset_state(conn: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    let sql = "UPDATE webhook_states SET failing_since = NULL, failures = 0, timeouts = 0, next_at = '-infinity'
               WHERE webhook_id = $1";
    sqlx::query(sql).bind(id).execute(conn).await?;
    Ok(())
}

/// Disables an endpoint, but no queue of push notifications, on behalf of the service, records it in the audit trail, and tells the organisation's other
/// endpoints. Returns `None` if it is disabled or deleted already.
pub(super) async fn give_up(
    conn: &mut PgConnection,
    id: Uuid,
    reason: &'static str,
    at: Timestamp,
    has_audit: bool,
) -> Result<Option<GivenUp>, Error> {
    let sql = "UPDATE webhooks SET enabled = false, disabled_reason = $2, disabled_at = $3 AT TIME ZONE 'UTC',
                   updated_by = $4, updated_at = $3 AT TIME ZONE 'UTC'
               WHERE id = $1 AND enabled AND lane IS NULL RETURNING id, organization_id, name, url";
    let query = sqlx::query_as(sql).bind(id).bind(reason).bind(at).bind(Actor::SYSTEM);
    let Some(given_up): Option<GivenUp> = query.fetch_optional(&mut *conn).await? else { return Ok(None) };
    let organization = OrganizationId::stored(&given_up.organization_id);
    if has_audit {
        let actor = Actor { organization: organization.clone(), ..Actor::system() };
        let (before, after) = (json!({"enabled": true}), json!({"enabled": false, "disabled_reason": reason}));
        let (before, after) = (input::to_raw(&before), input::to_raw(&after));
        let entry = audit::Entry {
            entity_type: "webhook",
            entity_id: id,
            entity_name: &given_up.name,
            action: "disable",
            before: Some(&before),
            after: Some(&after),
        };
        audit::insert(conn, &actor, entry, at).await?;
    }
    let data = json!({"webhook": {"id": id, "name": given_up.name, "reason": reason}});
    webhook_events::record(&mut *conn, &organization, "webhook.disabled", None, &input::to_raw(&data)).await?;
    Ok(Some(given_up))
}

/// Endpoint that the service has disabled.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct GivenUp {
    pub id: Uuid,
    pub organization_id: String,
    pub name: String,
}

/// What the metrics show.
#[derive(Debug, Default, sqlx::FromRow)]
pub struct Counts {
    /// Endpoints that deliveries are sent to.
    pub enabled: i64,
    /// Endpoints that are disabled.
    pub disabled: i64,
    /// Endpoints with failures in a row that deliveries are sent to.
    pub failing: i64,
    /// Seconds since the oldest delivery that an enabled endpoint is to get was due.
    pub oldest_due_seconds: f64,
}

/// Whether there is any endpoint.
pub async fn exist(pool: &Pool) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM webhook_states)").fetch_one(pool).await?)
}

/// Counts for the metrics.
pub async fn counts(pool: &Pool) -> Result<Counts, Error> {
    if !exist(pool).await? {
        return Ok(Counts::default());
    }
    let sql = "SELECT count(*) FILTER (WHERE enabled AND lane IS NULL) AS enabled,
                   count(*) FILTER (WHERE NOT enabled) AS disabled,
                   count(*) FILTER (WHERE enabled AND lane IS NULL AND s.failures >= 4) AS failing,
                   coalesce(greatest(extract(epoch FROM now() - min(due.at) FILTER (WHERE enabled)), 0), 0)::float8
                       AS oldest_due_seconds
               FROM webhooks w JOIN webhook_states s ON s.webhook_id = w.id LEFT JOIN LATERAL (
                   SELECT due_at AS at FROM webhook_deliveries d
                   WHERE d.webhook_id = w.id AND d.state = 'pending' AND d.lease IS NULL AND NOT EXISTS (
                       SELECT FROM organizations o WHERE o.id = w.organization_id AND o.status = 'suspended')
                   ORDER BY due_at LIMIT 1
               ) due ON true";
    Ok(sqlx::query_as(sql).fetch_one(pool).await?)
}

/// Ids of endpoints that the service has disabled, a bounded number.
pub async fn disabled_ids(pool: &Pool, limit: i64) -> Result<Vec<Uuid>, Error> {
    let sql =
        "SELECT id FROM webhooks WHERE NOT enabled AND disabled_reason <> 'by_user' ORDER BY disabled_at DESC LIMIT $1";
    Ok(sqlx::query_scalar(sql).bind(limit).fetch_all(pool).await?)
}

/// Makes the partitions of the next days, and drops those whose deliveries are all older than the retention.
pub async fn keep_partitions(db: &Pool, kept_days: i32) -> Result<(), Error> {
    loop {
        let sql = "SELECT keep_webhook_partitions($1)";
        let dropped: Option<String> = sqlx::query_scalar(sql).bind(kept_days).fetch_one(db).await?;
        let Some(dropped) = dropped else { return Ok(()) };
        tracing::info!(
            partition = dropped,
            "the deliveries of {dropped} were deleted: they are older than {kept_days} days"
        );
    }
}
