//! Figures of agents: calls, success and duration, counted by executors.

use std::time::Duration;

use axum::response::IntoResponse;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    agent::latency::BUCKETS,
    db::{
        agent_hours::{self, NewHours},
        migrations::MIGRATOR,
    },
    usage::Cost,
};

use crate::{
    path::{Agent, Executor, completed},
    service::{Service, eventually, own_pool},
    steps::{World, refusing},
};

async fn stats(service: &Service, name: &str) -> Value {
    let found = service.get(&format!("/api/v1/agents?name={name}")).await.expect(200);
    let id = found["items"][0]["id"].as_str().expect("an id").to_owned();
    service.get(&format!("/api/v1/agents/{id}/stats")).await.expect(200)
}

/// An agent that fails every fourth call and refuses every fifth one.
async fn sometimes() -> (Agent, String) {
    Agent::start(|number, call| match number {
        number if number % 4 == 3 => StatusCode::BAD_GATEWAY.into_response(),
        number if number % 5 == 4 => refusing(call),
        _ => completed(call, "fine"),
    })
    .await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_calls_of_all_executors_are_counted_and_none_is_lost_in_good_order(pool: PgPool) {
    let (agent, url) = sometimes().await;
    let world = World::start(&pool, &[]).await;
    let other = Executor::start(&world.service);
    let members = json!({"name": "a", "url": url, "circuit_breaker_config": {"enabled": false},
        "retry_config": {"max_retries": 1}});
    world.service.post("/api/v1/agents", &members).await.expect(201);
    let none = stats(&world.service, "a").await;
    let nothing = json!({"calls": 0, "failures": 0, "success_ratio": null, "p50_ms": null, "p95_ms": null,
        "tokens": 0, "cost": "0"});
    assert_eq!((&none["last_24_hours"], &none["last_7_days"], &none["name"]), (&nothing, &nothing, &json!("a")));
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    let mut failed = 0;
    for _ in 0..20 {
        let ended = world.run("ask", &steps, &json!({})).await;
        failed += i32::from(ended.run["status"] == "FAILED");
    }
    assert_eq!((agent.calls().len(), failed), (20, 8));
    world.executor.as_ref().expect("one").stop().await;
    other.stop().await;
    let stats = stats(&world.service, "a").await;
    let day = &stats["last_24_hours"];
    assert_eq!((&day["calls"], &day["failures"], &day["success_ratio"]), (&json!(20), &json!(8), &json!(0.6)));
    let (p50, p95) = (day["p50_ms"].as_f64().expect("a number"), day["p95_ms"].as_f64().expect("a number"));
    assert!(0.0 < p50 && p50 <= p95 && p95 < 300_000.0, "{day}");
    assert_eq!(day, &stats["last_7_days"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn counts_reach_the_table_every_few_seconds(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| completed(call, "fine")).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    for expected in 1..=3 {
        world.run("ask", &steps, &json!({})).await.output();
        eventually("the call is counted", async || {
            world.service.clock.advance(Duration::from_secs(6));
            (stats(&world.service, "a").await["last_24_hours"]["calls"] == expected).then_some(())
        })
        .await;
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_day_and_a_week_are_summed_up_and_what_is_older_is_deleted(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = service.agent("a", "http://a").await;
    let id: uuid::Uuid = agent["id"].as_str().expect("an id").parse().expect("a UUID");
    let own = own_pool(&pool);
    let mut buckets = vec![0; BUCKETS];
    buckets[10] = 9;
    buckets[20] = 1;
    let hours = [1, 30, 24 * 9];
    let now: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(&pool).await.expect("a time");
    let new = NewHours {
        agent_id: vec![id; hours.len()],
        hour: hours.iter().map(|hours| now - Duration::from_hours(*hours)).collect(),
        calls: vec![10; hours.len()],
        failures: vec![1; hours.len()],
        latency: buckets.repeat(hours.len()),
        tokens: vec![70; hours.len()],
        cost: vec![Cost::parse("0.000000000003").expect("a cost"); hours.len()],
    };
    // Another executor adds to the same hours, and one has called an agent that is not there any more.
    agent_hours::add(&own, new.clone()).await.expect("added");
    agent_hours::add(&own, new.clone()).await.expect("added");
    let gone = NewHours { agent_id: vec![uuid::Uuid::nil(); hours.len()], ..new };
    agent_hours::add(&own, gone).await.expect("dropped");
    let stats = stats(&service, "a").await;
    let (day, week) = (&stats["last_24_hours"], &stats["last_7_days"]);
    assert_eq!((&day["calls"], &day["failures"], &day["success_ratio"]), (&json!(20), &json!(2), &json!(0.9)));
    assert_eq!((&week["calls"], &week["failures"]), (&json!(40), &json!(4)));
    assert_eq!((&day["tokens"], &day["cost"]), (&json!(140), &json!("0.000000000006")));
    assert_eq!((&week["tokens"], &week["cost"]), (&json!(280), &json!("0.000000000012")));
    // Bucket 10 ends at 160 ms, and bucket 20 at 5120 ms.
    let of = |name: &str| day[name].as_f64().expect("a number");
    assert!((113.0..=160.0).contains(&of("p50_ms")) && (3620.0..=5120.0).contains(&of("p95_ms")), "{day}");

    let _executor = Executor::start(&service);
    let rows = "SELECT count(*) FROM agent_hours";
    eventually("the old hour is deleted", async || {
        let rows: i64 = sqlx::query_scalar(rows).fetch_one(&pool).await.expect("a number");
        (rows == 2).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn figures_are_of_an_agent_of_the_organisation(pool: PgPool) {
    let service = Service::start(&pool);
    let others = "WITH new AS (INSERT INTO organizations (id, name, created_by, updated_by)
                      VALUES ('acme', 'Acme', 'me', 'me') RETURNING id)
                  INSERT INTO agents (name, url, organization_id) SELECT 'a', 'http://a', id FROM new RETURNING id";
    let id: uuid::Uuid = sqlx::query_scalar(others).fetch_one(&pool).await.expect("an agent");
    let answer = service.get(&format!("/api/v1/agents/{id}/stats")).await.error(404);
    assert_eq!(answer["code"], "agent_not_found");
    service.get("/api/v1/agents/x/stats").await.error(422);
}
