//! The executor: reads requests from Kafka, claims runs under a lease, calls agents, writes what became of it.
//!
//! The row in PostgreSQL is the truth and a message is a hint. `intake` claims PENDING runs; each claimed run has a
//! task that drives it (`drive`), which makes its `steps` and notes in its `ledger` what they write; the ledgers of
//! all runs are written through `journal` in batches; `sweep` takes over the runs of executors that died, takes up those
//! that were parked and leaves those that were cancelled. Every write names the lease of the claim.
//!
//! A run of which every branch waits for something outside of it is parked: its rows stay, and nothing of it stays here.
//!
//! If it dies here: before a claim is committed, the record comes again to another member of the group; after it,
//! the run is taken over once this process has not beaten for `processes::DEAD_AFTER`, and continues after its
//! completed steps (`earlier`); those that were under way are made again with other task ids. A process that is cut
//! off or frozen for as long leaves its runs, and its late writes change nothing.

mod active;
mod agent_call;
mod agents;
mod answer;
mod assignment;
mod breakers;
mod cancellations;
mod database;
mod dead_letters;
mod drive;
mod earlier;
mod intake;
mod journal;
mod ledger;
mod memory;
mod monitoring;
mod queue;
mod request;
mod retry;
mod status;
mod steps;
mod sweep;

