//! Webhooks of real processes: kill -9 in the middle of sending.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, routing::post};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::Semaphore;

use crate::program::{Environment, eventually, free_port};

/// Receiver that answers as long as its gate has permits.
#[derive(Clone)]
struct Receiver {
    ids: Arc<Mutex<Vec<String>>>,
    gate: Arc<Semaphore>,
}

impl Receiver {
    async fn start(answers: usize) -> (Self, String) {
        let receiver = Self { ids: Arc::default(), gate: Arc::new(Semaphore::new(answers)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(post(Self::take)).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (receiver, url)
    }

    async fn take(State(receiver): State<Self>, headers: HeaderMap) -> StatusCode {
        let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).expect("an id").to_owned();
        receiver.ids.lock().expect("no panic").push(id);
        receiver.gate.acquire().await.expect("it stays open").forget();
        StatusCode::NO_CONTENT
    }

    fn ids(&self) -> Vec<String> {
        self.ids.lock().expect("no panic").clone()
    }
}

async fn in_state(pool: &PgPool, state: &str) -> i64 {
    let sql = "SELECT count(*) FROM webhook_deliveries WHERE state = $1";
    sqlx::query_scalar(sql).bind(state).fetch_one(pool).await.expect("a count")
}

/// The leases of killed processes are over, and those of the others too.
async fn end_leases(pool: &PgPool) {
    let sql = "UPDATE webhook_deliveries SET due_at = now(), leased_until = now() WHERE lease IS NOT NULL AND state = 'pending'";
    sqlx::query(sql).execute(pool).await.expect("leases");
}

/// What a killed process was sending is sent by another one, and everything else once.
#[sqlx::test(migrations = false)]
async fn a_killed_sender_loses_no_delivery(pool: PgPool) {
    let environment = Environment::new(&pool);
    let mut first = environment.serve().await;
    // It answers so many, and then holds the others back.
    let (receiver, url) = Receiver::start(40).await;
    let body = json!({"name": "w", "url": url, "event_types": ["*"], "max_in_flight": 8});
    assert_eq!(environment.post("/api/v1/webhooks", &body).await.expect("an answer").status(), 201);
    let sql = "SELECT count(record_event('default', 'run.failed', NULL, '{}')) FROM generate_series(1, 200)";
    sqlx::query(sql).execute(&pool).await.expect("events");
    eventually("some are under way", async || (receiver.ids().len() == 48).then_some(())).await;
    eventually("some are recorded", async || (in_state(&pool, "delivered").await == 40).then_some(())).await;
    first.kill().await;
    receiver.gate.add_permits(10_000);
    let second = environment.clone().with("API_PORT", &free_port().to_string());
    let _second = second.start(&["serve"]);
    end_leases(&pool).await;
    eventually("all are delivered", async || (in_state(&pool, "delivered").await == 200).then_some(())).await;
    let ids = receiver.ids();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 200);
    assert!(ids.len() <= 208, "{} requests: only what was under way is sent again", ids.len());
}

/// Five processes send for one endpoint; one after the other is killed and replaced.
#[sqlx::test(migrations = false)]
async fn five_senders_that_are_killed_one_after_the_other_lose_no_delivery(pool: PgPool) {
    const EVENTS: usize = 1500;
    const IN_FLIGHT: usize = 8;
    let environment = Environment::new(&pool);
    let first = environment.serve().await;
    let (receiver, url) = Receiver::start(Semaphore::MAX_PERMITS).await;
    let body = json!({"name": "w", "url": url, "event_types": ["*"], "max_in_flight": IN_FLIGHT});
    assert_eq!(environment.post("/api/v1/webhooks", &body).await.expect("an answer").status(), 201);
    let another = || environment.clone().with("API_PORT", &free_port().to_string()).start(&["serve"]);
    let mut all = vec![first];
    all.extend((1..5).map(|_| another()));
    let sql = "SELECT count(record_event('default', 'run.failed', NULL, '{}')) FROM generate_series(1, $1::int)";
    sqlx::query(sql).bind(i32::try_from(EVENTS).expect("small")).execute(&pool).await.expect("events");
    let (mut killed, mut seen) = (0, 0);
    while seen < EVENTS {
        seen = eventually("more are delivered", async || {
            let now = usize::try_from(in_state(&pool, "delivered").await).expect("a count");
            (now > seen).then_some(now)
        })
        .await;
        if killed < 10 && seen < EVENTS {
            all[killed % 5].kill().await;
            all[killed % 5] = another();
            killed += 1;
            end_leases(&pool).await;
        }
    }
    assert!(killed > 2, "{killed} were killed");
    let ids = receiver.ids();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), EVENTS);
    let most = EVENTS + IN_FLIGHT * killed;
    assert!(ids.len() <= most, "{} requests, {killed} were killed: only what was under way is sent again", ids.len());
}

