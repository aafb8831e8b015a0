//! Application state, which handlers use.

use std::{ops::Deref, sync::Arc, time::Instant};

use anyhow::Context as _;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    api_key_cache::ApiKeyCache, counts::Counts, memory::Memory, organizations::Organizations,
    session_cache::SessionCache, signing::Signing,
};
use crate::{
    actions::start_run::Definitions,
    auditor::Auditor,
    clock::Clock,
    config::Config,
    db::{self, processes::Registration},
    egress::Egress,
    kafka_triggers::KafkaTriggers,
    lifecycle::Lifecycle,
    offload::Offload,
    outbox::Relay,
    permits::{Permits, Scope},
    purge::Purge,
    readiness::Readiness,
    run_poller::RunPoller,
    run_reader::RunReader,
    run_writer::RunWriter,
    scheduler::Scheduler,
    shared_reads::SharedReads,
    telemetry,
    webhooks::Webhooks,
};

/// Shared reads of pages as text; `None` if some entries are large.
type SharedPages = SharedReads<Result<Option<Bytes>, Arc<db::Error>>>;

/// Maximum number of concurrent agent checks. Each holds a connection for seconds.
const MAX_CHECKS: u64 = 256;
/// Maximum number of concurrent checks of one agent.
const MAX_CHECKS_OF_AGENT: u64 = 4;

/// Application state. Cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// Fields of [`App`].
pub struct Parts {
    /// All settings.
    pub config: Config,
    /// Pool for everything except starting runs.
    pub pool: db::Pool,
    /// Where lists and exports are read.
    pub reads: db::Reads,
    /// Writer of new runs.
    pub writer: RunWriter,
    /// Registration of this process.
    pub registration: Registration,
    /// Reader of runs by id.
    pub runs: RunReader,
    /// Relay of messages to Kafka.
    pub relay: Relay,
    /// Cache of definitions by id, for starting runs.
    pub definitions: Arc<Definitions>,
    /// Thread pool for CPU-bound work.
    pub offload: Offload,
    /// Thread pool for tests of workflows, so that they do not delay other CPU-bound work.
    pub simulations: Offload,
    /// Poller for requests that wait for the end of a run.
    pub waiting: RunPoller,
    /// Source of the answer to `/health/ready`.
    pub readiness: Readiness,
    /// Cache of API keys.
    pub keys: ApiKeyCache,
    /// Cache of the console's sessions.
    pub sessions: SessionCache,
    /// Memory limits of bodies and answers.
    pub memory: Memory,
    /// Shared reads of pages of runs.
    pub run_pages: SharedPages,
    /// Permits for agent checks.
    pub checks: Permits,
    /// Writer of the audit trail.
    pub auditor: Auditor,
    /// Cache of organisations.
    pub organizations: Organizations,
    /// Sender of webhooks.
    pub webhooks: Webhooks,
    /// HTTP client for agent checks.
    pub egress: Egress,
    /// Gauges for metrics.
    pub counts: Counts,
    /// Signatures of cursors and tickets.
    pub signing: Signing,
    /// Clock for the expiry of credentials and cache entries, and for the time limits of requests.
    pub clock: Clock,
    /// Start of the process, for the uptime.
    pub started: Instant,
    /// Runtime of requests and loops, for the metrics. Those may be read on another one.
    pub runtime: tokio::runtime::Handle,
}

impl App {
    /// Starts all parts. Neither database nor Kafka need be available yet. The caller cancels `drained` when no
    /// further request can arrive. `clock` is for the expiry of credentials and cache entries, and for time limits.
    pub fn start(
        config: Config,
        pool: db::Pool,
        lifecycle: &Lifecycle,
        drained: &CancellationToken,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let started = clock.instant();
        telemetry::count(telemetry::Component::Api);
        lifecycle.spawn("histograms", telemetry::keep_histograms_small(lifecycle.soft_stop().clone()));
        let is_compared = config.database.replica.is_some();
        if is_compared {
            telemetry::catalogue::register(telemetry::catalogue::REPLICA);
        }
        let registration = Registration::start(pool.clone(), "serve", is_compared, lifecycle);
        let reads = db::Reads::start(pool.clone(), &config.database, registration.clone(), lifecycle);
        let relay = Relay::start(&config, pool.clone(), registration.clone(), lifecycle, drained)
            .context("KAFKA_BROKERS: the Kafka client refuses the settings")?;
        crate::events::start(&config, &pool, &registration, lifecycle)?;
        crate::deadlines::start(&config, &pool, &relay, lifecycle);
        let writer = RunWriter::start(&pool, &relay, config.audit, lifecycle, drained);
        let runs = RunReader::start(&pool, lifecycle, drained);
        let waiting = RunPoller::start(pool.clone(), clock.clone(), lifecycle);
        let readiness = Readiness::start(pool.clone(), relay.clone(), lifecycle);
        let egress = Egress::new(&config.egress)?;
        let keys = ApiKeyCache::start(pool.clone(), clock.clone(), lifecycle);
        let sessions = SessionCache::new(pool.clone(), clock.clone());
        let signing = Signing::new(pool.clone());
        let auditor = Auditor::start(&pool, config.audit_retention_days, lifecycle, drained);
        let organizations = Organizations::new(pool.clone(), clock.clone());
        Purge::new(pool.clone(), &config.retention, config.audit)?.start(lifecycle);
        crate::dead_letters::start(&config, pool.clone(), lifecycle)?;
        crate::console_sessions::start(pool.clone(), lifecycle);
        crate::run_counts::start(pool.clone(), lifecycle);
        let webhooks = Webhooks::start(&config, pool.clone(), lifecycle, clock.clone())?;
        let definitions = Arc::<Definitions>::default();
        let offload = Offload::default();
        let scheduler = Scheduler {
            pool: pool.clone(),
            definitions: Arc::clone(&definitions),
            offload: offload.clone(),
            quotas: config.quotas,
            audit: config.audit,
        };
        scheduler.start(relay.clone(), lifecycle);
        let kafka_triggers = KafkaTriggers {
            pool: pool.clone(),
            definitions: Arc::clone(&definitions),
            offload: offload.clone(),
            quotas: config.quotas,
            audit: config.audit,
            kafka: config.kafka.clone(),
            relay: relay.clone(),
        };
        kafka_triggers.start(lifecycle);
        let memory = Memory::new(&config.limits);
        let checks = agent_checks();
        Ok(Self(Arc::new(Parts {
            config,
            pool,
            reads,
            writer,
            registration,
            runs,
            relay,
            definitions,
            offload,
            simulations: Offload::default(),
            waiting,
            readiness,
            keys,
            sessions,
            memory,
            run_pages: SharedPages::default(),
            checks,
            auditor,
            organizations,
            webhooks,
            egress,
            counts: Counts::default(),
            signing,
            clock,
            started,
            runtime: tokio::runtime::Handle::current(),
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
