//! Evaluating a schedule: deciding about the firings that are due, and starting their runs, in one transaction.
//!
//! Any number of processes may evaluate the same schedule. The row that says how far it has been decided is locked and moves
//! in the transaction that starts the runs; and the ids of the runs follow from the schedule and the nominal instants. After
//! a crash, the transaction was committed or nothing has happened.

use std::collections::VecDeque;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Change, Entity, cancel_run,
    fire_trigger::{self, Cause, FireError, Firer, Firing, Outcome},
    record,
};
use crate::{
    access::Actor,
    db::{
        self,
        runs::RunRow,
        schedules::{DueSchedule, ScheduleRow},
        triggers::{FiringRow, NewFirings, TriggerRow},
    },
    input::to_raw,
    timestamp::Timestamp,
    trigger::{
        self, Config, Fired, Schedule,
        schedule::{MAX_BUFFERED, Overlap},
    },
};

/// Interval at which a schedule is looked at whose firings wait for the end of a run.
const WAITING: TimeDelta = TimeDelta::seconds(1);
/// Time after which a schedule is looked at again that this release cannot read.
const UNREADABLE: TimeDelta = TimeDelta::seconds(60);
/// Maximum number of runs that one turn starts one after the other, because each may fail to start.
const MAX_IN_TURN: usize = 20;
/// Maximum number of runs that a firing cancels.
const MAX_CANCELLED: i64 = 1000;

/// Result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There was nothing to do, or another process does it.
    NotNow,
    /// Everything that was due is decided.
    Done,
    /// More is due already.
    More,
}

/// Id of the run of a schedule for a nominal instant.
#[must_use]
pub fn run_id(trigger_id: Uuid, nominal: DateTime<Utc>) -> String {
    let name = nominal.to_rfc3339_opts(SecondsFormat::Micros, true);
    format!("run-{}", Uuid::new_v5(&trigger_id, name.as_bytes()))
}

/// Firing of a schedule for a nominal instant. `due_at`: the same with jitter.
pub(super) fn firing(
    trigger: &TriggerRow,
    (nominal, due_at): (DateTime<Utc>, Option<DateTime<Utc>>),
    run_id: String,
    cause: Cause,
) -> Firing {
    let fired = Fired { kind: &trigger.kind, id: trigger.id, name: &trigger.name, at: nominal };
    Firing {
        run_id,
        at: nominal,
        due_at,
        what: trigger::what(fired, &[]),
        depth: 0,
        cause,
        correlation_id: None,
        delivery: None,
    }
}

/// Evaluates a schedule as of `now`. `watched`: how long this process has looked for due schedules without a gap.
pub async fn fire_schedule(
    pool: &db::Pool,
    firer: Firer<'_>,
    id: Uuid,
    (now, watched): (DateTime<Utc>, TimeDelta),
) -> Result<Turn, FireError> {
    let decided = db::in_transaction(pool, async |conn| {
        let Some(due) = db::schedules::lock_due(conn, id, now).await? else { return Ok(None) };
        let DueSchedule { trigger, state, is_suspended } = due;
        let config = Config::from_stored(&trigger.kind, &trigger.config.0);
        let Some(Config::Schedule(schedule)) = config else {
            // A process of a later release reads it.
            let state = ScheduleRow { due_at: Some(now + UNREADABLE), ..state };
            db::schedules::save(conn, id, &state).await?;
            return Ok(None);
        };
        let mut evaluation = Evaluation::new(firer, &trigger, &schedule, state, (now, watched));
        evaluation.run(conn, is_suspended).await?;
        let is_more = evaluation.state.due_at.is_some_and(|due_at| due_at <= now);
        let Evaluation { outcomes, counts, cancelled, .. } = evaluation;
        Ok::<_, FireError>(Some((trigger, outcomes, counts, cancelled, is_more)))
    })
    .await?;
    let Some((trigger, outcomes, counts, cancelled, is_more)) = decided else { return Ok(Turn::NotNow) };
    fire_trigger::count_outcomes(&trigger, &outcomes);
    counts.count();
    cancelled.iter().for_each(cancel_run::count);
    Ok(if is_more { Turn::More } else { Turn::Done })
}

