//! Deliveries that are due: taking them under a lease, and writing what became of them.

use std::{collections::BTreeMap, time::Duration};

use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::GivenUp;
use crate::{
    db::{self, Error, Pool},
    timestamp::Timestamp,
    webhook::schedule::{self, Ended},
};

/// Lease of a process on a delivery that it sends: longer than the longest attempt. Then another process may send it.
pub const LEASE: Duration = Duration::from_secs(25);
/// Maximum number of endpoints that are looked at together.
const MAX_ENDPOINTS: i64 = 200;

/// Delivery to send, with what is needed of its endpoint.
#[derive(Clone, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Claimed {
    pub id: Uuid,
    pub created_at: chrono::DateTime<chrono::Utc>,
    pub webhook_id: Uuid,
    pub organization_id: String,
    pub event_id: Uuid,
    pub event_type: String,
    pub run_id: Option<String>,
    pub body: String,
    pub traceparent: Option<String>,
    pub depth: i32,
    pub attempts: i32,
    pub schedule_from: i32,
    pub is_single: bool,
    pub is_test: bool,
    pub lease: Uuid,
    pub url: String,
    pub sealed: Json<Box<RawValue>>,
    /// Configuration of a push notification, and its version of A2A.
    pub push_id: Option<Uuid>,
    pub protocol: Option<String>,
}

/// Places of a process for deliveries that it sends.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Maximum number of deliveries to take now.
    pub limit: i64,
    /// Places that are free.
    pub free: i64,
    /// Endpoints that have some, with their organisations.
    pub held: BTreeMap<(Uuid, String), i64>,
}

