//! Circuit breaker rows, shared by all executors.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, types::Json};
use uuid::Uuid;

use super::{Error, Pool, agent_health};
use crate::{
    access::OrganizationId,
    breaker::{Breaker, Calls, Probe, State},
};

/// Columns of [`BreakerRow`], from an outer-joined `circuit_breakers b`.
pub(super) const COLUMNS: &str = "b.state AS breaker_state, b.opened_at, b.calls, b.probes, b.probes_succeeded, \
     b.updated_at AS breaker_updated_at, clock_timestamp() AS read_at";

/// Breaker row, optionally joined to its agent. Without a breaker, everything but the time is null.
#[derive(sqlx::FromRow)]
pub struct BreakerRow {
    breaker_state: Option<String>,
    opened_at: Option<DateTime<Utc>>,
    calls: Option<Json<Vec<Calls>>>,
    probes: Option<Json<Vec<Probe>>>,
    probes_succeeded: Option<i32>,
    breaker_updated_at: Option<DateTime<Utc>>,
    read_at: DateTime<Utc>,
}

/// Breaker at a time of the database's clock.
#[derive(Clone, Debug)]
pub struct SharedBreaker {
    /// Stored breaker; a closed one without calls if none is stored.
    pub breaker: Breaker,
    /// Time of the read.
    pub read_at: DateTime<Utc>,
}

impl BreakerRow {
    /// Time of the last change.
    #[must_use]
    pub fn updated_at(&self) -> Option<DateTime<Utc>> {
        self.breaker_updated_at
    }
}

impl From<BreakerRow> for SharedBreaker {
    fn from(row: BreakerRow) -> Self {
        let state = row.breaker_state.as_deref().and_then(State::parse).unwrap_or_default();
        let breaker = Breaker {
            state,
            opened_at: row.opened_at,
            calls: row.calls.map(|calls| calls.0).unwrap_or_default(),
            probes: row.probes.map(|probes| probes.0).unwrap_or_default(),
            probes_succeeded: row.probes_succeeded.and_then(|count| u32::try_from(count).ok()).unwrap_or_default(),
        };
        Self { breaker, read_at: row.read_at }
    }
}

/// Changes an agent's breaker under a lock. `change` gets the database's time. Returns the changed breaker and the
/// result of `change`. With `audited`, the name and the organisation of the agent, it is an entry of the audit trail if
/// the breaker opens that was closed, or closes.
pub async fn change<T: Send>(
    pool: &Pool,
    agent_id: Uuid,
    audited: Option<&(String, OrganizationId)>,
    change: impl FnOnce(&mut Breaker, DateTime<Utc>) -> T + Send,
) -> Result<(SharedBreaker, T), Error> {
    let mut transaction = pool.begin().await?;
    // The update only takes the lock. The returned row was read under it.
    let sql = format!(
        "INSERT INTO circuit_breakers AS b (agent_id) VALUES ($1)
         ON CONFLICT (agent_id) DO UPDATE SET agent_id = excluded.agent_id RETURNING {COLUMNS}"
    );
    let row: BreakerRow = sqlx::query_as(AssertSqlSafe(sql)).bind(agent_id).fetch_one(&mut *transaction).await?;
    let SharedBreaker { mut breaker, read_at, .. } = row.into();
    let before = breaker.state;
    let result = change(&mut breaker, read_at);
    let sql = "UPDATE circuit_breakers
               SET state = $2, opened_at = $3, calls = $4, probes = $5, probes_succeeded = $6, updated_at = $7
               WHERE agent_id = $1";
    sqlx::query(sql)
        .bind(agent_id)
        .bind(breaker.state.as_str())
        .bind(breaker.opened_at)
        .bind(Json(&breaker.calls))
        .bind(Json(&breaker.probes))
        .bind(i32::try_from(breaker.probes_succeeded).unwrap_or(i32::MAX))
        .bind(read_at)
        .execute(&mut *transaction)
        .await?;
    let is_closed = breaker.state == State::Closed;
    if let Some((name, organization)) = audited.filter(|_| (before == State::Closed) != is_closed) {
        let health = serde_json::json!({"source": "circuit_breaker"});
        agent_health::audit_change(&mut transaction, (agent_id, name, organization), is_closed, health).await?;
    }
    transaction.commit().await?;
    Ok((SharedBreaker { breaker, read_at }, result))
}

/// Deletes an agent's breaker, which closes it.
pub async fn delete(db: impl sqlx::PgExecutor<'_>, agent_id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM circuit_breakers WHERE agent_id = $1").bind(agent_id).execute(db).await?;
    Ok(())
}

/// Stored breakers of these agents.
pub async fn find_all(
    db: impl sqlx::PgExecutor<'_>,
    agent_ids: &[Uuid],
) -> Result<HashMap<Uuid, SharedBreaker>, Error> {
    #[derive(sqlx::FromRow)]
    struct Row {
        agent_id: Uuid,
        #[sqlx(flatten)]
        breaker: BreakerRow,
    }
    let sql = format!("SELECT b.agent_id, {COLUMNS} FROM circuit_breakers b WHERE b.agent_id = ANY ($1)");
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql)).bind(agent_ids).fetch_all(db).await?;
    Ok(rows.into_iter().map(|row| (row.agent_id, row.breaker.into())).collect())
}

/// Number of open and of half-open breakers.
pub async fn count(db: impl sqlx::PgExecutor<'_>) -> Result<(i64, i64), Error> {
    let sql = "SELECT count(*) FILTER (WHERE state = 'open'), count(*) FILTER (WHERE state = 'half_open')
               FROM circuit_breakers WHERE state <> 'closed'";
    Ok(sqlx::query_as(sql).fetch_one(db).await?)
}
