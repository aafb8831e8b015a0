//! Agents that are called in the place of others, as callers and agents see it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::IntoResponse;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    path::{Agent, completed, ended},
    service::{Answer, Service, eventually},
    steps::{Ended, World, refusing},
};

/// An agent that answers with this status.
async fn failing(status: StatusCode) -> (Agent, String) {
    Agent::start(move |_, _| status.into_response()).await
}

async fn working(text: &'static str) -> (Agent, String) {
    Agent::start(move |_, call| completed(call, text)).await
}

/// Registers an agent that is tried twice, with these further members.
async fn register(service: &Service, name: &str, url: &str, more: &Value) -> Value {
    let mut agent = json!({"name": name, "url": url,
        "retry_config": {"max_retries": 2, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    agent.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
    service.post("/api/v1/agents", &agent).await.expect(201)
}

fn steps() -> Value {
    json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}})
}

async fn ask(world: &World) -> Ended {
    world.run("ask", &steps(), &json!({})).await
}

/// `agent status` of each attempt, in order.
fn attempts(ended: &Ended) -> Vec<String> {
    let text = |row: &Value, name: &str| row[name].as_str().expect("text").to_owned();
    ended.rows.iter().map(|row| format!("{} {}", text(row, "agent_name"), text(row, "status"))).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_fallback_is_called_when_the_attempts_are_used_up(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let ((a, a_url), (b, b_url)) = (failing(StatusCode::BAD_GATEWAY).await, working("by b").await);
    register(&world.service, "a", &a_url, &json!({"fallbacks": ["b"]})).await;
    register(&world.service, "b", &b_url, &json!({})).await;
    // The first look switches metrics on.
    world.service.get("/metrics").await;
    let ended = ask(&world).await;
    assert_eq!(ended.output()["text"], "by b");
    assert_eq!(attempts(&ended), ["a FAILED", "a FAILED", "b COMPLETED"]);
    // The fallback is called at once.
    assert!(ended.rows[0]["next_attempt_at"].is_string() && ended.rows[2]["next_attempt_at"].is_null());
    assert_eq!(ended.rows[1]["next_attempt_at"], ended.rows[1]["completed_at"]);
    let ids: Vec<&Value> = ended.rows.iter().map(|row| &row["id"]).collect();
    assert_eq!(b.calls()[0].headers["idempotency-key"], ids[2].as_str().expect("an id"));
    assert_eq!((a.calls().len(), b.calls().len()), (2, 1));
    let log = world.service.get(&format!("/api/v1/runs/{}/logs", ended.id)).await.expect(200);
    let entries = log["items"].as_array().expect("entries");
    let started: Vec<_> = entries.iter().filter(|entry| entry["kind"] == "attempt.started").collect();
    let agents: Vec<_> = started.iter().map(|entry| &entry["agent_name"]).collect();
    assert_eq!(agents, ["a", "a", "b"]);
    let metrics = world.service.get("/metrics").await.text;
    let counted = |line: &&str| line.starts_with("executor_agent_fallbacks_total{") && line.contains("http_5xx");
    let counted: Vec<&str> = metrics.lines().filter(counted).collect();
    assert!(counted.iter().any(|line| line.contains("agent=\"a\"") || line.contains("agent=\"(other)\"")), "{metrics}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_fallback_is_called_at_once_while_the_circuit_is_open(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let ((a, a_url), (_b, b_url)) = (failing(StatusCode::BAD_GATEWAY).await, working("by b").await);
    let members = json!({"fallbacks": ["b"], "circuit_breaker_config": {"failure_threshold": 2},
        "retry_config": {"max_retries": 2, "initial_delay_ms": 86_400_000, "max_delay_ms": 86_400_000}});
    let quick = json!({"retry_config": {"max_retries": 2, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    let mut first = members.clone();
    first["retry_config"] = quick["retry_config"].clone();
    let agent = register(&world.service, "a", &a_url, &first).await;
    register(&world.service, "b", &b_url, &json!({})).await;
    assert_eq!(attempts(&ask(&world).await), ["a FAILED", "a FAILED", "b COMPLETED"]);
    assert_eq!(a.calls().len(), 2);
    // With a pause of a day, a second attempt at the open circuit would never be made.
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    world.service.put(&path, &json!({"retry_config": members["retry_config"]})).await.expect(200);
    let ended = ask(&world).await;
    assert_eq!(ended.output()["text"], "by b");
    assert_eq!(attempts(&ended), ["a FAILED", "b COMPLETED"]);
    assert_eq!(ended.rows[0]["error_message"], "agent 'a': its circuit breaker is open");
    assert_eq!(a.calls().len(), 2, "it is left alone");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_another_agent_would_refuse_too_ends_the_step(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let (b, b_url) = working("by b").await;
    register(&world.service, "b", &b_url, &json!({})).await;
    let (_refusing, refusing_url) = Agent::start(|_, call| refusing(call)).await;
    let mut agents = vec![("refused".to_owned(), refusing_url, false)];
    for (status, expected) in [(400, false), (413, false), (422, false), (401, true), (402, true), (404, true)] {
        let (_agent, url) = failing(StatusCode::from_u16(status).expect("a status")).await;
        agents.push((status.to_string(), url, expected));
    }
    let (_odd, odd_url) = Agent::start(|_, _| "no JSON".into_response()).await;
    agents.push(("odd".to_owned(), odd_url, true));
    agents.push(("closed".to_owned(), "http://127.0.0.1:1/".to_owned(), true));
    for (name, url, is_replaced) in agents {
        register(&world.service, &name, &url, &json!({"fallbacks": ["b"], "retry_config": {"max_retries": 1}})).await;
        let calls = b.calls().len();
        let steps = json!({"ask": {"id": "ask", "agent_name": name, "input_mapping": {"text": "x"}}});
        let ended = world.run("ask", &steps, &json!({})).await;
        let expected = if is_replaced { "COMPLETED" } else { "FAILED" };
        assert_eq!(ended.run["status"], expected, "{name}: {}", ended.run);
        assert_eq!(b.calls().len() - calls, usize::from(is_replaced), "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_fallback_that_is_not_there_is_a_warning_and_an_entry_of_the_log(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    let ((_a, a_url), (c, c_url)) = (failing(StatusCode::BAD_GATEWAY).await, working("by c").await);
    let members = json!({"fallbacks": ["gone", "off", "c"], "retry_config": {"max_retries": 1}});
    let agent = register(service, "a", &a_url, &members).await;
    register(service, "c", &c_url, &json!({})).await;
    let off = register(service, "off", &c_url, &json!({})).await;
    let path = |agent: &Value| format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    service.put(&path(&off), &json!({"status": "inactive"})).await.expect(200);
    // One of that name in another organisation is none.
    let others = "WITH new AS (INSERT INTO organizations (id, name, created_by, updated_by)
                      VALUES ('acme', 'Acme', 'me', 'me') RETURNING id)
                  INSERT INTO agents (name, url, organization_id) SELECT 'gone', $1, id FROM new";
    sqlx::query(others).bind(&c_url).execute(&pool).await.expect("another organisation");

    let definition = json!({"name": "w", "start_step": "ask", "steps": steps()});
    let checked = service.post("/api/v1/workflows/validate", &definition).await.expect(200);
    assert_eq!(checked["valid"], true);
    let warnings: Vec<_> =
        checked["warnings"].as_array().expect("a list").iter().map(|warning| &warning["message"]).collect();
    let expected =
        [r#"Agent "gone", a fallback of "a", does not exist"#, r#"Agent "off", a fallback of "a", is inactive"#];
    assert_eq!(warnings, expected, "{checked}");

    let ended = ask(&world).await;
    assert_eq!(ended.output()["text"], "by c");
    assert_eq!(attempts(&ended), ["a FAILED", "gone FAILED", "off FAILED", "c COMPLETED"]);
    let messages: Vec<_> = ended.rows[1..3].iter().map(|row| &row["error_message"]).collect();
    assert_eq!(messages, ["agent 'gone' does not exist", "agent 'off' is inactive"]);

    service.put(&path(&agent), &json!({"fallbacks": ["gone"]})).await.expect(200);
    let calls = c.calls().len();
    let ended = ask(&world).await;
    assert_eq!(ended.cause(), "Step 'ask' failed: agent 'a': HTTP 502: Bad Gateway; agent 'gone' does not exist");
    assert_eq!(c.calls().len(), calls);
    // An agent that must not be called is no agent that does not work.
    let workflow_id = world.define("ask", &steps()).await;
    service.put(&path(&agent), &json!({"fallbacks": ["c"]})).await.expect(200);
    service.delete(&path(&agent)).await.expect(200);
    let ended = world.end(service.execute(&workflow_id).await).await;
    assert_eq!(ended.cause(), "Step 'ask' failed: agent 'a' is deleted");
    assert_eq!(c.calls().len(), calls);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_fallbacks_of_a_fallback_are_not_followed(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let (down, (c, c_url)) = (failing(StatusCode::SERVICE_UNAVAILABLE).await, working("by c").await);
    let once = json!({"max_retries": 1});
    register(&world.service, "a", &down.1, &json!({"fallbacks": ["b"], "retry_config": once})).await;
    register(&world.service, "b", &down.1, &json!({"fallbacks": ["c", "a"], "retry_config": once})).await;
    register(&world.service, "c", &c_url, &json!({})).await;
    let ended = ask(&world).await;
    assert_eq!(attempts(&ended), ["a FAILED", "b FAILED"]);
    let expected = "agent 'a': HTTP 503: Service Unavailable; agent 'b': HTTP 503: Service Unavailable";
    assert_eq!(ended.cause(), format!("Step 'ask' failed: {expected}"));
    assert_eq!(c.calls().len(), 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_time_limit_of_the_step_holds_for_all_of_its_agents(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let ((_a, a_url), (b, b_url)) = (failing(StatusCode::BAD_GATEWAY).await, working("late").await);
    register(&world.service, "a", &a_url, &json!({"fallbacks": ["b"], "retry_config": {"max_retries": 1}})).await;
    register(&world.service, "b", &b_url, &json!({"timeout_ms": 300_000})).await;
    b.hold();
    let mut limited = steps();
    limited["ask"]["timeout_seconds"] = json!(60);
    let run_id = world.begin("ask", &limited, &json!({})).await;
    eventually("the fallback is called", async || (b.calls().len() == 1).then_some(())).await;
    world.service.clock.advance(Duration::from_secs(61));
    let ended = world.end(run_id).await;
    assert_eq!(ended.cause(), "Step 'ask' failed: it took longer than 60 s");
    assert_eq!(attempts(&ended), ["a FAILED", "b FAILED"]);
}

/// Stopped executors make the call again, with the same key, of the agent that was called; the rest of the order holds.
#[sqlx::test(migrator = "MIGRATOR")]
async fn after_an_interruption_the_step_continues_with_the_agent_that_was_called_last(pool: PgPool) {
    let mut world = World::start(&pool, &[]).await;
    let (a, a_url) = failing(StatusCode::BAD_GATEWAY).await;
    let is_up = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&is_up);
    let (b, b_url) = Agent::start(move |_, call| {
        if flag.load(Ordering::Relaxed) { completed(call, "by b") } else { StatusCode::BAD_GATEWAY.into_response() }
    })
    .await;
    let (_c, c_url) = working("by c").await;
    let once = json!({"max_retries": 1});
    register(&world.service, "a", &a_url, &json!({"fallbacks": ["b", "c"], "retry_config": once})).await;
    register(&world.service, "b", &b_url, &json!({"retry_config": once})).await;
    register(&world.service, "c", &c_url, &json!({})).await;
    b.hold();
    let run_id = world.begin("ask", &steps(), &json!({})).await;
    eventually("the fallback is called", async || (b.calls().len() == 1).then_some(())).await;
    world.kill_executor().await;
    is_up.store(false, Ordering::Relaxed);
    b.0.gate.add_permits(100);
    // A process is dead when it has been silent for eight seconds by the database's clock.
    let silent = "UPDATE processes SET heartbeat_at = heartbeat_at - interval '8 seconds' WHERE role = 'executor'";
    sqlx::query(silent).execute(&pool).await.expect("a row");
    let _next = crate::path::Executor::start(&world.service);
    let run = ended(&world.service, &run_id).await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let ended = world.end(run_id).await;
    assert_eq!(ended.output()["text"], "by c");
    assert_eq!(attempts(&ended), ["a FAILED", "b FAILED", "b FAILED", "c COMPLETED"]);
    assert_eq!((a.calls().len(), b.calls().len()), (1, 2));
    let keys: Vec<_> = b.calls().iter().map(|call| call.headers["idempotency-key"].clone()).collect();
    assert_eq!(keys[0], keys[1], "the attempt that was interrupted is the same to the agent");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn fallbacks_are_stored_shown_exported_and_checked(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = register(&service, "a", "http://a", &json!({"fallbacks": ["b", "c"]})).await;
    assert_eq!(agent["fallbacks"], json!(["b", "c"]));
    let plain = register(&service, "b", "http://b", &json!({})).await;
    assert_eq!(plain["fallbacks"], json!([]));
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    let tag = |answer: &Answer| answer.header("etag").expect("a tag").to_owned();
    let before = tag(&service.get(&path).await);
    assert_eq!(service.put(&path, &json!({"description": "d"})).await.expect(200)["fallbacks"], json!(["b", "c"]));
    let described = tag(&service.get(&path).await);
    let changed = service.put(&path, &json!({"fallbacks": ["c"]})).await;
    assert_ne!(tag(&changed), described);
    assert_ne!(described, before);
    assert_eq!(changed.expect(200)["fallbacks"], json!(["c"]));
    let stale = [("if-match", before.as_str()), ("content-type", "application/json")];
    service.send("PUT", &path, &stale, r#"{"fallbacks":[]}"#).await.error(412);
    assert_eq!(service.get("/api/v1/agents").await.expect(200)["items"][0]["fallbacks"], json!(["c"]));
    let audit = service.get("/api/v1/audit-logs?action=update").await.expect(200);
    assert_eq!(audit["items"][0]["after"], json!({"fallbacks": ["c"]}), "{audit}");
    assert_eq!(audit["items"][0]["before"], json!({"fallbacks": ["b", "c"]}));

    for (body, expected) in [
        (json!({"fallbacks": ["b", "a"]}), "body.fallbacks.1 value_error"),
        (json!({"fallbacks": ["b", "b"]}), "body.fallbacks.1 value_error"),
        (json!({"fallbacks": ["1", "2", "3", "4", "5"]}), "body.fallbacks too_long"),
        (json!({"fallbacks": null}), "body.fallbacks list_type"),
        (json!({"fallbacks": [7]}), "body.fallbacks.0 string_type"),
    ] {
        assert_eq!(service.put(&path, &body).await.field_errors(), [expected], "{body}");
    }
    let own = json!({"name": "x", "url": "http://x", "fallbacks": ["x"]});
    assert_eq!(service.post("/api/v1/agents", &own).await.field_errors(), ["body.fallbacks.0 value_error"]);

    let document = service.get("/api/v1/export").await.expect(200);
    assert_eq!(document["agents"][0]["fallbacks"], json!(["c"]));
    assert!(document["agents"][1].get("fallbacks").is_none(), "absent as before: {document}");
    service.put(&path, &json!({"fallbacks": []})).await.expect(200);
    let report = service.post("/api/v1/import", &document).await.expect(200);
    assert_eq!(report["updated"]["agents"], json!(["a"]), "{report}");
    assert_eq!(service.get(&path).await.expect(200)["fallbacks"], json!(["c"]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_of_a_workflow_goes_on_with_fallbacks_too(pool: PgPool) {
    let service = Service::start(&pool);
    let once = json!({"max_retries": 1});
    register(&service, "a", "http://a", &json!({"fallbacks": ["gone", "b"], "retry_config": once})).await;
    register(&service, "b", "http://b", &json!({"retry_config": {"max_retries": 3}})).await;
    let body = |code: &str| {
        json!({"definition": {"name": "w", "start_step": "ask", "steps": steps()}, "input_data": {},
            "mocks": {"ask": {"output": {"n": 1}, "fail": {"times": 2, "code": code}}}})
    };
    let tested = service.post("/api/v1/workflows/test", &body("network")).await.expect(200);
    assert_eq!(tested["output_data"], json!({"n": 1}), "{tested}");
    let agents: Vec<_> = tested["steps"].as_array().expect("a list").iter().map(|step| &step["agent_name"]).collect();
    assert_eq!(agents, ["a", "b", "b"]);
    let refused = service.post("/api/v1/workflows/test", &body("refused")).await.expect(200);
    assert_eq!((&refused["status"], refused["steps"].as_array().map(Vec::len)), (&json!("FAILED"), Some(1)));
}
