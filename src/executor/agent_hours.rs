//! Counts of calls of agents for `GET /agents/{id}/stats`. They are collected in memory and added to the table every few
//! seconds, with one statement for all agents, so a call costs no statement. They are not derived from the rows of
//! attempts. These have no index by agent, and one costs the insert of each attempt a fifth more time and write-ahead log;
//! even with it, an answer reads a row for each call (10 000 in 75 ms). Retention also deletes them with their runs.
//!
//! They are statistics and no truth: an executor that is killed loses the last [`COLLECT`], one that stops in good order
//! nothing. If the connection breaks during a statement, its counts may be added twice.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    agent::latency::{self, BUCKETS, Buckets},
    clock::Clock,
    db::{
        self,
        agent_hours::{self, NewHours},
    },
    lifecycle::Lifecycle,
    usage::Cost,
};

/// Time for which counts are collected.
const COLLECT: Duration = Duration::from_secs(5);
/// Time between two deletions of old counts.
const SWEEP_EVERY: Duration = Duration::from_hours(1);
/// Maximum number of counts in memory, one for each agent and hour. While the database is down, further ones are dropped.
const MAX_COUNTS: usize = 20_000;

/// Counts of calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct AgentHours(Arc<Shared>);

struct Shared {
    clock: Clock,
    counts: Mutex<Counts>,
    arrived: Notify,
}

/// By agent and hour.
type Counts = HashMap<(Uuid, DateTime<Utc>), Count>;

struct Count {
    calls: u64,
    failures: u64,
    latency: Buckets,
    tokens: u64,
    cost: Cost,
}

impl Default for Count {
    fn default() -> Self {
        Self { calls: 0, failures: 0, latency: [0; BUCKETS], tokens: 0, cost: Cost::ZERO }
    }
}

impl AgentHours {
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::new(Shared { clock, counts: Mutex::default(), arrived: Notify::new() }))
    }

    /// Starts the loop that writes the counts. `settled` is cancelled when no more calls are made.
    pub(super) fn start(&self, pool: db::Pool, lifecycle: &Lifecycle, settled: &CancellationToken) {
        let (this, settled) = (self.clone(), settled.clone());
        lifecycle.spawn("executor agent hours", async move { this.run(pool, settled).await });
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call that has ended, and what it took.
    pub(super) fn count(&self, agent_id: Uuid, duration: Duration, is_ok: bool, (tokens, cost): (u64, Cost)) {
        let now = self.0.clock.now();
        let Ok(hour) = now.duration_trunc(TimeDelta::hours(1)) else { return };
        let mut counts = self.counts();
        let is_first = counts.is_empty();
        if counts.len() >= MAX_COUNTS && !counts.contains_key(&(agent_id, hour)) {
            return;
        }
        let count = counts.entry((agent_id, hour)).or_default();
        count.calls += 1;
        count.failures += u64::from(!is_ok);
        count.latency[latency::bucket(duration)] += 1;
        count.tokens += tokens;
        count.cost = count.cost + cost;
        drop(counts);
        if is_first {
            self.0.arrived.notify_one();
        }
    }

    async fn run(self, pool: db::Pool, settled: CancellationToken) {
        let clock = self.0.clock.clone();
        let mut swept: Option<Instant> = None;
        while !settled.is_cancelled() {
            if swept.is_none_or(|at| clock.since(at) >= SWEEP_EVERY) {
                swept = Some(clock.instant());
                let pool = pool.clone();
                report(&db::bounded(async move { agent_hours::delete_old(&pool).await }).await);
            }
            let is_idle = self.counts().is_empty();
            tokio::select! {
                () = self.0.arrived.notified(), if is_idle => continue,
                () = clock.sleep(if is_idle { SWEEP_EVERY } else { COLLECT }) => {}
                () = settled.cancelled() => {}
            }
            self.write(&pool).await;
        }
        // What was counted during the last statement.
        self.write(&pool).await;
    }

    /// Writes the counts so far. Those that cannot be written are kept.
    async fn write(&self, pool: &db::Pool) {
        let counts = mem::take(&mut *self.counts());
        if counts.is_empty() {
            return;
        }
        let (pool, new) = (pool.clone(), columns(&counts));
        let written = db::bounded(async move { agent_hours::add(&pool, new).await }).await;
        report(&written);
        if written.is_err() {
            let mut newer = self.counts();
            for (key, count) in counts {
                let sum = newer.entry(key).or_default();
                sum.calls += count.calls;
                sum.failures += count.failures;
                sum.tokens += count.tokens;
                sum.cost = sum.cost + count.cost;
                sum.latency.iter_mut().zip(count.latency).for_each(|(sum, more)| *sum += more);
            }
        }
    }
}

fn columns(counts: &Counts) -> NewHours {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let mut new = NewHours::default();
    for (&(agent_id, hour), Count { calls, failures, latency, tokens, cost }) in counts {
        new.agent_id.push(agent_id);
        new.hour.push(hour);
        new.calls.push(number(*calls));
        new.failures.push(number(*failures));
        new.tokens.push(number(*tokens));
        new.cost.push(*cost);
        new.latency.extend(latency.iter().copied().map(number));
    }
    new
}

fn report(written: &Result<(), db::Error>) {
    if let Err(error) = written {
        tracing::debug!(error = error as &dyn std::error::Error, "calls of agents are counted later: {error}");
    }
}
