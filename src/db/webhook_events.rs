//! Events for webhooks and the Kafka topic of events. Triggers record them (see the migration), and [`record`].

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool, processes::DEAD_AFTER_SECS};
use crate::{access::OrganizationId, event::Event, timestamp::Timestamp};

/// Time without a process that has the setting after which the topic is forgotten by one that has not.
const FORGET_TOPIC_AFTER_SECS: f64 = 3600.0;
/// Maximum number of rows that are counted for the metrics.
const MAX_COUNTED: i64 = 100_000;

/// Event of an organisation.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct EventRow {
    pub id: Uuid,
    pub created_at: Timestamp,
    pub position: i64,
    pub organization_id: String,
    pub event_type: String,
    pub run_id: Option<String>,
    pub seq: Option<i32>,
    pub workflow_name: Option<String>,
    pub data: Json<Box<RawValue>>,
    pub traceparent: Option<String>,
}

impl EventRow {
    /// The event as it goes out.
    #[must_use]
    pub fn event(&self) -> Event {
        Event {
            id: self.id,
            event_type: self.event_type.clone(),
            created_at: self.created_at,
            run_id: self.run_id.clone(),
            seq: self.seq,
            data: self.data.0.clone(),
        }
    }
}

/// Records an event in the caller's transaction, if an endpoint of the organisation or the topic wants it. `data` has
/// the members of its type; those of the run and the organisation are added. Returns its id.
pub async fn record(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    event_type: &str,
    run_id: Option<&str>,
    data: &RawValue,
) -> Result<Option<Uuid>, Error> {
    let sql = "SELECT record_event($1, $2, $3, $4)";
    let recorded = sqlx::query_scalar(sql).bind(organization.as_str()).bind(event_type).bind(run_id).bind(Json(data));
    Ok(recorded.fetch_one(db).await?)
}

/// As [`record`], of an event about a workflow and no run: endpoints that want events of certain workflows only get it.
pub async fn record_of_workflow(
    db: impl PgExecutor<'_>,
    organization: &OrganizationId,
    event_type: &str,
    workflow_name: &str,
    data: &RawValue,
) -> Result<Option<Uuid>, Error> {
    let sql = "SELECT record_event($1, $2, NULL, $3, $4)";
    let recorded = sqlx::query_scalar(sql).bind(organization.as_str()).bind(event_type).bind(Json(data));
    Ok(recorded.bind(workflow_name).fetch_one(db).await?)
}

/// Takes the next events whose deliveries have yet to be made, in their order, with their places in the logs. The
/// caller makes the deliveries in the same transaction. Nothing, while another process takes some.
pub async fn take(conn: &mut PgConnection, limit: i32) -> Result<Vec<EventRow>, Error> {
    let sql =
        "SELECT id, created_at AT TIME ZONE 'UTC' AS created_at, position, organization_id, event_type, run_id, seq,
                   workflow_name, data, traceparent
               FROM take_events($1) ORDER BY position";
    Ok(sqlx::query_as(sql).bind(limit).fetch_all(conn).await?)
}

/// Says that this process sends events to the topic, and becomes the one that does, if no living process is. Returns
/// whether it is.
pub async fn hold_topic(db: &Pool, topic: &str, process: Uuid) -> Result<bool, Error> {
    // Mostly nothing is written.
    let sql = "SELECT owner = $2 FROM event_topics
               WHERE topic = $1 AND wanted_at > now() - interval '1 minute' AND (owner = $2 OR EXISTS (
                   SELECT FROM processes p WHERE p.id = owner AND heartbeat_at >= now() - make_interval(secs => $3)))";
    let known: Option<bool> =
        sqlx::query_scalar(sql).bind(topic).bind(process).bind(DEAD_AFTER_SECS).fetch_optional(db).await?;
    if let Some(is_owner) = known {
        return Ok(is_owner);
    }
    let sql = "INSERT INTO event_topics AS t (topic, owner) VALUES ($1, $2)
               ON CONFLICT (topic) DO UPDATE SET wanted_at = now(), owner = CASE WHEN EXISTS (
                   SELECT FROM processes p WHERE p.id = t.owner AND heartbeat_at >= now() - make_interval(secs => $3))
                   THEN t.owner ELSE excluded.owner END
               RETURNING owner = $2";
    Ok(sqlx::query_scalar(sql).bind(topic).bind(process).bind(DEAD_AFTER_SECS).fetch_one(db).await?)
}

