//! kill -9 at the nasty moments.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Json, Router, extract::State};
use http::Uri;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually};

/// Makes a killed executor dead: it has been silent for eight seconds by the database's clock.
async fn is_silent(pool: &PgPool) {
    let silent = "UPDATE processes SET heartbeat_at = heartbeat_at - interval '8 seconds' WHERE role = 'executor'";
    sqlx::query(silent).execute(pool).await.expect("a row");
}

/// The run, after another executor has ended it.
async fn ended_by_another(environment: &Environment, run_id: &str) -> Value {
    let _next = environment.start(&["executor"]);
    eventually("the run ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] != "RUNNING").then_some(run)
    })
    .await
}

#[sqlx::test(migrations = false)]
async fn what_a_killed_api_had_acknowledged_is_stored_and_reaches_kafka(pool: PgPool) {
    // The first API never reaches Kafka, so everything is still to be sent when it dies.
    let environment = Environment::new(&pool);
    let mut api = environment.clone().with("KAFKA_BROKERS", "127.0.0.1:1").serve().await;
    let workflow_id = environment.chain("crash", &["http://127.0.0.1:9/".to_owned()]).await;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (environment, workflow_id) = (environment.clone(), workflow_id.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while let Some(run_id) = environment.execute(&workflow_id).await {
                    acknowledged.push(run_id);
                }
                acknowledged
            })
        })
        .collect();
    eventually("some runs", || async {
        let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.ok()?;
        (runs > 100).then_some(())
    })
    .await;
    api.kill().await;
    let mut acknowledged = HashSet::new();
    for client in clients {
        acknowledged.extend(client.await.expect("a client"));
    }
    assert!(!acknowledged.is_empty());
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&pool).await.expect("runs");
    assert!(acknowledged.is_subset(&stored.into_iter().collect()));
    let _next = environment.serve().await;
    environment.wait_for_messages(acknowledged).await;
}

/// An agent that counts its calls by path and holds back the answers of `/held` until it is let go.
#[derive(Clone, Default)]
struct Agent {
    /// The path and the message's id of each.
    calls: Arc<Mutex<Vec<(String, Value)>>>,
    is_free: Arc<AtomicBool>,
}

