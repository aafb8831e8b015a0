//! What an executor says about itself over HTTP, on `MANAGEMENT_PORT`: `/health` (it lives), `/health/ready` (it can
//! work, or what is missing) and `/metrics`. For the inside of a network: nobody is asked who he is.

use std::sync::{Arc, OnceLock};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use http::{StatusCode, header};
use serde_json::json;

use crate::{executor::Status, telemetry};

/// An executor, once it has started: it waits for the schema before.
type Started = Arc<OnceLock<Status>>;

/// The routes; `/metrics` only if `has_metrics`.
pub fn router(executor: Started, has_metrics: bool) -> Router {
    let mut router = Router::new()
        .route("/health", get(async || Json(json!({"status": "healthy", "service": "workflow-api executor"}))))
        .route("/health/ready", get(ready));
    if has_metrics {
        router = router.route("/metrics", get(metrics));
    }
    router.with_state(executor)
}

/// 503 while the executor can take no runs. Kafka alone being away is 200: runs under way go on, and a restart would not
/// bring it back.
async fn ready(State(executor): State<Started>) -> impl IntoResponse {
    let Some(findings) = executor.get().map(Status::findings) else {
        let body = json!({"status": "not_ready", "checks": {"schema": "outdated"}, "draining": false, "runs": 0});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body));
    };
    let status = match (findings.database && !findings.draining, findings.kafka) {
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

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render())
}
