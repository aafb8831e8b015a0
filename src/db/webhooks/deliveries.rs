//! The log of deliveries, making new ones, and sending one again.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, PgExecutor};
use uuid::Uuid;

use super::sending::LEASE;
use crate::{
    access::OrganizationId,
    db::{
        Error,
        list::{self, Conditions, ListRow, Order, Page, PageRequest, Plan, Table},
    },
    timestamp::Timestamp,
};

/// Row of `webhook_deliveries`, without the body.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct DeliveryRow {
    pub id: Uuid,
    pub webhook_id: Uuid,
    pub event_id: Uuid,
    pub event_type: String,
    pub event_at: Timestamp,
    pub run_id: Option<String>,
    pub seq: Option<i32>,
    pub state: String,
    pub is_test: bool,
    pub attempts: i32,
    pub due_at: Option<Timestamp>,
    pub is_under_way: bool,
    pub status_code: Option<i32>,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

const COLUMNS: &str =
    "id, webhook_id, event_id, event_type, event_at AT TIME ZONE 'UTC' AS event_at, run_id, seq, state,
    is_test, attempts, CASE WHEN lease IS NULL THEN due_at AT TIME ZONE 'UTC' END AS due_at,
    lease IS NOT NULL AS is_under_way, status_code, error, created_at AT TIME ZONE 'UTC' AS created_at,
    ended_at AT TIME ZONE 'UTC' AS ended_at";

/// Filter of a list of deliveries.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Organisation of the deliveries.
    pub organization: OrganizationId,
    /// Their endpoint.
    pub webhook_id: Uuid,
    /// Accepted states; all if empty.
    pub states: Vec<String>,
    /// Accepted types of events; all if empty.
    pub event_types: Vec<String>,
    /// Run of the event.
    pub run_id: Option<String>,
    /// Status of the last answer.
    pub status_code: Option<i32>,
    /// Range of the time of creation.
    pub created: (Option<Timestamp>, Option<Timestamp>),
}

impl ListRow for DeliveryRow {
    const TABLE: Table =
        Table { name: "webhook_deliveries", columns: COLUMNS, id: "id", is_found_by_value: false, large: &["error"] };
}

/// Page of the deliveries of an endpoint, the latest first.
pub async fn list(
    conn: &mut PgConnection,
    filter: &Filter,
    ascending: bool,
    page: &PageRequest,
) -> Result<Page<DeliveryRow>, Error> {
    let conditions = Conditions::organization(&filter.organization)
        .uuid("webhook_id", Some(filter.webhook_id))
        .one_of("state", &filter.states)
        .one_of("event_type", &filter.event_types)
        .equal("run_id", filter.run_id.as_deref())
        .integer("status_code", filter.status_code)
        .between("created_at", filter.created);
    let order = Order { column: "created_at", ascending };
    list::fetch(conn, &Plan::long(conditions, &["webhook_id"], order), page, None).await
}

/// Finds a delivery of the organisation to a webhook.
pub async fn find(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    id: Uuid,
) -> Result<Option<DeliveryRow>, Error> {
    let sql =
        format!("SELECT {COLUMNS} FROM webhook_deliveries WHERE id = $1 AND organization_id = $2 AND push_id IS NULL");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).bind(organization.as_str()).fetch_optional(db).await?)
}

/// Body of a delivery.
pub async fn body(db: impl PgExecutor<'_>, id: Uuid) -> Result<Option<String>, Error> {
    let sql = "SELECT body FROM webhook_deliveries WHERE id = $1";
    Ok(sqlx::query_scalar(sql).bind(id).fetch_optional(db).await?)
}

/// Attempt of a delivery.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct AttemptRow {
    pub number: i32,
    pub started_at: Timestamp,
    pub duration_ms: i32,
    pub outcome: String,
    pub status_code: Option<i32>,
    pub error: Option<String>,
    pub content_type: Option<String>,
    pub retry_after: Option<String>,
    pub answer: Option<String>,
    pub is_internal: bool,
}

/// The latest attempts of a delivery, in their order.
pub async fn attempts(db: impl PgExecutor<'_>, delivery_id: Uuid, limit: i64) -> Result<Vec<AttemptRow>, Error> {
    let sql = "SELECT * FROM (
                   SELECT id, number, started_at AT TIME ZONE 'UTC' AS started_at, duration_ms, outcome, status_code, error,
                       content_type, retry_after, answer, is_internal
                   FROM webhook_attempts WHERE delivery_id = $1 ORDER BY id DESC LIMIT $2
               ) latest ORDER BY id";
    Ok(sqlx::query_as(sql).bind(delivery_id).bind(limit).fetch_all(db).await?)
}

