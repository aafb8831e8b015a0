//! Events for other programs outlive every kill -9: one exists if and only if the state of its run has changed, and the
//! topic gets all of them.

use std::collections::{HashMap, HashSet};

use axum::{Json, Router};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::kafka;

use crate::{
    eventually::{MAX_POLLS, POLL},
    program::{Environment, eventually},
};

/// Seed of the moments: the given one, or a new one.
fn seed() -> u64 {
    const GIVEN: &str = "WORKFLOW_API_TEST_SEED";
    let given = std::env::var(GIVEN).ok().map(|seed| seed.parse().expect("a seed is a number"));
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("{GIVEN}={seed} repeats this");
    seed
}

/// An agent that answers at once.
pub async fn agent() -> String {
    let handle = async |Json(call): Json<Value>| {
        let task = json!({"kind": "task", "id": "t", "status": {"state": "completed"},
            "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "done"}]}]});
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": task}))
    };
    let router = Router::new().fallback(axum::routing::post(handle));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Runs whose events are not those of their states.
async fn wrong(pool: &PgPool) -> Vec<(String, String, i64, i64)> {
    let sql = "
        SELECT r.run_id::text, r.status::text, count(*) FILTER (WHERE event_type = 'run.started'),
            count(*) FILTER (WHERE event_type = 'run.completed')
        FROM workflow_runs r LEFT JOIN webhook_events e ON e.run_id = r.run_id
        GROUP BY r.run_id, r.status
        HAVING count(*) FILTER (WHERE event_type = 'run.started') <> (r.status <> 'PENDING')::int
            OR count(*) FILTER (WHERE event_type = 'run.completed') <> (r.status = 'COMPLETED')::int";
    sqlx::query_as(sql).fetch_all(pool).await.expect("runs")
}

async fn completed(pool: &PgPool) -> usize {
    let sql = "SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'";
    let count: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count");
    usize::try_from(count).expect("small")
}

/// Types of the events of the topic by run, each event once, in the order of their first arrival, until there are so many.
async fn published(environment: &Environment, count: usize) -> HashMap<String, Vec<String>> {
    let kafka = environment.kafka();
    let topic = kafka.events_topic.clone().expect("a topic");
    let read = move || {
        let consumer: BaseConsumer = kafka::client_config(&kafka)
            .set("group.id", format!("reader-{}", Uuid::new_v4()))
            .set("auto.offset.reset", "earliest")
            .create()
            .expect("valid settings");
        consumer.subscribe(&[&topic]).expect("a topic name");
        let (mut known, mut by_run, mut polls) = (HashSet::new(), HashMap::<String, Vec<String>>::new(), 0..MAX_POLLS);
        while known.len() < count {
            let Some(Ok(record)) = consumer.poll(POLL) else {
                assert!(polls.next().is_some(), "{} of {count} events arrived", known.len());
                continue;
            };
            let event: Value = serde_json::from_slice(record.payload().expect("a value")).expect("JSON");
            let text = |name: &str| event[name].as_str().expect("text").to_owned();
            if known.insert(text("id")) {
                by_run.entry(text("subject")).or_default().push(text("type"));
            }
        }
        by_run
    };
    tokio::task::spawn_blocking(read).await.expect("the reader does not panic")
}

#[sqlx::test(migrations = false)]
async fn an_event_exists_if_and_only_if_a_killed_process_has_changed_the_run(pool: PgPool) {
    let topic = format!("events-{}", Uuid::new_v4().simple());
    let environment = Environment::new(&pool).with("KAFKA_EVENTS_TOPIC", &topic);
    let mut api = environment.serve().await;
    eventually("the topic is known", async || {
        sqlx::query_scalar::<_, String>("SELECT topic FROM event_topics").fetch_optional(&pool).await.ok().flatten()
    })
    .await;
    let workflow_id = environment.chain("told", &[agent().await]).await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut executor = environment.start(&["executor"]);
    let (mut total, mut before) = (0, 0);
    for round in 0..5 {
        for _ in 0..60 {
            total += usize::from(environment.execute(&workflow_id).await.is_some());
        }
        // Somewhere in the middle of the runs of this round.
        let until = before + random.random_range(1..50);
        eventually("some runs have ended", async || (completed(&pool).await >= until).then_some(())).await;
        executor.kill().await;
        if round % 2 == 0 {
            api.kill().await;
        }
        let found = wrong(&pool).await;
        assert!(found.is_empty(), "{found:?}");
        before = completed(&pool).await;
        executor = environment.start(&["executor"]);
        if round % 2 == 0 {
            api = environment.serve().await;
        }
    }
    eventually("all runs have completed", async || (completed(&pool).await >= total).then_some(())).await;
    let found = wrong(&pool).await;
    assert!(found.is_empty(), "{found:?}");
    // Interrupted attempts are events too.
    let sql = "SELECT run_id::text, array_agg(event_type ORDER BY position) FROM webhook_events GROUP BY run_id";
    let recorded: Vec<(String, Vec<String>)> = sqlx::query_as(sql).fetch_all(&pool).await.expect("events");
    assert_eq!(recorded.len(), completed(&pool).await);
    let by_run = published(&environment, recorded.iter().map(|(_, types)| types.len()).sum()).await;
    assert_eq!(by_run, recorded.into_iter().collect());
}
