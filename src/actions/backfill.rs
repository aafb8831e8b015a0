//! Backfills: jobs that start the runs of a schedule for a range of time.
//!
//! The ids of the runs are those of the schedule, so that a repeat is harmless; with `force` they follow from the job. After
//! a crash, another process continues with the firing after the last one that was committed.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{
    Change, Context, Entity, SaveError,
    fire_schedule::{Turn, firing, run_id},
    fire_trigger::{self, Cause, FireError, Firer, Firing, Outcome},
};
use crate::{
    db::{self, schedules::BackfillRow, triggers::TriggerRow},
    input::{FieldError, to_raw},
    timestamp::Timestamp,
    trigger::{BackfillRequest, Config, Schedule, schedule::Overlap},
};

/// Maximum number of firings of a backfill.
pub const MAX_FIRINGS: usize = 10_000;
/// Maximum number of backfills of a trigger that run.
pub const MAX_RUNNING: i64 = 5;
/// Maximum number of firings that one transaction decides.
const MAX_IN_TURN: usize = 100;

/// Reason why a backfill was not created.
pub type BackfillError = SaveError<BackfillRefusal>;

/// Reason that only backfills have.
#[derive(Debug, thiserror::Error)]
pub enum BackfillRefusal {
    /// Too many of the trigger run already.
    #[error("at most {MAX_RUNNING} backfills of a trigger run at a time")]
    TooMany,
}

/// Backfill that was created, or would be.
#[derive(Debug)]
pub struct Planned {
    /// The job; `None` in a dry run.
    pub job: Option<BackfillRow>,
    /// Its instants.
    pub instants: Vec<DateTime<Utc>>,
}

/// Creates a backfill, unless this is a dry run.
pub async fn create_backfill(
    pool: &db::Pool,
    context: Context<'_>,
    trigger_id: Uuid,
    request: BackfillRequest,
) -> Result<Planned, BackfillError> {
    let BackfillRequest { from, to, overlap, dry_run, force } = request;
    db::in_transaction(pool, async |conn| {
        let id = Uuid::now_v7();
        if !dry_run {
            context.claim(conn, &id.to_string()).await?;
        }
        let found = db::triggers::lock(conn, context.organization(), trigger_id).await?;
        let trigger = found.ok_or(BackfillError::NotFound)?;
        let schedule =
            schedule_of(&trigger).ok_or_else(|| vec![FieldError::rule("path.trigger_id", "is not a schedule")])?;
        let instants = crate::offload::in_place(|| schedule.range(from, to, MAX_FIRINGS + 1));
        if instants.len() > MAX_FIRINGS {
            let text = format!("there are more than {MAX_FIRINGS} firings from `from` to here; take a shorter range");
            return Err(vec![FieldError::rule("body.to", text)].into());
        }
        if dry_run {
            return Ok(Planned { job: None, instants });
        }
        if db::schedules::count_running(conn, trigger_id).await? >= MAX_RUNNING {
            return Err(SaveError::Other(BackfillRefusal::TooMany));
        }
        let overlap = overlap.unwrap_or(schedule.overlap);
        let overlap = if overlap == Overlap::Allow { Overlap::Allow } else { Overlap::BufferAll };
        let now = db::triggers::now(&mut *conn).await?;
        let job = BackfillRow {
            id,
            trigger_id,
            state: BackfillRow::RUNNING.to_owned(),
            from_at: from,
            to_at: to,
            overlap: overlap.as_str().to_owned(),
            force,
            total: i32::try_from(instants.len()).unwrap_or(i32::MAX),
            processed_until: from - TimeDelta::microseconds(1),
            started: 0,
            present: 0,
            failed: 0,
            created_by: context.actor.subject.clone(),
            created_at: now,
            ended_at: None,
        };
        db::schedules::insert_backfill(conn, &job).await?;
        let change = to_raw(&json!({"backfill_id": id, "from": Timestamp::from(from), "to": Timestamp::from(to),
            "overlap": job.overlap, "force": force, "total": job.total}));
        let entity = Entity("trigger", trigger_id, &trigger.name);
        context.record(conn, entity, "backfill", Change::to(&change), Timestamp::from(now)).await?;
        Ok(Planned { job: Some(job), instants })
    })
    .await
}

