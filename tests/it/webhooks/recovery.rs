//! Recovery: what was held or has failed is sent again, each once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::response::IntoResponse as _;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use super::{Receiver, create, get, in_state, path, record};
use crate::service::{Service, config, eventually};

async fn recover(service: &Service, webhook: &Value, body: Value, status: u16) -> Value {
    service.post(&format!("{}/recover", path(webhook)), &body).await.expect(status)
}

/// Pitfall 6: what came while the endpoint was disabled arrives, once.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_was_held_is_sent_when_the_endpoint_is_enabled(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    service.post(&format!("{}/disable", path(&webhook)), &json!({})).await.expect(200);
    record(&pool, "run.failed", 50).await;
    eventually("all are held", async || (in_state(&pool, "held").await == 50).then_some(())).await;
    assert_eq!(receiver.count("/"), 0);
    let enable = format!("{}/enable", path(&webhook));
    service.post(&enable, &json!({"probe": true, "replay": "missing"})).await.expect(200);
    eventually("all are delivered", async || (in_state(&pool, "delivered").await == 51).then_some(())).await;
    let ids: std::collections::BTreeSet<_> =
        receiver.got("/", 51).await.iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 51, "50 and the probe");
    let actions = service.get("/api/v1/audit-logs?entity_type=webhook").await.expect(200);
    let actions: Vec<_> =
        actions["items"].as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["enable", "disable", "create"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn new_events_of_a_run_wait_for_those_that_were_held_if_the_endpoint_wants_an_order(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let webhook = create(&service, &receiver.url("/"), json!({"ordering": "per_run"})).await;
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    service.post(&format!("{}/disable", path(&webhook)), &json!({})).await.expect(200);
    let happens = async |from: i32, to: i32| {
        let sql = "SELECT count(record_event('default', 'run.waiting', $1, jsonb_build_object('n', n)))
                   FROM generate_series($2::int, $3) n";
        sqlx::query(sql).bind(&run_id).bind(from).bind(to).execute(&pool).await.expect("events");
    };
    happens(1, 10).await;
    eventually("all are held", async || (in_state(&pool, "held").await == 10).then_some(())).await;
    service
        .post(&format!("{}/enable", path(&webhook)), &json!({"probe": false, "replay": "missing"}))
        .await
        .expect(200);
    happens(11, 20).await;
    let got = receiver.got("/", 20).await;
    let order: Vec<i64> = got.iter().filter_map(|received| received.json()["data"]["n"].as_i64()).collect();
    assert_eq!(order, (1..=20).collect::<Vec<i64>>());
    // A run without a trace of its own has one all the same, which is that of everything that is sent about it.
    let traces: std::collections::BTreeSet<_> =
        got.iter().map(|received| received.header("traceparent").to_owned()).collect();
    assert_eq!((traces.len(), traces.first().map(String::len)), (1, Some(55)), "{traces:?}");
}

/// Pitfall 15: a recovery skips nothing and does nothing twice, and its dry run has counted it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn every_failure_is_recovered_once_and_as_many_as_the_dry_run_counts(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    // It gets one at a time and does not answer, so that the others wait, where they can be counted.
    let webhook = create(&service, &receiver.url("/slow"), json!({"max_in_flight": 1})).await;
    // Many with the same time, ids in no order.
    let sql = "INSERT INTO webhook_deliveries (id, created_at, webhook_id, organization_id, event_id, event_type, event_at, body,
                   state, attempts, ended_at)
               SELECT gen_random_uuid(), now() - make_interval(secs => n / 7), w.id, 'default', gen_random_uuid(),
                   CASE WHEN n % 2 = 0 THEN 'run.failed' ELSE 'run.completed' END, now() - make_interval(secs => n / 7 + 1),
                   '{}', 'failed', 10, now()
               FROM webhooks w, generate_series(1, 25000) n";
    sqlx::query(sql).execute(&pool).await.expect("failures");
    let since = "2026-01-01T00:00:00Z";
    let body = json!({"since": since, "which": "failed"});
    let half =
        recover(&service, &webhook, json!({"since": since, "which": "failed", "event_types": ["run.failed"]}), 200)
            .await;
    assert_eq!((&half["deliveries"], &half["is_exact"]), (&json!(12_500), &json!(true)));
    let counted = recover(&service, &webhook, body, 200).await;
    assert_eq!((&counted["deliveries"], &counted["dry_run"]), (&json!(25_000), &json!(true)));
    assert_eq!(in_state(&pool, "failed").await, 25_000, "the dry run changes nothing");
    recover(&service, &webhook, json!({"since": since, "which": "failed", "dry_run": false}), 202).await;
    let replayed = eventually("the recovery has ended", async || {
        let sql = "SELECT array_agg(replayed) FROM webhook_replays WHERE ended_at IS NOT NULL";
        sqlx::query_scalar::<_, Option<Vec<i64>>>(sql).fetch_one(&pool).await.expect("an answer")
    })
    .await;
    assert_eq!(replayed, [25_000]);
    assert_eq!((in_state(&pool, "failed").await, in_state(&pool, "pending").await), (0, 25_000));
    let shown = get(&service, &webhook).await["recoveries"].clone();
    assert_eq!((&shown[0]["deliveries"], &shown[0]["is_ended"]), (&json!(25_000), &json!(true)));
    assert_eq!(shown.as_array().map(Vec::len), Some(1));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_from_before_an_endpoint_are_missing_and_can_be_recovered(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    create(&service, &receiver.url("/first"), json!({})).await;
    record(&pool, "run.failed", 30).await;
    receiver.got("/first", 30).await;
    let late = create(&service, &receiver.url("/late"), json!({"filter": "${event.data.n} > 10"})).await;
    let body = |dry_run| json!({"since": "2026-01-01T00:00:00Z", "which": "missing", "dry_run": dry_run});
    assert_eq!(recover(&service, &late, body(true), 200).await["deliveries"], 20);
    recover(&service, &late, body(false), 202).await;
    receiver.got("/late", 20).await;
    eventually("all are recorded", async || (in_state(&pool, "delivered").await == 50).then_some(())).await;
    assert_eq!(recover(&service, &late, body(true), 200).await["deliveries"], 0);
    // All events once more.
    let all = json!({"since": "2026-01-01T00:00:00Z", "which": "all", "dry_run": false});
    assert_eq!(recover(&service, &late, all, 202).await["deliveries"], 20);
    let got = receiver.got("/late", 40).await;
    let ids: std::collections::BTreeSet<_> =
        got.iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 20, "the same ids as at first");
    assert_eq!(receiver.count("/first"), 30);
    let wrong = service.post(&format!("{}/recover", path(&late)), &json!({"since": "x", "which": "some"})).await;
    assert_eq!(wrong.field_errors(), ["body.since value_error", "body.which value_error"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_that_was_given_up_gets_what_has_failed(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[("WEBHOOK_RETRY_SECONDS", "1")]), clock.clone());
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let receiver = Receiver::start(move |_, _| {
        if is_working.load(Ordering::SeqCst) { StatusCode::OK } else { StatusCode::GONE }.into_response()
    })
    .await;
    let webhook = create(&service, &receiver.url("/"), json!({"max_in_flight": 1})).await;
    record(&pool, "run.failed", 3).await;
    eventually("it is disabled", async || (get(&service, &webhook).await["enabled"] == false).then_some(())).await;
    eventually("one has failed", async || (in_state(&pool, "failed").await == 1).then_some(())).await;
    record(&pool, "run.failed", 2).await;
    eventually("others are held", async || (in_state(&pool, "held").await == 2).then_some(())).await;
    works.store(true, Ordering::SeqCst);
    service.post(&format!("{}/enable", path(&webhook)), &json!({"probe": false, "replay": "failed"})).await.expect(200);
    eventually("all are delivered", async || (in_state(&pool, "delivered").await == 5).then_some(())).await;
    assert_eq!(receiver.got("/", 6).await.len(), 6, "one attempt failed");
}

