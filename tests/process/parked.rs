//! Runs that wait for something outside of them, while the processes come and go.

use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, Program, eventually};

/// Memory of a program in RAM, without the pages of files, which are the program itself and its libraries.
fn own_bytes(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel names it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

async fn store(environment: &Environment, workflow: &Value) -> String {
    let answer = environment.post("/api/v1/workflows", workflow).await.expect("an answer");
    assert_eq!(answer.status(), 201);
    let workflow: Value = answer.json().await.expect("JSON");
    workflow["id"].as_str().expect("an id").to_owned()
}

async fn count(pool: &PgPool, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM workflow_runs WHERE {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.as_str())).fetch_one(pool).await.expect("a count")
}

const PARKED: &str = "status = 'RUNNING' AND executor_id IS NULL AND wake_at IS NOT NULL";

#[sqlx::test(migrations = false)]
async fn waits_callbacks_and_sub_workflows_outlive_a_kill_and_no_executor_remembers_them(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let inner = json!({"name": "inner", "start_step": "nap", "steps": {
        "nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 4}}}});
    store(&environment, &inner).await;
    let outer = json!({"name": "outer", "start_step": "all", "steps": {
        "all": {"id": "all", "type": "parallel", "parallel_steps": ["sub", "ask"]},
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}},
        "ask": {"id": "ask", "type": "callback"}}});
    let workflow_id = store(&environment, &outer).await;
    let mut executor = environment.start(&["executor"]);
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    eventually("both are parked", async || (count(&pool, PARKED).await == 2).then_some(())).await;
    executor.kill().await;
    api.kill().await;
    let _api = environment.serve().await;
    let open = environment.get(&format!("/api/v1/runs/{run_id}/callbacks")).await;
    let path = open[0]["url"].as_str().expect("a URL").split_once("/api/").expect("a path").1.to_owned();
    let answer = environment.post(&format!("/api/{path}"), &json!({"said": 1})).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let _executor = environment.start(&["executor"]);
    let run = eventually("the run ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] != "RUNNING").then_some(run)
    })
    .await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    assert_eq!(run["output_data"]["ask"], json!({"said": 1}));
    assert!(run["output_data"]["sub"]["until"].is_string());
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM step_executions").fetch_one(&pool).await.expect("a count");
    assert_eq!(rows, 4, "nothing was begun anew");
}

/// The promise of the product: what waits costs no memory.
#[sqlx::test(migrations = false)]
async fn ten_thousand_runs_that_wait_for_callbacks_take_no_memory_of_the_executor(pool: PgPool) {
    const RUNS: usize = 10_000;
    /// A KiB for each run would exceed it.
    const MOST: u64 = 20 << 20;
    // What is under way takes several times more without optimisation, and is not what this is about.
    let environment = Environment::new(&pool).with("LOG_LEVEL", "WARNING").with("MAX_CONCURRENT_EXECUTIONS", "64");
    let _api = environment.serve().await;
    let workflow = json!({"name": "ask", "start_step": "ask", "steps": {
        "ask": {"id": "ask", "type": "callback", "input_mapping": {"text": "${workflow.input.text}"}}}});
    let workflow_id = store(&environment, &workflow).await;
    let mut executor = environment.start(&["executor"]);
    let client = reqwest::Client::new();
    let url = format!("{}/api/v1/workflows/{workflow_id}/execute", environment.url);
    let started: usize = stream::iter(0..RUNS)
        .map(|_| async {
            let body = json!({"input_data": {"text": "hello"}});
            let answer = client.post(&url).json(&body).send().await.expect("an answer");
            usize::from(answer.status() == 202)
        })
        .buffer_unordered(64)
        .fold(0, async |sum, one| sum + one)
        .await;
    assert_eq!(started, RUNS);
    eventually("all are parked", async || (count(&pool, PARKED).await == 10_000).then_some(())).await;
    let own = own_bytes(&executor);
    assert!(own <= MOST, "{own} bytes");
    // Another one, which has never seen them, has no more; and what is answered goes on.
    executor.kill().await;
    let executor = environment.start(&["executor"]);
    let tokens: Vec<String> =
        sqlx::query_scalar("SELECT token FROM step_waits LIMIT 200").fetch_all(&pool).await.expect("tokens");
    for token in &tokens {
        let url = format!("{}/api/v1/callbacks/{token}", environment.url);
        let answer = client.post(url).json(&json!({})).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    eventually("the answered ones complete", async || {
        (count(&pool, "status = 'COMPLETED'").await == 200).then_some(())
    })
    .await;
    let own = own_bytes(&executor);
    assert!(own <= MOST, "{own} bytes");
}