/// Stops a backfill. Its runs continue. A repeat changes nothing.
pub async fn stop_backfill(
    pool: &db::Pool,
    context: Context<'_>,
    trigger_id: Uuid,
    id: Uuid,
) -> Result<BackfillRow, BackfillError> {
    db::in_transaction(pool, async |conn| {
        let found = db::triggers::lock(conn, context.organization(), trigger_id).await?;
        let trigger = found.ok_or(BackfillError::NotFound)?;
        let before = db::schedules::backfill(&mut *conn, trigger_id, id).await?.ok_or(BackfillError::NotFound)?;
        let row = db::schedules::stop_backfill(conn, trigger_id, id).await?.ok_or(BackfillError::NotFound)?;
        if before.state != row.state {
            let change = to_raw(&json!({"backfill_id": id}));
            let entity = Entity("trigger", trigger_id, &trigger.name);
            context.record(conn, entity, "stop_backfill", Change::to(&change), Timestamp::now()).await?;
        }
        Ok(row)
    })
    .await
}

fn schedule_of(trigger: &TriggerRow) -> Option<Schedule> {
    match Config::from_stored(&trigger.kind, &trigger.config.0)? {
        Config::Schedule(schedule) => Some(*schedule),
        Config::Kafka(_) | Config::Webhook(_) => None,
    }
}

/// Makes the next part of a backfill.
pub async fn continue_backfill(pool: &db::Pool, firer: Firer<'_>, job: (Uuid, Uuid)) -> Result<Turn, FireError> {
    let made = db::in_transaction(pool, async |conn| {
        let Some((trigger, mut row)) = db::schedules::lock_backfill(conn, job).await? else { return Ok(None) };
        let Some(schedule) = schedule_of(&trigger) else { return Ok(None) };
        let is_sequential = row.overlap != Overlap::Allow.as_str();
        if is_sequential && !db::triggers::open_runs(conn, trigger.id, 1).await?.is_empty() {
            return Ok(None);
        }
        let max = if is_sequential { 1 } else { MAX_IN_TURN };
        let after = row.processed_until + TimeDelta::microseconds(1);
        let nominals = crate::offload::in_place(|| schedule.range(after, row.to_at, max));
        let of = |nominal: &DateTime<Utc>| {
            let namespace = if row.force { row.id } else { trigger.id };
            firing(&trigger, (*nominal, None), run_id(namespace, *nominal), Cause::Backfill)
        };
        let firings: Vec<Firing> = nominals.iter().map(of).collect();
        let outcomes =
            if firings.is_empty() { Vec::new() } else { fire_trigger::fire(conn, firer, &trigger, &firings).await? };
        for outcome in &outcomes {
            match outcome {
                Outcome::Started => row.started += 1,
                Outcome::Present => row.present += 1,
                Outcome::Failed(_) => row.failed += 1,
            }
        }
        row.processed_until = nominals.last().copied().unwrap_or(row.to_at);
        let is_over = nominals.len() < max;
        if is_over {
            row.state = BackfillRow::COMPLETED.to_owned();
            row.ended_at = Some(db::triggers::now(&mut *conn).await?);
        }
        db::schedules::save_backfill(conn, &row).await?;
        Ok::<_, FireError>(Some((trigger, outcomes, is_over)))
    })
    .await?;
    let Some((trigger, outcomes, is_over)) = made else { return Ok(Turn::NotNow) };
    fire_trigger::count_outcomes(&trigger, &outcomes);
    Ok(if is_over { Turn::Done } else { Turn::More })
}