/// Numbers of firings without a run.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    missed: i64,
    overlap_skipped: i64,
    buffer_dropped: i64,
}

impl Counts {
    /// Those that are not zero, by name.
    fn named(self) -> impl Iterator<Item = (&'static str, i64)> {
        let all = [
            ("missed", self.missed),
            ("overlap_skipped", self.overlap_skipped),
            ("buffer_dropped", self.buffer_dropped),
        ];
        all.into_iter().filter(|(_, number)| *number > 0)
    }

    /// Adds them to the metrics.
    fn count(self) {
        for (name, number) in self.named() {
            metrics::counter!("trigger_firings_total", "outcome" => name).increment(number.unsigned_abs());
        }
    }
}

/// Evaluation of a schedule in a transaction.
struct Evaluation<'a> {
    firer: Firer<'a>,
    trigger: &'a TriggerRow,
    schedule: &'a Schedule,
    state: ScheduleRow,
    now: DateTime<Utc>,
    /// How long this process has looked for due schedules without a gap.
    watched: TimeDelta,
    outcomes: Vec<Outcome>,
    counts: Counts,
    /// Firings without a run, to be recorded.
    rows: Vec<FiringRow>,
    /// Runs that were cancelled, as they were before.
    cancelled: Vec<RunRow>,
}

impl<'a> Evaluation<'a> {
    fn new(
        firer: Firer<'a>,
        trigger: &'a TriggerRow,
        schedule: &'a Schedule,
        state: ScheduleRow,
        (now, watched): (DateTime<Utc>, TimeDelta),
    ) -> Self {
        let (outcomes, counts, rows, cancelled) = (Vec::new(), Counts::default(), Vec::new(), Vec::new());
        Self { firer, trigger, schedule, state, now, watched, outcomes, counts, rows, cancelled }
    }

    /// Decides about everything that is due, and writes it.
    async fn run(&mut self, conn: &mut PgConnection, is_suspended: bool) -> Result<(), FireError> {
        if is_suspended {
            // As if it was paused: nothing is due, so nothing is made up for later.
            self.state.due_at = self.schedule.due_at(self.trigger.id, self.now);
            self.state.processed_until = self.now;
            self.drop_buffered();
        } else if !self.trigger.enabled || self.state.remaining == Some(0) {
            self.state.due_at = None;
            self.drop_buffered();
        } else if self.has_failed_too_often(conn).await? {
            self.pause(conn).await?;
        } else {
            self.fire(conn).await?;
        }
        db::schedules::save(conn, self.trigger.id, &self.state).await?;
        let counts: Vec<_> = self.counts.named().collect();
        let new = NewFirings { firings: &self.rows, counts: &counts };
        Ok(db::triggers::record(conn, self.trigger.id, new).await?)
    }

    async fn has_failed_too_often(&self, conn: &mut PgConnection) -> Result<bool, FireError> {
        let count = self.schedule.pause_after_failures;
        if count == 0 {
            return Ok(false);
        }
        let (organization, since) = (self.trigger.organization(), self.state.failures_since);
        Ok(db::schedules::have_failed(conn, &organization, self.trigger.id, (count, since)).await?)
    }

    /// Pauses the schedule, since too many of its runs have failed.
    async fn pause(&mut self, conn: &mut PgConnection) -> Result<(), FireError> {
        let note = format!("paused because {} runs in a row have failed", self.schedule.pause_after_failures);
        let actor = self.actor();
        db::triggers::pause(conn, self.trigger.id, &note, &actor.subject).await?;
        self.state.due_at = None;
        self.drop_buffered();
        let (before, after) =
            (json!({"enabled": true, "note": self.trigger.note}), json!({"enabled": false, "note": note}));
        let (before, after) = (to_raw(&before), to_raw(&after));
        let entity = Entity("trigger", self.trigger.id, &self.trigger.name);
        let (change, at) = (Change::between(&before, &after), Timestamp::from(self.now));
        record(conn, (&actor, self.firer.audit), entity, "pause", change, at).await?;
        self.tell(conn, "schedule.paused", json!({"reason": note})).await
    }

    /// The service, on behalf of the organisation.
    fn actor(&self) -> Actor {
        Actor { organization: self.trigger.organization(), ..Actor::system() }
    }

