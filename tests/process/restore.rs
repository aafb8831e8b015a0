//! The restore drill: a backup of runs in every state, everything lost, the database restored beside an empty Kafka.

use std::{
    collections::HashMap,
    path::Path,
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Json, Router, extract::State};
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;

use crate::{
    empty_database::empty,
    program::{Environment, Program, eventually},
};

/// An agent that counts its calls by path. It holds back its answer to `/held`, and fails for `/broken`.
#[derive(Clone, Default)]
pub struct Agent {
    calls: Arc<Mutex<HashMap<String, usize>>>,
    is_free: Arc<AtomicBool>,
}

impl Agent {
    pub async fn start() -> (Self, String) {
        let agent = Self::default();
        let handle = async |State(agent): State<Self>, uri: Uri, Json(call): Json<Value>| {
            let path = uri.path().to_owned();
            *agent.calls.lock().expect("no panic").entry(path.clone()).or_default() += 1;
            if path == "/held" {
                eventually("the agent may answer", async || agent.is_free.load(Ordering::Relaxed).then_some(())).await;
            }
            let status = if path == "/broken" { StatusCode::BAD_REQUEST } else { StatusCode::OK };
            let result = json!({"kind": "task", "id": "t", "status": {"state": "completed"}});
            (status, Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result})))
        };
        let router = Router::new().fallback(axum::routing::post(handle)).with_state(agent.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    pub fn calls(&self, path: &str) -> usize {
        self.calls.lock().expect("no panic").get(path).copied().unwrap_or_default()
    }
}

/// Runs `./deploy-api.sh` on the database of the test.
async fn deploy_api(environment: &Environment, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("deploy-api.sh"))
        .args(arguments)
        .current_dir(root)
        .env("DATABASE_URL", &environment.variables["DATABASE_URL"])
        .env("PROGRAM", env!("CARGO_BIN_EXE_workflow-api"))
        .output()
        .await
        .expect("the script starts");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}\n{error}");
    output
}

