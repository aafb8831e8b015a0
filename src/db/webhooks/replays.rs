//! Recoveries: deliveries of a time that are sent again, in bounded steps.
//!
//! A step reads the next page in the order (time, id) after the last place, and continues there: what it reads by is what
//! it sorts by. The place is written in the transaction that makes the deliveries due, so nothing is skipped or done twice.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    FAN_OUT_MARGIN,
    fan_out::{self, Subscription},
};
use crate::{
    db::{self, Error, Pool, webhook_events::EventRow},
    timestamp::Timestamp,
    webhook::{Which, events},
};

/// Number of rows that a step reads.
const PAGE: i64 = 500;
/// Maximum number of steps of a dry run, and the time after which it takes no further one: a request waits for it.
const MAX_DRY_STEPS: usize = 400;
const MAX_DRY_TIME: Duration = Duration::from_secs(5);

/// What is recovered.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The endpoint.
    pub webhook_id: Uuid,
    /// Kind of the recovery.
    pub which: Which,
    /// Events from this time on.
    pub since: DateTime<Utc>,
    /// Events before this time.
    pub until: DateTime<Utc>,
    /// Types of the events; all if absent.
    pub event_types: Option<Vec<String>>,
}

/// Place in a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the deliveries, after that one.
    Deliveries(Option<(DateTime<Utc>, Uuid)>),
    /// In the events, after that one.
    Events(Option<(DateTime<Utc>, Uuid)>),
    End,
}

impl Place {
    fn parts(self) -> (&'static str, Option<(DateTime<Utc>, Uuid)>) {
        match self {
            Self::Deliveries(after) => ("deliveries", after),
            Self::Events(after) => ("events", after),
            Self::End => ("end", None),
        }
    }
}

/// Row of `webhook_replays`.
#[derive(sqlx::FromRow)]
struct ReplayRow {
    id: Uuid,
    webhook_id: Uuid,
    which: String,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    event_types: Option<Vec<String>>,
    phase: String,
    after_at: Option<DateTime<Utc>>,
    after_id: Option<Uuid>,
    created_at: DateTime<Utc>,
}

/// Recovery as callers see it.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Recovery {
    pub id: Uuid,
    pub which: String,
    pub replayed: i64,
    pub is_ended: bool,
    pub created_by: String,
    pub created_at: Timestamp,
}

/// Stores a recovery, which the loop of a process does. Its time is not that of the transaction, which may have waited for
/// deliveries that are a part of it.
pub async fn insert(conn: &mut PgConnection, id: Uuid, replay: &Replay, by: &str) -> Result<(), Error> {
    let sql =
        "INSERT INTO webhook_replays (id, webhook_id, which, since, until, event_types, phase, created_by, created_at)
               VALUES ($1, $2, $3, $4, $5, $6, 'deliveries', $7, clock_timestamp())";
    let query = sqlx::query(sql).bind(id).bind(replay.webhook_id).bind(replay.which.as_str());
    query.bind(replay.since).bind(replay.until).bind(&replay.event_types).bind(by).execute(conn).await?;
    Ok(())
}

/// The latest recoveries of an endpoint.
pub async fn latest(db: impl PgExecutor<'_>, webhook_id: Uuid) -> Result<Vec<Recovery>, Error> {
    let sql = "SELECT id, which, replayed, ended_at IS NOT NULL AS is_ended, created_by,
                   created_at AT TIME ZONE 'UTC' AS created_at
               FROM webhook_replays
               WHERE webhook_id = $1 ORDER BY created_at DESC LIMIT 5";
    Ok(sqlx::query_as(sql).bind(webhook_id).fetch_all(db).await?)
}

/// Number of deliveries that a recovery would send again, and whether all were counted. Changes nothing.
pub async fn count(pool: &Pool, replay: &Replay, api: &str) -> Result<(i64, bool), Error> {
    let (mut place, mut count) = (Place::Deliveries(None), 0);
    let began = Instant::now();
    for _ in 0..MAX_DRY_STEPS {
        if began.elapsed() > MAX_DRY_TIME {
            break;
        }
        let counted = db::in_transaction(pool, async |conn| {
            let at = sqlx::query_scalar("SELECT now()").fetch_one(&mut *conn).await?;
            step(conn, replay, place, at, api, true).await
        });
        let (more, next) = counted.await?;
        (count, place) = (count + more, next);
        if place == Place::End {
            return Ok((count, true));
        }
    }
    Ok((count, false))
}

