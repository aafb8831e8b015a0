//! Executor: reads execution requests from Kafka, claims runs under a lease, calls agents and writes the results.
//!
//! The row in PostgreSQL is the truth and a message is a hint. `intake` claims PENDING runs. A task for each claimed
//! run drives it (`drive`): it executes the run's `steps` and collects their writes in its `ledger`. `journal` writes
//! the ledgers of all runs in batches. `sweep` takes over the runs of dead executors, resumes parked runs and stops
//! driving cancelled ones. Every write names the lease of the claim.
//!
//! A run is parked when every branch of it waits for something external: its rows stay, and it uses no memory here.
//!
//! If the process dies before a claim is committed, the record is redelivered to another member of the group. If it
//! dies later, the run is taken over once this process has had no heartbeat for `processes::DEAD_AFTER`. The run
//! continues after its completed steps (`earlier`); steps under way are executed again with other task ids. A process
//! that is cut off or frozen for as long stops driving its runs, and its late writes change nothing.

mod active;
mod agent_call;
mod agent_cards;
mod agent_hours;
mod agent_question;
mod agents;
mod answer;
mod assignment;
mod breakers;
mod cancellations;
mod common;
mod database;
mod dead_letters;
mod deltas;
mod drive;
mod earlier;
mod error_code;
mod first_attempt;
mod intake;
mod journal;
mod ledger;
mod mcp_servers;
mod memory;
mod monitoring;
mod own_connection;
mod plans;
mod pushes;
mod question_cancels;
mod queue;
mod request;
mod retry;
mod run_trace;
mod simulate;
mod simulation;
mod status;
mod steps;
mod surroundings;
mod sweep;

