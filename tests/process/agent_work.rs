//! Work that agents do for a run outlives the executor that has asked for it: after kill -9 another one follows it, and
//! nothing is created twice.

use std::{
    future::{Ready, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually, free_port};

/// A model, an MCP server and an A2A agent whose work ends when it is let go.
#[derive(Clone, Default)]
struct Agent {
    /// What was asked, in words, and its idempotency key or the id of the work.
    asked: Arc<Mutex<Vec<(&'static str, String)>>>,
    is_done: Arc<AtomicBool>,
}

impl Agent {
    async fn start() -> (Self, String) {
        let agent = Self::default();
        let router = Router::new()
            .route("/v1/responses", post(Self::create))
            .route("/v1/responses/{id}", get(Self::query))
            .route("/v1/responses/{id}/cancel", post(Self::cancel))
            .route("/mcp", post(Self::mcp))
            .route("/a2a", post(Self::a2a))
            .route("/metered", post(async || Json(json!({"usage": {"input_tokens": 5, "output_tokens": 2}}))))
            .with_state(agent.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    fn note(&self, what: &'static str, id: &str) {
        self.asked.lock().expect("no panic").push((what, id.to_owned()));
    }

    fn asked(&self, what: &str) -> Vec<String> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|(known, _)| *known == what).map(|(_, id)| id.clone()).collect()
    }

    fn response(&self, id: &str) -> Json<Value> {
        let status = if self.is_done.load(Ordering::Relaxed) { "completed" } else { "in_progress" };
        let content = json!([{"type": "output_text", "text": "done"}]);
        Json(json!({"id": id, "status": status, "output": [{"type": "message", "content": content}]}))
    }

    fn create(State(agent): State<Self>, mut headers: http::HeaderMap) -> Ready<Json<Value>> {
        let key = headers.remove("idempotency-key").expect("a key");
        agent.note("created", key.to_str().expect("ASCII"));
        ready(agent.response("resp_7"))
    }

    fn query(State(agent): State<Self>, Path(id): Path<String>) -> Ready<Json<Value>> {
        agent.note("queried", &id);
        ready(agent.response(&id))
    }

    fn cancel(State(agent): State<Self>, Path(id): Path<String>) -> Ready<Json<Value>> {
        agent.note("cancelled", &id);
        ready(agent.response(&id))
    }

    fn a2a(State(agent): State<Self>, mut headers: http::HeaderMap, Json(call): Json<Value>) -> Ready<Json<Value>> {
        let id = call["params"]["id"].as_str().unwrap_or_default().to_owned();
        match call["method"].as_str().expect("a method") {
            "message/send" => {
                let key = headers.remove("idempotency-key").expect("a key");
                agent.note("created", key.to_str().expect("ASCII"));
            }
            "tasks/get" => agent.note("queried", &id),
            "tasks/cancel" => agent.note("cancelled", &id),
            other => panic!("{other}"),
        }
        let state = if agent.is_done.load(Ordering::Relaxed) { "completed" } else { "working" };
        let result = json!({"kind": "task", "id": "t-7", "status": {"state": state},
            "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "done"}]}]});
        ready(Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result})))
    }

    fn mcp(State(agent): State<Self>, Json(call): Json<Value>) -> Ready<Json<Value>> {
        let id = call["params"]["taskId"].as_str().unwrap_or_default().to_owned();
        let result = match call["method"].as_str().expect("a method") {
            "server/discover" => json!({"resultType": "complete", "supportedVersions": ["2026-07-28"]}),
            "tools/list" => json!({"resultType": "complete", "tools": []}),
            "tools/call" => {
                agent.note("created", call["params"]["_meta"]["idempotencyKey"].as_str().expect("a key"));
                json!({"resultType": "task", "taskId": "task-7", "status": "working"})
            }
            "tasks/cancel" => {
                agent.note("cancelled", &id);
                json!({"resultType": "complete"})
            }
            "tasks/get" => {
                agent.note("queried", &id);
                let done = agent.is_done.load(Ordering::Relaxed);
                let result = json!({"content": [{"type": "text", "text": "done"}]});
                json!({"resultType": "complete", "taskId": id, "status": if done { "completed" } else { "working" },
                    "pollIntervalMs": 50, "result": result})
            }
            other => panic!("{other}"),
        };
        ready(Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result})))
    }
}

