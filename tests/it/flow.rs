//! Flow control at start: no more runs of a key are under way than its workflow allows, and none waits for ever.

mod ways;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, response::Response, routing::post};
use http::HeaderMap;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use workflow_api::{
    clock::Clock,
    db::{self, invariants, migrations::MIGRATOR},
};

use crate::{
    path::{Call, Executor, ended},
    service::{Service, config, eventually, in_turn, own_pool},
    steps::{World, agent_step, input_of, saying},
};

/// An agent that answers as many calls as it is let.
#[derive(Clone)]
struct Agent(Arc<(Mutex<Vec<i64>>, Semaphore)>);

impl Agent {
    async fn start() -> (Self, String) {
        let agent = Self(Arc::new((Mutex::default(), Semaphore::new(0))));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(post(Self::handle)).with_state(agent.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    async fn handle(State(Self(parts)): State<Self>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
        let call = Call { uri: http::Uri::default(), headers, body };
        parts.0.lock().expect("no panic").push(input_of(&call)["n"].as_i64().expect("a number"));
        parts.1.acquire().await.expect("never closed").forget();
        saying(&call, &json!({}))
    }

    /// Lets it answer so many calls more.
    fn answer(&self, calls: usize) {
        self.0.1.add_permits(calls);
    }

    /// Lets it answer no further calls.
    fn close(&self) {
        self.0.1.forget_permits(usize::MAX);
    }

    /// The members `n` of the inputs of the calls, in their order.
    fn calls(&self) -> Vec<i64> {
        self.0.0.lock().expect("no panic").clone()
    }

    async fn called(&self, expected: &[i64]) {
        eventually(&format!("the calls {expected:?}"), async || (self.calls() == expected).then_some(())).await;
    }

    async fn called_times(&self, times: usize) {
        eventually(&format!("{times} calls"), async || (self.calls().len() == times).then_some(())).await;
    }
}

/// Stores a workflow of one step that calls the agent `a` with the input, under that concurrency; returns its id.
async fn define(service: &Service, name: &str, concurrency: &Value) -> String {
    define_with(service, name, &json!({"concurrency": concurrency})).await
}

/// The same with these members.
async fn define_with(service: &Service, name: &str, members: &Value) -> String {
    let steps = json!({"s": agent_step("s", &json!({"n": "${workflow.input.n}", "of": "${workflow.input.of:-all}"}))});
    let mut body = json!({"name": name, "start_step": "s", "steps": steps});
    body.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
    service.post("/api/v1/workflows", &body).await.expect(201)["id"].as_str().expect("an id").to_owned()
}

/// Starts a run; returns the answer.
async fn start(service: &Service, workflow_id: &str, body: &Value) -> Value {
    service.post(&format!("/api/v1/workflows/{workflow_id}/execute"), body).await.expect(202)
}

fn id(run: &Value) -> &str {
    run["run_id"].as_str().expect("an id")
}

async fn run(service: &Service, run_id: &str) -> Value {
    service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)
}

/// `status state` of a run.
async fn place(service: &Service, run_id: &str) -> String {
    let run = run(service, run_id).await;
    format!("{} {}", run["status"].as_str().expect("a status"), run["flow_control"]["state"].as_str().unwrap_or("-"))
}

async fn act(service: &Service, run_id: &str, act: &str, status: u16) -> Value {
    service.post(&format!("/api/v1/runs/{run_id}/{act}"), &json!({})).await.expect(status)
}

async fn kinds(pool: &PgPool, run_id: &str) -> Vec<String> {
    let sql = "SELECT kind FROM run_events WHERE run_id = $1 AND kind LIKE 'run.%' ORDER BY id";
    sqlx::query_scalar(sql).bind(run_id).fetch_all(pool).await.expect("events")
}

async fn is_consistent(pool: &PgPool) {
    let found = invariants::check(&config(pool, &[]).database).await.expect("a report");
    let violated: Vec<_> =
        found.iter().filter(|invariant| invariant.violations > 0 || invariant.error.is_some()).collect();
    assert!(violated.is_empty(), "{violated:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_beyond_the_limit_of_their_key_wait_and_start_by_priority_and_age(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let workflow = define(service, "w", &json!({"key": "${workflow.input.of}", "limit": 1})).await;
    let begin = async |n: i64, of: &str, priority: i64| {
        let body = json!({"input_data": {"n": n, "of": of}, "priority": priority});
        start(service, &workflow, &body).await
    };
    let first = begin(1, "x", 5).await;
    assert_eq!(first["flow_control"], json!({"stage": "concurrency", "state": "admitted", "key": "x"}));
    agent.called(&[1]).await;
    let (second, third, urgent) = (begin(2, "x", 5).await, begin(3, "x", 5).await, begin(4, "x", 9).await);
    for run in [&second, &third, &urgent] {
        assert_eq!((&run["status"], &run["flow_control"]["state"]), (&json!("PENDING"), &json!("queued")));
    }
    let other = begin(5, "y", 0).await;
    agent.called(&[1, 5]).await;
    // The answer to a read says why each waits.
    for (run_id, ahead) in [(id(&urgent), 0), (id(&second), 1), (id(&third), 2)] {
        let waiting = &run(service, run_id).await["waiting"];
        let message = format!("1 of 1 runs with this key are under way, and {ahead} wait before this one");
        let expected = json!({"reason": "concurrency", "running": 1, "limit": 1, "ahead": ahead, "due_at": null, "message": message});
        assert_eq!(*waiting, expected);
    }
    assert_eq!(run(service, id(&first)).await["waiting"], Value::Null);
    // None of them has a message, also none by the sweep for lost ones.
    let held = [id(&second), id(&third), id(&urgent)].map(str::to_owned);
    let sql = "UPDATE workflow_runs SET updated_at = updated_at - interval '1 day' WHERE run_id = ANY ($1)";
    sqlx::query(sql).bind(&held[..]).execute(&pool).await.expect("done");
    let own = own_pool(&pool);
    let overdue = db::outbox::overdue(&own, None, 1000, 10.0).await.expect("a part");
    assert!(overdue.run_ids.iter().all(|run_id| !held.contains(run_id)), "{overdue:?}");
    assert_eq!(db::outbox::redispatch(&own, &held, 10.0, 1000).await.expect("done"), 0);
    let metrics = eventually("the gauge", async || {
        let metrics = service.get("/metrics").await.text;
        metrics.contains("workflow_runs{state=\"held\"} 3").then_some(metrics)
    })
    .await;
    let waits = metrics.lines().find(|line| line.starts_with("workflow_runs_oldest_waiting_seconds"));
    assert_eq!(waits, Some("workflow_runs_oldest_waiting_seconds 0"), "held runs do not wait for an executor");
    // Both calls are answered, and one slot of the first key is free.
    agent.answer(2);
    for expected in [&[1, 5, 4][..], &[1, 5, 4, 2], &[1, 5, 4, 2, 3]] {
        agent.called(expected).await;
        agent.answer(1);
    }
    for run in [&first, &second, &third, &urgent, &other] {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    assert_eq!(
        kinds(&pool, id(&second)).await,
        ["run.queued", "run.admitted", "run.dispatched", "run.started", "run.completed"]
    );
    assert_eq!(kinds(&pool, id(&first)).await, ["run.dispatched", "run.started", "run.completed"]);
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_skipped_start_is_a_run_that_has_ended_and_its_repeat_gives_the_same(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let workflow = define(service, "w", &json!({"limit": 1, "policy": "skip"})).await;
    let first = start(service, &workflow, &json!({"input_data": {"n": 1}})).await;
    assert_eq!(first["flow_control"], json!({"stage": "concurrency", "state": "admitted", "key": null}));
    let path = format!("/api/v1/workflows/{workflow}/execute");
    let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
    let body = json!({"input_data": {"n": 2}}).to_string();
    let skipped = service.send("POST", &path, &headers, body.clone()).await.expect(202);
    assert_eq!(
        (&skipped["status"], &skipped["error_code"], &skipped["cancelled_by"]),
        (&json!("CANCELLED"), &json!("skipped_by_concurrency"), &json!("system"))
    );
    assert_eq!(
        skipped["error_message"],
        "Skipped: as many runs of the workflow are under way as its concurrency allows (1)"
    );
    let again = service.send("POST", &path, &headers, body).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    let again = again.expect(202);
    assert_eq!((id(&again), &again["status"]), (id(&skipped), &json!("CANCELLED")));
    let read = run(service, id(&skipped)).await;
    assert_eq!((&read["error_code"], &read["waiting"]), (&json!("skipped_by_concurrency"), &Value::Null));
    let listed = service.get("/api/v1/runs?status=CANCELLED").await.expect(200);
    assert_eq!(listed["items"][0]["error_code"], "skipped_by_concurrency", "{listed}");
    let headers = [("content-type", "application/json"), ("prefer", "wait=60")];
    let waited = service.send("POST", &path, &headers, json!({"input_data": {"n": 3}}).to_string()).await.expect(200);
    assert_eq!(waited["error_code"], "skipped_by_concurrency");
    // A retry is a wish of somebody: it waits for its turn.
    let retried = act(service, id(&skipped), "retry", 202).await;
    assert_eq!((&retried["status"], &retried["error_message"]), (&json!("PENDING"), &Value::Null));
    assert_eq!(place(service, id(&skipped)).await, "PENDING queued");
    agent.called(&[1]).await;
    agent.answer(100);
    assert_eq!(ended(service, id(&first)).await["status"], "COMPLETED");
    assert_eq!(ended(service, id(&skipped)).await["status"], "COMPLETED");
    agent.called(&[1, 2]).await;
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_new_run_replaces_the_oldest_ones_of_its_key(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let concurrency = json!({"key": "${workflow.input.of}", "limit": 2, "policy": "cancel_running"});
    let workflow = define(service, "w", &concurrency).await;
    let mut runs = Vec::new();
    for n in 1..=2 {
        runs.push(start(service, &workflow, &json!({"input_data": {"n": n, "of": "x"}})).await);
    }
    let other = start(service, &workflow, &json!({"input_data": {"n": 9, "of": "y"}})).await;
    agent.called_times(3).await;
    let newer = start(service, &workflow, &json!({"input_data": {"n": 3, "of": "x"}})).await;
    assert_eq!((&newer["status"], &newer["flow_control"]["state"]), (&json!("PENDING"), &json!("admitted")));
    let replaced = run(service, id(&runs[0])).await;
    assert_eq!(
        (&replaced["status"], &replaced["error_code"]),
        (&json!("CANCELLED"), &json!("replaced_by_concurrency"))
    );
    assert_eq!(place(service, id(&runs[1])).await, "RUNNING admitted");
    // Its executor is told, as by every cancellation.
    let topic = &service.config.kafka.cancellation_topic;
    let records = crate::service::records(&service.config, topic, 1).await;
    assert_eq!(records[0].key, id(&runs[0]));
    eventually("the newer one is called", async || agent.calls().contains(&3).then_some(())).await;
    agent.answer(100);
    for run in [&runs[1], &newer, &other] {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_held_run_can_be_cancelled_paused_and_resumed_and_no_slot_is_lost(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let workflow = define(service, "w", &json!({"limit": 1})).await;
    let mut runs = Vec::new();
    for n in 1..=5 {
        runs.push(start(service, &workflow, &json!({"input_data": {"n": n}})).await);
    }
    agent.called(&[1]).await;
    assert_eq!(act(service, id(&runs[1]), "cancel", 200).await["status"], "CANCELLED");
    act(service, id(&runs[2]), "pause", 200).await;
    let waiting = &run(service, id(&runs[2])).await["waiting"];
    assert_eq!((&waiting["reason"], &waiting["running"]), (&json!("paused"), &json!(1)));
    assert!(waiting["message"].as_str().is_some_and(|message| message.contains("until it is resumed")), "{waiting}");
    // It is not in the way of the others.
    assert_eq!(run(service, id(&runs[3])).await["waiting"]["ahead"], 0);
    agent.answer(1);
    // The cancelled one and the paused one are passed over.
    agent.called(&[1, 4]).await;
    // What is resumed while a slot is taken waits, and is first in the queue again.
    act(service, id(&runs[2]), "resume", 200).await;
    assert_eq!(place(service, id(&runs[2])).await, "PENDING queued");
    // A cancelled run frees its slot.
    act(service, id(&runs[3]), "cancel", 200).await;
    agent.called(&[1, 4, 3]).await;
    // A paused run that has started keeps it.
    act(service, id(&runs[2]), "pause", 200).await;
    assert_eq!(run(service, id(&runs[4])).await["waiting"]["running"], 1);
    act(service, id(&runs[2]), "resume", 200).await;
    // The calls of cancelled runs may take answers too.
    agent.answer(2);
    agent.called(&[1, 4, 3, 5]).await;
    agent.answer(2);
    assert_eq!(ended(service, id(&runs[4])).await["status"], "COMPLETED");
    agent.close();
    // A resumed run finds a slot that is free already.
    let first = start(service, &workflow, &json!({"input_data": {"n": 6}})).await;
    let second = start(service, &workflow, &json!({"input_data": {"n": 7}})).await;
    act(service, id(&second), "pause", 200).await;
    agent.answer(2);
    assert_eq!(ended(service, id(&first)).await["status"], "COMPLETED");
    assert_eq!(place(service, id(&second)).await, "PENDING queued");
    act(service, id(&second), "resume", 200).await;
    assert_eq!(ended(service, id(&second)).await["status"], "COMPLETED");
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_changed_limit_holds_at_once_and_its_removal_and_the_deletion_leave_no_run_behind(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let workflow = define(service, "w", &json!({"limit": 1})).await;
    let path = format!("/api/v1/workflows/{workflow}");
    let mut runs = Vec::new();
    for n in 1..=8 {
        runs.push(start(service, &workflow, &json!({"input_data": {"n": n}})).await);
    }
    agent.called(&[1]).await;
    let changed = service.put(&path, &json!({"concurrency": {"limit": 3}})).await.expect(200);
    assert_eq!((&changed["version"], &changed["concurrency"]["limit"]), (&json!(1), &json!(3)));
    agent.called_times(3).await;
    // A lower limit stops nobody, and lets nobody start until enough have ended.
    service.put(&path, &json!({"concurrency": {"limit": 1}})).await.expect(200);
    agent.answer(2);
    eventually("two have ended", async || {
        let states = in_turn(runs[..3].iter().map(|run| place(service, id(run)))).await;
        (states.iter().filter(|state| *state == "COMPLETED admitted").count() == 2).then_some(())
    })
    .await;
    assert_eq!(run(service, id(&runs[3])).await["waiting"]["limit"], 1);
    assert_eq!(agent.calls().len(), 3);
    agent.answer(1);
    agent.called_times(4).await;
    // A version that was deleted does not take its runs with it.
    service.delete(&path).await.expect(200);
    agent.answer(1);
    agent.called_times(5).await;
    // Without a limit all start.
    service.put(&path, &json!({"status": "active", "concurrency": null})).await.expect(200);
    agent.called_times(8).await;
    agent.answer(100);
    for run in &runs {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    let free = start(service, &workflow, &json!({"input_data": {"n": 9}})).await;
    assert_eq!(free["flow_control"], Value::Null);
    assert_eq!(ended(service, id(&free)).await["status"], "COMPLETED");
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_slot_that_nobody_has_told_of_is_found(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let workflow = define(service, "w", &json!({"limit": 1})).await;
    let first = start(service, &workflow, &json!({"input_data": {"n": 1}})).await;
    let second = start(service, &workflow, &json!({"input_data": {"n": 2}})).await;
    agent.called(&[1]).await;
    // Somebody deletes the run, past all triggers.
    let mut transaction = pool.begin().await.expect("a transaction");
    sqlx::query("SET LOCAL session_replication_role = replica").execute(&mut *transaction).await.expect("done");
    let sql =
        "UPDATE workflow_runs SET status = 'CANCELLED', cancelled_at = now(), executor_id = NULL, lease_token = NULL
               WHERE run_id = $1";
    sqlx::query(sql).bind(id(&first)).execute(&mut *transaction).await.expect("done");
    transaction.commit().await.expect("done");
    agent.called(&[1, 2]).await;
    agent.answer(100);
    assert_eq!(ended(service, id(&second)).await["status"], "COMPLETED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_services_never_let_more_runs_start_than_the_limit(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    agent.answer(1000);
    let world = World::start(&pool, &[("a", &url)]).await;
    let second = Service::start_by(world.service.config.clone(), Clock::adjustable());
    let _executor = Executor::start(&second);
    let workflow = define(&world.service, "w", &json!({"key": "${workflow.input.of}", "limit": 3})).await;
    // At each moment the rows say how many have a slot.
    let watched = tokio::spawn({
        let pool = pool.clone();
        async move {
            let sql = "SELECT flow_key, count(*) FROM workflow_runs
                       WHERE flow_state = 'admitted' AND status IN ('PENDING', 'RUNNING') GROUP BY flow_key";
            let mut most = HashMap::<String, i64>::new();
            loop {
                let found: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("counts");
                for (key, count) in found {
                    let seen = most.entry(key).or_default();
                    *seen = (*seen).max(count);
                }
                let ended: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'")
                    .fetch_one(&pool)
                    .await
                    .expect("a count");
                if ended == 300 {
                    return most;
                }
            }
        }
    });
    let starts = (0..300).map(|n| {
        let (service, workflow) = (if n % 2 == 0 { &world.service } else { &second }, &workflow);
        let of = ["x", "y", "z"][n % 3];
        async move { start(service, workflow, &json!({"input_data": {"n": n, "of": of}})).await }
    });
    let runs = in_turn(starts).await;
    assert_eq!(runs.len(), 300);
    let most_by_key = watched.await.expect("no panic");
    assert!(most_by_key.values().all(|most| *most <= 3), "{most_by_key:?}");
    assert!(most_by_key.values().any(|most| *most == 3), "{most_by_key:?}");
    let mut found = agent.calls();
    found.sort_unstable();
    assert_eq!(found, (0..300).collect::<Vec<_>>(), "each runs once");
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn sub_workflows_wait_for_their_turn_and_never_for_the_run_around_them(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    define(service, "inner", &json!({"limit": 1})).await;
    let call = |name: &str, n: &str| {
        json!({"id": "call", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": name},
            "input_mapping": {"n": n}})
    };
    let outer = json!({"name": "outer", "start_step": "call", "steps": {"call": call("inner", "${workflow.input.n}")}});
    let outer = service.post("/api/v1/workflows", &outer).await.expect(201)["id"].as_str().expect("an id").to_owned();
    let mut runs = Vec::new();
    for n in 1..=3 {
        runs.push(start(service, &outer, &json!({"input_data": {"n": n}})).await);
        eventually("its sub-run is there", async || {
            let list = service.get(&format!("/api/v1/runs?parent_run_id={}", id(&runs[n - 1]))).await.expect(200);
            (list["total"] == 1 && list["runs"][0]["flow_control"]["state"] != "arrived").then_some(())
        })
        .await;
    }
    agent.called(&[1]).await;
    // A sub-run that is held ends with the run around it.
    act(service, id(&runs[1]), "cancel", 200).await;
    agent.answer(100);
    agent.called(&[1, 3]).await;
    for run in [&runs[0], &runs[2]] {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    // A workflow that calls itself does so within the slot that it has.
    let again = json!({
        "more": {"id": "more", "type": "conditional", "condition": {"expression": "${workflow.input.n} > 0"},
            "if_true_step": "call", "if_false_step": "last"},
        "last": agent_step("last", &json!({"n": 0})),
        "call": {"id": "call", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "again"},
            "input_mapping": {"n": 0}}});
    let body = json!({"name": "again", "start_step": "more", "steps": again, "concurrency": {"limit": 1}});
    let workflow = service.post("/api/v1/workflows", &body).await.expect(201);
    let run = start(service, workflow["id"].as_str().expect("an id"), &json!({"input_data": {"n": 1}})).await;
    assert_eq!(ended(service, id(&run)).await["status"], "COMPLETED");
    agent.called(&[1, 3, 0]).await;
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn flow_control_belongs_to_the_name_and_is_checked_exported_and_audited(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    let concurrency = json!({"key": "${workflow.input.customer}", "limit": 2, "policy": "queue"});
    let workflow = define(&service, "w", &concurrency).await;
    let path = format!("/api/v1/workflows/{workflow}");
    assert_eq!(service.get(&path).await.expect(200)["concurrency"], concurrency);
    // A key without a value is an error of the start.
    let execute = format!("{path}/execute");
    for input in [json!({}), json!({"customer": {}}), json!({"customer": "x".repeat(300)})] {
        let refused = service.post(&execute, &json!({"input_data": input})).await;
        assert_eq!(refused.field_errors(), ["body.input_data flow_key"]);
        refused.error(422);
    }
    // New steps make a version, which has the same; a change holds for all.
    let steps = json!({"s": agent_step("s", &json!({"n": 2}))});
    service.put(&path, &json!({"steps": steps, "start_step": "s"})).await.expect(200);
    service.put(&path, &json!({"concurrency": {"limit": 7}})).await.expect(200);
    let versions = service.get(&format!("{path}/versions")).await.expect(200);
    let limits: Vec<_> = versions["workflows"]
        .as_array()
        .or_else(|| versions["versions"].as_array())
        .or_else(|| versions["items"].as_array())
        .expect("a list")
        .iter()
        .map(|version| version["concurrency"]["limit"].clone())
        .collect();
    assert_eq!(limits, [json!(7), json!(7)]);
    let audit = service.get("/api/v1/audit-logs?entity_type=workflow&action=update").await.expect(200);
    let text = audit.to_string();
    assert!(text.contains(r#""concurrency":{"limit":7,"policy":"queue"}"#), "{text}");
    // The export has it, and the import of a document without it removes it.
    let mut export = service.get("/api/v1/export").await.expect(200);
    assert_eq!(export["workflows"][0]["concurrency"], json!({"limit": 7, "policy": "queue"}));
    export["workflows"][0].as_object_mut().expect("an object").remove("concurrency");
    service.post("/api/v1/import", &export).await.expect(200);
    assert_eq!(service.get(&path).await.expect(200)["concurrency"], Value::Null);
    for wrong in
        [json!({"limit": 0}), json!({"limit": 1, "policy": "x"}), json!({"limit": 1, "key": "len(1)"}), json!(3)]
    {
        assert_eq!(service.put(&path, &json!({"concurrency": wrong})).await.field_errors().len(), 1, "{wrong}");
    }
}

/// Moves what the database remembers of throttles and debounces by so many seconds into the past, as if they had passed.
async fn seconds_pass(pool: &PgPool, secs: f64) {
    for sql in [
        "UPDATE flow_throttles SET busy_until = busy_until - make_interval(secs => $1)",
        "UPDATE workflow_runs SET flow_due = flow_due - make_interval(secs => $1) WHERE flow_due IS NOT NULL",
        "UPDATE flow_wakes SET due_at = due_at - make_interval(secs => $1)",
    ] {
        sqlx::query(sql).bind(secs).execute(pool).await.expect("done");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn throttled_runs_start_in_their_order_as_the_time_allows(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    agent.answer(100);
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let throttle = json!({"key": "${workflow.input.of}", "limit": 10, "period_seconds": 3600, "burst": 2});
    let workflow = define_with(service, "w", &json!({"throttle": throttle})).await;
    let mut runs = Vec::new();
    for (n, priority) in [(1, 5), (2, 5), (3, 5), (4, 9), (5, 5)] {
        let body = json!({"input_data": {"n": n, "of": "x"}, "priority": priority});
        runs.push(start(service, &workflow, &body).await);
    }
    let states: Vec<_> = runs.iter().map(|run| run["flow_control"]["state"].as_str().expect("a state")).collect();
    assert_eq!(states, ["admitted", "admitted", "queued", "queued", "queued"]);
    let other = start(service, &workflow, &json!({"input_data": {"n": 9, "of": "y"}})).await;
    for run in [&runs[0], &runs[1], &other] {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    let waiting = &run(service, id(&runs[2])).await["waiting"];
    assert_eq!(
        (&waiting["reason"], &waiting["limit"], &waiting["ahead"], &waiting["message"]),
        (
            &json!("throttle"),
            &json!(10),
            &json!(1),
            &json!("10 runs with this key start in 3600 s, and 1 wait before this one")
        )
    );
    // One every six minutes, the one of the higher priority first.
    seconds_pass(&pool, 350.0).await;
    assert_eq!(place(service, id(&runs[3])).await, "PENDING queued");
    seconds_pass(&pool, 10.0).await;
    assert_eq!(ended(service, id(&runs[3])).await["status"], "COMPLETED");
    assert_eq!(place(service, id(&runs[2])).await, "PENDING queued");
    // Two intervals let two start.
    seconds_pass(&pool, 720.0).await;
    for run in [&runs[2], &runs[4]] {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    assert_eq!(
        kinds(&pool, id(&runs[2])).await,
        ["run.queued", "run.admitted", "run.dispatched", "run.started", "run.completed"]
    );
    // The clock of the database has gone back by a day: a key waits for a burst at most, and not for a day.
    sqlx::query("UPDATE flow_throttles SET busy_until = now() + interval '1 day'").execute(&pool).await.expect("done");
    let late = start(service, &workflow, &json!({"input_data": {"n": 6, "of": "x"}})).await;
    let sql = "SELECT busy_until <= now() + interval '720 s' FROM flow_throttles WHERE flow_key = 'x'";
    assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("a row"));
    assert_eq!(place(service, id(&late)).await, "PENDING queued");
    // Without the throttle it starts.
    service.put(&format!("/api/v1/workflows/{workflow}"), &json!({"throttle": null})).await.expect(200);
    assert_eq!(ended(service, id(&late)).await["status"], "COMPLETED");
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_comes_too_early_can_be_dropped_and_one_in_time_waits_for_its_slot(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let throttle = json!({"limit": 1, "period_seconds": 3600, "burst": 3, "policy": "drop"});
    let members = json!({"throttle": throttle, "concurrency": {"key": "${workflow.input.of}", "limit": 1}});
    let workflow = define_with(service, "w", &members).await;
    let mut runs = Vec::new();
    for (n, of) in [(1, "x"), (2, "x"), (3, "y"), (4, "y")] {
        runs.push(start(service, &workflow, &json!({"input_data": {"n": n, "of": of}})).await);
    }
    let flows: Vec<_> = runs.iter().map(|run| run["flow_control"].clone()).collect();
    assert_eq!(
        flows,
        [
            json!({"stage": "concurrency", "state": "admitted", "key": "x"}),
            json!({"stage": "concurrency", "state": "queued", "key": "x"}),
            json!({"stage": "concurrency", "state": "admitted", "key": "y"}),
            json!({"stage": "throttle", "state": "dropped", "key": null}),
        ]
    );
    assert_eq!(
        (&runs[3]["status"], &runs[3]["error_code"], &runs[3]["error_message"]),
        (
            &json!("CANCELLED"),
            &json!("dropped_by_throttle"),
            &json!("Dropped: runs of the workflow are throttled to 1 in 3600 s")
        )
    );
    // A retry waits instead, and goes on to the next stage.
    act(service, id(&runs[3]), "retry", 202).await;
    assert_eq!(run(service, id(&runs[3])).await["flow_control"]["state"], "queued");
    seconds_pass(&pool, 3600.0).await;
    eventually("it has passed the throttle", async || {
        (run(service, id(&runs[3])).await["flow_control"]["stage"] == "concurrency").then_some(())
    })
    .await;
    agent.answer(100);
    for run in &runs {
        assert_eq!(ended(service, id(run)).await["status"], "COMPLETED");
    }
    is_consistent(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_several_starts_in_a_row_the_last_one_runs_and_none_waits_for_ever(pool: PgPool) {
    let (agent, url) = Agent::start().await;
    agent.answer(100);
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let debounce = json!({"key": "${workflow.input.of}", "period_seconds": 3600, "max_wait_seconds": 7200});
    let workflow = define_with(service, "w", &json!({"debounce": debounce, "concurrency": {"limit": 1}})).await;
    let begin = async |n: i64| start(service, &workflow, &json!({"input_data": {"n": n, "of": "x"}})).await;
    let starts = (1..=20).map(begin);
    let runs = in_turn(starts).await;
    let states = in_turn(runs.iter().map(|run| place(service, id(run)))).await;
    assert_eq!(states.iter().filter(|state| *state == "CANCELLED replaced").count(), 19, "{states:?}");
    let at = states.iter().position(|state| state == "PENDING queued").expect("one is left");
    let pending = &runs[at];
    let other = runs.iter().find(|run| id(run) != id(pending)).expect("another");
    assert_eq!(run(service, id(other)).await["error_code"], "replaced_by_debounce");
    let shown = run(service, id(pending)).await;
    assert_eq!(shown["flow_control"], json!({"stage": "debounce", "state": "queued", "key": "x"}));
    assert!(shown["waiting"]["due_at"].is_string(), "{shown}");
    // Before its time nothing happens, also by the walk through held runs; then it goes on to the next stage.
    seconds_pass(&pool, 3000.0).await;
    assert_eq!(place(service, id(pending)).await, "PENDING queued");
    seconds_pass(&pool, 600.0).await;
    assert_eq!(ended(service, id(pending)).await["status"], "COMPLETED");
    assert_eq!(agent.calls().len(), 1);

    // A start moves the end of the wait by a period, but not beyond the longest one.
    let first = begin(30).await;
    let since =
        "UPDATE workflow_runs SET flow_rest = jsonb_set(flow_rest, '{since}', to_jsonb(now() - interval '7000 s'))
                 WHERE run_id = $1";
    sqlx::query(since).bind(id(&first)).execute(&pool).await.expect("done");
    let last = begin(31).await;
    assert_eq!(place(service, id(&first)).await, "CANCELLED replaced");
    let sql = "SELECT flow_due <= now() + interval '200 s' FROM workflow_runs WHERE run_id = $1";
    assert!(sqlx::query_scalar::<_, bool>(sql).bind(id(&last)).fetch_one(&pool).await.expect("a run"));
    seconds_pass(&pool, 200.0).await;
    assert_eq!(ended(service, id(&last)).await["status"], "COMPLETED");

    // The clock of the database has gone back by a day.
    let stuck = begin(40).await;
    let ahead = "UPDATE workflow_runs SET flow_due = now() + interval '1 day' WHERE run_id = $1";
    sqlx::query(ahead).bind(id(&stuck)).execute(&pool).await.expect("done");
    let sql = "SELECT flow_due <= now() + interval '3600 s' FROM workflow_runs WHERE run_id = $1";
    eventually("the walk has found it", async || {
        sqlx::query_scalar::<_, bool>(sql).bind(id(&stuck)).fetch_one(&pool).await.expect("a run").then_some(())
    })
    .await;
    // Without the debounce it starts at once.
    service.put(&format!("/api/v1/workflows/{workflow}"), &json!({"debounce": null})).await.expect(200);
    assert_eq!(ended(service, id(&stuck)).await["status"], "COMPLETED");
    is_consistent(&pool).await;
}