/// Gives the topic up, so that another process need not wait.
pub async fn release_topic(db: impl PgExecutor<'_>, process: Uuid) -> Result<(), Error> {
    sqlx::query("UPDATE event_topics SET owner = NULL WHERE owner = $1").bind(process).execute(db).await?;
    Ok(())
}

/// Forgets topics other than this one that no process has had in its settings for an hour. No more events are recorded
/// for them.
pub async fn forget_topics(db: impl PgExecutor<'_>, topic: Option<&str>) -> Result<(), Error> {
    let sql = "DELETE FROM event_topics
               WHERE topic IS DISTINCT FROM $1 AND wanted_at < now() - make_interval(secs => $2)";
    sqlx::query(sql).bind(topic).bind(FORGET_TOPIC_AFTER_SECS).execute(db).await?;
    Ok(())
}

/// The next events for the topic in their order, with their places in the logs.
pub async fn unpublished(db: &Pool, limit: i64) -> Result<Vec<EventRow>, Error> {
    let sql = "SELECT id, created_at FROM webhook_events WHERE to_publish ORDER BY position LIMIT $1";
    let found: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(sql).bind(limit).fetch_all(db).await?;
    let Some(since) = found.iter().map(|(_, at)| *at).min() else { return Ok(Vec::new()) };
    let ids: Vec<Uuid> = found.into_iter().map(|(id, _)| id).collect();
    sqlx::query("SELECT place_events($1, $2)").bind(&ids).bind(since).execute(db).await?;
    let sql =
        "SELECT id, created_at AT TIME ZONE 'UTC' AS created_at, position, organization_id, event_type, run_id, seq,
                   workflow_name, data, traceparent
               FROM webhook_events WHERE id = ANY ($1) AND created_at >= $2 AND to_publish ORDER BY position";
    Ok(sqlx::query_as(sql).bind(ids).bind(since).fetch_all(db).await?)
}

/// Notes that the broker has acknowledged these events.
pub async fn published(db: impl PgExecutor<'_>, ids: &[Uuid], since: Timestamp) -> Result<(), Error> {
    let sql = "UPDATE webhook_events SET to_publish = false
               WHERE id = ANY ($1) AND created_at >= $2::timestamp AT TIME ZONE 'UTC' AND to_publish";
    sqlx::query(sql).bind(ids).bind(since).execute(db).await?;
    Ok(())
}

/// Makes the partitions of the next days, and drops those whose events are older than `kept_days`.
pub async fn keep_partitions(db: &Pool, kept_days: i32) -> Result<(), Error> {
    loop {
        let sql = "SELECT keep_event_partitions($1)";
        let dropped: Option<String> = sqlx::query_scalar(sql).bind(kept_days).fetch_one(db).await?;
        let Some(dropped) = dropped else { return Ok(()) };
        tracing::info!(
            partition = dropped,
            "the events of {dropped} were deleted: they are older than {kept_days} days"
        );
    }
}

/// Events that a reader has not seen.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub struct Pending {
    /// Number of those whose deliveries have yet to be made; counted up to a maximum, like the others.
    pub to_fan_out: i64,
    /// Age of the oldest one in seconds; 0 if there is none.
    pub fan_out_secs: f64,
    /// Number of those that have yet to be sent to the topic.
    pub to_publish: i64,
    /// Age of the oldest one in seconds.
    pub publish_secs: f64,
}

/// Counts the events that the readers have not seen.
pub async fn pending(db: impl PgExecutor<'_>) -> Result<Pending, Error> {
    // The order makes the planner take the indexes of the flags, whatever it expects.
    let sql = "
        SELECT f.events AS to_fan_out, coalesce(extract(epoch FROM now() - f.oldest), 0)::float8 AS fan_out_secs,
            p.events AS to_publish, coalesce(extract(epoch FROM now() - p.oldest), 0)::float8 AS publish_secs
        FROM (SELECT count(*) AS events, min(created_at) AS oldest
              FROM (SELECT created_at FROM webhook_events WHERE to_fan_out ORDER BY position LIMIT $1) AS waiting) AS f,
             (SELECT count(*) AS events, min(created_at) AS oldest
              FROM (SELECT created_at FROM webhook_events WHERE to_publish ORDER BY position LIMIT $1) AS waiting) AS p";
    Ok(sqlx::query_as(sql).bind(MAX_COUNTED).fetch_one(db).await?)
}