/// Takes deliveries that are due: in turn from the endpoints, the one served longest ago first, and of each no more
/// than it may get at a time. `lead` is the time by which the clock is ahead of the database's.
///
/// Endpoints that are slow fill no process: an organisation may have as many places of it as stay free for others, and
/// an endpoint as many as stay for its organisation. A claim takes a quarter of that, so that something stays.
///
/// The lock on the state of an endpoint makes others skip it, so that no two processes count the same free places.
///
/// A plan of this statement, with all partitions, takes longer than its execution. So each session plans it once, and a
/// system without endpoints never.
pub async fn claim(pool: &Pool, lead: Duration, lease: Uuid, places: &Places) -> Result<Vec<Claimed>, Error> {
    if !super::exist(pool).await? {
        return Ok(Vec::new());
    }
    let sql = "
        WITH RECURSIVE clock AS MATERIALIZED (SELECT now() + make_interval(secs => $1) AS at), held AS (
            SELECT * FROM unnest($8::uuid[], $9::text[], $10::bigint[]) AS h (webhook_id, organization_id, places)
        ), waiting AS (
            (SELECT webhook_id FROM webhook_deliveries WHERE state = 'pending' ORDER BY webhook_id LIMIT 1)
            UNION ALL
            SELECT (SELECT d.webhook_id FROM webhook_deliveries d
                    WHERE d.state = 'pending' AND d.webhook_id > w.webhook_id ORDER BY d.webhook_id LIMIT 1)
            FROM waiting w WHERE w.webhook_id IS NOT NULL
        ), room AS (
            SELECT s.webhook_id, s.served_at, w.organization_id, shared.places AS shared, w.ordering,
                w.rate_per_second AS rate, greatest(s.next_at, clock.at - interval '1 second') AS next_at, clock.at,
                least(shared.places - coalesce(held.places, 0),
                    CASE WHEN s.timeouts >= $6 THEN 1 ELSE w.max_in_flight END - (
                    SELECT count(*) FROM webhook_deliveries d
                    WHERE d.webhook_id = s.webhook_id AND d.lease IS NOT NULL AND d.leased_until > clock.at
                ), floor(extract(epoch FROM clock.at - greatest(s.next_at, clock.at - interval '1 second'))
                    * w.rate_per_second)::bigint + 1) AS free
            FROM waiting JOIN webhook_states s USING (webhook_id) JOIN webhooks w ON w.id = s.webhook_id
                LEFT JOIN held USING (webhook_id) CROSS JOIN LATERAL (
                    SELECT $7 - coalesce(sum(h.places), 0)::bigint AS places FROM held h
                    WHERE h.organization_id = w.organization_id
                ) shared, clock
            WHERE w.enabled AND s.next_at <= clock.at AND NOT EXISTS (
                SELECT FROM organizations o WHERE o.id = w.organization_id AND o.status = 'suspended')
            AND EXISTS (
                SELECT FROM webhook_deliveries d
                WHERE d.webhook_id = s.webhook_id AND d.state = 'pending' AND d.due_at <= clock.at)
        ), served AS MATERIALIZED (
            -- Of an endpoint that another process has served since the statement began, the free places are not known.
            SELECT room.* FROM room JOIN webhook_states s USING (webhook_id)
            WHERE room.free > 0 AND s.served_at = room.served_at
            ORDER BY room.served_at, room.webhook_id LIMIT $5 FOR UPDATE OF s SKIP LOCKED
        ), due AS (
            SELECT s.webhook_id, s.organization_id, s.shared, s.served_at, s.next_at, s.rate, s.at, d.id, d.created_at,
                row_number() OVER (PARTITION BY s.webhook_id ORDER BY d.due_at, d.place) AS turn
            FROM served s CROSS JOIN LATERAL (
                SELECT d.id, d.created_at, d.due_at, d.place FROM webhook_deliveries d
                WHERE d.webhook_id = s.webhook_id AND d.state = 'pending' AND d.due_at <= s.at
                    AND (s.ordering = 'none' OR NOT EXISTS (
                        SELECT FROM webhook_deliveries e
                        WHERE e.webhook_id = d.webhook_id AND e.run_id = d.run_id AND e.place < d.place
                            AND e.push_id IS NOT DISTINCT FROM d.push_id AND e.state = 'pending')
                        -- What a recovery has not come to yet may be an earlier event of the run.
                        AND (d.run_id IS NULL OR NOT EXISTS (
                            SELECT FROM webhook_replays r WHERE r.webhook_id = d.webhook_id AND r.ended_at IS NULL
                                AND d.created_at > r.created_at - make_interval(secs => $11))))
                ORDER BY d.due_at, d.place LIMIT s.free
            ) d
        ), shares AS (
            SELECT *, row_number() OVER (PARTITION BY organization_id ORDER BY turn, served_at, webhook_id) AS share
            FROM due
        ), taken AS MATERIALIZED (
            SELECT * FROM shares WHERE share <= greatest(shared / 4, 1) ORDER BY turn, served_at, webhook_id LIMIT $4
        ), marked AS (
            -- What got nothing, although something was due, is before the others the next time.
            UPDATE webhook_states s SET
                served_at = CASE WHEN s.webhook_id IN (SELECT webhook_id FROM due)
                    AND s.webhook_id NOT IN (SELECT webhook_id FROM taken) THEN s.served_at ELSE served.at END,
                next_at = CASE WHEN rate IS NULL THEN s.next_at ELSE served.next_at
                    + make_interval(secs => (SELECT count(*) FROM taken t WHERE t.webhook_id = s.webhook_id)::float8 / rate)
                    END
            FROM served WHERE s.webhook_id = served.webhook_id
        ), claimed AS (
            UPDATE webhook_deliveries d SET lease = $2, leased_until = t.at + make_interval(secs => $3),
                due_at = t.at + make_interval(secs => $3)
            FROM taken t WHERE d.id = t.id AND d.created_at = t.created_at AND d.state = 'pending' AND d.due_at <= t.at
            RETURNING d.id, d.created_at, d.webhook_id, d.event_id, d.event_type, d.body, d.traceparent, d.depth,
                d.attempts, d.schedule_from, d.is_single, d.is_test, d.lease, d.push_id, d.run_id, t.turn, t.served_at
        )
        SELECT c.*, w.organization_id, coalesce(p.url, w.url) AS url, coalesce(p.sealed, w.sealed) AS sealed, p.protocol
        FROM claimed c JOIN webhooks w ON w.id = c.webhook_id LEFT JOIN task_pushes p ON p.id = c.push_id
        ORDER BY turn, c.served_at";
    let query = sqlx::query_as(sql).bind(lead.as_secs_f64()).bind(lease).bind(LEASE.as_secs_f64()).bind(places.limit);
    let query = query.bind(MAX_ENDPOINTS).bind(schedule::MAX_TIMEOUTS).bind(places.free);
    let query = query.bind(places.held.keys().map(|(webhook, _)| *webhook).collect::<Vec<_>>());
    let query = query.bind(places.held.keys().map(|(_, organization)| organization.as_str()).collect::<Vec<_>>());
    let query =
        query.bind(places.held.values().copied().collect::<Vec<_>>()).bind(super::FAN_OUT_MARGIN.as_seconds_f64());
    db::in_transaction(pool, async |conn| {
        sqlx::query("SET LOCAL plan_cache_mode = force_generic_plan").execute(&mut *conn).await?;
        Ok(query.fetch_all(conn).await?)
    })
    .await
}

/// Attempt that has ended.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "said by the names, and in the migration")]
pub struct Outcome {
    pub delivery_id: Uuid,
    pub created_at: chrono::DateTime<chrono::Utc>,
    pub webhook_id: Uuid,
    pub lease: Uuid,
    pub number: i32,
    pub ended: Ended,
    /// Pause before the next attempt; `None` if this was the last one.
    pub pause: Option<Duration>,
    /// By the clock of the process.
    pub started_at: Timestamp,
    pub duration: Duration,
    pub error: Option<String>,
    pub content_type: Option<String>,
    pub retry_after: Option<String>,
    pub answer: Option<String>,
    pub is_internal: bool,
    /// Whether it says something about the endpoint: a test does not.
    pub counts: bool,
}

