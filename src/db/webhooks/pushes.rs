//! Push notifications of A2A tasks: their configurations, and what they are told. They are sent as deliveries of webhooks.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::{PgConnection, PgExecutor, types::Json};
use uuid::Uuid;

use super::deliveries::{self, NewDelivery};
use crate::{
    a2a::{Version, shown},
    access::OrganizationId,
    db::{
        Error, Pool,
        runs::TaskRow,
        waits::{self, Question},
        webhook_events::EventRow,
    },
    event,
    run::State,
    timestamp::Timestamp,
    webhook::{Ordering, push::lane_of},
};

/// Questions of a notification, and bytes of the input of a step that is shown with its question.
const QUESTIONS: (i64, i32) = (20, 8 << 10);
/// Number of configurations that are removed together.
const BATCH: i64 = 1000;
/// Hours after which what is not needed any more is removed: a retry of a run is then told of, too.
const KEEP_HOURS: i32 = 24;

/// Row of `task_pushes`. It has no `Debug`, since `sealed` holds secrets.
#[derive(Clone, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct PushRow {
    pub id: Uuid,
    pub name: String,
    pub url: String,
    pub scheme: Option<String>,
    pub webhook_id: Uuid,
}

/// Configurations of a run of the organisation, in the order of their ids; there are few.
pub async fn list(db: impl PgExecutor<'_>, organization: &OrganizationId, run_id: &str) -> Result<Vec<PushRow>, Error> {
    let sql = "SELECT id, name, url, scheme, webhook_id FROM task_pushes
               WHERE run_id = $1 AND organization_id = $2 ORDER BY name";
    Ok(sqlx::query_as(sql).bind(run_id).bind(organization.as_str()).fetch_all(db).await?)
}

/// What a notification needs of its run besides the state.
#[derive(Debug, sqlx::FromRow)]
pub struct LockedRun {
    traceparent: Option<String>,
    depth: i32,
}

/// Locks the organisation's run until the transaction ends, so that its state stays as it is.
pub async fn lock_run(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    run_id: &str,
) -> Result<Option<LockedRun>, Error> {
    let sql = "SELECT traceparent, chain_depth::integer AS depth FROM workflow_runs
               WHERE run_id = $1 AND organization_id = $2 FOR NO KEY UPDATE";
    Ok(sqlx::query_as(sql).bind(run_id).bind(organization.as_str()).fetch_optional(conn).await?)
}

/// Configuration to store.
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct NewPush<'a> {
    pub id: Uuid,
    pub organization: &'a OrganizationId,
    pub run_id: &'a str,
    pub name: &'a str,
    pub url: &'a str,
    pub scheme: Option<&'a str>,
    pub version: Version,
    pub sealed: &'a Json<Box<RawValue>>,
    pub created_by: &'a str,
}

/// Stores a configuration, in the place of the old one if there is one. Returns it.
pub async fn put(conn: &mut PgConnection, push: &NewPush<'_>, old: Option<&PushRow>) -> Result<PushRow, Error> {
    let webhook_id = lane(&mut *conn, push.organization, lane_of(push.url)).await?;
    if let Some(old) = old.filter(|old| old.webhook_id != webhook_id) {
        // What waits goes to the new address, too.
        let sql = "UPDATE webhook_deliveries SET webhook_id = $4
                   WHERE webhook_id = $1 AND run_id = $2 AND push_id = $3 AND state = 'pending'";
        let query = sqlx::query(sql).bind(old.webhook_id).bind(push.run_id).bind(old.id);
        query.bind(webhook_id).execute(&mut *conn).await?;
    }
    let sql = "INSERT INTO task_pushes (id, organization_id, run_id, name, url, scheme, protocol, sealed, webhook_id, created_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
               ON CONFLICT (id) DO UPDATE SET url = excluded.url, scheme = excluded.scheme, protocol = excluded.protocol,
                   sealed = excluded.sealed, webhook_id = excluded.webhook_id, created_by = excluded.created_by,
                   created_at = clock_timestamp()
               RETURNING id, name, url, scheme, webhook_id";
    let query = sqlx::query_as(sql).bind(push.id).bind(push.organization.as_str()).bind(push.run_id).bind(push.name);
    let query = query.bind(push.url).bind(push.scheme).bind(push.version.as_str()).bind(push.sealed);
    Ok(query.bind(webhook_id).bind(push.created_by).fetch_one(conn).await?)
}

