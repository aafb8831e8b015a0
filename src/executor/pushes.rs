//! Push notifications of A2A agents: an attempt that waits for a task is woken when any process of the API has received
//! one. A notification only causes a query of the task; a lost one delays it until the next query.
//!
//! While no attempt waits, nothing is read.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    clock::Clock,
    db::{
        self,
        agent_pushes::{self, NewPush},
    },
    lifecycle::Lifecycle,
};

/// Interval of the looks for notifications, while an attempt waits for one.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Interval at which the addresses of dead executors are deleted.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// Notifications for the attempts of this executor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pushes(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    /// Beginning of the addresses; `None`: agents cannot reach this service.
    url: Option<String>,
    /// Id of this executor in the table.
    waiter: Uuid,
    /// Cancelled when the process gives its runs up.
    give_up: CancellationToken,
    state: Mutex<State>,
    begun: Notify,
}

#[derive(Default)]
struct State {
    /// What wakes each waiting attempt.
    waiting: HashMap<String, Arc<Notify>>,
    /// Attempts whose addresses have to be deleted.
    over: Vec<String>,
}

/// Address that an agent gets with a message.
pub(super) struct ExpectedPush {
    pub(super) url: String,
    pub(super) token: String,
    pub(super) awaited: AwaitedPush,
}

/// Notifications for the task of a message. Dropped when the task is not waited for any more.
pub(super) struct AwaitedPush {
    pushes: Pushes,
    attempt_id: String,
    arrived: Arc<Notify>,
    /// Cancelled when the driver stops: another executor may continue the run, and the address is left to it.
    stop: CancellationToken,
}

impl Pushes {
    /// `url` is the beginning of the addresses, if agents can reach this service.
    pub(super) fn new(pool: db::Pool, url: Option<String>, give_up: CancellationToken) -> Self {
        let (waiter, state, begun) = (Uuid::new_v4(), Mutex::default(), Notify::new());
        Self(Arc::new(Shared { pool, url, waiter, give_up, state, begun }))
    }

    /// Starts the loop that looks for notifications.
    pub(super) fn start(&self, clock: Clock, lifecycle: &Lifecycle, settled: &CancellationToken) {
        let (this, settled) = (self.clone(), settled.clone());
        lifecycle.spawn("executor pushes", async move { this.run(clock, settled).await });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An address for the task of this message; `None`: the task can only be queried.
    pub(super) async fn expect(&self, attempt_id: &str, stop: &CancellationToken) -> Option<ExpectedPush> {
        let url = self.0.url.as_ref()?;
        let (id, token) = (Uuid::new_v4(), URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()));
        let token_hash = Sha256::digest(&token).to_vec();
        let new = NewPush { id, token_hash, attempt_id: attempt_id.to_owned(), waiter: self.0.waiter };
        let pool = self.0.pool.clone();
        if let Err(error) = db::bounded(async move { agent_pushes::add(&pool, &new).await }).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "an agent gets no address for pushes: {error}");
            return None;
        }
        Some(ExpectedPush { url: format!("{url}{id}"), token, awaited: self.awaited(attempt_id, stop) })
    }

    /// The addresses that another executor has given the agent for the task of this message; `None`: there are none.
    pub(super) async fn adopt(&self, attempt_id: &str, stop: &CancellationToken) -> Option<AwaitedPush> {
        self.0.url.as_ref()?;
        let (pool, id, waiter) = (self.0.pool.clone(), attempt_id.to_owned(), self.0.waiter);
        let adopted = db::bounded(async move { agent_pushes::adopt(&pool, &id, waiter).await }).await;
        report(adopted).then(|| self.awaited(attempt_id, stop))
    }

    fn awaited(&self, attempt_id: &str, stop: &CancellationToken) -> AwaitedPush {
        let arrived = Arc::new(Notify::new());
        self.state().waiting.insert(attempt_id.to_owned(), Arc::clone(&arrived));
        self.0.begun.notify_one();
        AwaitedPush { pushes: self.clone(), attempt_id: attempt_id.to_owned(), arrived, stop: stop.clone() }
    }

    async fn run(self, clock: Clock, settled: CancellationToken) {
        let mut swept: Option<Instant> = None;
        loop {
            let (is_waiting, over) = {
                let mut state = self.state();
                (!state.waiting.is_empty(), mem::take(&mut state.over))
            };
            let (pool, waiter) = (self.0.pool.clone(), self.0.waiter);
            if !over.is_empty() {
                report(db::bounded(async move { agent_pushes::delete(&pool, waiter, &over).await }).await);
            }
            if settled.is_cancelled() {
                return;
            }
            if is_waiting {
                let pool = self.0.pool.clone();
                let taken = db::bounded(async move { agent_pushes::take(&pool, waiter).await }).await;
                let state = self.state();
                for attempt_id in report(taken) {
                    if let Some(arrived) = state.waiting.get(&attempt_id) {
                        arrived.notify_one();
                    }
                }
            }
            // Only an executor that has used the table cleans it up.
            if is_waiting && swept.is_none_or(|at| clock.since(at) >= SWEEP_EVERY) {
                swept = Some(clock.instant());
                let pool = self.0.pool.clone();
                report(db::bounded(async move { agent_pushes::delete_old(&pool).await }).await);
            }
            tokio::select! {
                () = clock.sleep(LOOK_EVERY), if is_waiting => {}
                () = self.0.begun.notified(), if !is_waiting => {}
                () = settled.cancelled() => {}
            }
        }
    }
}

/// The result; after an error the tasks are still queried, and what is left is deleted later.
fn report<T: Default>(result: Result<T, db::Error>) -> T {
    result.unwrap_or_else(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "pushes of agents are late: {error}");
        T::default()
    })
}

impl AwaitedPush {
    /// Returns when a notification has arrived since the last one.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

impl Drop for AwaitedPush {
    fn drop(&mut self) {
        let mut state = self.pushes.state();
        // The run may have come back here, and wait again.
        if state.waiting.get(&self.attempt_id).is_some_and(|arrived| Arc::ptr_eq(arrived, &self.arrived)) {
            state.waiting.remove(&self.attempt_id);
            if !self.stop.is_cancelled() && !self.pushes.0.give_up.is_cancelled() {
                state.over.push(mem::take(&mut self.attempt_id));
            }
        }
        drop(state);
        self.pushes.0.begun.notify_one();
    }
}