/// Value of a series of the metrics, as soon as there is one.
async fn series<T: std::str::FromStr>(environment: &Environment, name: &str) -> T {
    let value = eventually(&format!("{name} has a value"), async || {
        let metrics = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer");
        let metrics = metrics.text().await.expect("text");
        metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    })
    .await;
    value.parse().unwrap_or_else(|_| panic!("{name} {value}"))
}

#[sqlx::test(migrations = false)]
async fn the_metrics_count_attempts_and_endpoints_and_show_what_is_late(pool: PgPool) {
    let environment = Environment::new(&pool).with("WEBHOOK_RETRY_SECONDS", "604800");
    let _api = environment.serve().await;
    let router = Router::new()
        .route("/fine", post(async || StatusCode::OK))
        .route("/broken", post(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/gone", post(async || StatusCode::GONE));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let nowhere = format!("http://127.0.0.1:{}/nowhere", free_port());
    for url in [&format!("{url}/fine"), &format!("{url}/broken"), &format!("{url}/gone"), &nowhere] {
        let body = json!({"name": "w", "url": url, "event_types": ["*"], "max_in_flight": 1, "rate_per_second": 100});
        assert_eq!(environment.post("/api/v1/webhooks", &body).await.expect("an answer").status(), 201);
    }
    let record = "SELECT count(record_event('default', 'run.failed', NULL, '{}')) FROM generate_series(1, 5)";
    sqlx::query(record).execute(&pool).await.expect("events");
    let attempts = async |outcome: &str| {
        series::<u32>(&environment, &format!("webhook_attempts_total{{outcome=\"{outcome}\"}}")).await
    };
    eventually("all attempts are counted", async || {
        let found = (attempts("success").await, attempts("network").await, attempts("status").await);
        // Those that are left hear that one is disabled.
        (found == (6, 6, 7)).then_some(())
    })
    .await;
    assert_eq!((attempts("timeout").await, attempts("not_allowed").await), (0, 0));
    assert_eq!(series::<u32>(&environment, "webhooks_given_up_total").await, 1);
    let state = async |state: &str| series::<u32>(&environment, &format!("webhooks{{state=\"{state}\"}}")).await;
    eventually("the endpoints are counted", async || {
        let found = (state("enabled").await, state("failing").await, state("disabled").await);
        (found == (3, 2, 1)).then_some(())
    })
    .await;
    // Nothing is late: what is to come is due in a week.
    assert_eq!(series::<u32>(&environment, "webhook_oldest_due_seconds").await, 0);
    // The rate of all endpoints allows nothing for an hour, and what comes then has been due for some time.
    sqlx::query("UPDATE webhook_states SET next_at = now() + interval '1 hour'").execute(&pool).await.expect("states");
    sqlx::query(record).execute(&pool).await.expect("events");
    eventually("they wait", async || {
        let sql = "UPDATE webhook_deliveries SET due_at = now() - interval '100 seconds'
                   WHERE state = 'pending' AND attempts = 0 AND due_at > now() - interval '99 seconds'
                       AND webhook_id IN (SELECT id FROM webhooks WHERE enabled)";
        (sqlx::query(sql).execute(&pool).await.expect("late").rows_affected() > 0).then_some(())
    })
    .await;
    eventually("the oldest one is shown", async || {
        let oldest: f64 = series(&environment, "webhook_oldest_due_seconds").await;
        (100.0..1000.0).contains(&oldest).then_some(())
    })
    .await;
    assert_eq!(attempts("success").await, 6, "nothing was sent");
}