/// Queue of the organisation with that number, which is made if there is none. It is not removed for a day from now on.
async fn lane(conn: &mut PgConnection, organization: &OrganizationId, number: i16) -> Result<Uuid, Error> {
    let sql = "WITH lane AS (
                   INSERT INTO webhooks (id, organization_id, name, lane, ordering, updated_at)
                   VALUES ($1, $2, 'push notifications', $3, $4, clock_timestamp())
                   ON CONFLICT (organization_id, lane) WHERE lane IS NOT NULL DO UPDATE SET updated_at = clock_timestamp()
                   RETURNING id
               ), state AS (
                   INSERT INTO webhook_states (webhook_id) SELECT id FROM lane ON CONFLICT DO NOTHING
               )
               SELECT id FROM lane";
    let query = sqlx::query_scalar(sql).bind(Uuid::now_v7()).bind(organization.as_str()).bind(number);
    Ok(query.bind(Ordering::PerRun.as_str()).fetch_one(conn).await?)
}

/// Deletes a configuration. What waits to be sent by it is not sent.
pub async fn delete(conn: &mut PgConnection, run_id: &str, push: &PushRow) -> Result<(), Error> {
    // This waits for the fan-out, and its deliveries are seen below.
    sqlx::query("DELETE FROM task_pushes WHERE id = $1").bind(push.id).execute(&mut *conn).await?;
    let sql = "UPDATE webhook_deliveries SET state = 'failed', error = 'the configuration was deleted', due_at = NULL,
                   lease = NULL, leased_until = NULL, ended_at = now()
               WHERE webhook_id = $1 AND run_id = $2 AND push_id = $3 AND state = 'pending'";
    sqlx::query(sql).bind(push.webhook_id).bind(run_id).bind(push.id).execute(conn).await?;
    Ok(())
}

/// Types of events that are told, with the states that they lead to.
const TOLD: [(&str, State); 5] = [
    ("run.started", State::Working),
    ("run.waiting", State::Waiting),
    ("run.completed", State::Completed),
    ("run.failed", State::Failed),
    ("run.cancelled", State::Cancelled),
];

/// Tells a new configuration of the present state of its run, unless that has not begun: what was before the
/// configuration is told by no event. The caller has locked the run.
pub async fn tell_state(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    (run, row): (&LockedRun, &TaskRow),
    (push, version): (&PushRow, Version),
) -> Result<(), Error> {
    let Some((event_type, state)) = TOLD.iter().find(|(_, state)| *state == row.state()) else { return Ok(()) };
    let questions = match state {
        State::Waiting => waits::questions(&mut *conn, organization, &row.run_id, QUESTIONS).await?,
        _ => Vec::new(),
    };
    let delivery = NewDelivery {
        webhook_id: push.webhook_id,
        organization_id: organization.as_str(),
        push_id: Some(push.id),
        event_id: Uuid::now_v7(),
        event_type,
        event_at: row.updated_at,
        run_id: Some(&row.run_id),
        seq: None,
        body: notification(version, row.shown(), &questions),
        traceparent: run.traceparent.as_deref(),
        depth: run.depth,
        is_enabled: true,
    };
    deliveries::insert(conn, &[delivery]).await
}

fn notification(version: Version, run: shown::Run<'_>, questions: &[Question]) -> String {
    let questions: Vec<_> = questions.iter().map(|question| question.shown(run.id)).collect();
    version.notification(run, &questions).get().to_owned()
}

/// Configuration of the run of an event, or of a run around it.
#[derive(sqlx::FromRow)]
struct Target {
    id: Uuid,
    organization_id: String,
    run_id: String,
    protocol: String,
    webhook_id: Uuid,
    created_at: Timestamp,
    context_id: String,
    error_message: Option<String>,
}