    /// Records an event about the schedule.
    async fn tell(&self, conn: &mut PgConnection, event: &str, more: serde_json::Value) -> Result<(), FireError> {
        let trigger = self.trigger;
        let mut data = json!({
            "schedule": {"id": trigger.id, "name": trigger.name},
            "workflow": {"name": trigger.workflow_name, "version": trigger.workflow_version},
        });
        if let (Some(members), serde_json::Value::Object(more)) = (data.as_object_mut(), more) {
            members.extend(more);
        }
        let (organization, workflow) = (trigger.organization(), &trigger.workflow_name);
        db::webhook_events::record_of_workflow(conn, &organization, event, workflow, &to_raw(&data)).await?;
        Ok(())
    }

    /// Fires for all instants that are due.
    async fn fire(&mut self, conn: &mut PgConnection) -> Result<(), FireError> {
        let (id, processed) = (self.trigger.id, self.state.processed_until);
        let due = crate::offload::in_place(|| self.schedule.due(id, processed, self.now, self.watched));
        self.state.processed_until = due.processed_until;
        self.state.due_at = due.due_at;
        if let Some((count, first, last)) = due.missed {
            self.counts.missed += count;
            let text = format!("{count} firings from {} to {}", Timestamp::from(first), Timestamp::from(last));
            self.rows.push(self.row(last, "missed", Some(("too_late", text))));
            let span = json!({"count": count, "from": Timestamp::from(first), "until": Timestamp::from(last),
                "reason": "too_late"});
            self.tell(conn, "schedule.missed", span).await?;
        }
        let waiting = std::mem::take(&mut self.state.buffered);
        match self.schedule.overlap {
            Overlap::Allow => self.start(conn, waiting.into_iter().chain(due.fire).collect()).await?,
            Overlap::CancelOther => self.start_latest(conn, waiting.into_iter().chain(due.fire).collect()).await?,
            Overlap::Skip | Overlap::BufferOne | Overlap::BufferAll => {
                self.start_one(conn, waiting.into(), due.fire).await?;
            }
        }
        if self.state.remaining == Some(0) {
            self.state.due_at = None;
            self.drop_buffered();
        } else if !self.state.buffered.is_empty() {
            let soon = self.now + WAITING;
            self.state.due_at = Some(self.state.due_at.map_or(soon, |due_at| due_at.min(soon)));
        }
        Ok(())
    }

    /// Starts all runs, as far as firings are left.
    async fn start(&mut self, conn: &mut PgConnection, mut nominals: Vec<DateTime<Utc>>) -> Result<(), FireError> {
        if let Some(remaining) = self.state.remaining {
            nominals.truncate(usize::try_from(remaining).unwrap_or_default());
        }
        if nominals.is_empty() {
            return Ok(());
        }
        let of = |nominal: &DateTime<Utc>| {
            let due_at = Some(self.due_at(*nominal));
            firing(self.trigger, (*nominal, due_at), run_id(self.trigger.id, *nominal), Cause::Event)
        };
        let firings: Vec<Firing> = nominals.iter().map(of).collect();
        let outcomes = fire_trigger::fire(conn, self.firer, self.trigger, &firings).await?;
        let count = i32::try_from(outcomes.len()).unwrap_or(i32::MAX);
        self.state.remaining = self.state.remaining.map(|remaining| remaining.saturating_sub(count).max(0));
        self.outcomes.extend(outcomes);
        Ok(())
    }

    /// Starts the run of the latest instant, after the cancellation of the runs that have not ended.
    async fn start_latest(&mut self, conn: &mut PgConnection, mut all: Vec<DateTime<Utc>>) -> Result<(), FireError> {
        let Some(latest) = all.pop() else { return Ok(()) };
        for nominal in all {
            self.skip(nominal);
        }
        let actor = self.actor();
        let reason = format!("the schedule {} has fired again", self.trigger.name);
        for run_id in db::triggers::open_runs(conn, self.trigger.id, MAX_CANCELLED).await? {
            let cancelled = cancel_run::cancel_in(conn, (&actor, self.firer.audit), &run_id, &reason).await?;
            self.cancelled.extend(cancelled);
        }
        self.start(conn, vec![latest]).await
    }