use std::{ops::Deref, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use self::{
    active::{ActiveRuns, Slots},
    agent_cards::Cards,
    agent_hours::AgentHours,
    agents::Agents,
    assignment::Assignment,
    breakers::Breakers,
    common::Common,
    deltas::Deltas,
    intake::Intake,
    journal::Journal,
    mcp_servers::McpServers,
    memory::Memory,
    monitoring::Monitoring,
    plans::Plans,
    pushes::Pushes,
};
pub use self::{
    simulate::{End, Report, Settings, Simulation, simulate},
    simulation::{AgentSettings, Attempt, Definitions, Limits, MissingMock, Mocks, RecordedAttempt, Recording, Shown},
    status::{HealthStatus, Status},
};
use crate::{
    access::OrganizationId,
    clock::Clock,
    config::Config,
    db::{
        self,
        processes::{self, Registration},
    },
    egress::Egress,
    kafka::{self, consumer::Consumer, lag::Lag, problem::Connection},
    lifecycle::Lifecycle,
    offload::Offload,
    telemetry,
};

/// Time that a call under way may still take after the soft stop. Together with the writes after it, it stays below the
/// 10 s that Docker grants by default.
const FINISH_CALL: Duration = Duration::from_secs(7);
/// Pause between two attempts to create the topics.
const TOPICS_PAUSE: Duration = Duration::from_secs(2);

/// Executor handle, shared by the loops and the drivers. Cheap to clone.
#[derive(Clone)]
struct Executor(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    common: Common,
    registration: Registration,
    active: ActiveRuns,
    journal: Journal,
    /// Updates for observers, if there is a topic for them.
    monitoring: Option<Monitoring>,
    plans: Plans,
    agents: Agents,
    breakers: Breakers,
    egress: Egress,
    /// Cards of A2A agents.
    cards: Cards,
    /// Connections to MCP servers, and what is known of them.
    mcp_servers: McpServers,
    /// Counts of calls of agents.
    agent_hours: AgentHours,
    /// Pieces of outputs that agents stream.
    deltas: Deltas,
    /// Push notifications of A2A agents.
    pushes: Pushes,
    /// Permits for statements of drivers and steps that do not go through the journal. They are half of the pool's
    /// connections, so that the loops and the journal find a free one.
    statements: Arc<Semaphore>,
    /// Offloaded work that checks schemas.
    offload: Offload,
    /// Maximum duration of a run, from its first claim to its end, without the time for which it is parked.
    max_duration: Duration,
    /// Kafka connection of the consumer.
    kafka: Connection,
    /// Records that wait in the partitions of the consumer.
    lag: Lag,
    /// Cancelled when the time to finish work under way is over.
    give_up: CancellationToken,
    /// Cancelled when no driver is left.
    settled: CancellationToken,
    drivers: TaskTracker,
}

impl Deref for Executor {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Step path of a step of the main chain.
#[must_use]
pub fn step_path(step_id: &str) -> String {
    steps::step_path::step("", step_id, 0)
}

impl Deref for Shared {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

/// Starts the executor's loops. The database and Kafka need not be available yet. Settings that cannot work are an
/// error.
pub fn start(config: &Config, pool: db::Pool, lifecycle: &Lifecycle, clock: Clock) -> anyhow::Result<Status> {
    telemetry::count(telemetry::Component::Executor);
    metrics::gauge!("executor_max_runs").set(config.executor.max_runs as f64);
    metrics::gauge!("executor_memory_max_bytes").set(config.executor.memory_bytes as f64);
    lifecycle.spawn("histograms", telemetry::keep_histograms_small(lifecycle.soft_stop().clone()));
    let (settled, give_up) = (CancellationToken::new(), CancellationToken::new());
    let consumer = Arc::new(Consumer::new(&config.kafka)?);
    let registration = Registration::start(pool.clone(), "executor", false, lifecycle);
    let monitoring = Monitoring::start(&config.kafka, pool.clone(), registration.clone(), lifecycle, &settled)?;
    let (egress, deltas) = (Egress::new(&config.egress)?, Deltas::default());
    deltas.start(pool.clone(), clock.clone(), lifecycle);
    let pushes = Pushes::new(pool.clone(), config.api.agent_pushes_url(), give_up.clone());
    pushes.start(clock.clone(), lifecycle, &settled);
    let agent_hours = AgentHours::new(clock.clone());
    agent_hours.start(pool.clone(), lifecycle, &settled);
    let executor = Executor(Arc::new(Shared {
        registration,
        active: ActiveRuns::new(config.executor.max_runs),
        journal: Journal::start(&pool, monitoring.as_ref(), lifecycle, &give_up, &settled),
        monitoring,
        plans: Plans::default(),
        agents: Agents::new(pool.clone(), Arc::clone(&config.vault), config.circuit_breaker, clock.clone()),
        breakers: Breakers::new(pool.clone(), clock.clone(), config.audit),
        cards: Cards::new(pool.clone(), egress.clone(), clock.clone(), config.audit),
        mcp_servers: McpServers::new(pool.clone(), egress.clone(), clock.clone(), config.audit),
        egress,
        agent_hours,
        deltas,
        pushes,
        statements: Arc::new(Semaphore::new(pool.max().div_ceil(2))),
        offload: Offload::default(),
        max_duration: config.executor.max_run_duration,
        kafka: consumer.connection().clone(),
        lag: consumer.lag().clone(),
        give_up,
        settled,
        drivers: TaskTracker::new(),
        pool,
        common: Common {
            clock,
            memory: Memory::new(config.executor.memory_bytes),
            callbacks_url: config.api.callbacks_url(),
            run_budget: config.executor.run_budget,
            soft_stop: lifecycle.soft_stop().clone(),
        },
    }));
    let intake_done = CancellationToken::new();
    let (watched, soft_stop) = (Arc::clone(&consumer), lifecycle.soft_stop().clone());
    lifecycle.spawn("executor kafka watch", async move { watched.watch(&soft_stop).await });
    let intake = Intake::new(executor.clone(), consumer);
    let (sweeping, waking) = (executor.clone(), executor.clone());
    let claiming_done = intake_done.clone();
    lifecycle.spawn("executor intake", async move {
        // The loops that claim runs end before the drivers are waited for.
        tokio::join!(intake.run(), sweeping.take_over_all(), waking.wake_all());
        claiming_done.cancel();
    });
    lifecycle.spawn("executor leases", executor.clone().check_leases());
    lifecycle.spawn("executor given-up tasks", executor.clone().cancel_given_up_tasks());
    lifecycle.spawn("executor registration", executor.clone().follow_registration());
    lifecycle.spawn("executor topics", ensure_topics(config.kafka.clone(), lifecycle.soft_stop().clone()));
    crate::dead_letters::start(config, executor.pool.clone(), lifecycle)?;
    lifecycle.spawn("executor stop", executor.clone().end(intake_done, lifecycle.hard_stop().clone()));
    Ok(Status(executor))
}

impl Executor {
    /// Does work for an organisation: at once, or, if it takes long, offloaded and in turn with other organisations.
    async fn work<T>(&self, organization: &OrganizationId, is_long: bool, work: impl FnOnce() -> T) -> T {
        if !is_long {
            return work();
        }
        match self.offload.run_in_place(organization, work).await {
            Ok(done) => done,
            // The process ends, and another executor continues the run.
            Err(_) => std::future::pending().await,
        }
    }

    /// Drives a run that `owner` has claimed, in a task of its own.
    fn start_run(&self, assignment: Assignment, owner: Uuid, slot: Slots) {
        let (run_id, organization) = (&assignment.run_id, assignment.organization.clone());
        let signals = self.active.add(run_id, assignment.lease_token, owner, organization, slot);
        if self.registration.current() != Some(owner) {
            // This process was declared dead between the claim and now, so the claim is void.
            signals.stop.cancel();
        }
        self.drivers.spawn(drive::drive(self.clone(), assignment, signals));
    }

    /// Runs statements of a driver or step as soon as a permit is free.
    async fn database<T, F>(&self, statements: impl FnOnce() -> F) -> Result<T, db::Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, db::Error>> + Send + 'static,
    {
        let permit = Arc::clone(&self.statements).acquire_owned().await.expect("never closed");
        let statements = statements();
        // The statements continue, with the permit, if this future is dropped.
        db::bounded(async move {
            let _permit = permit;
            statements.await
        })
        .await
    }

    /// Starts a clean-up task for a run whose future was dropped. The process waits for it, as for the runs.
    fn spawn_after(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Without a runtime the process is ending, and the task is skipped.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.drivers.spawn_on(task, &runtime);
        }
    }

    /// Waits for the soft stop and then for all work under way. What is left is free for other executors at once.
    async fn end(self, intake_done: CancellationToken, hard_stop: CancellationToken) {
        self.soft_stop.cancelled().await;
        let executor = self.clone();
        let at_the_end = hard_stop.clone();
        tokio::spawn(async move {
            let hard_stop = at_the_end;
            tokio::select! {
                () = tokio::time::sleep(FINISH_CALL) => {}
                () = hard_stop.cancelled() => executor.active.stop_all_but_of(None),
            }
            executor.give_up.cancel();
            hard_stop.cancelled().await;
            executor.active.stop_all_but_of(None);
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
                "deregistration failed; released runs wait a little longer"
            );
        }
        self.settled.cancel();
    }
}

/// Creates missing topics as soon as Kafka is available, and then ends its work.
async fn ensure_topics(kafka: crate::config::Kafka, soft_stop: CancellationToken) {
    loop {
        match kafka::topics::ensure(&kafka).await {
            Ok(()) => return soft_stop.cancelled().await,
            Err(error) => tracing::debug!("the topics cannot be created yet: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(TOPICS_PAUSE) => {}
            () = soft_stop.cancelled() => return,
        }
    }
}
