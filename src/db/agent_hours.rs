//! Calls of agents by the hour. Executors count in memory and add their counts every few seconds, with one statement.

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use uuid::Uuid;

use super::{Error, Pool, usage::StoredCost};
use crate::{agent::latency::BUCKETS, usage::Cost};

/// Counts to add, as columns.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct NewHours {
    pub agent_id: Vec<Uuid>,
    pub hour: Vec<DateTime<Utc>>,
    pub calls: Vec<i64>,
    pub failures: Vec<i64>,
    /// The buckets of all rows, one after the other.
    pub latency: Vec<i64>,
    pub tokens: Vec<i64>,
    pub cost: Vec<Cost>,
}

/// Adds counts. Those of an agent that does not exist any more are dropped.
pub async fn add(pool: &Pool, new: NewHours) -> Result<(), Error> {
    let sql = "
        INSERT INTO agent_hours AS h (agent_id, hour, calls, failures, latency, tokens, cost)
        SELECT n.agent_id, n.hour, n.calls, n.failures,
            ($5::bigint[])[(n.place - 1) * $6 + 1 : n.place * $6], n.tokens, n.cost::numeric
        FROM (SELECT agent_id, hour, calls, failures, tokens, cost, place::int FROM
                unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::bigint[], $7::bigint[], $8::text[]) WITH ORDINALITY
                    AS given (agent_id, hour, calls, failures, tokens, cost, place)) AS n
            JOIN agents a ON a.id = n.agent_id
        -- In one order, so that executors do not wait for each other in a circle.
        ORDER BY n.agent_id, n.hour
        ON CONFLICT (agent_id, hour) DO UPDATE
        SET calls = h.calls + excluded.calls, failures = h.failures + excluded.failures,
            tokens = coalesce(h.tokens, 0) + excluded.tokens, cost = coalesce(h.cost, 0) + excluded.cost,
            latency = ARRAY(SELECT coalesce(old, 0) + coalesce(more, 0)
                FROM unnest(h.latency, excluded.latency) WITH ORDINALITY AS b (old, more, bucket) ORDER BY bucket)";
    sqlx::query(sql)
        .bind(new.agent_id)
        .bind(new.hour)
        .bind(new.calls)
        .bind(new.failures)
        .bind(new.latency)
        .bind(i32::try_from(BUCKETS).unwrap_or(i32::MAX))
        .bind(new.tokens)
        .bind(new.cost.iter().map(Cost::to_string).collect::<Vec<_>>())
        .execute(pool)
        .await?;
    Ok(())
}

/// Deletes what no answer shows any more.
pub async fn delete_old(pool: &Pool) -> Result<(), Error> {
    sqlx::query("DELETE FROM agent_hours WHERE hour < now() - interval '8 days'").execute(pool).await?;
    Ok(())
}

/// Counts of an hour.
#[derive(Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct HourRow {
    pub calls: i64,
    pub failures: i64,
    pub latency: Vec<i64>,
    pub tokens: i64,
    #[sqlx(try_from = "String")]
    pub cost: StoredCost,
    /// Whether the hour began in the last 24 hours.
    pub is_of_last_day: bool,
}

/// Counts of the hours that began in the last 7 days.
pub async fn of_last_week(db: impl PgExecutor<'_>, agent_id: Uuid) -> Result<Vec<HourRow>, Error> {
    let sql = "SELECT calls, failures, latency, coalesce(tokens, 0) AS tokens, coalesce(cost, 0)::text AS cost,
                   hour > now() - interval '24 hours' AS is_of_last_day
               FROM agent_hours WHERE agent_id = $1 AND hour > now() - interval '7 days'";
    Ok(sqlx::query_as(sql).bind(agent_id).fetch_all(db).await?)
}