    /// Starts one run, if none is open. The other instants are skipped, or wait.
    async fn start_one(
        &mut self,
        conn: &mut PgConnection,
        waiting: VecDeque<DateTime<Utc>>,
        due: Vec<DateTime<Utc>>,
    ) -> Result<(), FireError> {
        let mut is_open = self.has_open_run(conn).await?;
        let mut turns = 0;
        let waiting = waiting.into_iter().map(|nominal| (nominal, true));
        for (nominal, has_waited) in waiting.chain(due.into_iter().map(|nominal| (nominal, false))) {
            if self.state.remaining == Some(0) {
                if has_waited {
                    self.state.buffered.push(nominal);
                }
                continue;
            }
            if !is_open && turns < MAX_IN_TURN {
                turns += 1;
                self.start(conn, vec![nominal]).await?;
                is_open = self.has_open_run(conn).await?;
            } else if has_waited || self.has_room() {
                self.state.buffered.push(nominal);
            } else if self.schedule.overlap == Overlap::Skip {
                self.skip(nominal);
            } else {
                self.drop_one(nominal);
            }
        }
        Ok(())
    }

    /// The nominal instant with jitter.
    fn due_at(&self, nominal: DateTime<Utc>) -> DateTime<Utc> {
        self.schedule.jittered(self.trigger.id, nominal)
    }

    /// Drops the firings that wait for the end of a run.
    fn drop_buffered(&mut self) {
        for nominal in std::mem::take(&mut self.state.buffered) {
            self.drop_one(nominal);
        }
    }

    fn drop_one(&mut self, nominal: DateTime<Utc>) {
        self.counts.buffer_dropped += 1;
        self.rows.push(self.row(nominal, "buffer_dropped", None));
    }

    fn has_room(&self) -> bool {
        match self.schedule.overlap {
            Overlap::BufferOne => self.state.buffered.is_empty(),
            Overlap::BufferAll => self.state.buffered.len() < MAX_BUFFERED,
            Overlap::Skip | Overlap::CancelOther | Overlap::Allow => false,
        }
    }

    async fn has_open_run(&self, conn: &mut PgConnection) -> Result<bool, FireError> {
        Ok(!db::triggers::open_runs(conn, self.trigger.id, 1).await?.is_empty())
    }

    fn skip(&mut self, nominal: DateTime<Utc>) {
        self.counts.overlap_skipped += 1;
        self.rows.push(self.row(nominal, "overlap_skipped", None));
    }

    /// A firing without a run, as it is kept.
    fn row(&self, nominal: DateTime<Utc>, outcome: &str, why: Option<(&str, String)>) -> FiringRow {
        without_run((nominal, self.due_at(nominal), self.now), outcome, why)
    }
}

/// A firing without a run, as it is kept, with its times: nominal, with jitter, and of its end.
fn without_run(
    (nominal_at, due_at, fired_at): (DateTime<Utc>, DateTime<Utc>, DateTime<Utc>),
    outcome: &str,
    why: Option<(&str, String)>,
) -> FiringRow {
    let (reason, detail) = why.map(|(reason, detail)| (reason.to_owned(), detail)).unzip();
    FiringRow {
        nominal_at,
        due_at: Some(due_at),
        fired_at,
        cause: Cause::Event.as_str().to_owned(),
        outcome: outcome.to_owned(),
        reason,
        detail,
        run_id: None,
    }
}

/// Records the firings that wait for the end of a run, when their schedule is paused: they are dropped.
pub(super) async fn record_dropped(
    conn: &mut PgConnection,
    id: Uuid,
    (schedule, buffered): (&Schedule, &[DateTime<Utc>]),
    now: DateTime<Utc>,
) -> Result<(), db::Error> {
    let row =
        |nominal: &DateTime<Utc>| without_run((*nominal, schedule.jittered(id, *nominal), now), "buffer_dropped", None);
    let firings: Vec<FiringRow> = buffered.iter().map(row).collect();
    let counts = Counts { buffer_dropped: i64::try_from(firings.len()).unwrap_or(i64::MAX), ..Counts::default() };
    let named: Vec<_> = counts.named().collect();
    db::triggers::record(conn, id, NewFirings { firings: &firings, counts: &named }).await?;
    // Before the commit, which hardly ever fails after this.
    counts.count();
    Ok(())
}
