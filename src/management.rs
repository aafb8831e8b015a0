//! Management endpoints of an executor, on `MANAGEMENT_PORT`: `/health` (liveness), `/health/ready` (readiness, with
//! what is missing), `/metrics` and `/log-level`. They need no authentication: the port is for the internal network.

use std::sync::{Arc, OnceLock};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use http::{StatusCode, header};
use serde_json::json;

use crate::{executor::Status, telemetry};

/// Status of the executor, set once it has started. Before that it waits for the schema.
type Started = Arc<OnceLock<Status>>;

/// Router of the management endpoints; `/metrics` only if `has_metrics`.
pub fn router(executor: Started, has_metrics: bool) -> Router {
    let mut router = Router::new()
        .route("/health", get(async || Json(json!({"status": "healthy", "service": "workflow-api executor"}))))
        .route("/health/ready", get(ready));
    if has_metrics {
        router = router.route("/metrics", get(metrics));
    }
    router.merge(telemetry::log::filter::router()).with_state(executor)
}

/// Readiness: 503 while the executor can take no runs. If only Kafka is unavailable, the answer is 200: running runs
/// continue, and a restart would not help.
async fn ready(State(executor): State<Started>) -> impl IntoResponse {
    let Some(findings) = executor.get().map(Status::health_status) else {
        let body = json!({"status": "not_ready", "checks": {"schema": "outdated"}, "draining": false, "runs": 0});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body));
    };
    let status = match (findings.is_ready(), findings.kafka) {
        (false, _) => "not_ready",
        (true, false) => "degraded",
        (true, true) => "ready",
    };
    let word = |is_connected| if is_connected { "connected" } else { "disconnected" };
    let body = json!({
        "status": status,
        "checks": {"database": word(findings.database), "kafka": word(findings.kafka)},
        "draining": findings.draining,
        "runs": findings.runs,
    });
    (if status == "not_ready" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, Json(body))
}

async fn metrics(State(executor): State<Started>) -> impl IntoResponse {
    match executor.get() {
        Some(status) => status.report(),
        None => telemetry::ready(false, &[("schema", false)]),
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render())
}
