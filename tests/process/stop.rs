//! Stopping as asked: everything that was acknowledged is kept, everything that was taken is finished.

use std::collections::HashSet;

use sqlx::PgPool;

use crate::program::{Environment, eventually, signal};

#[sqlx::test(migrations = false)]
async fn an_api_that_is_stopped_under_load_ends_well_and_loses_nothing(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut api = environment.serve().await;
    let workflow_id = environment.chain("load", &["http://127.0.0.1:9/".to_owned()]).await;
    let clients = (0..16).map(|_| {
        let (environment, workflow_id) = (environment.clone(), workflow_id.clone());
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            // Ends with the first request that is not acknowledged: the API is gone.
            while let Some(run_id) = environment.execute(&workflow_id).await {
                acknowledged.push(run_id);
            }
            acknowledged
        })
    });
    let clients: Vec<_> = clients.collect();
    eventually("some runs", || async {
        let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.ok()?;
        (runs > 300).then_some(())
    })
    .await;
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
    let mut acknowledged = HashSet::new();
    for client in clients {
        acknowledged.extend(client.await.expect("a client"));
    }
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&pool).await.expect("runs");
    let stored: HashSet<String> = stored.into_iter().collect();
    assert!(acknowledged.is_subset(&stored));
    // The relay has sent what it held, and the process has taken itself off the list.
    let left: i64 =
        sqlx::query_scalar("SELECT (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM processes)")
            .fetch_one(&pool)
            .await
            .expect("a count");
    assert_eq!(left, 0);
    environment.wait_for_messages(acknowledged).await;
}

#[sqlx::test(migrations = false)]
async fn an_executor_ends_well_when_it_is_asked_to(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let mut executor = environment.start(&["executor"]);
    eventually("the executor is registered", || async {
        let sql = "SELECT count(*) FROM processes WHERE role = 'executor'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.ok()?;
        (count == 1).then_some(())
    })
    .await;
    executor.terminate().await;
    assert_eq!(executor.exit_code().await, 0, "{}", executor.log());
}

/// What a load balancer and its clients see of a restart.
#[sqlx::test(migrations = false)]
async fn an_api_that_is_about_to_stop_is_not_ready_and_serves(pool: PgPool) {
    let environment = Environment::new(&pool).with("SHUTDOWN_NOTICE_SECS", "15");
    let mut api = environment.serve().await;
    api.terminate().await;
    let ready = || async {
        let answer = reqwest::get(format!("{}/health/ready", environment.url)).await.expect("an answer");
        (answer.status() == 503).then_some(answer)
    };
    let ready: serde_json::Value = eventually("it is not ready", ready).await.json().await.expect("JSON");
    assert_eq!((&ready["checks"]["process"], &ready["checks"]["database"]), (&"stopping".into(), &"connected".into()));
    let answer = reqwest::get(format!("{}/api/v1/agents", environment.url)).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["connection"], "close");
    // Another signal ends it at once. One that follows too closely would count as the same.
    let id = api.id();
    eventually("it ends", || {
        let has_ended = api.has_ended();
        async move {
            if !has_ended {
                signal(id, "TERM").await;
            }
            has_ended.then_some(())
        }
    })
    .await;
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
    assert!(api.log().contains("a second signal"), "{}", api.log());
}

/// Whoever waits for something is sent elsewhere, and told so.
#[sqlx::test(migrations = false)]
async fn whoever_waits_is_answered_when_an_api_stops(pool: PgPool) {
    let environment = Environment::new(&pool).with("SHUTDOWN_NOTICE_SECS", "1");
    let mut api = environment.serve().await;
    let workflow_id = environment.chain("waiting", &["http://127.0.0.1:9/".to_owned()]).await;
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    let client = reqwest::Client::new();
    let events = client.get(format!("{}/api/v1/runs/{run_id}/events", environment.url)).send().await.expect("a stream");
    let wait = client.post(format!("{}/api/v1/workflows/{workflow_id}/execute", environment.url));
    let wait = wait.header("prefer", "wait=60").json(&serde_json::json!({"input_data": {"text": "hello"}})).send();
    let wait = tokio::spawn(wait);
    eventually("it waits", async || {
        let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.ok()?;
        (runs == 2).then_some(())
    })
    .await;
    api.terminate().await;
    let answer = wait.await.expect("no panic").expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["connection"]), (202, &"close".parse().expect("a value")));
    let body: serde_json::Value = answer.json().await.expect("JSON");
    assert_eq!(body["status"], "PENDING");
    // The stream is complete, and has no end: its client comes back, to another process.
    let events = events.text().await.expect("the stream ends in order");
    assert!(events.starts_with("retry: 1000\n") && events.contains("run.created"), "{events}");
    assert!(!events.contains("event: end"), "{events}");
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
}