/// Delivery that is locked to be sent again.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Locked {
    pub webhook_id: Uuid,
    pub webhook_name: String,
    pub is_enabled: bool,
    pub state: String,
}

/// Finds a delivery of the organisation whose endpoint exists, and locks both until the transaction ends.
pub async fn lock(conn: &mut PgConnection, organization: &OrganizationId, id: Uuid) -> Result<Option<Locked>, Error> {
    let sql = "SELECT d.webhook_id, w.name AS webhook_name, w.enabled AS is_enabled, d.state
               FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
               WHERE d.id = $1 AND d.organization_id = $2 AND w.lane IS NULL FOR NO KEY UPDATE OF d FOR SHARE OF w";
    Ok(sqlx::query_as(sql).bind(id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Makes a delivery due at once. With the schedule it begins anew; without it there is one attempt. One that is being
/// sent at the moment stays as it is.
pub async fn send_again(conn: &mut PgConnection, id: Uuid, with_schedule: bool) -> Result<(), Error> {
    let sql = "UPDATE webhook_deliveries SET is_single = CASE WHEN state = 'pending' THEN is_single AND NOT $2 ELSE NOT $2 END,
                   schedule_from = CASE WHEN $2 OR state <> 'pending' THEN attempts ELSE schedule_from END,
                   state = 'pending', due_at = now(), ended_at = NULL
               WHERE id = $1 AND lease IS NULL";
    sqlx::query(sql).bind(id).bind(with_schedule).execute(conn).await?;
    Ok(())
}

/// Delivery to make.
#[derive(Debug)]
pub(super) struct NewDelivery<'a> {
    pub(super) webhook_id: Uuid,
    pub(super) organization_id: &'a str,
    pub(super) push_id: Option<Uuid>,
    pub(super) event_id: Uuid,
    pub(super) event_type: &'a str,
    pub(super) event_at: Timestamp,
    pub(super) run_id: Option<&'a str>,
    pub(super) seq: Option<i32>,
    pub(super) body: String,
    pub(super) traceparent: Option<&'a str>,
    pub(super) depth: i32,
    pub(super) is_enabled: bool,
}

/// Inserts deliveries in their order. They are due now, or held if the endpoint is disabled.
pub(super) async fn insert(conn: &mut PgConnection, made: &[NewDelivery<'_>]) -> Result<(), Error> {
    if made.is_empty() {
        return Ok(());
    }
    let sql = "
        INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, run_id, seq, body,
            traceparent, depth, push_id, state, due_at)
        SELECT id, webhook_id, organization_id, event_id, event_type, event_at, run_id, seq, body, traceparent, depth,
            push_id, CASE WHEN enabled THEN 'pending' ELSE 'held' END, CASE WHEN enabled THEN now() END
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::text[], $6::timestamptz[], $7::text[], $8::int[],
            $9::text[], $10::text[], $11::int[], $12::bool[], $13::uuid[]) WITH ORDINALITY
            AS d (id, webhook_id, organization_id, event_id, event_type, event_at, run_id, seq, body, traceparent, depth,
                enabled, push_id, number)
        ORDER BY number";
    sqlx::query(sql)
        .bind(made.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.webhook_id).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.organization_id).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.event_id).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.event_type).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.event_at.as_naive_utc().and_utc()).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.run_id).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.seq).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.body.as_str()).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.traceparent).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.depth).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.is_enabled).collect::<Vec<_>>())
        .bind(made.iter().map(|new| new.push_id).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(())
}

/// Test to send at once.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Test<'a> {
    pub id: Uuid,
    pub webhook_id: Uuid,
    pub organization: &'a OrganizationId,
    pub event_id: Uuid,
    pub event_type: &'a str,
    pub event_at: DateTime<Utc>,
    pub body: &'a str,
    pub lease: Uuid,
}

/// Inserts a test, which this process sends: it is leased. Returns the time of its creation.
pub async fn insert_test(db: impl PgExecutor<'_>, test: &Test<'_>) -> Result<DateTime<Utc>, Error> {
    let sql =
        "INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state,
                   is_single, is_test, due_at, lease, leased_until)
               VALUES ($1, $2, $3, $4, $5, $6, $7, 'pending', true, true, now() + make_interval(secs => $9), $8,
                   now() + make_interval(secs => $9))
               RETURNING created_at";
    let query = sqlx::query_scalar(sql).bind(test.id).bind(test.webhook_id).bind(test.organization.as_str());
    let query = query.bind(test.event_id).bind(test.event_type).bind(test.event_at).bind(test.body).bind(test.lease);
    Ok(query.bind(LEASE.as_secs_f64()).fetch_one(db).await?)
}
