//! Circuit breakers of agents, as callers and agents see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::response::IntoResponse;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    breaker::{Admission, Calls, Rules, State},
    db::{self, migrations::MIGRATOR},
};

use crate::{
    path::{Agent, Executor, completed},
    service::{Service, eventually, own_pool},
    steps::{Ended, World, refusing},
};

/// An agent that fails as long as the flag is up.
async fn failing() -> (Agent, String, Arc<AtomicBool>) {
    let is_failing = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&is_failing);
    let (agent, url) = Agent::start(move |_, call| {
        if flag.load(Ordering::Relaxed) { StatusCode::BAD_GATEWAY.into_response() } else { completed(call, "fine") }
    })
    .await;
    (agent, url, is_failing)
}

/// A world with the agent `a`, which is tried once, and this configuration of its breaker.
async fn world(pool: &PgPool, url: &str, config: &Value) -> World {
    let world = World::start(pool, &[]).await;
    let agent = json!({"name": "a", "url": url, "circuit_breaker_config": config,
        "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post("/api/v1/agents", &agent).await.expect(201);
    world
}

async fn ask(world: &World) -> Ended {
    let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
    world.run("ask", &steps, &json!({})).await
}

async fn shown(service: &Service) -> Value {
    service.get("/api/v1/agents?name=a").await.expect(200)["items"][0].take()
}

async fn state(service: &Service) -> String {
    shown(service).await["circuit_breaker"]["state"].as_str().expect("a state").to_owned()
}

fn was_rejected(ended: &Ended) -> bool {
    ended.run["error_message"] == "Step 'ask' failed: agent 'a': its circuit breaker is open"
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_that_keeps_failing_is_left_alone_and_then_tried(pool: PgPool) {
    let (agent, url, is_failing) = failing().await;
    let world =
        world(&pool, &url, &json!({"failure_threshold": 3, "timeout_seconds": 2, "half_open_max_calls": 2})).await;
    let id = shown(&world.service).await["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/agents/{id}");
    let before = world.service.get(&path).await;
    // The first look switches metrics on.
    world.service.get("/metrics").await;
    for _ in 0..3 {
        assert_eq!(state(&world.service).await, "closed");
        assert!(!was_rejected(&ask(&world).await));
    }
    let open = world.service.get(&path).await;
    assert_ne!(open.header("etag"), before.header("etag"), "it has changed, to who asks for changes");
    let open = open.expect(200);
    assert_eq!(open["circuit_breaker"]["state"], "open");
    assert!(open["circuit_breaker"]["retry_at"].as_str() > open["circuit_breaker"]["opened_at"].as_str(), "{open}");
    let rejected = ask(&world).await;
    assert!(was_rejected(&rejected), "{}", rejected.run);
    assert_eq!((agent.calls().len(), rejected.rows.len()), (3, 1));
    // How many there are is a figure of the process, which other tests set as well.
    let metrics = world.service.get("/metrics").await.text;
    assert!(metrics.contains(r#"circuit_breakers{state="open"}"#), "{metrics}");
    assert_eq!(db::breakers::count(&pool).await.expect("counts"), (1, 0));
    assert!(metrics.contains(r#"executor_circuit_breaker_transitions_total{state="open",agent=""#), "{metrics}");

    // The first probe fails: open again, and again one is let through.
    eventually("a probe is made", async || {
        ask(&world).await;
        (agent.calls().len() == 4).then_some(())
    })
    .await;
    assert_eq!(state(&world.service).await, "open");
    is_failing.store(false, Ordering::Relaxed);
    eventually("a probe succeeds", async || (ask(&world).await.run["status"] == "COMPLETED").then_some(())).await;
    assert_eq!(state(&world.service).await, "half_open");
    ask(&world).await.output();
    assert_eq!(state(&world.service).await, "closed");
    // Probes that fail are no changes.
    let audit = world.service.get("/api/v1/audit-logs?entity_type=agent").await.expect(200);
    let changes: Vec<_> = audit["items"]
        .as_array()
        .expect("entries")
        .iter()
        .filter(|entry| !entry["after"]["health"].is_null())
        .map(|entry| (&entry["action"], &entry["entity_name"], &entry["after"]["health"]["source"]))
        .collect();
    let (name, source) = (json!("a"), json!("circuit_breaker"));
    let expected = [json!("health_recovered"), json!("health_failing")];
    assert_eq!(changes, expected.iter().map(|action| (action, &name, &source)).collect::<Vec<_>>(), "{audit}");
    // With an empty history: what was before does not open it.
    is_failing.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        assert!(!was_rejected(&ask(&world).await));
    }
    assert_eq!(state(&world.service).await, "closed");
    // A change of the breaker is none of the agent: what was read with it can be sent back.
    let tag = world.service.get(&path).await.header("etag").expect("a tag").to_owned();
    let headers = [("if-match", tag.as_str()), ("content-type", "application/json")];
    world.service.send("PUT", &path, &headers, r#"{"description":"d"}"#).await.expect(200);
    // Another address is another agent to the breaker.
    let moved = world.service.put(&path, &json!({"url": format!("{url}other")})).await.expect(200);
    assert_eq!(moved["circuit_breaker"]["failures"], 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_one_executor_learns_all_know(pool: PgPool) {
    let (agent, url, _) = failing().await;
    let world = world(&pool, &url, &json!({"failure_threshold": 4})).await;
    let _other = Executor::start(&world.service);
    let runs: Vec<String> = {
        let steps = json!({"ask": {"id": "ask", "agent_name": "a", "input_mapping": {"text": "x"}}});
        let mut runs = Vec::new();
        for _ in 0..4 {
            let run_id = world.begin("ask", &steps, &json!({})).await;
            crate::path::ended(&world.service, &run_id).await;
            runs.push(run_id);
        }
        runs
    };
    assert_eq!((runs.len(), agent.calls().len()), (4, 4));
    assert_eq!(state(&world.service).await, "open");
    // What an executor has read of the agent it uses for a second.
    eventually("nobody calls it any more", async || {
        let before = agent.calls().len();
        let asked: Vec<_> = (0..8).map(|_| ask(&world)).collect();
        let all_rejected = join_all(asked).await.iter().all(was_rejected);
        (all_rejected && agent.calls().len() == before).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn answers_of_an_agent_that_works_do_not_open_it_and_cost_no_row(pool: PgPool) {
    let (agent, url) = Agent::start(|_, call| refusing(call)).await;
    let world = world(&pool, &url, &json!({"failure_threshold": 2})).await;
    for _ in 0..4 {
        assert!(!was_rejected(&ask(&world).await));
    }
    assert_eq!((agent.calls().len(), state(&world.service).await.as_str()), (4, "closed"));
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM circuit_breakers").fetch_one(&pool).await.expect("a count");
    assert_eq!(rows, 0, "calls that go well are not written");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_breaker_that_is_switched_off_never_opens(pool: PgPool) {
    let (agent, url, _) = failing().await;
    let world = world(&pool, &url, &json!({"enabled": false, "failure_threshold": 1})).await;
    for _ in 0..3 {
        assert!(!was_rejected(&ask(&world).await));
    }
    assert_eq!((agent.calls().len(), &shown(&world.service).await["circuit_breaker"]), (3, &json!(null)));
}

/// A rejected attempt is one of the step's: it may be tried again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_step_is_tried_again_while_the_circuit_is_open(pool: PgPool) {
    let (agent, url, _) = failing().await;
    let world = world(&pool, &url, &json!({"failure_threshold": 2})).await;
    let id = shown(&world.service).await["id"].as_str().expect("an id").to_owned();
    let retry = json!({"retry_config": {"max_retries": 4, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.put(&format!("/api/v1/agents/{id}"), &retry).await.expect(200);
    eventually("the executor knows the change", async || (ask(&world).await.rows.len() == 4).then_some(())).await;
    assert_eq!(agent.calls().len(), 2, "the rest is not sent");
}

/// What a killed executor leaves behind frees itself.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_probe_whose_executor_died_frees_its_place(pool: PgPool) {
    let (agent, url, is_failing) = failing().await;
    is_failing.store(false, Ordering::Relaxed);
    let world = world(&pool, &url, &json!({"half_open_max_calls": 1})).await;
    let half_open = "INSERT INTO circuit_breakers (agent_id, state, opened_at, probes)
        SELECT id, 'half_open', now() - interval '1 hour', jsonb_build_array(jsonb_build_object(
            'token', gen_random_uuid(), 'until', now() + interval '1 hour')) FROM agents WHERE name = 'a'";
    sqlx::query(half_open).execute(&pool).await.expect("a breaker");
    assert!(was_rejected(&ask(&world).await));
    let ended = "UPDATE circuit_breakers SET probes = jsonb_set(probes, '{0,until}', to_jsonb(now()))";
    sqlx::query(ended).execute(&pool).await.expect("the end of its lease");
    eventually("its permit is taken", async || (ask(&world).await.run["status"] == "COMPLETED").then_some(())).await;
    assert_eq!((agent.calls().len(), state(&world.service).await.as_str()), (1, "closed"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_breaker_changes_once_whoever_changes_it_at_the_same_time(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = service.agent("a", "http://a").await;
    let id: uuid::Uuid = agent["id"].as_str().expect("an id").parse().expect("a UUID");
    let rules = Rules { failure_threshold: 50, timeout: Duration::ZERO, ..Rules::default() };
    let own = own_pool(&pool);
    let failures = (0..50).map(|_| {
        db::breakers::change(&own, id, None, move |breaker, now| {
            breaker.record(&rules, now, &[Calls::one(now.timestamp(), false)]);
            breaker.state
        })
    });
    let states: Vec<State> = join_all(failures).await.into_iter().map(|changed| changed.expect("a change").1).collect();
    assert_eq!(states.iter().filter(|state| **state == State::Open).count(), 1, "none is lost: the fiftieth opens it");
    let probes = (0..20).map(|_| {
        db::breakers::change(&own, id, None, move |breaker, now| breaker.admit(&rules, now, Duration::from_mins(1)))
    });
    let admitted: Vec<Admission> =
        join_all(probes).await.into_iter().map(|changed| changed.expect("a change").1).collect();
    assert_eq!(admitted.iter().filter(|admission| matches!(admission, Admission::Probe(_))).count(), 3);
    assert_eq!(admitted.iter().filter(|admission| **admission == Admission::Rejected).count(), 17);
}