/// Does the next step of the oldest recovery that no other process works on. Returns whether there is more to do.
pub async fn advance(pool: &Pool, api: &str) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM webhook_replays WHERE ended_at IS NULL)";
    if !sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await? {
        return Ok(false);
    }
    db::in_transaction(pool, async |conn| {
        let sql = "SELECT id, webhook_id, which, since, until, event_types, phase, after_at, after_id, created_at
                   FROM webhook_replays WHERE ended_at IS NULL ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED";
        let Some(row): Option<ReplayRow> = sqlx::query_as(sql).fetch_optional(&mut *conn).await? else {
            return Ok(false);
        };
        let after = row.after_at.zip(row.after_id);
        let place = if row.phase == "deliveries" { Place::Deliveries(after) } else { Place::Events(after) };
        let replay = Replay {
            webhook_id: row.webhook_id,
            which: Which::parse(&row.which).unwrap_or(Which::Failed),
            since: row.since,
            until: row.until,
            event_types: row.event_types,
        };
        let (more, next) = step(conn, &replay, place, row.created_at, api, false).await?;
        let (phase, after) = next.parts();
        let sql = "UPDATE webhook_replays SET phase = $2, after_at = $3, after_id = $4, replayed = replayed + $5,
                       ended_at = CASE WHEN $2 = 'end' THEN now() END
                   WHERE id = $1";
        let query = sqlx::query(sql).bind(row.id).bind(phase).bind(after.map(|(at, _)| at));
        query.bind(after.map(|(_, id)| id)).bind(more).execute(conn).await?;
        // It is the same while another process fans out.
        Ok(next != place)
    })
    .await
}

/// Deletes recoveries that ended long ago, and marks deliveries whose endpoint is deleted: nothing sends them. A bounded
/// number of each.
pub async fn clean_up(pool: &Pool, kept_days: i32) -> Result<(), Error> {
    let sql = "DELETE FROM webhook_replays WHERE id IN (
                   SELECT id FROM webhook_replays WHERE ended_at < now() - make_interval(days => $1) LIMIT 1000)";
    sqlx::query(sql).bind(kept_days).execute(pool).await?;
    let sql = "UPDATE webhook_deliveries d SET state = 'failed', due_at = NULL, ended_at = now(),
                   error = 'the endpoint was deleted'
               FROM (SELECT id, created_at FROM webhook_deliveries p
                     WHERE state = 'pending' AND lease IS NULL
                         AND NOT EXISTS (SELECT FROM webhooks w WHERE w.id = p.webhook_id) LIMIT 5000) gone
               WHERE d.id = gone.id AND d.created_at = gone.created_at AND d.lease IS NULL";
    sqlx::query(sql).execute(pool).await?;
    Ok(())
}

/// One page. Returns how many deliveries it is about, and the place behind it. `at` is the time of the recovery: what was
/// created later is not a part of it.
async fn step(
    conn: &mut PgConnection,
    replay: &Replay,
    place: Place,
    at: DateTime<Utc>,
    api: &str,
    is_dry: bool,
) -> Result<(i64, Place), Error> {
    match place {
        Place::Deliveries(after) => {
            let (count, last) = deliveries(conn, replay, after, at, is_dry).await?;
            let end = if replay.which.includes_missing() { Place::Events(None) } else { Place::End };
            Ok((count, last.map_or(end, |last| Place::Deliveries(Some(last)))))
        }
        Place::Events(after) => match events(conn, replay, after, api, is_dry).await? {
            // Another process fans out; the same page is read again later.
            None => Ok((0, place)),
            Some((count, last)) => Ok((count, last.map_or(Place::End, |last| Place::Events(Some(last))))),
        },
        Place::End => Ok((0, Place::End)),
    }
}

/// Count of a page, and its last row if there may be more.
type Read = (i64, Option<(DateTime<Utc>, Uuid)>);