impl Agent {
    async fn start() -> (Self, String) {
        let agent = Self::default();
        let handle = async |State(agent): State<Self>, uri: Uri, Json(call): Json<Value>| {
            let message_id = call["params"]["message"]["messageId"].clone();
            agent.calls.lock().expect("no panic").push((uri.path().to_owned(), message_id));
            let is_held = uri.path() == "/held";
            eventually("the agent may answer", async || {
                (!is_held || agent.is_free.load(Ordering::Relaxed)).then_some(())
            })
            .await;
            let task = json!({"kind": "task", "id": "t", "status": {"state": "completed"},
                "metadata": {"usage": {"input_tokens": 7, "output_tokens": 3}},
                "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "done"}]}]});
            Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": task}))
        };
        let router = Router::new().fallback(axum::routing::post(handle)).with_state(agent.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    fn calls(&self, path: &str) -> usize {
        self.message_ids(path).len()
    }

    /// By which agents de-duplicate.
    fn message_ids(&self, path: &str) -> Vec<Value> {
        let calls = self.calls.lock().expect("no panic");
        calls.iter().filter(|(called, _)| called == path).map(|(_, id)| id.clone()).collect()
    }
}

#[sqlx::test(migrations = false)]
async fn the_run_of_a_killed_executor_is_resumed_and_repeats_no_completed_step(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let urls = ["/first", "/held", "/last"].map(|path| format!("{url}{path}"));
    let workflow_id = environment.chain("killed", &urls).await;
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    eventually("the second step is under way", async || (agent.calls("/held") == 1).then_some(())).await;
    executor.kill().await;
    agent.is_free.store(true, Ordering::Relaxed);
    is_silent(&pool).await;
    let run = ended_by_another(&environment, &run_id).await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    assert_eq!((agent.calls("/first"), agent.calls("/held"), agent.calls("/last")), (1, 2, 1));
    let ids = agent.message_ids("/held");
    assert_eq!(ids[0], ids[1], "the attempt that was interrupted is the same to the agent");
    assert_ne!(agent.message_ids("/first")[0], ids[0]);
    let steps = environment.get(&format!("/api/v1/runs/{run_id}/steps")).await;
    let told: Vec<String> = steps
        .as_array()
        .expect("an array")
        .iter()
        .map(|step| format!("{} {}", step["step_id"], step["status"]))
        .collect();
    assert_eq!(told, [r#""s0" "COMPLETED""#, r#""s1" "FAILED""#, r#""s1" "COMPLETED""#, r#""s2" "COMPLETED""#]);
    assert!(steps[1]["error_message"].as_str().is_some_and(|message| message.contains("interrupted")));
}

#[sqlx::test(migrations = false)]
async fn the_call_of_a_killed_executor_is_counted_once(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let urls = ["/first", "/held", "/last"].map(|path| format!("{url}{path}"));
    let workflow_id = environment.chain("counted", &urls).await;
    let mut executor = environment.start(&["executor"]);
    // There is room for the three calls, and for no other one.
    let body = json!({"input_data": {"text": "hi"}, "limits": {"calls": 3, "tokens": 30, "steps": 3}});
    let answer = environment.post(&format!("/api/v1/workflows/{workflow_id}/execute"), &body).await.expect("an answer");
    assert_eq!(answer.status(), 202);
    let run: Value = answer.json().await.expect("JSON");
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    eventually("the second step is under way", async || (agent.calls("/held") == 1).then_some(())).await;
    executor.kill().await;
    agent.is_free.store(true, Ordering::Relaxed);
    is_silent(&pool).await;
    let run = ended_by_another(&environment, &run_id).await;
    assert_eq!((&run["status"], agent.calls("/held")), (&json!("COMPLETED"), 2), "{run}");
    let usage = &run["usage"];
    assert_eq!((&usage["calls"], &usage["tokens"], &usage["exceeded"]), (&json!(3), &json!(30), &Value::Null));
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM call_reservations").fetch_one(&pool).await.expect("a count");
    assert_eq!(left, 0);
}

/// Whoever sets a proxy for the machine does not send the agents' credentials there.
#[sqlx::test(migrations = false)]
async fn proxies_of_the_environment_are_not_used(pool: PgPool) {
    let environment = Environment::new(&pool);
    let environment = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .fold(environment, |environment, name| environment.with(name, "http://127.0.0.1:1"));
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    let (agent, url) = Agent::start().await;
    let workflow_id = environment.chain("direct", &[format!("{url}/first")]).await;
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    eventually("the run completes", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] == "COMPLETED").then_some(())
    })
    .await;
    assert_eq!(agent.calls("/first"), 1);
}

/// Three iterations at a time, each with a fork inside, are in the middle of it.
#[sqlx::test(migrations = false)]
async fn the_run_of_a_killed_executor_is_resumed_inside_of_its_blocks(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let urls = ["/first", "/held", "/aside"].map(|path| format!("{url}{path}"));
    environment.chain("agents", &urls).await;
    let call = |id: &str, agent: usize| json!({"id": id, "agent_name": format!("agents-{agent}"), "input_mapping": {}});
    let workflow = json!({"name": "blocks", "start_step": "each", "steps": {
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items:-[1, 2, 3]}",
            "loop_body": ["first", "fork"], "execution_mode": "parallel"}},
        "first": call("first", 0),
        "fork": {"id": "fork", "type": "fork_join", "fork_join_config": {"branches": {
            "x": {"steps": ["held"]}, "y": {"steps": ["aside"]}}}},
        "held": call("held", 1),
        "aside": call("aside", 2)}});
    let answer = environment.post("/api/v1/workflows", &workflow).await.expect("an answer");
    let workflow: Value = answer.json().await.expect("JSON");
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(workflow["id"].as_str().expect("an id")).await.expect("accepted");
    eventually("all but the held steps is stored", async || {
        let sql = "SELECT count(*) FROM step_executions WHERE status = 'COMPLETED'";
        let completed: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
        (completed == 6 && agent.calls("/held") == 3).then_some(())
    })
    .await;
    executor.kill().await;
    agent.is_free.store(true, Ordering::Relaxed);
    let run = ended_by_another(&environment, &run_id).await;
    assert_eq!((&run["status"], &run["output_data"]["total_count"]), (&json!("COMPLETED"), &json!(3)), "{run}");
    assert_eq!((agent.calls("/first"), agent.calls("/held"), agent.calls("/aside")), (3, 6, 3));
    let steps = environment.get(&format!("/api/v1/runs/{run_id}/steps")).await;
    let of = |status: &str| steps.as_array().expect("an array").iter().filter(|step| step["status"] == status).count();
    // Interrupted: the loop, three forks, three held steps. Completed: those, and the six of before.
    assert_eq!((of("FAILED"), of("COMPLETED"), of("RUNNING")), (7, 13, 0));
}