/// Kills the executor twice while the agent works, and lets the agent end its work.
async fn survives(pool: &PgPool, path: &str, kind: &str, config: Value, work: &str) {
    let environment = Environment::new(pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let members = json!({"name": "worker", "url": format!("{url}{path}"), "kind": kind, "config": config,
        "timeout_ms": 120_000});
    assert_eq!(environment.post("/api/v1/agents", &members).await.expect("an answer").status(), 201);
    let workflow = json!({"name": "long", "start_step": "s", "steps": {
        "s": {"id": "s", "agent_name": "worker", "input_mapping": {"text": "${workflow.input.text}"}}}});
    let answer = environment.post("/api/v1/workflows", &workflow).await.expect("an answer");
    let workflow: Value = answer.json().await.expect("JSON");
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(workflow["id"].as_str().expect("an id")).await.expect("accepted");
    for _ in 0..2 {
        let before = agent.asked("queried").len();
        eventually("the work is followed", async || (agent.asked("queried").len() > before).then_some(())).await;
        executor.kill().await;
        // A process is dead when it has been silent for eight seconds by the database's clock.
        let silent = "UPDATE processes SET heartbeat_at = heartbeat_at - interval '8 seconds' WHERE role = 'executor'";
        sqlx::query(silent).execute(pool).await.expect("a row");
        executor = environment.start(&["executor"]);
    }
    let before = agent.asked("queried").len();
    eventually("the work is followed", async || (agent.asked("queried").len() > before).then_some(())).await;
    agent.is_done.store(true, Ordering::Relaxed);
    let run = eventually("the run ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (!["PENDING", "RUNNING"].contains(&run["status"].as_str()?)).then_some(run)
    })
    .await;
    assert_eq!((&run["status"], &run["output_data"]["text"]), (&json!("COMPLETED"), &json!("done")), "{run}");
    assert_eq!(agent.asked("created").len(), 1, "nothing is created twice");
    assert_eq!(agent.asked("cancelled"), [""; 0], "an executor that is killed cancels nothing");
    assert!(agent.asked("queried").iter().all(|id| id == work));
    let steps = environment.get(&format!("/api/v1/runs/{run_id}/steps")).await;
    let steps = steps.as_array().expect("an array").clone();
    assert_eq!(agent.asked("created")[0], steps[0]["id"], "the key is that of the first attempt");
    assert_eq!(steps.len(), 3, "two were interrupted");
}

#[sqlx::test(migrations = false)]
async fn a_response_in_the_background_survives_its_executor(pool: PgPool) {
    survives(&pool, "/v1", "responses", json!({"model": "m", "background": true}), "resp_7").await;
}

#[sqlx::test(migrations = false)]
async fn a_task_of_an_mcp_server_survives_its_executor(pool: PgPool) {
    survives(&pool, "/mcp", "mcp", json!({"tool": "t"}), "task-7").await;
}

#[sqlx::test(migrations = false)]
async fn a_task_of_an_a2a_agent_survives_its_executor(pool: PgPool) {
    survives(&pool, "/a2a", "a2a", Value::Null, "t-7").await;
}

/// The first of two calls is all that the limit allows.
#[sqlx::test(migrations = false)]
async fn what_a_run_spends_and_the_limit_that_ends_it_are_counted(pool: PgPool) {
    let management = free_port().to_string();
    let environment = Environment::new(&pool).with("MANAGEMENT_PORT", &management);
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    let (_, url) = Agent::start().await;
    let price = json!({"input": "1000000", "output": "1000000", "call": "0.5"});
    let members =
        json!({"name": "worker", "url": format!("{url}/metered"), "kind": "http", "config": {"price": price}});
    assert_eq!(environment.post("/api/v1/agents", &members).await.expect("an answer").status(), 201);
    let step = |id: &str, next: Value| json!({"id": id, "agent_name": "worker", "input_mapping": {"text": "x"}, "next_step": next});
    let workflow = json!({"name": "metered", "start_step": "s", "limits": {"calls": 1},
        "steps": {"s": step("s", json!("t")), "t": step("t", Value::Null)}});
    let answer = environment.post("/api/v1/workflows", &workflow).await.expect("an answer");
    let workflow: Value = answer.json().await.expect("JSON");
    let workflow_id = workflow["id"].as_str().expect("an id");
    environment.execute(workflow_id).await.expect("accepted");
    let metrics = eventually("the run is counted", async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{management}/metrics")).await.ok()?;
        let metrics = answer.text().await.ok()?;
        metrics.contains("executor_runs_total{status=\"FAILED\"} 1").then_some(metrics)
    })
    .await;
    for line in [
        format!("workflow_tokens_total{{kind=\"input\",workflow_id=\"{workflow_id}\"}} 5"),
        format!("workflow_tokens_total{{kind=\"output\",workflow_id=\"{workflow_id}\"}} 2"),
        format!("workflow_cost_billionths_total{{workflow_id=\"{workflow_id}\"}} 7500000000"),
        "executor_agent_cost_billionths_total{agent=\"worker\"} 7500000000".to_owned(),
        "executor_budget_exceeded_total{limit=\"calls\"} 1".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}
