//! Circuit breaker cache of an executor. Breakers are shared through the database, and cost no statement while calls
//! succeed: the state of a breaker is read together with its agent. Successful calls are counted in memory and reported
//! to the database with the next failed call, or while other executors report failures.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::agents::{Agent, ReadBreaker};
use crate::{
    breaker::{Admission, Breaker, Calls, Rules, State},
    cache::Cache,
    clock::Clock,
    db,
    telemetry::catalogue::AGENTS,
};

/// A probe's lease is the agent's time-out plus this margin.
const LEASE_MARGIN: Duration = Duration::from_secs(10);
/// Minimum interval between reports of successes, while other executors report failures.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Agents that are remembered.
const MAX_AGENTS: usize = 10_000;

/// The agent must not be called now.
pub(super) struct Rejected;

/// Circuit breaker cache of an executor. Cheap to clone.
#[derive(Clone)]
pub(super) struct Breakers(Arc<Inner>);

struct Inner {
    pool: db::Pool,
    clock: Clock,
    /// Whether an agent that fails or recovers is an entry of the audit trail.
    audit: bool,
    agents: Mutex<Cache<Uuid, Arc<Local>>>,
}

/// What this process knows of an agent's breaker.
#[derive(Default)]
struct Local {
    known: Mutex<Known>,
    /// Held during a change of the shared breaker; other tasks of this process wait for it.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    breaker: Breaker,
    /// A moment of the database's clock, and the same one of ours: of the last own change or read.
    clock: Option<(DateTime<Utc>, Instant)>,
    /// Calls that are not reported to the shared breaker, by second.
    untold: VecDeque<Calls>,
    told_at: Option<Instant>,
}

impl Known {
    /// The database's time, as far as it is known.
    fn now(&self, clock: &Clock) -> DateTime<Utc> {
        self.clock.map_or_else(
            || clock.now(),
            |(at, then)| {
                TimeDelta::from_std(clock.since(then))
                    .ok()
                    .and_then(|passed| at.checked_add_signed(passed))
                    .unwrap_or(at)
            },
        )
    }
}

impl Local {
    /// Takes in what was read with the agent, unless it is older than what is known.
    fn observe(&self, ReadBreaker { shared, began }: &ReadBreaker) {
        let mut known = self.known();
        if known.clock.is_none_or(|(_, known_at)| known_at < *began) {
            known.breaker = shared.breaker.clone();
            known.clock = Some((shared.read_at, *began));
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a call that may be made, until its result is reported.
pub(super) struct CallGuard<'a> {
    breakers: &'a Breakers,
    agent: &'a Arc<Agent>,
    /// `None`: its calls are not counted.
    local: Option<Arc<Local>>,
    probe: Option<Uuid>,
}

impl Breakers {
    pub(super) fn new(pool: db::Pool, clock: Clock, audit: bool) -> Self {
        Self(Arc::new(Inner { pool, clock, audit, agents: Mutex::new(Cache::new(MAX_AGENTS)) }))
    }

    fn local(&self, agent_id: Uuid) -> Arc<Local> {
        let mut agents = self.0.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.get_or_insert_with(agent_id, Arc::default)
    }

    /// Decides whether the agent may be called now. The result of the call must be reported to the returned guard.
    pub(super) async fn admit<'a>(&'a self, agent: &'a Arc<Agent>) -> Result<CallGuard<'a>, Rejected> {
        let mut passage = CallGuard { breakers: self, agent, local: None, probe: None };
        if !agent.breaker.enabled {
            return Ok(passage);
        }
        let local = self.local(agent.id);
        local.observe(&agent.read_breaker);
        match expected(&agent.breaker, &local, &self.0.clock) {
            Some(Admission::Rejected) => return Err(Rejected),
            Some(_) => {}
            None => {
                let turn = local.changing.lock().await;
                // It may have been decided meanwhile.
                let admission = if let Some(admission) = expected(&agent.breaker, &local, &self.0.clock) {
                    admission
                } else {
                    let (rules, lease) = (agent.breaker, agent.timeout + LEASE_MARGIN);
                    let asked = self.change(agent, &local, move |breaker, now| breaker.admit(&rules, now, lease));
                    // Without the database the agent is called: a breaker protects, it is not needed.
                    asked.await.unwrap_or(Admission::Made)
                };
                drop(turn);
                match admission {
                    Admission::Rejected => return Err(Rejected),
                    Admission::Probe(token) => passage.probe = Some(token),
                    Admission::Made => {}
                }
            }
        }
        passage.local = Some(local);
        Ok(passage)
    }

    /// Changes the shared breaker, and what is known of it.
    async fn change<T: Send + 'static>(
        &self,
        agent: &Agent,
        local: &Local,
        change: impl FnOnce(&mut Breaker, DateTime<Utc>) -> T + Send + 'static,
    ) -> Option<T> {
        let (pool, id) = (self.0.pool.clone(), agent.id);
        let audited = self.0.audit.then(|| (agent.name.clone(), agent.organization.clone()));
        let changed = db::bounded(async move {
            db::breakers::change(&pool, id, audited.as_ref(), |breaker, now| {
                let before = breaker.state;
                (before, change(breaker, now))
            })
            .await
        });
        match changed.await {
            Ok((shared, (before, result))) => {
                let after = shared.breaker.state;
                {
                    let mut known = local.known();
                    known.clock = Some((shared.read_at, self.0.clock.instant()));
                    known.breaker = shared.breaker;
                }
                if before != after {
                    let (name, state) = (&agent.name, after.as_str());
                    metrics::counter!("executor_circuit_breaker_transitions_total", "state" => state, "agent" => AGENTS.of(name))
                        .increment(1);
                    tracing::warn!(agent = name, state, "the circuit breaker of agent {name} is {state} now");
                }
                Some(result)
            }
            Err(error) => {
                let name = &agent.name;
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    agent = name,
                    error,
                    "a call result could not be written to the circuit breaker of agent {name}"
                );
                None
            }
        }
    }