/// Makes the notifications of these events, in their order.
pub(super) async fn deliver(conn: &mut PgConnection, events: &[EventRow]) -> Result<(), Error> {
    // Events with the runs whose clients are told of them, and the states of these.
    let mut told: Vec<(&EventRow, State, String)> = Vec::new();
    for event in events {
        let Some((_, state)) = TOLD.iter().find(|(event_type, _)| *event_type == event.event_type) else { continue };
        let Some(run_id) = &event.run_id else { continue };
        let runs = if *state == State::Waiting { around(&mut *conn, run_id).await? } else { vec![run_id.clone()] };
        told.extend(runs.into_iter().map(|run_id| (event, *state, run_id)));
    }
    if told.is_empty() {
        return Ok(());
    }
    let sql = "SELECT p.id, p.organization_id, p.run_id, p.protocol, p.webhook_id,
                   p.created_at AT TIME ZONE 'UTC' AS created_at, coalesce(r.context_id, r.run_id) AS context_id,
                   left(r.error_message, 4000) AS error_message
               FROM task_pushes p JOIN workflow_runs r ON r.run_id = p.run_id
               WHERE p.run_id = ANY ($1) ORDER BY p.id FOR SHARE OF p";
    let run_ids: Vec<&str> = told.iter().map(|(.., run_id)| run_id.as_str()).collect();
    let targets: Vec<Target> = sqlx::query_as(sql).bind(run_ids).fetch_all(&mut *conn).await?;
    let mut questions: BTreeMap<&str, Vec<Question>> = BTreeMap::new();
    for (_, state, run_id) in &told {
        let target = targets.iter().find(|target| target.run_id == *run_id && *state == State::Waiting);
        if let Some(target) = target.filter(|_| !questions.contains_key(run_id.as_str())) {
            let organization = OrganizationId::stored(&target.organization_id);
            let asked = waits::questions(&mut *conn, &organization, run_id, QUESTIONS).await?;
            questions.insert(run_id, asked);
        }
    }
    let mut made = Vec::new();
    for (event, state, run_id) in &told {
        let of_it = targets.iter().filter(|target| target.run_id == *run_id && target.created_at < event.created_at);
        for target in of_it {
            let Some(version) = Version::parse(&target.protocol) else { continue };
            let has_reason = matches!(state, State::Failed | State::Cancelled);
            let run = shown::Run {
                id: run_id,
                context_id: &target.context_id,
                state: *state,
                updated_at: event.created_at,
                error: target.error_message.as_deref().filter(|_| has_reason),
            };
            let asked = questions.get(run_id.as_str()).filter(|_| *state == State::Waiting);
            made.push(NewDelivery {
                webhook_id: target.webhook_id,
                organization_id: &target.organization_id,
                push_id: Some(target.id),
                event_id: event.id,
                event_type: &event.event_type,
                event_at: event.created_at,
                run_id: Some(run_id),
                seq: event.seq.filter(|_| event.run_id.as_ref() == Some(run_id)),
                body: notification(version, run, asked.map_or(&[], Vec::as_slice)),
                traceparent: event.traceparent.as_deref(),
                depth: event::depth(&event.data.0),
                is_enabled: true,
            });
        }
    }
    deliveries::insert(conn, &made).await
}

/// The run and those around it.
async fn around(conn: &mut PgConnection, run_id: &str) -> Result<Vec<String>, Error> {
    let sql = "WITH RECURSIVE around (run_id) AS (
                   SELECT $1::text
                   UNION ALL
                   SELECT r.parent_run_id::text FROM around JOIN workflow_runs r ON r.run_id = around.run_id
                   WHERE r.parent_run_id IS NOT NULL
               )
               SELECT run_id FROM around";
    Ok(sqlx::query_scalar(sql).bind(run_id).fetch_all(conn).await?)
}

/// Removes configurations of runs that have ended, or are gone, if nothing is left to send, and queues without any.
pub async fn clean_up(pool: &Pool) -> Result<(), Error> {
    loop {
        let sql = "
            DELETE FROM task_pushes WHERE created_at < now() - make_interval(hours => $1) AND id IN (
                SELECT p.id FROM task_pushes p LEFT JOIN workflow_runs r ON r.run_id = p.run_id
                WHERE p.created_at < now() - make_interval(hours => $1)
                    AND (r.run_id IS NULL OR (r.status IN ('COMPLETED', 'FAILED', 'CANCELLED')
                        AND r.updated_at < (now() - make_interval(hours => $1)) AT TIME ZONE 'UTC'))
                    AND NOT EXISTS (
                        SELECT FROM webhook_deliveries d
                        WHERE d.webhook_id = p.webhook_id AND d.run_id = p.run_id AND d.push_id = p.id
                            AND d.state = 'pending')
                LIMIT $2)";
        let removed = sqlx::query(sql).bind(KEEP_HOURS).bind(BATCH).execute(pool).await?.rows_affected();
        if i64::try_from(removed).is_ok_and(|removed| removed < BATCH) {
            break;
        }
    }
    let sql = "DELETE FROM webhooks w
               WHERE lane IS NOT NULL AND updated_at < now() - make_interval(hours => $1)
                   AND NOT EXISTS (SELECT FROM task_pushes p WHERE p.webhook_id = w.id)";
    sqlx::query(sql).bind(KEEP_HOURS).execute(pool).await?;
    Ok(())
}