/// A test is for who asked for it: no recovery counts it or sends it again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn tests_of_a_webhook_are_not_recovered(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("WEBHOOK_RETRY_SECONDS", "604800")]));
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let receiver = Receiver::start(move |_, _| {
        let works = is_working.load(Ordering::SeqCst);
        if works { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }.into_response()
    })
    .await;
    let webhook = create(&service, &receiver.url("/"), json!({"enabled": false})).await;
    let test = format!("{}/test", path(&webhook));
    service.post(&test, &json!({})).await.expect(200);
    service.post(&test, &json!({"event_type": "run.failed"})).await.expect(200);
    works.store(true, Ordering::SeqCst);
    service.post(&test, &json!({})).await.expect(200);
    record(&pool, "run.failed", 1).await;
    eventually("it is held", async || (in_state(&pool, "held").await == 1).then_some(())).await;
    let enable = format!("{}/enable", path(&webhook));
    service.post(&enable, &json!({"probe": false, "replay": "failed"})).await.expect(200);
    eventually("what was held is delivered", async || (in_state(&pool, "delivered").await == 2).then_some(())).await;
    for (which, count) in [("failed", 0), ("missing", 0), ("all", 1)] {
        let body = |dry_run| json!({"since": "2026-01-01T00:00:00Z", "which": which, "dry_run": dry_run});
        assert_eq!(recover(&service, &webhook, body(true), 200).await["deliveries"], count, "{which}");
        recover(&service, &webhook, body(false), 202).await;
    }
    eventually("all recoveries have ended", async || {
        let recoveries = get(&service, &webhook).await["recoveries"].as_array().cloned().expect("a list");
        (recoveries.len() == 5 && recoveries.iter().all(|recovery| recovery["is_ended"] == true)).then_some(())
    })
    .await;
    eventually("the event is delivered again", async || (in_state(&pool, "delivered").await == 2).then_some(())).await;
    // Three tests, and the event twice.
    receiver.got("/", 5).await;
    let list = service.get(&format!("{}/deliveries?sort_order=asc", path(&webhook))).await.expect(200);
    let seen: Vec<_> = list["items"].as_array().expect("a list").iter().map(|item| &item["is_test"]).collect();
    assert_eq!(seen, [true, true, true, false]);
}