    /// Reports the unreported calls to the shared breaker.
    async fn report(&self, agent: &Agent, local: &Local) {
        let _turn = local.changing.lock().await;
        let calls: Vec<Calls> = {
            let mut known = local.known();
            known.told_at = Some(self.0.clock.instant());
            known.untold.drain(..).collect()
        };
        // Another task may have reported them together with its own.
        if !calls.is_empty() {
            let rules = agent.breaker;
            self.change(agent, local, move |breaker, now| breaker.record(&rules, now, &calls)).await;
        }
    }
}

/// The decision of the shared breaker, as far as the cached state determines it.
fn expected(rules: &Rules, local: &Local, clock: &Clock) -> Option<Admission> {
    let known = local.known();
    let (breaker, now) = (&known.breaker, known.now(clock));
    match breaker.state {
        State::Closed => Some(Admission::Made),
        State::Open => breaker.retry_at(rules).is_some_and(|at| now < at).then_some(Admission::Rejected),
        State::HalfOpen => {
            let alive = breaker.probes.iter().filter(|probe| now < probe.until).count() as u64;
            let is_full = alive > 0 && alive + u64::from(breaker.probes_succeeded) >= rules.half_open_max_calls.into();
            is_full.then_some(Admission::Rejected)
        }
    }
}

impl CallGuard<'_> {
    /// Reports the end of the call; `None`: the result shows nothing about the agent.
    pub(super) async fn end(mut self, is_healthy: Option<bool>) {
        let Some(local) = self.local.clone() else { return };
        let (breakers, agent) = (self.breakers, self.agent);
        if let Some(token) = self.probe.take() {
            let rules = agent.breaker;
            let _turn = local.changing.lock().await;
            breakers.change(agent, &local, move |breaker, now| breaker.settle(&rules, now, token, is_healthy)).await;
            return;
        }
        let Some(is_healthy) = is_healthy else { return };
        let is_watched = {
            let mut known = local.known();
            if known.breaker.state != State::Closed {
                return;
            }
            let clock = &breakers.0.clock;
            let now = known.now(clock);
            let call = Calls::one(now.timestamp(), is_healthy);
            match known.untold.back_mut() {
                Some(last) if last.at == call.at => last.add(call),
                _ => known.untold.push_back(call),
            }
            let since = now.timestamp() - i64::try_from(agent.breaker.window.as_secs()).unwrap_or(i64::MAX);
            while known.untold.front().is_some_and(|calls| calls.at < since) {
                known.untold.pop_front();
            }
            known.breaker.counts(&agent.breaker, now).1 > 0
                && known.told_at.is_none_or(|told_at| clock.since(told_at) >= REPORT_EVERY)
        };
        if !is_healthy {
            breakers.report(agent, &local).await;
        } else if is_watched {
            let (breakers, agent) = (breakers.clone(), Arc::clone(agent));
            tokio::spawn(async move { breakers.report(&agent, &local).await });
        }
    }
}

impl Drop for CallGuard<'_> {
    /// The call was abandoned, so the slot of a probe is free again.
    fn drop(&mut self) {
        let (Some(token), Some(local)) = (self.probe.take(), self.local.take()) else { return };
        let (breakers, agent) = (self.breakers.clone(), Arc::clone(self.agent));
        // Without a runtime the lease frees it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let rules = agent.breaker;
                let _turn = local.changing.lock().await;
                breakers.change(&agent, &local, move |breaker, now| breaker.settle(&rules, now, token, None)).await;
            });
        }
    }
}
