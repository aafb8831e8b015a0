//! Service information: description, health, readiness and metrics.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{
        app::App,
        error::{ApiError, ErrorBody},
        sets,
    },
    config::MetricsAccess,
    health::{self, Components, HealthComponent, PoolUse},
    readiness::HealthStatus,
    telemetry,
    timestamp::Timestamp,
    trigger::schedule::TIME_ZONES,
};

/// Age of the oldest message for Kafka after which the outbox is called delayed.
const OUTBOX_DELAYED: Duration = Duration::from_secs(10);

/// The answer of `GET /`.
#[derive(Serialize, ToSchema)]
pub struct Root {
    /// `API_TITLE`.
    name: String,
    /// `API_VERSION`.
    version: String,
    /// `API_DESCRIPTION`.
    description: String,
    /// Paths of the documentation, unless it is switched off.
    documentation: BTreeMap<&'static str, &'static str>,
    /// Paths of the resources.
    endpoints: BTreeMap<&'static str, String>,
    /// Status of the service.
    #[schema(value_type = sets::ServiceStatus)]
    status: &'static str,
}

/// Describe the service
///
/// Its name, its version, and the paths of its resources.
#[utoipa::path(get, path = "/", tag = "system", security(()), responses((status = 200, body = Root)))]
pub async fn get_root(State(app): State<App>) -> Json<Root> {
    let api = &app.config.api;
    let prefixed = |path: &str| format!("{}{path}", api.prefix);
    Json(Root {
        name: api.title.clone(),
        version: api.version.clone(),
        description: api.description.clone(),
        documentation: [("swagger_ui", "/docs"), ("redoc", "/redoc"), ("openapi_spec", "/openapi.json")]
            .into_iter()
            .filter(|_| api.docs)
            .collect(),
        endpoints: [
            ("agents", prefixed("/agents")),
            ("workflows", prefixed("/workflows")),
            ("runs", prefixed("/runs")),
            ("ai_workflows", prefixed("/ai-workflows")),
            ("health", "/health".to_owned()),
            ("health_ready", "/health/ready".to_owned()),
            ("metrics", "/metrics".to_owned()),
        ]
        .into(),
        status: "operational",
    })
}

/// The answer of `GET /health`.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// Status of the process.
    #[schema(value_type = sets::HealthStatus)]
    status: &'static str,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
    /// `API_VERSION`.
    version: String,
    /// Seconds since the start of the process.
    uptime_seconds: f64,
    /// Always null; kept for clients of the reference deployment.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    services: Option<()>,
}

/// Check that the process lives
///
/// Sends no request to any other system.
#[utoipa::path(get, path = "/health", tag = "system", security(()), responses((status = 200, body = Health)))]
pub async fn get_health(State(app): State<App>) -> Json<Health> {
    Json(Health {
        status: "healthy",
        timestamp: Timestamp::now(),
        version: app.config.api.version.clone(),
        uptime_seconds: app.clock.since(app.started).as_secs_f64(),
        services: None,
    })
}

/// Probe the liveness
///
/// The same as `/health`, for probes that expect this path.
#[utoipa::path(get, path = "/health/live", tag = "system", security(()), responses((status = 200, body = Health)))]
pub async fn get_liveness(app: State<App>) -> Json<Health> {
    get_health(app).await
}

/// The answer of `GET /health/ready`.
#[derive(Serialize, ToSchema)]
pub struct Ready {
    /// Readiness in one word.
    #[schema(value_type = sets::ReadinessStatus)]
    status: &'static str,
    /// Whether requests should be sent to this process.
    ready: bool,
    /// Result of each check by its name.
    #[schema(value_type = HashMap<String, sets::CheckStatus>)]
    checks: BTreeMap<&'static str, &'static str>,
    /// Problems with Kafka that an operator has to solve, such as refused credentials; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    problems: Vec<&'static str>,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// Check that requests can be served
///
/// The result is half a second old at most.
#[utoipa::path(
    get, path = "/health/ready", tag = "system", security(()),
    responses((status = 200, body = Ready), (status = 503, description = "Not ready", body = Ready)),
)]
pub async fn get_readiness(State(app): State<App>) -> Response {
    let findings = app.readiness.findings();
    let ready = is_ready(&app, &findings);
    let status = findings.readiness();
    let (database, kafka) = (health::connected(findings.database), health::connected(findings.kafka));
    let mut checks = BTreeMap::from([("database", database), ("kafka", kafka)]);
    if findings.database {
        checks.insert("schema", health::current(findings.migrated));
    }
    if findings.draining {
        checks.insert("process", health::running(true));
    }
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Json(Ready { status, ready, checks, problems: findings.kafka_problems, timestamp: Timestamp::now() });
    let mut response = (code, body).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("2"));
    }
    response
}

/// Whether requests should be sent to this process.
fn is_ready(app: &App, findings: &HealthStatus) -> bool {
    findings.can_serve() && (findings.can_dispatch() || !app.config.readiness_requires_kafka)
}