impl Outcome {
    /// State of the delivery after it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.pause {
            _ if self.ended.is_success() => "delivered",
            Some(_) => "pending",
            None => "failed",
        }
    }

    /// HTTP status of the answer.
    #[must_use]
    pub fn status(&self) -> Option<i32> {
        if let Ended::Status(status) = self.ended { Some(status.into()) } else { None }
    }
}

/// Failures and successes of an endpoint in a number of outcomes, in their order.
#[derive(Default)]
struct Tally {
    had_success: bool,
    failures: i32,
    had_answer: bool,
    timeouts: i32,
    is_gone: bool,
}

impl Tally {
    fn add(&mut self, ended: Ended) {
        if ended.is_success() {
            *self = Self { had_success: true, had_answer: true, is_gone: self.is_gone, ..Self::default() };
            return;
        }
        self.failures += 1;
        self.is_gone |= ended.is_gone();
        if ended == Ended::Timeout {
            self.timeouts += 1;
        } else {
            (self.had_answer, self.timeouts) = (true, 0);
        }
    }
}

/// Rules by which an endpoint is disabled.
#[derive(Clone, Copy, Debug)]
pub struct GiveUp {
    /// Time without success.
    pub after: chrono::TimeDelta,
    /// Whether it is recorded in the audit trail.
    pub has_audit: bool,
}

/// State of an endpoint after a number of outcomes.
type After = (Uuid, Option<chrono::DateTime<chrono::Utc>>, Option<chrono::DateTime<chrono::Utc>>);

/// Writes the outcomes in one transaction, with the states of their endpoints. Returns the endpoints that are disabled
/// because of them.
pub async fn record(pool: &Pool, lead: Duration, outcomes: &[Outcome], rules: GiveUp) -> Result<Vec<GivenUp>, Error> {
    let mut tallies: BTreeMap<Uuid, Tally> = BTreeMap::new();
    for outcome in outcomes.iter().filter(|outcome| outcome.counts) {
        tallies.entry(outcome.webhook_id).or_default().add(outcome.ended);
    }
    db::in_transaction(pool, async |conn| {
        // In the order in which deliveries are taken: first the states, then the deliveries.
        let after = write_states(conn, lead, &tallies).await?;
        write_deliveries(conn, lead, outcomes).await?;
        insert_attempts(conn, lead, outcomes).await?;
        let mut given_up = Vec::new();
        for (id, failing_since, last_failure) in after {
            let is_gone = tallies.get(&id).is_some_and(|tally| tally.is_gone);
            let is_over = failing_since
                .zip(last_failure)
                .is_some_and(|(since, last)| schedule::is_given_up(since, last, rules.after));
            let reason = if is_gone { "gone" } else { "no_success" };
            if is_gone || is_over {
                let at = last_failure.map_or_else(Timestamp::now, Timestamp::from);
                given_up.extend(super::give_up(conn, id, reason, at, rules.has_audit).await?);
            }
        }
        Ok(given_up)
    })
    .await
}

async fn write_states(
    conn: &mut PgConnection,
    lead: Duration,
    tallies: &BTreeMap<Uuid, Tally>,
) -> Result<Vec<After>, Error> {
    let ids: Vec<Uuid> = tallies.keys().copied().collect();
    let sql = "SELECT FROM webhook_states WHERE webhook_id = ANY ($1) ORDER BY webhook_id FOR NO KEY UPDATE";
    sqlx::query(sql).bind(&ids).execute(&mut *conn).await?;
    let sql = "
        UPDATE webhook_states s SET
            failing_since = CASE WHEN t.failures = 0 THEN NULL WHEN t.had_success THEN t.at
                ELSE coalesce(s.failing_since, t.at) END,
            last_failure_at = CASE WHEN t.failures > 0 THEN t.at ELSE s.last_failure_at END,
            last_success_at = CASE WHEN t.had_success THEN t.at ELSE s.last_success_at END,
            failures = CASE WHEN t.had_success THEN 0 ELSE s.failures END + t.failures,
            timeouts = CASE WHEN t.had_answer THEN 0 ELSE s.timeouts END + t.timeouts
        FROM (SELECT *, now() + make_interval(secs => $1) AS at
              FROM unnest($2::uuid[], $3::bool[], $4::int[], $5::bool[], $6::int[])
                  AS t (id, had_success, failures, had_answer, timeouts)) t
        WHERE s.webhook_id = t.id RETURNING s.webhook_id, s.failing_since, s.last_failure_at";
    let query = sqlx::query_as(sql).bind(lead.as_secs_f64()).bind(&ids);
    let query = query.bind(tallies.values().map(|tally| tally.had_success).collect::<Vec<_>>());
    let query = query.bind(tallies.values().map(|tally| tally.failures).collect::<Vec<_>>());
    let query = query.bind(tallies.values().map(|tally| tally.had_answer).collect::<Vec<_>>());
    Ok(query.bind(tallies.values().map(|tally| tally.timeouts).collect::<Vec<_>>()).fetch_all(conn).await?)
}