pub async fn assert_consistent(environment: &Environment) {
    let output = environment.run(&["check", "invariants"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

pub async fn store(environment: &Environment, workflow: &Value) -> String {
    let answer = environment.post("/api/v1/workflows", workflow).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    answer.json::<Value>().await.expect("JSON")["id"].as_str().expect("an id").to_owned()
}

/// Waits until the run has that status, and is parked or not.
pub async fn becomes(pool: &PgPool, run_id: &str, state: &str) {
    eventually(&format!("{run_id} is {state}"), async || {
        let sql = "SELECT CASE WHEN wake_at IS NOT NULL AND executor_id IS NULL THEN 'PARKED' ELSE status END
                   FROM workflow_runs WHERE run_id = $1";
        let found: String = sqlx::query_scalar(sql).bind(run_id).fetch_one(pool).await.ok()?;
        (found == state).then_some(())
    })
    .await;
}

/// Runs in every state but PENDING.
pub struct Runs {
    pub completed: String,
    pub failed: String,
    pub cancelled: String,
    /// Parked by a timer of an hour.
    pub timed: String,
    /// Parked by a callback.
    pub asking: String,
    /// Parked by its sub-run `inner`, which a callback parks.
    pub outer: String,
    pub inner: String,
    /// Running, with a call under way that gets no answer yet.
    pub held: String,
}

impl Runs {
    /// Starts runs until each is in its state. Then the executor is killed.
    pub async fn in_every_state(environment: &Environment, pool: &PgPool, agent: &Agent, url: &str) -> Self {
        let chain = async |name: &str, paths: &[&str]| {
            environment.chain(name, &paths.iter().map(|path| format!("{url}{path}")).collect::<Vec<_>>()).await
        };
        let done = chain("done", &["/done"]).await;
        let broken = chain("broken", &["/broken"]).await;
        let running = chain("running", &["/first", "/held", "/last"]).await;
        let inner = json!({"name": "inner", "start_step": "ask", "steps": {"ask": {"id": "ask", "type": "callback"}}});
        store(environment, &inner).await;
        let timer = json!({"name": "timer", "start_step": "nap", "steps": {
            "nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 3600}}}});
        let timer = store(environment, &timer).await;
        let callback =
            json!({"name": "callback", "start_step": "ask", "steps": {"ask": {"id": "ask", "type": "callback"}}});
        let callback = store(environment, &callback).await;
        let outer = json!({"name": "outer", "start_step": "sub", "steps": {
            "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}}}});
        let outer = store(environment, &outer).await;

        let mut executor: Program = environment.start(&["executor"]);
        let start = async |id: &str| environment.execute(id).await.expect("accepted");
        let completed = start(&done).await;
        let failed = start(&broken).await;
        let cancelled = start(&callback).await;
        let [timed, asking, outer, held] =
            [start(&timer).await, start(&callback).await, start(&outer).await, start(&running).await];
        becomes(pool, &cancelled, "PARKED").await;
        let answer =
            environment.post(&format!("/api/v1/runs/{cancelled}/cancel"), &json!({})).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        becomes(pool, &completed, "COMPLETED").await;
        becomes(pool, &failed, "FAILED").await;
        for parked in [&timed, &asking, &outer] {
            becomes(pool, parked, "PARKED").await;
        }
        let inner: String = eventually("the sub-run is parked", async || {
            let sql = "SELECT run_id FROM workflow_runs WHERE parent_run_id = $1 AND wake_at = 'infinity'";
            sqlx::query_scalar(sql).bind(&outer).fetch_optional(pool).await.expect("an answer")
        })
        .await;
        eventually("a call is under way", async || (agent.calls("/held") == 1).then_some(())).await;
        executor.kill().await;
        Self { completed, failed, cancelled, timed, asking, outer, inner, held }
    }

    /// Answers the callbacks, as the time of the timer has passed, and waits until all open runs have completed.
    pub async fn go_on(&self, environment: &Environment, pool: &PgPool, agent: &Agent) {
        let sql = "UPDATE step_waits SET due_at = now() WHERE due_at IS NOT NULL;
                   UPDATE workflow_runs SET wake_at = now() WHERE wake_at < 'infinity'";
        sqlx::raw_sql(sql).execute(pool).await.expect("due");
        agent.is_free.store(true, Ordering::Relaxed);
        for asking in [&self.asking, &self.inner] {
            let open = environment.get(&format!("/api/v1/runs/{asking}/callbacks")).await;
            let path = open[0]["url"].as_str().expect("a URL").split_once("/api/").expect("a path").1.to_owned();
            let answer = environment.post(&format!("/api/{path}"), &json!({})).await.expect("an answer");
            assert_eq!(answer.status(), 200);
        }
        for open in [&self.timed, &self.asking, &self.outer, &self.inner, &self.held] {
            becomes(pool, open, "COMPLETED").await;
        }
        for (ended, status) in
            [(&self.completed, "COMPLETED"), (&self.failed, "FAILED"), (&self.cancelled, "CANCELLED")]
        {
            assert_eq!(environment.get(&format!("/api/v1/runs/{ended}")).await["status"], status);
        }
    }
}

#[sqlx::test(migrations = false)]
async fn after_a_restore_beside_an_empty_kafka_all_open_runs_go_on_and_no_ended_one_runs_again(pool: PgPool) {
    let before = Environment::new(&pool);
    let mut api = before.serve().await;
    let (agent, url) = Agent::start().await;
    let pending = before.chain("pending", &[format!("{url}/pending")]).await;
    let runs = Runs::in_every_state(&before, &pool, &agent, &url).await;
    let start = async |id: &str| before.execute(id).await.expect("accepted");
    // One whose message is in the lost Kafka, and one whose message was never sent.
    let dispatched = start(&pending).await;
    eventually("it is dispatched", async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox_messages").fetch_one(&pool).await.ok()?;
        (left == 0).then_some(())
    })
    .await;
    api.kill().await;
    let mut api = before.clone().with("KAFKA_BROKERS", "127.0.0.1:1").serve().await;
    let unsent = start(&pending).await;
    api.kill().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox_messages").fetch_one(&pool).await.expect("a count");
    assert_eq!(left, 1);

    let folder = std::env::temp_dir().join(format!("workflow-api-drill-{}", uuid::Uuid::new_v4()));
    let to = folder.to_str().expect("UTF-8");
    let backup = deploy_api(&before, &["backup", "--to", to]).await.stdout;
    let backup = String::from_utf8(backup).expect("UTF-8").trim().to_owned();
    // The sessions of the killed processes have ended.
    eventually("nobody uses the database", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'workflow-api'";
        let sessions: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.ok()?;
        (sessions == 0).then_some(())
    })
    .await;
    empty(&pool).await;
    deploy_api(&before, &["restore", &backup]).await;
    std::fs::remove_dir_all(&folder).expect("the backup");
    assert_consistent(&before).await;

    // Other topics and another group: this Kafka knows nothing.
    let after = Environment { url: before.url.clone(), ..Environment::new(&pool) };
    let after = after.with("API_PORT", &before.variables["API_PORT"]);
    let _api = after.serve().await;
    let _executor = after.start(&["executor"]);
    runs.go_on(&after, &pool, &agent).await;
    for open in [&dispatched, &unsent] {
        becomes(&pool, open, "COMPLETED").await;
    }
    // What had ended is not repeated; the call that was under way is.
    let calls = ["/done", "/broken", "/first", "/held", "/last", "/pending"].map(|path| agent.calls(path));
    assert_eq!(calls, [1, 1, 1, 2, 1, 2]);
    assert_consistent(&after).await;
}