/// The answer of `GET /health/detailed`.
#[derive(Serialize, ToSchema)]
pub struct DetailedHealth {
    /// Readiness in one word.
    #[schema(value_type = sets::ReadinessStatus)]
    status: &'static str,
    /// Version of the program.
    #[schema(value_type = String)]
    version: &'static str,
    /// Seconds since the start of the process.
    uptime_seconds: f64,
    /// The components of the process by name. `database` and `kafka` are `connected` or `disconnected`; `schema` is
    /// `current`, `outdated`, or `unknown` while the database is disconnected; `outbox`, the messages for Kafka, is
    /// `current`, `delayed` if one is older than 10 seconds, or `full`; `process` is `running` or `stopping`; `replica`,
    /// where lists are read if `DATABASE_REPLICA_URL` is set, is `connected`, `behind`, `disconnected` or `unknown`.
    #[schema(value_type = HashMap<String, HealthComponent>)]
    components: Components,
    /// Version of the time zone database that schedules use.
    #[schema(value_type = String, example = "2025b")]
    time_zones: &'static str,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// Describe the components of this process
///
/// Their states with response times, the use of the connection pool, and the delay of messages for Kafka. The answer is
/// 200 whatever they are, and comes from the last background checks. Needs `runs:read` in the default organisation.
#[utoipa::path(
    get, path = "/health/detailed", tag = "system",
    responses(
        (status = 200, body = DetailedHealth),
        (status = 401, description = "Authentication is on, and the request has no valid token or API key", body = ErrorBody),
        (status = 403, description = "The caller may not see this", body = ErrorBody),
        (status = 429, description = "A limit of the settings is exceeded", body = ErrorBody),
        (status = 503, description = "The credentials cannot be checked without the database", body = ErrorBody),
    ),
)]
pub async fn get_detailed_health(State(app): State<App>) -> Json<DetailedHealth> {
    let found = app.readiness.findings();
    let database = HealthComponent::new(health::connected(found.database))
        .answered_within(found.database_response)
        .with_pool(PoolUse::new(app.pool.size(), app.pool.max()));
    let kafka = HealthComponent::new(health::connected(found.kafka)).answered_within(app.relay.kafka().response());
    let schema = HealthComponent::new(if found.database { health::current(found.migrated) } else { "unknown" });
    let (pending, lag) = (app.relay.backlog(), app.relay.lag());
    let outbox = match lag {
        _ if app.relay.is_full() => "full",
        lag if lag > OUTBOX_DELAYED => "delayed",
        _ => "current",
    };
    let outbox = HealthComponent::new(outbox).with_queue(pending, lag);
    let process = HealthComponent::new(health::running(found.draining));
    let mut components = Components::from([
        ("database", database),
        ("kafka", kafka),
        ("outbox", outbox),
        ("process", process),
        ("schema", schema),
    ]);
    if let Some(replica) = app.reads.replica() {
        let use_of_pool = PoolUse::new(replica.size, replica.max);
        components.insert("replica", HealthComponent::new(replica.status).with_pool(use_of_pool));
    }
    Json(DetailedHealth {
        status: found.readiness(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: app.clock.since(app.started).as_secs_f64(),
        components,
        time_zones: TIME_ZONES,
        timestamp: Timestamp::now(),
    })
}

/// Get metrics
///
/// In the text format of Prometheus. With `METRICS_ACCESS=credentials` they need `runs:read` in the default organisation.
#[utoipa::path(
    get, path = "/metrics", tag = "system", security(()),
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
        (status = 401, description = "METRICS_ACCESS requires credentials", body = ErrorBody),
        (status = 403, description = "The caller may not see them", body = ErrorBody),
        (status = 404, description = "Metrics are switched off, or at MANAGEMENT_PORT", body = ErrorBody),
    ),
)]
pub async fn get_metrics(State(app): State<App>) -> Result<Response, ApiError> {
    if !app.config.metrics.enabled || app.config.metrics.access == MetricsAccess::Management {
        return Err(ApiError::not_found("not_found", "Not Found"));
    }
    Ok(render_metrics(State(app)).await)
}

/// Router for `MANAGEMENT_PORT`: health, metrics, memory and the filter of the log, without authentication, for the
/// internal network.
pub fn management(app: &App) -> Router {
    let mut router = Router::new()
        .route("/health", get(get_health))
        .route("/health/live", get(get_liveness))
        .route("/health/ready", get(get_readiness))
        .route("/health/detailed", get(get_detailed_health));
    if app.config.metrics.enabled {
        router = router.route("/metrics", get(render_metrics));
    }
    router.merge(telemetry::log::filter::router()).merge(telemetry::memory::router()).with_state(app.clone())
}

async fn render_metrics(State(app): State<App>) -> Response {
    metrics::gauge!("api_info", "version" => app.config.api.version.clone()).set(1.0);
    metrics::gauge!("api_uptime_seconds").set(app.clock.since(app.started).as_secs_f64());
    app.pool.report();
    telemetry::report_runtime(&app.runtime);
    let findings = app.readiness.findings();
    let checks = [("database", findings.database), ("schema", findings.migrated), ("kafka", findings.kafka)];
    telemetry::ready(is_ready(&app, &findings), &checks);
    if findings.database && findings.migrated {
        app.counts.refresh(&app.pool, &app.clock).await;
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, telemetry::render()).into_response()
}
