//! A change of an agent that was answered counts for every step that begins after the answer.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    path::{Agent, Call, ended},
    service::Service,
    steps::World,
};

fn echo(_: usize, call: &Call) -> Response {
    Json(call.body.clone()).into_response()
}

/// Registers a plain agent that is tried once, and returns its path and a workflow that calls it.
async fn agent(service: &Service, name: &str, url: &str) -> (String, String) {
    let body = json!({"name": name, "url": url, "kind": "http", "auth_type": "bearer", "auth_config": {"token": "old"},
        "retry_config": {"max_retries": 1}, "circuit_breaker_config": {"failure_threshold": 1}});
    let agent = service.post("/api/v1/agents", &body).await.expect(201);
    let workflow = service.chain(name, &[name]).await;
    let id = |of: &Value| of["id"].as_str().expect("an id").to_owned();
    (format!("/api/v1/agents/{}", id(&agent)), id(&workflow))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_changed_agent_is_called_as_it_is_now(pool: PgPool) {
    let World { service, executor: _executor, .. } = World::start(&pool, &[]).await;
    let (old, old_url) = Agent::start(echo).await;
    let (new, new_url) = Agent::start(echo).await;
    let run = async |workflow: &str| ended(&service, &service.execute(workflow).await).await;

    // Its address and its token, with what is kept of it fresh.
    let (path, workflow) = agent(&service, "moves", &old_url).await;
    assert_eq!(run(&workflow).await["status"], "COMPLETED");
    service.put(&path, &json!({"url": new_url, "auth_config": {"token": "new"}})).await.expect(200);
    assert_eq!(run(&workflow).await["status"], "COMPLETED");
    assert_eq!((old.calls().len(), new.calls().len()), (1, 1));
    assert_eq!(new.calls()[0].headers["authorization"], "Bearer new");
    service.put(&path, &json!({"auth_config": {"token": "newer"}})).await.expect(200);
    run(&workflow).await;
    assert_eq!(new.calls()[1].headers["authorization"], "Bearer newer");

    // Its end, and its return.
    service.put(&path, &json!({"status": "inactive"})).await.expect(200);
    let failed = run(&workflow).await;
    assert!(
        failed["error_message"].as_str().is_some_and(|text| text.ends_with("agent 'moves' is inactive")),
        "{failed}"
    );
    service.put(&path, &json!({"status": "active"})).await.expect(200);
    assert_eq!(run(&workflow).await["status"], "COMPLETED");
    service.delete(&path).await.expect(200);
    let failed = run(&workflow).await;
    assert!(
        failed["error_message"].as_str().is_some_and(|text| text.ends_with("agent 'moves' is deleted")),
        "{failed}"
    );
    assert_eq!(new.calls().len(), 3);
}

/// Its open circuit said something about the former address.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_is_retried_after_a_repair_succeeds(pool: PgPool) {
    let World { service, executor: _executor, .. } = World::start(&pool, &[]).await;
    let (_agent, url) = Agent::start(echo).await;
    let (path, workflow) = agent(&service, "broken", "http://127.0.0.1:1/").await;
    let run_id = service.execute(&workflow).await;
    assert_eq!(ended(&service, &run_id).await["status"], "FAILED");
    let open = service.get(&path).await.expect(200);
    assert_eq!(open["circuit_breaker"]["state"], "open");
    service.put(&path, &json!({"url": url})).await.expect(200);
    service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let run = ended(&service, &run_id).await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
}
