//! Loop that fires schedules and makes backfills, in every `serve` process. Once a second, one indexed query finds what is
//! due; then each schedule is evaluated in a transaction of its own, by whichever process locks it.
//!
//! After a crash: see [`fire_schedule`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use rand::seq::SliceRandom as _;
use uuid::Uuid;

use crate::{
    access::Quotas,
    actions::{
        backfill,
        fire_schedule::{self, Turn},
        fire_trigger::{FireError, Firer},
        start_run::Definitions,
    },
    db::{self, schedules::Task},
    lifecycle::Lifecycle,
    offload::Offload,
    outbox::Relay,
};

/// Interval of the query for what is due.
const EVERY: Duration = Duration::from_secs(1);
/// Pause after which it has not looked without a gap, for example because the machine was asleep.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Maximum number of schedules and of backfills that one query finds.
const MAX_DUE: i64 = 1000;
/// Number of transactions at a time.
const AT_A_TIME: usize = 4;
/// Maximum number of rounds without a pause, if more is due already.
const MAX_ROUNDS: usize = 10;
/// Time after which a schedule is evaluated again that the database refuses.
const POSTPONED: Duration = Duration::from_mins(1);

/// Evaluates schedules. Cheap to clone.
#[derive(Clone)]
pub struct Scheduler {
    /// Pool of the process.
    pub pool: db::Pool,
    /// Cache of definitions.
    pub definitions: Arc<Definitions>,
    /// Threads that check inputs.
    pub offload: Offload,
    /// Default quotas of organisations.
    pub quotas: Quotas,
    /// Whether audit rows are written.
    pub audit: bool,
}

/// Measure of how long a process has looked for due schedules without a gap. A firing that is late in spite of it was not
/// missed: there were many.
#[derive(Debug, Default)]
struct Watch {
    since: Option<Instant>,
    ended: Option<Instant>,
}

impl Watch {
    /// Begins a look; how long the process has looked until now. It begins anew after a pause in which it could not look.
    fn begin(&mut self, now: Instant) -> Duration {
        if self.ended.is_some_and(|ended| now - ended > MAX_PAUSE) {
            self.since = None;
        }
        now - *self.since.get_or_insert(now)
    }

    /// Ends a look.
    fn end(&mut self, now: Instant) {
        self.ended = Some(now);
    }

    /// Begins anew: it could not look.
    fn interrupt(&mut self) {
        self.since = None;
    }
}

impl Scheduler {
    /// Starts the loop.
    pub fn start(self, relay: Relay, lifecycle: &Lifecycle) {
        let stop = lifecycle.soft_stop().clone();
        lifecycle.spawn("schedules", async move {
            let mut watch = Watch::default();
            while !stop.is_cancelled() {
                // What is due waits as long as nothing can be sent.
                if relay.is_full() {
                    watch.interrupt();
                } else {
                    let done = self.rounds(watch.begin(Instant::now())).await;
                    watch.end(Instant::now());
                    if let Err(error) = done {
                        watch.interrupt();
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "schedules were not evaluated: {error}"
                        );
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(EVERY) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
    }

    async fn rounds(&self, watched: Duration) -> Result<(), db::Error> {
        for _ in 0..MAX_ROUNDS {
            if !self.turn(None, watched).await? {
                break;
            }
        }
        Ok(())
    }

    /// Does what is due at `now`; without it, by the database's clock. `watched`: how long this process has looked for due
    /// schedules without a gap. Returns whether more is due already.
    pub async fn turn(&self, now: Option<DateTime<Utc>>, watched: Duration) -> Result<bool, db::Error> {
        let pool = self.pool.clone();
        let mut tasks = db::bounded(async move { db::schedules::due(&pool, now, MAX_DUE).await }).await?;
        let are_all = i64::try_from(tasks.len()).is_ok_and(|count| count < MAX_DUE);
        // Processes begin with different ones.
        tasks.shuffle(&mut rand::rng());
        let turns = futures_util::stream::iter(tasks).map(|task| self.clone().task(task, (now, watched)));
        let turns: Vec<Turn> = turns.buffer_unordered(AT_A_TIME).collect().await;
        Ok(turns.contains(&Turn::More) || (!are_all && turns.contains(&Turn::Done)))
    }

    async fn task(self, task: Task, as_of: (Option<DateTime<Utc>>, Duration)) -> Turn {
        let this = self.clone();
        let done = db::bounded(async move { Ok(this.evaluate(task, as_of).await) }).await;
        match done.unwrap_or_else(|error| Err(error.into())) {
            Ok(turn) => turn,
            Err(FireError::Db(error)) if !error.is_retryable() && !matches!(error, db::Error::Conflict { .. }) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    trigger_id = %task.trigger_id,
                    "a schedule cannot be evaluated: {error}"
                );
                self.postpone(task.trigger_id).await;
                Turn::NotNow
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "a schedule was not evaluated: {error}");
                Turn::NotNow
            }
        }
    }

    async fn evaluate(&self, task: Task, (now, watched): (Option<DateTime<Utc>>, Duration)) -> Result<Turn, FireError> {
        let firer =
            Firer { definitions: &self.definitions, offload: &self.offload, quotas: &self.quotas, audit: self.audit };
        if let Some(job) = task.backfill_id {
            return backfill::continue_backfill(&self.pool, firer, (job, task.trigger_id)).await;
        }
        let now = match now {
            Some(now) => now,
            None => db::triggers::now(&self.pool).await?,
        };
        let watched = TimeDelta::from_std(watched).unwrap_or(TimeDelta::MAX);
        fire_schedule::fire_schedule(&self.pool, firer, task.trigger_id, (now, watched)).await
    }

    /// Leaves a schedule alone for a while, so that it delays no other.
    async fn postpone(&self, id: Uuid) {
        let pool = self.pool.clone();
        let postponed =
            db::bounded(async move { db::schedules::postpone(&pool, id, POSTPONED.as_secs_f64()).await }).await;
        if let Err(error) = postponed {
            tracing::debug!(error = &error as &dyn std::error::Error, "a schedule was not postponed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_looked_since_it_could_not_look_for_the_last_time() {
        let (mut watch, mut now) = (Watch::default(), Instant::now());
        let mut look = |pause: u64| {
            now += Duration::from_secs(pause);
            let watched = watch.begin(now).as_secs();
            // Looking may take long.
            now += Duration::from_secs(20);
            watch.end(now);
            watched
        };
        assert_eq!([look(100), look(1), look(5)], [0, 21, 46]);
        assert_eq!([look(6), look(1)], [0, 21], "the process was asleep");
        watch.interrupt();
        assert_eq!(watch.begin(now).as_secs(), 0, "the database was away");
    }
}