/// Writes the states of deliveries whose lease is still the one of the attempt.
async fn write_deliveries(conn: &mut PgConnection, lead: Duration, outcomes: &[Outcome]) -> Result<(), Error> {
    let sql = "
        UPDATE webhook_deliveries d SET state = o.state, attempts = greatest(d.attempts, o.number), lease = NULL,
            leased_until = NULL, status_code = o.status_code, error = o.error,
            due_at = CASE WHEN o.state = 'pending' THEN now() + make_interval(secs => $1 + o.pause) END,
            ended_at = CASE WHEN o.state <> 'pending' THEN now() + make_interval(secs => $1) END
        FROM unnest($2::uuid[], $3::timestamptz[], $4::uuid[], $5::text[], $6::int[], $7::int[], $8::text[], $9::float8[])
            AS o (id, created_at, lease, state, number, status_code, error, pause)
        WHERE d.id = o.id AND d.created_at = o.created_at AND d.lease = o.lease AND d.state = 'pending'";
    let pauses = outcomes.iter().map(|outcome| outcome.pause.unwrap_or_default().as_secs_f64()).collect::<Vec<_>>();
    sqlx::query(sql)
        .bind(lead.as_secs_f64())
        .bind(outcomes.iter().map(|outcome| outcome.delivery_id).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.created_at).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.lease).collect::<Vec<_>>())
        .bind(outcomes.iter().map(Outcome::state).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.number).collect::<Vec<_>>())
        .bind(outcomes.iter().map(Outcome::status).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.error.as_deref()).collect::<Vec<_>>())
        .bind(pauses)
        .execute(conn)
        .await?;
    Ok(())
}

async fn insert_attempts(conn: &mut PgConnection, lead: Duration, outcomes: &[Outcome]) -> Result<(), Error> {
    let sql = "
        INSERT INTO webhook_attempts (id, delivery_id, created_at, number, started_at, duration_ms, outcome, status_code,
            error, content_type, retry_after, answer, is_internal)
        SELECT id, delivery_id, created_at, number,
            now() + make_interval(secs => $1 - duration_ms::float8 / 1000), duration_ms, outcome, status_code, error,
            content_type, retry_after, answer, is_internal
        FROM unnest($2::uuid[], $3::uuid[], $4::timestamptz[], $5::int[], $6::int[], $7::text[], $8::int[], $9::text[],
            $10::text[], $11::text[], $12::text[], $13::bool[])
            AS a (id, delivery_id, created_at, number, duration_ms, outcome, status_code, error, content_type,
                retry_after, answer, is_internal)";
    let text = |of: fn(&Outcome) -> Option<&str>| outcomes.iter().map(of).collect::<Vec<_>>();
    let millis = |outcome: &Outcome| i32::try_from(outcome.duration.as_millis()).unwrap_or(i32::MAX);
    sqlx::query(sql)
        .bind(lead.as_secs_f64())
        .bind(outcomes.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.delivery_id).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.created_at).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|outcome| outcome.number).collect::<Vec<_>>())
        .bind(outcomes.iter().map(millis).collect::<Vec<_>>())
        .bind(text(|outcome| Some(outcome.ended.as_str())))
        .bind(outcomes.iter().map(Outcome::status).collect::<Vec<_>>())
        .bind(text(|outcome| outcome.error.as_deref()))
        .bind(text(|outcome| outcome.content_type.as_deref()))
        .bind(text(|outcome| outcome.retry_after.as_deref()))
        .bind(text(|outcome| outcome.answer.as_deref()))
        .bind(outcomes.iter().map(|outcome| outcome.is_internal).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_that_is_gone_stays_gone_whatever_arrives_beside_it() {
        let tally = |statuses: &[u16]| {
            let mut tally = Tally::default();
            for status in statuses {
                tally.add(Ended::Status(*status));
            }
            (tally.is_gone, tally.had_success, tally.failures)
        };
        assert_eq!(tally(&[410, 200]), (true, true, 0));
        assert_eq!(tally(&[200, 410, 500]), (true, true, 2));
        assert_eq!(tally(&[500, 200, 500]), (false, true, 1));
    }
}
