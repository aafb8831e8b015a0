//! Poller of runs for long polls and event streams. Our executor, the reference executor and cancelling callers all
//! write the run's row, so the rows are polled. One loop polls for all subscriptions, and is idle without any.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    db::{self, events::Progress},
    lifecycle::Lifecycle,
    permits::{Exhausted, Owners, Permit, Permits, Scope},
};

/// Polling interval while there are subscriptions.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// Maximum number of long polls at a time, and of streams. Reading that many runs takes the database some hundredths of
/// a second, ten times a second.
pub const MAX_WATCHERS: u64 = 2048;
/// Maximum number for one organisation.
pub const MAX_WATCHERS_OF_ORGANIZATION: u64 = MAX_WATCHERS / 2;
/// Maximum number for one caller.
pub const MAX_WATCHERS_OF_CALLER: u64 = MAX_WATCHERS / 4;

/// Handle of the poller. Cheap to clone.
#[derive(Clone)]
pub struct RunPoller(Arc<Shared>);

struct Shared {
    /// Subscribed runs. Those without a subscription are removed before the next poll.
    runs: Mutex<HashMap<String, Watched>>,
    arrived: Notify,
    stop: CancellationToken,
    clock: Clock,
    ends: Permits,
    streams: Permits,
}

/// Run with subscriptions.
#[derive(Default)]
struct Watched {
    progress: watch::Sender<Progress>,
    /// Whether a subscription is about questions of sub-runs too.
    is_family: bool,
}

/// What a subscription is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The run.
    Run,
    /// The run, and questions of its sub-runs.
    Family,
}

/// Subscription that notifies of changes of a run. Dropping it releases its permit.
pub struct Subscription {
    progress: watch::Receiver<Progress>,
    stop: CancellationToken,
    _permit: Permit,
}

impl Subscription {
    /// Cancelled when the process stops.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Number of the last piece of a streamed output, at the last poll.
    #[must_use]
    pub fn last_delta(&self) -> Option<i64> {
        self.progress.borrow().last_delta
    }

    /// Returns when the run may have changed since the last call; `false` if the process stops. Reading the run between
    /// two calls misses no change. The future may be dropped and called again.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            changed = self.progress.changed() => changed.is_ok(),
        }
    }
}

impl RunPoller {
    /// Starts the loop.
    #[must_use]
    pub fn start(pool: db::Pool, clock: Clock, lifecycle: &Lifecycle) -> Self {
        let limits = [(Scope::Organization, MAX_WATCHERS_OF_ORGANIZATION), (Scope::Caller, MAX_WATCHERS_OF_CALLER)];
        let this = Self(Arc::new(Shared {
            runs: Mutex::default(),
            arrived: Notify::new(),
            stop: lifecycle.soft_stop().clone(),
            clock,
            ends: Permits::new(MAX_WATCHERS, limits),
            streams: Permits::new(MAX_WATCHERS, limits),
        }));
        lifecycle.spawn("run-poller", this.clone().poll(pool));
        this
    }

    /// Returns when the run has ended, at the time-out, or when the process stops; at once if there are too many
    /// subscriptions. The caller reads the run to find out which.
    pub async fn until_ended(&self, run_id: &str, at_most: Duration, owners: Owners) {
        let Ok(_permit) = self.0.ends.try_take(owners, 1) else { return };
        let mut progress = self.subscribe(run_id, Interest::Run);
        tokio::select! {
            _ = progress.wait_for(|progress| progress.has_ended) => {}
            () = self.0.clock.sleep(at_most) => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Subscription of a long poll that ends when the caller says so, for a run and its sub-runs; `None` if there are
    /// too many.
    #[must_use]
    pub fn wait(&self, run_id: &str, owners: Owners) -> Option<Subscription> {
        let permit = self.0.ends.try_take(owners, 1).ok()?;
        Some(Subscription {
            progress: self.subscribe(run_id, Interest::Family),
            stop: self.0.stop.clone(),
            _permit: permit,
        })
    }

    /// Refuses a stream while there are too many of its owners.
    pub fn check_stream(&self, owners: Owners) -> Result<(), Exhausted> {
        self.0.streams.check(owners, 1)
    }

    /// Subscribes to a run, unless there are too many subscriptions.
    pub fn watch(&self, run_id: &str, interest: Interest, owners: Owners) -> Result<Subscription, Exhausted> {
        let permit = self.0.streams.try_take(owners, 1)?;
        Ok(Subscription { progress: self.subscribe(run_id, interest), stop: self.0.stop.clone(), _permit: permit })
    }

    fn subscribe(&self, run_id: &str, interest: Interest) -> watch::Receiver<Progress> {
        let mut runs = self.runs();
        let watched = match runs.get_mut(run_id) {
            Some(watched) => watched,
            None => runs.entry(run_id.to_owned()).or_default(),
        };
        watched.is_family |= interest == Interest::Family;
        let progress = watched.progress.subscribe();
        drop(runs);
        self.0.arrived.notify_one();
        progress
    }

    async fn poll(self, pool: db::Pool) {
        while !self.0.stop.is_cancelled() {
            let (run_ids, are_families) = self.awaited();
            if run_ids.is_empty() {
                tokio::select! {
                    () = self.0.arrived.notified() => {}
                    () = self.0.stop.cancelled() => {}
                }
                continue;
            }
            let pool = pool.clone();
            match db::bounded(async move { db::events::progress(&pool, (&run_ids, &are_families)).await }).await {
                Ok(found) => {
                    let runs = self.runs();
                    for (run_id, now) in found {
                        let watched = runs.get(&run_id);
                        watched.map(|watched| {
                            watched.progress.send_if_modified(|then| std::mem::replace(then, now.clone()) != now)
                        });
                    }
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "runs could not be polled: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = self.0.stop.cancelled() => {}
            }
        }
    }

    /// Runs that still have a subscription, and whether it is about their sub-runs too.
    fn awaited(&self) -> (Vec<String>, Vec<bool>) {
        let mut runs = self.runs();
        runs.retain(|_, watched| !watched.progress.is_closed());
        runs.iter().map(|(run_id, watched)| (run_id.clone(), watched.is_family)).unzip()
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Watched>> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
