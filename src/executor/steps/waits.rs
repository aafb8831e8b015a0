//! Steps that wait for something external: their common part, and the simplest of them, `wait`.
//!
//! Such a step is a PENDING row with a row of its wait condition. Both are written in one transaction, before the
//! awaited event can arrive. So whatever happens to this process, and however late the run is resumed, the event is
//! found there.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::{Frame, Run, activity};
use crate::{
    db::{
        self,
        executions::StepBegin,
        waits::{self, Wait, WaitCondition},
    },
    executor::{
        database::{self, Unanswered},
        surroundings::Surroundings,
    },
    input::{object_of, text, to_raw},
    mapping::{self, Scope},
    timestamp::Timestamp,
    workflow::{
        Step,
        wait_config::{WaitConfig, bounded, instant, iso_duration, near},
    },
};

/// Wait conditions of the open attempts of a run, as last read.
#[derive(Default)]
pub(super) struct Waits {
    by_attempt: Mutex<HashMap<String, Wait>>,
    read: Notify,
    /// Held while they are read, so that what was read first does not replace what was read last.
    reading: tokio::sync::Mutex<()>,
}

impl Waits {
    fn by_attempt(&self) -> MutexGuard<'_, HashMap<String, Wait>> {
        self.by_attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Handling of a run's event rows once the events are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::executor) enum Wakes {
    /// They are deleted.
    Forgotten,
    /// They stay.
    Kept,
}

/// End of an attempt's wait.
pub(super) enum WaitEnd {
    /// What it waits for is there.
    Result(Box<Wait>),
    /// Its time is over.
    Time,
}

impl Run {
    /// Reads the events for the run, whenever new ones have arrived.
    pub(in crate::executor) async fn watch_events(&self) {
        loop {
            self.signals.woken.notified().await;
            // The run counts as busy until its steps have seen the events, since they are reported only here.
            let _busy = self.activity.begin();
            self.read_waits(Wakes::Forgotten).await;
            tokio::task::yield_now().await;
        }
    }

    /// Reads the events for the run. Steps keep the event rows, since the result of a read is lost if its step is
    /// abandoned meanwhile.
    pub(in crate::executor) async fn read_waits(&self, wakes: Wakes) {
        if self.executor.simulated().is_some() {
            return;
        }
        let _reading = self.waits.reading.lock().await;
        let read = self
            .database(|pool| {
                let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
                async move {
                    let mut connection = pool.acquire().await?;
                    if wakes == Wakes::Forgotten {
                        // Deleted before the read: an event that arrives in between is read, and its row is kept.
                        waits::forget_wakes(&mut *connection, &run_id, lease_token).await?;
                    }
                    waits::open(&mut *connection, &run_id).await
                }
            })
            .await;
        *self.waits.by_attempt() = read.into_iter().map(|wait| (wait.attempt_id.clone(), wait)).collect();
        self.waits.read.notify_waiters();
    }

