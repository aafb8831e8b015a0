//! Management endpoints of an executor, on `MANAGEMENT_PORT`: `/health` and `/health/live` (liveness), `/health/ready`
//! (readiness, with what is missing), `/health/detailed`, `/metrics`, `/log-level` and `/memory`. They need no
//! authentication: the port is for the internal network.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    Json, Router,
    extract::State,
    response::IntoResponse,
    routing::{MethodRouter, get},
};
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::{
    executor::Status,
    health::{self, HealthComponent},
    telemetry,
    timestamp::Timestamp,
};

/// Status of the executor, set once it has started. Before that it waits for the schema.
type Started = Arc<OnceLock<Status>>;

/// Router of the management endpoints; `/metrics` only if `has_metrics`.
pub fn router(executor: Started, has_metrics: bool) -> Router {
    let started = Instant::now();
    let live: MethodRouter<Started> = get(async move || Json(liveness(started)));
    let mut router = Router::new()
        .route("/health", live.clone())
        .route("/health/live", live)
        .route("/health/ready", get(ready))
        .route(
            "/health/detailed",
            get(async move |State(executor): State<Started>| Json(detailed(&executor, started))),
        );
    if has_metrics {
        router = router.route("/metrics", get(metrics));
    }
    router.merge(telemetry::log::filter::router()).merge(telemetry::memory::router()).with_state(executor)
}

fn liveness(started: Instant) -> Value {
    json!({
        "status": "healthy",
        "service": "workflow-api executor",
        "timestamp": Timestamp::now(),
        "uptime_seconds": started.elapsed().as_secs_f64(),
    })
}

/// Readiness: 503 while the executor can take no runs. If only Kafka is unavailable, the answer is 200: running runs
/// continue, and a restart would not help.
async fn ready(State(executor): State<Started>) -> impl IntoResponse {
    let Some(findings) = executor.get().map(Status::health_status) else {
        let body = json!({"status": "not_ready", "checks": {"schema": "outdated"}, "draining": false, "runs": 0});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body));
    };
    let status = findings.readiness();
    let mut body = json!({
        "status": status,
        "checks": {
            "database": health::connected(findings.database),
            "kafka": health::connected(findings.kafka),
        },
        "draining": findings.draining,
        "runs": findings.runs,
    });
    if !findings.kafka_problems.is_empty() {
        body["problems"] = findings.kafka_problems.into();
    }
    (if status == "not_ready" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, Json(body))
}

/// The components with their figures, whatever their states: 200.
fn detailed(executor: &Started, started: Instant) -> Value {
    let (status, components) = match executor.get() {
        Some(executor) => (executor.health_status().readiness(), executor.components()),
        None => ("not_ready", [("schema", HealthComponent::new(health::current(false)))].into()),
    };
    json!({
        "status": status,
        "service": "workflow-api executor",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": started.elapsed().as_secs_f64(),
        "components": components,
        "timestamp": Timestamp::now(),
    })
}

async fn metrics(State(executor): State<Started>) -> impl IntoResponse {
    match executor.get() {
        Some(status) => status.report(),
        None => telemetry::ready(false, &[("schema", false)]),
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render())
}
