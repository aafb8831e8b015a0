//! kill -9 at the nasty moments.

use std::collections::HashSet;

use sqlx::PgPool;

use crate::program::Environment;

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
    crate::program::eventually("some runs", || async {
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
