//! The HTTP API: state, the list of routes, and the order of what surrounds them.

pub mod gate;
pub mod resources;
pub mod vocabulary;

use std::{ops::Deref, sync::Arc, time::Instant};

use anyhow::Context as _;
use axum::{Router, extract::MatchedPath, middleware};
use http::HeaderName;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    gate::{
        auth::{KeyRing, Organizations, Tokens},
        body::BodyRoutes,
        compression, cors, docs, headers,
        load::Load,
        rate_limit::RateLimits,
        request,
    },
    resources::{
        agent_health, agents, api_keys, audit, by_name, callbacks, dead_letters, definitions, graph, organizations,
        run_log, runs, system, ticket, transfer, workflows,
    },
    vocabulary::{counts::Counts, error::ApiError, memory::Memory, signing::Signing},
};
use crate::{
    actions::{Context, start_run::Definitions},
    auditor::Auditor,
    clock::Clock,
    config::{self, Config},
    db::{self, processes::Registration},
    egress::Egress,
    lifecycle::Lifecycle,
    offload::{Offload, SMALL_BYTES},
    outbox::Relay,
    permits::Permits,
    readiness::Readiness,
    run_writer::RunWriter,
    telemetry,
    waiting::Waiting,
};

/// The header that carries the correlation id in both directions.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// Makes a repeated execute answer with the first run.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On the answer to such a repeat.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

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
    pub waiting: Waiting,
    /// The answer of `/health/ready`.
    pub readiness: Readiness,
    /// Verifies tokens.
    pub tokens: Tokens,
    /// Knows API keys.
    pub keys: KeyRing,
    /// How much one may ask for.
    pub rates: RateLimits,
    /// Places of requests.
    pub load: Load,
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
    /// Starts everything that the handlers work with. Neither database nor Kafka need be there yet. `drained` is
    /// cancelled by the caller when no request will come any more.
    pub fn start(
        config: Config,
        pool: db::Pool,
        lifecycle: &Lifecycle,
        drained: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        telemetry::count(telemetry::Part::Api);
        lifecycle.spawn("histograms", telemetry::keep_histograms_small(lifecycle.soft_stop().clone()));
        let registration = Registration::start(pool.clone(), "serve", lifecycle);
        let relay = Relay::start(&config, pool.clone(), registration, lifecycle, drained)
            .context("KAFKA_BROKERS: the Kafka client refuses the settings")?;
        let writer = RunWriter::start(&pool, &relay, config.audit, lifecycle, drained);
        let waiting = Waiting::start(pool.clone(), lifecycle);
        let readiness = Readiness::start(pool.clone(), relay.clone(), lifecycle);
        let egress = Egress::new(&config.egress)?;
        // Key sets are the operator's to choose, wherever they are; their hosts' redirects are not.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let clock = Clock::default();
        let keys = KeyRing::start(pool.clone(), clock.clone(), lifecycle);
        let signing = Signing::new(pool.clone());
        let auditor = Auditor::start(&pool, config.audit_retention_days, lifecycle);
        let organizations = Organizations::new(pool.clone());
        let tokens = Tokens::start(&config.auth, &http, clock.clone(), lifecycle);
        crate::dead_letters::start(&config, pool.clone(), lifecycle)?;
        let definitions = Definitions::default();
        let rates = RateLimits::new(&config.limits);
        let load = Load::new(config.limits.max_concurrent_requests);
        let memory = Memory::new(&config.limits);
        let checks = agent_health::permits();
        Ok(Self(Arc::new(Parts {
            config,
            pool,
            writer,
            relay,
            definitions,
            offload: Offload::default(),
            waiting,
            readiness,
            tokens,
            keys,
            rates,
            load,
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

    /// What a body says: read at once, or on another thread if it is large or has a schema, which takes long to compile.
    async fn read<T: Send + 'static>(
        &self,
        caller: &gate::auth::Caller,
        body: &RawValue,
        read: impl FnOnce(&RawValue) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        // A name can be written with escapes.
        let may_have_schema = || body.get().contains("input_schema") || body.get().contains("\\u");
        if body.get().len() <= SMALL_BYTES && !may_have_schema() {
            return Ok(read(body));
        }
        let body = body.to_owned();
        Ok(self.offload.run_soon(caller.organization(), move || read(&body)).await?)
    }

    /// On whose behalf an action runs.
    fn context<'a>(&'a self, caller: &'a gate::auth::Caller) -> Context<'a> {
        Context {
            actor: &caller.actor,
            quotas: &self.config.quotas,
            max_run_steps: self.config.executor.run_budget.steps,
            audit: self.config.audit,
            vault: &self.config.vault,
            egress: &self.config.egress,
            sees_secrets: caller.sees_secrets(),
            workflows: caller.grant.workflows.as_deref(),
            key: None,
            if_match: None,
        }
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The route of a request below the prefix, with its parameters' names.
fn route_below_prefix<'a>(app: &App, request: &'a http::request::Parts) -> Option<&'a str> {
    request.extensions.get::<MatchedPath>()?.as_str().strip_prefix(app.config.api.prefix.as_str())
}

/// All routes of the API with their OpenAPI document: the ones under the prefix, and the ones at the root.
/// `key_header` is the header that carries an API key.
#[must_use]
pub fn routes(api: &config::Api, key_header: &str) -> OpenApiRouter<App> {
    let business = OpenApiRouter::new()
        .routes(routes!(agents::list_agents, agents::create_agent))
        .routes(routes!(agents::get_agent, agents::update_agent, agents::delete_agent))
        .routes(routes!(agents::check_agent))
        .routes(routes!(workflows::list_workflows, workflows::create_workflow))
        .routes(routes!(workflows::get_workflow, workflows::update_workflow, workflows::delete_workflow))
        .routes(routes!(workflows::list_workflow_versions))
        .routes(routes!(workflows::execute_workflow))
        .routes(routes!(definitions::validate_workflow))
        .routes(routes!(definitions::get_workflow_version))
        .routes(routes!(definitions::compare_workflow_versions))
        .routes(routes!(definitions::roll_back_workflow))
        .routes(routes!(by_name::get_workflow_by_name, by_name::put_workflow_by_name))
        .routes(routes!(by_name::execute_workflow_by_name))
        .routes(routes!(transfer::export_definitions))
        .routes(routes!(transfer::import_definitions))
        .routes(routes!(graph::draw_workflow))
        .routes(routes!(graph::draw_run))
        .routes(routes!(runs::list_runs))
        .routes(routes!(runs::get_run))
        .routes(routes!(runs::list_steps))
        .routes(routes!(run_log::get_logs))
        .routes(routes!(run_log::stream_events))
        .routes(routes!(ticket::create_event_ticket))
        .routes(routes!(runs::retry_run))
        .routes(routes!(runs::cancel_run))
        .routes(routes!(runs::pause_run))
        .routes(routes!(runs::resume_run))
        .routes(routes!(callbacks::list_callbacks))
        .routes(routes!(callbacks::answer_callback))
        .routes(routes!(api_keys::list_api_keys, api_keys::create_api_key))
        .routes(routes!(api_keys::get_api_key, api_keys::revoke_api_key))
        .routes(routes!(api_keys::issue_token))
        .routes(routes!(audit::list_audit_logs))
        .routes(routes!(audit::export::export_audit_logs))
        .routes(routes!(audit::verification::verify_audit_logs))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::get_dead_letter, dead_letters::discard_dead_letter))
        .routes(routes!(dead_letters::redrive_dead_letter))
        .routes(routes!(organizations::list_organizations, organizations::create_organization))
        .routes(routes!(organizations::get_organization, organizations::update_organization));
    let root = OpenApiRouter::with_openapi(docs::document(api, key_header))
        .routes(routes!(system::get_root))
        .routes(routes!(system::get_health))
        .routes(routes!(system::get_readiness))
        .routes(routes!(system::get_metrics));
    let mut all = if api.prefix.is_empty() { root.merge(business) } else { root.nest(&api.prefix, business) };
    docs::complete(all.get_openapi_mut(), &api.prefix);
    all
}

/// The whole service. From the outside in: headers that every answer has; compression; CORS, so that error answers carry its headers
/// too; then `request`, which knows correlation id, caller, limits and errors; then the routes.
pub fn router(app: &App) -> Router {
    let (routes, document) = routes(&app.config.api, &app.config.auth.api_key_header_text).split_for_parts();
    let documentation = if app.config.api.docs { docs::router(&document) } else { Router::new() };
    let bodies = Arc::new(BodyRoutes::of(&document));
    let service = routes
        .merge(documentation)
        .fallback(request::no_such_route)
        .method_not_allowed_fallback(request::no_such_method)
        .layer(middleware::from_fn_with_state((app.clone(), bodies), request::surround))
        .with_state(app.clone());
    compression::around(cors::around(service, app)).layer(middleware::from_fn_with_state(app.clone(), headers::add))
}
