//! What the metrics of one process say about triggers, deadlines, flow control and webhooks, in exact numbers.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::post};
use http::StatusCode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use workflow_api::kafka;

use crate::{
    kafka_triggers::topic,
    program::{Environment, eventually, free_port},
};

/// Value of the metric whose line begins so; 0 if there is none.
async fn metric(environment: &Environment, line: &str) -> f64 {
    let answer = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer");
    let text = answer.text().await.expect("text");
    let value = text.lines().find_map(|found| found.strip_prefix(line)).map(str::trim);
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

/// Waits until each metric has its number.
async fn have(environment: &Environment, metrics: &[(&str, f64)]) {
    for (line, expected) in metrics {
        eventually(&format!("{line} is {expected}"), async || {
            let found = metric(environment, line).await;
            assert!(found <= *expected, "{line} is {found}, not {expected}");
            (found >= *expected).then_some(())
        })
        .await;
    }
}

async fn created(environment: &Environment, path: &str, body: &Value) -> Value {
    let answer = environment.post(path, body).await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.expect("text"));
    assert!(status.is_success(), "{path} {body}: {status} {text}");
    serde_json::from_str(&text).expect("JSON")
}

async fn run(pool: &PgPool, sql: &'static str) {
    sqlx::query(sql).execute(pool).await.expect("done");
}

/// An agent is never called here.
async fn start(pool: &PgPool) -> (Environment, crate::program::Program) {
    let environment = Environment::new(pool);
    let api = environment.serve().await;
    environment.chain("w", &["http://127.0.0.1:9/".to_owned()]).await;
    (environment, api)
}