    /// Repeats a statement until the database answers, however long it is down. A defect of ours ends the run
    /// separately. A simulated run has no database, and is stopped.
    pub(super) async fn database<T, F>(&self, statement: impl Fn(db::Pool) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T, db::Error>> + Send + 'static,
    {
        let executor = match &self.executor {
            Surroundings::Executor(executor) => executor,
            Surroundings::Simulation(simulated) => {
                simulated.stop_unsupported();
                return std::future::pending().await;
            }
        };
        let attempt = || async {
            let _permit = self.statements.acquire().await.expect("never closed");
            executor.database(|| statement(executor.pool.clone())).await
        };
        let pause = |failures| async move {
            database::pause(failures).await;
            Ok(())
        };
        match database::answer(&self.run_id, attempt, pause).await {
            Ok(result) => return result,
            Err(Unanswered::Slow) => self.budget.exceed(database::too_slow()),
            Err(Unanswered::Broken) => self.broken.notify_one(),
        }
        std::future::pending().await
    }

    /// Begins an attempt that waits. Everything that came before is written first.
    pub(super) async fn begin_waiting(
        &self,
        path: &str,
        step: StepBegin,
        awaited: WaitCondition,
        due_at: Option<DateTime<Utc>>,
    ) -> String {
        let id = step.id.clone();
        self.begin_step(step.input.get().len()).await;
        if let Some(simulated) = self.executor.simulated() {
            let wait = Wait { attempt_id: id.clone(), due_at, ..Wait::default() };
            self.waits.by_attempt().insert(id.clone(), wait);
            let input = step.input.clone();
            self.ledger.begin(path, step);
            self.ledger.written().await;
            simulated.begin_wait(&id, awaited, &input);
            return id;
        }
        self.ledger.written().await;
        let beginning = Arc::new(self.ledger.beginning(path, &id));
        let begun = self
            .database(|pool| {
                let (run_id, lease_token) = (self.run_id.clone(), self.ledger.lease_token());
                let (path, step, awaited) = (path.to_owned(), step.clone(), awaited.clone());
                let under_way = (Arc::clone(&beginning), self.begins.token());
                async move {
                    let _under_way = under_way;
                    let mut connection = pool.acquire().await?;
                    let claim = (run_id.as_str(), lease_token);
                    waits::begin(&mut connection, claim, (&path, &step), &awaited, due_at).await
                }
            })
            .await;
        beginning.has_begun();
        match begun {
            Some(false) => {
                let wait = Wait { attempt_id: id.clone(), due_at, ..Wait::default() };
                // A newer state may have been read already.
                self.waits.by_attempt().entry(id.clone()).or_insert(wait);
            }
            Some(true) => self.read_waits(Wakes::Kept).await,
            // Another executor has the run now and continues it.
            None => std::future::pending().await,
        }
        id
    }

    /// Reports what has happened outside of a simulated run.
    pub(in crate::executor) fn deliver(&self, event: Wait) {
        {
            let mut waits = self.waits.by_attempt();
            let (due_at, round) =
                waits.get(&event.attempt_id).map(|wait| (wait.due_at, wait.round)).unwrap_or_default();
            waits.insert(event.attempt_id.clone(), Wait { due_at, round, ..event });
        }
        self.waits.read.notify_waiters();
    }

    /// What is known of the wait of that attempt.
    pub(super) fn wait_of(&self, attempt_id: &str) -> Option<Wait> {
        self.waits.by_attempt().get(attempt_id).cloned()
    }

    /// Registers the wait for the answer to a question, unless a newer state was read already.
    pub(super) fn set_wait(&self, wait: Wait) {
        let mut waits = self.waits.by_attempt();
        if waits.get(&wait.attempt_id).is_none_or(|known| known.round < wait.round) {
            waits.insert(wait.attempt_id.clone(), wait);
        }
    }

    /// Id of the open attempt at this step path that began before, if there is one.
    pub(super) fn open_attempt(&self, path: &str) -> Option<String> {
        let open = self.earlier.take_open(path)?;
        self.ledger.adopt(path, &open.id);
        Some(open.id)
    }

    /// End of the wait of that attempt.
    pub(super) fn due_at(&self, attempt_id: &str) -> Option<DateTime<Utc>> {
        self.waits.by_attempt().get(attempt_id)?.due_at
    }

    /// Waits until `is_there` holds for the attempt's wait condition, or until its time is over.
    pub(super) async fn wait_for(&self, attempt_id: &str, is_there: impl Fn(&Wait) -> bool) -> WaitEnd {
        let due_at = self.due_at(attempt_id);
        let _idle = self.activity.idle();
        let _due = due_at.map(|at| self.activity.due(at));
        loop {
            let read = self.waits.read.notified();
            // From here on no reading is missed.
            let mut read = std::pin::pin!(read);
            read.as_mut().enable();
            if let Some(wait) = self.waits.by_attempt().get(attempt_id).filter(|wait| is_there(wait)) {
                return WaitEnd::Result(Box::new(wait.clone()));
            }
            tokio::select! {
                biased;
                () = read => {}
                () = self.due(due_at) => return WaitEnd::Time,
            }
        }
    }

    /// Waits until that time; for ever if there is none.
    async fn due(&self, at: Option<DateTime<Utc>>) {
        match at {
            Some(at) => self.activity.sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Ends an attempt that has waited.
    pub(super) fn end_waiting(&self, path: &str, result: &Result<Box<RawValue>, String>) {
        self.end(path, result.as_deref().map_err(Clone::clone), None);
    }

    /// Executes a `wait` step: lets its time pass.
    pub(super) async fn wait(&self, step: &Step, path: &str, frame: &Frame<'_>) -> Result<Box<RawValue>, String> {
        let Some(config) = &step.wait_config else { return Err("it has no wait_config".to_owned()) };
        let attempt_id = if let Some(attempt_id) = self.open_attempt(path) {
            attempt_id
        } else {
            self.gate().await;
            let _leaf = self.leaves.begin();
            let until = until(config, &frame.scope, self.executor.clock.now())?;
            let input = object_of([("until", &*shown(until))]);
            let row = self.row(step, String::new(), input, path, frame);
            self.begin_waiting(path, row, WaitCondition::Time, Some(until)).await
        };
        let until = self.due_at(&attempt_id);
        self.wait_for(&attempt_id, |_| false).await;
        let output = Ok(object_of([("until", &*shown(until.unwrap_or_else(|| self.executor.clock.now())))]));
        self.end_waiting(path, &output);
        output
    }
}

fn shown(instant: DateTime<Utc>) -> Box<RawValue> {
    to_raw(&Timestamp::from(instant))
}

/// End of the wait of a step, if it begins at `now`.
fn until(config: &WaitConfig, scope: &Scope<'_>, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    let text_of = |member: &str, value: &str| {
        let resolved = mapping::resolve_text(value, scope).map_err(|cause| format!("wait_config.{member}, {cause}"))?;
        Ok::<_, String>(text(&resolved).unwrap_or_else(|| resolved.get().to_owned()))
    };
    let within = |member: &str, result: Result<f64, String>| {
        result.map_err(|cause| format!("wait_config.{member}: it {cause}")).map(|secs| {
            // Within bounds, as both have checked.
            activity::later(now, Duration::try_from_secs_f64(secs).unwrap_or_default())
        })
    };
    if let Some(secs) = &config.duration_seconds {
        let secs = text_of("duration_seconds", &text(secs).unwrap_or_else(|| secs.get().to_owned()))?;
        let parsed = secs.trim().parse::<f64>().map_err(|_| "must be a number".to_owned());
        return within("duration_seconds", parsed.and_then(bounded));
    }
    if let Some(duration) = &config.duration {
        return within("duration", iso_duration(&text_of("duration", duration)?));
    }
    let until = text_of("until", config.until.as_deref().unwrap_or_default())?;
    let until = instant(&until).and_then(|until| near(until, now));
    until.map_err(|cause| format!("wait_config.until: it {cause}"))
}