use std::{ops::Deref, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

pub use self::status::{HealthStatus, Status};
use self::{
    active::{ActiveRuns, Slots},
    agents::Agents,
    assignment::Assignment,
    breakers::Breakers,
    intake::Intake,
    journal::Journal,
    memory::Memory,
    monitoring::Monitoring,
};
use crate::{
    access::OrganizationId,
    config::{Config, RunBudget},
    db::{
        self,
        processes::{self, Registration},
    },
    egress::Egress,
    kafka::{self, consumer::Consumer, replaceable::Connection},
    lifecycle::Lifecycle,
    offload::Offload,
    telemetry,
};

/// At the soft stop, a call that is under way may take so much longer. With the writes after it under the 10 s that
/// Docker grants by default.
const FINISH_CALL: Duration = Duration::from_secs(7);
/// Between two tries to make the topics.
const TOPICS_PAUSE: Duration = Duration::from_secs(2);

/// What the loops and drivers share. Cheap to clone.
#[derive(Clone)]
struct Executor(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    registration: Registration,
    active: ActiveRuns,
    journal: Journal,
    /// Of the values of all runs.
    memory: Memory,
    agents: Agents,
    breakers: Breakers,
    egress: Egress,
    /// Permits for the statements of drivers and steps that are not the journal's: half of the pool's connections, so
    /// that the loops and the journal find one.
    statements: Arc<Semaphore>,
    /// For schemas.
    offload: Offload,
    /// What the addresses of callbacks begin with.
    callbacks_url: String,
    /// Of a run, from its first claim to its end, without the time for which it is parked.
    max_duration: Duration,
    /// What one run may take.
    run_budget: RunBudget,
    /// Of the consumer.
    kafka: Connection,
    /// Nothing new is begun.
    soft_stop: CancellationToken,
    /// The time to finish what is under way is over.
    give_up: CancellationToken,
    /// No driver is left.
    settled: CancellationToken,
    drivers: TaskTracker,
}

impl Deref for Executor {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Starts the executor's loops. Neither the database nor Kafka need be there yet; settings that cannot work are an
/// error.
pub fn start(config: &Config, pool: db::Pool, lifecycle: &Lifecycle) -> anyhow::Result<Status> {
    telemetry::count(telemetry::Component::Executor);
    lifecycle.spawn("histograms", telemetry::keep_histograms_small(lifecycle.soft_stop().clone()));
    let (settled, give_up) = (CancellationToken::new(), CancellationToken::new());
    let consumer = Arc::new(Consumer::new(&config.kafka)?);
    let registration = Registration::start(pool.clone(), "executor", lifecycle);
    let monitoring = Monitoring::start(&config.kafka, pool.clone(), registration.clone(), lifecycle, &settled)?;
    let executor = Executor(Arc::new(Shared {
        registration,
        active: ActiveRuns::new(config.executor.max_runs),
        journal: Journal::start(&pool, monitoring.as_ref(), lifecycle, &give_up, &settled),
        memory: Memory::new(config.executor.memory_bytes),
        agents: Agents::new(pool.clone(), Arc::clone(&config.vault), config.circuit_breaker),
        breakers: Breakers::new(pool.clone()),
        egress: Egress::new(&config.egress)?,
        statements: Arc::new(Semaphore::new(pool.max().div_ceil(2))),
        offload: Offload::default(),
        callbacks_url: config.api.callbacks_url(),
        max_duration: config.executor.max_run_duration,
        run_budget: config.executor.run_budget,
        kafka: consumer.connection().clone(),
        soft_stop: lifecycle.soft_stop().clone(),
        give_up,
        settled,
        drivers: TaskTracker::new(),
        pool,
    }));
    let intake_done = CancellationToken::new();
    let (watched, soft_stop) = (Arc::clone(&consumer), lifecycle.soft_stop().clone());
    lifecycle.spawn("executor kafka watch", async move { watched.watch(&soft_stop).await });
    let intake = Intake::new(executor.clone(), consumer);
    let (sweeping, waking) = (executor.clone(), executor.clone());
    let claiming_done = intake_done.clone();
    lifecycle.spawn("executor intake", async move {
        // Whoever claims ends before the drivers are waited for.
        tokio::join!(intake.run(), sweeping.take_over_all(), waking.wake_all());
        claiming_done.cancel();
    });
    lifecycle.spawn("executor leases", executor.clone().check_leases());
    lifecycle.spawn("executor registration", executor.clone().follow_registration());
    lifecycle.spawn("executor topics", ensure_topics(config.kafka.clone(), lifecycle.soft_stop().clone()));
    crate::dead_letters::start(config, executor.pool.clone(), lifecycle)?;
    lifecycle.spawn("executor stop", executor.clone().end(intake_done, lifecycle.hard_stop().clone()));
    Ok(Status(executor))
}

impl Executor {
    /// Does work for an organisation: at once, or, if it takes long, in turn with others and where it holds nobody up.
    async fn work<T>(&self, organization: &OrganizationId, is_long: bool, work: impl FnOnce() -> T) -> T {
        if !is_long {
            return work();
        }
        match self.offload.run_in_place(organization, work).await {
            Ok(done) => done,
            // The process ends: another one goes on with the run.
            Err(_) => std::future::pending().await,
        }
    }

    /// Drives a run that `owner` has claimed, in a task of its own.
    fn start_run(&self, assignment: Assignment, owner: Uuid, slot: Slots) {
        let (run_id, organization) = (&assignment.run_id, assignment.organization.clone());
        let signals = self.active.add(run_id, assignment.lease_token, owner, organization, slot);
        if self.registration.current() != Some(owner) {
            // Declared dead between claim and now: the claim is void.
            signals.stop.cancel();
        }
        self.drivers.spawn(drive::drive(self.clone(), assignment, signals));
    }

    /// Runs statements of a driver or step when there is a permit for them.
    async fn database<T, F>(&self, statements: impl FnOnce() -> F) -> Result<T, db::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, db::Error>> + Send + 'static,
    {
        let permit = Arc::clone(&self.statements).acquire_owned().await.expect("never closed");
        let statements = statements();
        // They go on, with the permit, when this future is dropped.
        db::bounded(async move {
            let _permit = permit;
            statements.await
        })
        .await
    }

    /// Does what is to be done after a run's future was dropped. The process waits for it, as for the runs.
    fn spawn_after(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Where there is no runtime any more, there is no time either.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.drivers.spawn_on(task, &runtime);
        }
    }

    /// Waits for the soft stop and then for everything under way; what is left is free for others at once.
    async fn end(self, intake_done: CancellationToken, hard_stop: CancellationToken) {
        self.soft_stop.cancelled().await;
        let clock = self.clone();
        let at_the_end = hard_stop.clone();
        tokio::spawn(async move {
            let hard_stop = at_the_end;
            tokio::select! {
                () = tokio::time::sleep(FINISH_CALL) => {}
                () = hard_stop.cancelled() => clock.active.stop_all_but_of(None),
            }
            clock.give_up.cancel();
            hard_stop.cancelled().await;
            clock.active.stop_all_but_of(None);
        });
        intake_done.cancelled().await;
        self.drivers.close();
        self.drivers.wait().await;
        let pool = self.pool.clone();
        if let Some(id) = self.registration.current().filter(|_| !hard_stop.is_cancelled())
            && let Err(error) = db::bounded(async move { processes::deregister(&pool, id).await }).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "not retired; runs handed back wait a little longer"
            );
        }
        self.settled.cancel();
    }
}

/// Makes the topics where they are missing, as soon as Kafka is there, and then rests.
async fn ensure_topics(kafka: crate::config::Kafka, soft_stop: CancellationToken) {
    loop {
        match kafka::ensure_topics(&kafka).await {
            Ok(()) => return soft_stop.cancelled().await,
            Err(error) => tracing::debug!("the topics cannot be made yet: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(TOPICS_PAUSE) => {}
            () = soft_stop.cancelled() => return,
        }
    }
}
