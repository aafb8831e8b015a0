//! Flow control over processes that are killed: no slot is lost, none is given away twice, and every run ends.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Json, Router, routing::post};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, eventually, free_port};

const LIMIT: i64 = 3;
const RUNS: usize = 1000;

async fn agent() -> String {
    let handle = async |Json(call): Json<Value>| {
        Json(
            json!({"jsonrpc": "2.0", "id": call["id"], "result": {"kind": "task", "id": "t", "status": {"state": "completed"}}}),
        )
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(post(handle))).await });
    url
}

async fn count(pool: &PgPool, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM workflow_runs WHERE {condition}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.expect("a count")
}

#[sqlx::test(migrations = false)]
async fn a_thousand_runs_over_killed_processes_never_exceed_their_limit_and_all_end(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut first = environment.serve().await;
    let (mut apis, mut others) = (vec![environment.clone()], Vec::new());
    for _ in 1..5 {
        let port = free_port();
        let mut other = environment.clone().with("API_PORT", &port.to_string());
        other.url = format!("http://127.0.0.1:{port}");
        others.push(other.serve().await);
        apis.push(other);
    }
    let workflow = environment.chain("limited", &[agent().await]).await;
    let limit = json!({"concurrency": {"limit": LIMIT}});
    let answer = reqwest::Client::new()
        .put(format!("{}/api/v1/workflows/{workflow}", environment.url))
        .json(&limit)
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), 200);
    // At each moment that the rows show, no more runs have a slot than the limit allows.
    let (is_over, slots) =
        (Arc::new(AtomicBool::new(false)), "flow_state = 'admitted' AND status IN ('PENDING', 'RUNNING')");
    let watched = tokio::spawn({
        let (pool, is_over) = (pool.clone(), Arc::clone(&is_over));
        async move {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(count(&pool, slots).await);
            }
            most
        }
    });
    let mut executor = environment.start(&["executor"]);
    let starts = futures_util::stream::iter(0..RUNS).map(|number| {
        let (api, workflow) = (apis[number % apis.len()].clone(), workflow.clone());
        async move { api.execute(&workflow).await }
    });
    let acknowledged: HashSet<String> = starts.buffer_unordered(16).filter_map(async |run_id| run_id).collect().await;
    assert_eq!(acknowledged.len(), RUNS);
    eventually("some have ended", async || (count(&pool, "status = 'COMPLETED'").await > 50).then_some(())).await;
    // The executor dies with its slots, and two of the five processes that admit runs.
    executor.kill().await;
    first.kill().await;
    others[0].kill().await;
    let before = count(&pool, "status = 'COMPLETED'").await;
    let silent = "UPDATE processes SET heartbeat_at = heartbeat_at - interval '8 seconds' WHERE role = 'executor'";
    sqlx::query(silent).execute(&pool).await.expect("done");
    assert!(usize::try_from(before).expect("a count") < RUNS, "they were too fast");
    let _next = environment.start(&["executor"]);
    eventually("all have ended", async || {
        let ended = count(&pool, "status = 'COMPLETED'").await;
        (usize::try_from(ended).expect("a count") == RUNS).then_some(())
    })
    .await;
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(watched.await.expect("no panic"), LIMIT);
    let output = environment.run(&["check", "invariants"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
