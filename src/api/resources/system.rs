//! Service information: description, health, readiness and metrics.

use std::collections::BTreeMap;

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
    api::vocabulary::{app::App, error::ApiError, sets},
    config::MetricsAccess,
    readiness::HealthStatus,
    telemetry,
    timestamp::Timestamp,
};

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
    let status = match (findings.can_serve(), findings.kafka) {
        (false, _) => "not_ready",
        (true, false) => "degraded",
        (true, true) => "ready",
    };
    let connected = |is_connected: bool| if is_connected { "connected" } else { "disconnected" };
    let mut checks = BTreeMap::from([("database", connected(findings.database)), ("kafka", connected(findings.kafka))]);
    if findings.database {
        checks.insert("schema", if findings.migrated { "current" } else { "outdated" });
    }
    if findings.draining {
        checks.insert("process", "stopping");
    }
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Json(Ready { status, ready, checks, timestamp: Timestamp::now() });
    let mut response = (code, body).into_response();
    if !ready {
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("2"));
    }
    response
}

/// Whether requests should be sent to this process.
fn is_ready(app: &App, findings: &HealthStatus) -> bool {
    findings.can_serve() && (findings.kafka || !app.config.readiness_requires_kafka)
}

/// Get metrics
///
/// In the text format of Prometheus. With `METRICS_ACCESS=credentials` they need `runs:read` in the default organisation.
#[utoipa::path(
    get, path = "/metrics", tag = "system", security(()),
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain"),
        (status = 401, description = "METRICS_ACCESS requires credentials", body = crate::api::vocabulary::error::ErrorBody),
        (status = 403, description = "The caller may not see them", body = crate::api::vocabulary::error::ErrorBody),
        (status = 404, description = "Metrics are switched off, or at MANAGEMENT_PORT", body = crate::api::vocabulary::error::ErrorBody),
    ),
)]
pub async fn get_metrics(State(app): State<App>) -> Result<Response, ApiError> {
    if !app.config.metrics.enabled || app.config.metrics.access == MetricsAccess::Management {
        return Err(ApiError::not_found("not_found", "Not Found"));
    }
    Ok(render_metrics(State(app)).await)
}

/// Router for `MANAGEMENT_PORT`: health, metrics and the filter of the log, without authentication, for the internal
/// network.
pub fn management(app: &App) -> Router {
    let mut router = Router::new().route("/health", get(get_health)).route("/health/ready", get(get_readiness));
    if app.config.metrics.enabled {
        router = router.route("/metrics", get(render_metrics));
    }
    router.merge(telemetry::log::filter::router()).with_state(app.clone())
}

async fn render_metrics(State(app): State<App>) -> Response {
    metrics::gauge!("api_info", "version" => app.config.api.version.clone()).set(1.0);
    metrics::gauge!("api_uptime_seconds").set(app.clock.since(app.started).as_secs_f64());
    app.pool.report();
    let findings = app.readiness.findings();
    let checks = [("database", findings.database), ("schema", findings.migrated), ("kafka", findings.kafka)];
    telemetry::ready(is_ready(&app, &findings), &checks);
    if findings.database && findings.migrated {
        app.counts.refresh(&app.pool, &app.clock).await;
    }
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content_type, telemetry::render()).into_response()
}