#[sqlx::test(migrations = false)]
async fn deliveries_records_and_firings_are_counted_by_what_has_become_of_them(pool: PgPool) {
    let (environment, _api) = start(&pool).await;
    let config = json!({"preset": "none", "dedupe_header": "x-id", "filter": "${trigger.body.n} > 1"});
    let hook =
        json!({"name": "hook", "kind": "webhook", "workflow_name": "w", "input": {"text": "t"}, "config": config});
    let hook = created(&environment, "/api/v1/triggers", &hook).await;
    let token = hook["token"].as_str().expect("a token");
    let deliver = async |token: &str, id: &str, body: &'static str| {
        let request = reqwest::Client::new().post(format!("{}/api/v1/hooks/{token}", environment.url));
        let request = request.header("x-id", id).header("content-type", "application/json").body(body);
        request.send().await.expect("an answer").status().as_u16()
    };
    let signed = json!({"name": "signed", "kind": "webhook", "workflow_name": "w",
        "config": {"preset": "github", "secrets": ["a secret of both sides"]}});
    let signed = created(&environment, "/api/v1/triggers", &signed).await;
    assert_eq!(deliver(token, "a", r#"{"n":2}"#).await, 202);
    assert_eq!(deliver(token, "a", r#"{"n":2}"#).await, 200);
    assert_eq!(deliver(token, "b", r#"{"n":0}"#).await, 204);
    assert_eq!(deliver(token, "c", "{").await, 422);
    assert_eq!(deliver(signed["token"].as_str().expect("a token"), "d", "{}").await, 401);
    assert_eq!(deliver(&"0".repeat(64), "e", "{}").await, 404);
    let missing = json!({"name": "missing", "kind": "schedule", "workflow_name": "there is none",
        "config": {"cron": ["0 0 1 1 *"]}});
    let missing = created(&environment, "/api/v1/triggers", &missing).await;
    let fire = format!("/api/v1/triggers/{}/fire", missing["id"].as_str().expect("an id"));
    assert_eq!(environment.post(&fire, &json!({})).await.expect("an answer").status(), 409);
    let topic = topic(&environment, 1).await;
    let read = json!({"name": "read", "kind": "kafka", "workflow_name": "w", "input": {"text": "t"},
        "config": {"topic": topic, "start": "earliest", "filter": "${trigger.value.n} > 1", "idempotency": "${trigger.value.n}"}});
    created(&environment, "/api/v1/triggers", &read).await;
    let producer: FutureProducer = kafka::producer_config(&environment.kafka()).create().expect("valid settings");
    for value in [r#"{"n":2}"#, r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":1}"#, "{"] {
        let record = FutureRecord::<str, str>::to(&topic).partition(0).payload(value);
        producer.send(record, Duration::from_secs(30)).await.expect("sent");
    }
    let metrics = [
        (r#"webhook_deliveries_received_total{outcome="started"}"#, 1.0),
        (r#"webhook_deliveries_received_total{outcome="repeated"}"#, 1.0),
        (r#"webhook_deliveries_received_total{outcome="filtered"}"#, 1.0),
        (r#"webhook_deliveries_received_total{outcome="unreadable"}"#, 1.0),
        (r#"webhook_deliveries_received_total{outcome="refused"}"#, 1.0),
        (r#"webhook_deliveries_received_total{outcome="not_found"}"#, 1.0),
        (r#"kafka_trigger_records_total{outcome="started"}"#, 2.0),
        (r#"kafka_trigger_records_total{outcome="present"}"#, 1.0),
        (r#"kafka_trigger_records_total{outcome="filtered"}"#, 1.0),
        (r#"kafka_trigger_records_total{outcome="dead_letter"}"#, 1.0),
        (r#"trigger_firings_total{outcome="started"}"#, 3.0),
        (r#"trigger_firings_total{outcome="workflow_not_found"}"#, 1.0),
        (r#"trigger_firings_total{outcome="record_unreadable"}"#, 1.0),
    ];
    have(&environment, &metrics).await;
}

#[sqlx::test(migrations = false)]
async fn what_a_schedule_has_missed_in_an_outage_is_told_and_counted(pool: PgPool) {
    let (environment, mut api) = start(&pool).await;
    run(&pool, "INSERT INTO event_topics (topic) VALUES ('events')").await;
    let config = json!({"every": "PT1M", "catch_up": "none", "start_at": "2020-01-01T00:00:00Z"});
    let body = json!({"name": "s", "kind": "schedule", "workflow_name": "w", "input": {"text": "t"}, "config": config});
    let schedule = created(&environment, "/api/v1/triggers", &body).await;
    let path = format!("/api/v1/triggers/{}", schedule["id"].as_str().expect("an id"));
    let back = "UPDATE trigger_schedules SET due_at = now() - interval '1 hour',
                    processed_until = date_trunc('minute', now()) - interval '1 hour'";
    let told = async |count: usize| -> Value {
        eventually("the event", async || {
            let sql = "SELECT data FROM webhook_events WHERE event_type = 'schedule.missed' ORDER BY position";
            let mut events: Vec<Value> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("events");
            (events.len() == count).then(|| events.pop()).flatten()
        })
        .await
    };
    // Nobody has run for an hour.
    api.kill().await;
    run(&pool, back).await;
    let _api = environment.serve().await;
    let first = told(1).await;
    let missed = first["count"].as_i64().expect("a number");
    assert!((59..=61).contains(&missed), "{first}");
    assert_eq!(first["schedule"], json!({"id": schedule["id"], "name": "s"}));
    assert_eq!((&first["workflow"]["name"], &first["reason"]), (&json!("w"), &json!("too_late")));
    let shown = environment.get(&path).await;
    assert_eq!(shown["counters"]["missed"], missed);
    let row = shown["firings"].as_array().expect("a list").iter().find(|one| one["outcome"] == "missed");
    assert!(row.is_some_and(|row| row["detail"].as_str().is_some_and(|text| text.starts_with(&missed.to_string()))));
    let line = r#"trigger_firings_total{outcome="missed"}"#;
    let before = metric(&environment, line).await;
    run(&pool, back).await;
    let second = told(2).await["count"].as_f64().expect("a number");
    have(&environment, &[(line, before + second)]).await;
}

#[sqlx::test(migrations = false)]
async fn missed_deadlines_and_decisions_of_flow_control_are_counted(pool: PgPool) {
    let (environment, _api) = start(&pool).await;
    let steps = json!({"s0": {"id": "s0", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let limited = json!({"name": "limited", "start_step": "s0", "steps": steps, "concurrency": {"limit": 1}});
    let limited = created(&environment, "/api/v1/workflows", &limited).await;
    let path = format!("/api/v1/workflows/{}/execute", limited["id"].as_str().expect("an id"));
    for _ in 0..3 {
        created(&environment, &path, &json!({"input_data": {}, "deadline_seconds": 1})).await;
    }
    let metrics = [
        (r#"flow_control_runs_total{decision="admitted"}"#, 1.0),
        (r#"flow_control_runs_total{decision="queued"}"#, 2.0),
        (r#"flow_control_held_runs{stage="concurrency"}"#, 2.0),
        ("run_deadlines_missed_total", 3.0),
    ];
    have(&environment, &metrics).await;
}

#[sqlx::test(migrations = false)]
async fn attempts_of_webhooks_are_counted_and_what_waits_is_shown(pool: PgPool) {
    let (environment, _api) = start(&pool).await;
    let gate = Arc::new(Semaphore::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let take = async |State(gate): State<Arc<Semaphore>>| {
        gate.acquire().await.expect("it stays open").forget();
        StatusCode::NO_CONTENT
    };
    let router = Router::new().fallback(post(take)).with_state(Arc::clone(&gate));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let closed = format!("http://127.0.0.1:{}/", free_port());
    for (name, url) in [("slow", url), ("closed", closed)] {
        let body = json!({"name": name, "url": url, "event_types": ["run.failed"], "max_in_flight": 1});
        created(&environment, "/api/v1/webhooks", &body).await;
    }
    let sql = "SELECT count(record_event('default', 'run.failed', NULL, '{}')) FROM generate_series(1, 2)";
    run(&pool, sql).await;
    eventually("the second delivery waits for the first one", async || {
        (metric(&environment, "webhook_oldest_due_seconds").await > 0.0).then_some(())
    })
    .await;
    // The first retry is due after seconds, so there may be more than two: as many as are recorded.
    eventually("each attempt at the closed port is counted", async || {
        let counted = metric(&environment, r#"webhook_attempts_total{outcome="network"}"#).await;
        let sql = "SELECT count(*)::float8 FROM webhook_attempts WHERE outcome = 'network'";
        let recorded: f64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
        (counted >= 2.0 && (counted - recorded).abs() < f64::EPSILON).then_some(())
    })
    .await;
    gate.add_permits(10);
    have(&environment, &[(r#"webhook_attempts_total{outcome="success"}"#, 2.0)]).await;
    eventually("nothing is due any more", async || {
        (metric(&environment, "webhook_oldest_due_seconds").await < f64::EPSILON).then_some(())
    })
    .await;
}
