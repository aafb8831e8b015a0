//! What handlers work with.

use std::{ops::Deref, sync::Arc, time::Instant};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{
    api_key_cache::ApiKeyCache, counts::Counts, memory::Memory, organizations::Organizations, signing::Signing,
};
use crate::{
    actions::start_run::Definitions,
    auditor::Auditor,
    clock::Clock,
    config::Config,
    db::{self, processes::Registration},
    egress::Egress,
    lifecycle::Lifecycle,
    offload::Offload,
    outbox::Relay,
    permits::{Permits, Scope},
    readiness::Readiness,
    run_poller::RunPoller,
    run_writer::RunWriter,
    telemetry,
};

/// Checks of agents at a time. Each holds a connection for seconds.
const MAX_CHECKS: u64 = 256;
/// Checks of one agent at a time.
const MAX_CHECKS_OF_AGENT: u64 = 4;

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of [`App`].
pub struct Parts {
    /// All settings.
    pub config: Config,
    /// For everything but starting runs.
    pub pool: db::Pool,
    /// Where runs are started.
    pub writer: RunWriter,
    /// Where messages go.
    pub relay: Relay,
    /// Definitions by id, for starting runs.
    pub definitions: Definitions,
    /// Does what takes long on a processor.
    pub offload: Offload,
    /// Requests that wait for the end of a run.
    pub waiting: RunPoller,
    /// The answer of `/health/ready`.
    pub readiness: Readiness,
    /// Knows API keys.
    pub keys: ApiKeyCache,
    /// Memory of bodies and answers.
    pub memory: Memory,
    /// Checks of agents that are under way.
    pub checks: Permits,
    /// Keeps the audit trail.
    pub auditor: Auditor,
    /// Knows organisations.
    pub organizations: Organizations,
    /// For the health of agents.
    pub egress: Egress,
    /// For metrics.
    pub counts: Counts,
    /// Signs what clients carry.
    pub signing: Signing,
    /// By which credentials end.
    pub clock: Clock,
    /// For the uptime.
    pub started: Instant,
}

impl App {
    /// Starts all of it. Neither database nor Kafka need be there yet. `drained` is
    /// cancelled by the caller when no request will come any more.
    pub fn start(
        config: Config,
        pool: db::Pool,
        lifecycle: &Lifecycle,
        drained: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        telemetry::count(telemetry::Component::Api);
        lifecycle.spawn("histograms", telemetry::keep_histograms_small(lifecycle.soft_stop().clone()));
        let registration = Registration::start(pool.clone(), "serve", lifecycle);
        let relay = Relay::start(&config, pool.clone(), registration, lifecycle, drained)
            .context("KAFKA_BROKERS: the Kafka client refuses the settings")?;
        let writer = RunWriter::start(&pool, &relay, config.audit, lifecycle, drained);
        let waiting = RunPoller::start(pool.clone(), lifecycle);
        let readiness = Readiness::start(pool.clone(), relay.clone(), lifecycle);
        let egress = Egress::new(&config.egress)?;
        let clock = Clock::default();
        let keys = ApiKeyCache::start(pool.clone(), clock.clone(), lifecycle);
        let signing = Signing::new(pool.clone());
        let auditor = Auditor::start(&pool, config.audit_retention_days, lifecycle);
        let organizations = Organizations::new(pool.clone());
        crate::dead_letters::start(&config, pool.clone(), lifecycle)?;
        let definitions = Definitions::default();
        let memory = Memory::new(&config.limits);
        let checks = agent_checks();
        Ok(Self(Arc::new(Parts {
            config,
            pool,
            writer,
            relay,
            definitions,
            offload: Offload::default(),
            waiting,
            readiness,
            keys,
            memory,
            checks,
            auditor,
            organizations,
            egress,
            counts: Counts::default(),
            signing,
            clock,
            started,
        })))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Permits for checks of agents.
fn agent_checks() -> Permits {
    let (organization, caller) = (MAX_CHECKS / 2, MAX_CHECKS / 8);
    let limits = [(Scope::Organization, organization), (Scope::Caller, caller), (Scope::Agent, MAX_CHECKS_OF_AGENT)];
    Permits::new(MAX_CHECKS, limits)
}