/// Executors and API are killed again and again while runs come in; in the end each acknowledged run has completed
/// once.
#[sqlx::test(migrations = false)]
async fn every_acknowledged_run_completes_although_processes_are_killed_all_the_time(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let (_agent, url) = Agent::start().await;
    let workflow_id = environment.chain("storm", &[format!("{url}/a"), format!("{url}/b")]).await;
    let mut executors = [environment.start(&["executor"]), environment.start(&["executor"])];
    let mut acknowledged = HashSet::new();
    for round in 0..4 {
        for _ in 0..60 {
            acknowledged.extend(environment.execute(&workflow_id).await);
        }
        if round % 2 == 0 {
            executors[0].kill().await;
            executors[0] = environment.start(&["executor"]);
        } else {
            api.kill().await;
            api = environment.serve().await;
        }
    }
    executors[1].kill().await;
    let total = acknowledged.len();
    assert!(total >= 200, "only {total} runs were acknowledged");
    eventually("all runs have completed", || async {
        let sql = "SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'";
        let completed: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count");
        (usize::try_from(completed).expect("small") >= total).then_some(())
    })
    .await;
    let others: Vec<(String, String)> =
        sqlx::query_as("SELECT run_id, status FROM workflow_runs WHERE status <> 'COMPLETED'")
            .fetch_all(&pool)
            .await
            .expect("runs");
    assert!(others.is_empty(), "{others:?}");
    let repeated: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT 1 FROM step_executions WHERE status = 'COMPLETED'
             GROUP BY run_id, step_id HAVING count(*) > 1) AS twice",
    )
    .fetch_one(&pool)
    .await
    .expect("a count");
    assert_eq!(repeated, 0);
}

/// The first agent is not there, so that a fallback is called; the executor is killed during that call.
#[sqlx::test(migrations = false)]
async fn a_step_of_a_killed_executor_continues_with_the_fallback_that_was_called(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let retry = json!({"max_retries": 1});
    for (name, url, fallbacks) in [
        ("closed", "http://127.0.0.1:1/".to_owned(), json!(["unused", "held"])),
        ("held", format!("{url}/held"), json!([])),
    ] {
        let body = json!({"name": name, "url": url, "fallbacks": fallbacks, "retry_config": retry});
        let answer = environment.post("/api/v1/agents", &body).await.expect("an answer");
        assert_eq!(answer.status(), 201);
    }
    let body = json!({"name": "w", "start_step": "s",
        "steps": {"s": {"id": "s", "agent_name": "closed", "input_mapping": {"text": "x"}}}});
    let created = environment.post("/api/v1/workflows", &body).await.expect("an answer");
    let workflow: Value = created.json().await.expect("JSON");
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(workflow["id"].as_str().expect("an id")).await.expect("accepted");
    eventually("the fallback is called", async || (agent.calls("/held") == 1).then_some(())).await;
    executor.kill().await;
    agent.is_free.store(true, Ordering::Relaxed);
    is_silent(&pool).await;
    let run = ended_by_another(&environment, &run_id).await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let ids = agent.message_ids("/held");
    assert_eq!((ids.len(), &ids[0]), (2, &ids[1]), "the attempt that was interrupted is the same to the agent");
    let rows = environment.get(&format!("/api/v1/runs/{run_id}/steps")).await;
    let rows = rows.as_array().expect("a list").iter().map(|row| json!([row["agent_name"], row["status"]]));
    let expected = [
        json!(["closed", "FAILED"]),
        json!(["unused", "FAILED"]),
        json!(["held", "FAILED"]),
        json!(["held", "COMPLETED"]),
    ];
    assert_eq!(rows.collect::<Vec<_>>(), expected);
}