async fn deliveries(
    conn: &mut PgConnection,
    replay: &Replay,
    after: Option<(DateTime<Utc>, Uuid)>,
    at: DateTime<Utc>,
    is_dry: bool,
) -> Result<Read, Error> {
    let (after_at, after_id) = after.unwrap_or((replay.since - FAN_OUT_MARGIN, Uuid::nil()));
    let sql = "SELECT id, created_at, event_type, state, event_at >= $5 AND event_at < $6 AS is_in_time
               FROM webhook_deliveries
               WHERE webhook_id = $1 AND (created_at, id) > ($2, $3) AND created_at <= $4 AND NOT is_test
               ORDER BY created_at, id LIMIT $7";
    let query = sqlx::query_as(sql).bind(replay.webhook_id).bind(after_at).bind(after_id).bind(at);
    let query = query.bind(replay.since).bind(replay.until).bind(PAGE);
    let page: Vec<(Uuid, DateTime<Utc>, String, String, bool)> = query.fetch_all(&mut *conn).await?;
    let states = replay.which.states();
    let wanted = page.iter().filter(|(_, _, event_type, state, is_in_time)| {
        *is_in_time
            && states.contains(&state.as_str())
            && replay.event_types.as_ref().is_none_or(|types| events::takes(types, event_type))
    });
    let (ids, times): (Vec<Uuid>, Vec<DateTime<Utc>>) = wanted.map(|(id, created_at, ..)| (*id, *created_at)).unzip();
    if !is_dry && !ids.is_empty() {
        let sql = "UPDATE webhook_deliveries d SET state = 'pending', due_at = now(), schedule_from = attempts,
                       is_single = false, ended_at = NULL
                   FROM unnest($1::uuid[], $2::timestamptz[]) AS w (id, created_at)
                   WHERE d.id = w.id AND d.created_at = w.created_at AND d.state <> 'pending'";
        sqlx::query(sql).bind(&ids).bind(&times).execute(conn).await?;
    }
    let is_full = i64::try_from(page.len()).is_ok_and(|length| length == PAGE);
    let last = page.last().filter(|_| is_full).map(|(id, created_at, ..)| (*created_at, *id));
    Ok((i64::try_from(ids.len()).unwrap_or(i64::MAX), last))
}

/// Events of the time that the endpoint takes and has no delivery of. `None`: another process makes deliveries at the
/// moment, so it is not known which are missing.
async fn events(
    conn: &mut PgConnection,
    replay: &Replay,
    after: Option<(DateTime<Utc>, Uuid)>,
    api: &str,
    is_dry: bool,
) -> Result<Option<Read>, Error> {
    if !is_dry {
        let sql = "SELECT pg_try_advisory_xact_lock(hashtextextended('take_events', 0))";
        if !sqlx::query_scalar::<_, bool>(sql).fetch_one(&mut *conn).await? {
            return Ok(None);
        }
    }
    let Some(subscription) = fan_out::subscription(&mut *conn, replay.webhook_id).await? else {
        return Ok(Some((0, None)));
    };
    let (after_at, after_id) = after.unwrap_or((replay.since, Uuid::nil()));
    let sql =
        "SELECT id, created_at AT TIME ZONE 'UTC' AS created_at, position, organization_id, event_type, run_id, seq,
                   workflow_name, data, traceparent,
                   to_fan_out OR EXISTS (SELECT FROM webhook_deliveries d WHERE d.event_id = e.id AND d.webhook_id = $1)
                       AS is_known
               FROM webhook_events e
               WHERE organization_id = $2 AND (e.created_at, id) > ($3, $4) AND e.created_at < $5
               ORDER BY e.created_at, id LIMIT $6";
    let query = sqlx::query_as(sql).bind(replay.webhook_id).bind(&subscription.organization_id).bind(after_at);
    let page: Vec<Candidate> = query.bind(after_id).bind(replay.until).bind(PAGE).fetch_all(&mut *conn).await?;
    let is_wanted = |candidate: &&Candidate| candidate.is_wanted(&subscription, replay.event_types.as_deref());
    let wanted: Vec<(&EventRow, &Subscription)> =
        page.iter().filter(is_wanted).map(|candidate| (&candidate.event, &subscription)).collect();
    let count = fan_out::deliver(conn, &wanted, api, is_dry).await?;
    let is_full = i64::try_from(page.len()).is_ok_and(|length| length == PAGE);
    let last = page.last().filter(|_| is_full).map(Candidate::place);
    Ok(Some((i64::try_from(count).unwrap_or(i64::MAX), last)))
}

/// Event that may be missing.
#[derive(sqlx::FromRow)]
struct Candidate {
    #[sqlx(flatten)]
    event: EventRow,
    is_known: bool,
}

impl Candidate {
    fn place(&self) -> (DateTime<Utc>, Uuid) {
        (self.event.created_at.as_naive_utc().and_utc(), self.event.id)
    }

    fn is_wanted(&self, subscription: &Subscription, event_types: Option<&[String]>) -> bool {
        !self.is_known
            && subscription.takes(&self.event)
            && event_types.is_none_or(|types| events::takes(types, &self.event.event_type))
    }
}
