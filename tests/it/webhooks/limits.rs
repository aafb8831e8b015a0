//! Failures: answers of any size, addresses inside, giving up, and what is kept for how long.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    response::IntoResponse as _,
};
use futures_util::stream;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    clock::Clock,
    db::{self, migrations::MIGRATOR},
};

use super::{Receiver, WEBHOOKS, create, delivery, ended, get, path, record};
use crate::service::{Service, config, eventually, own_pool};

/// Pitfall 12: an answer of any size is recorded, and read up to a bound.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_of_any_size_is_recorded(pool: PgPool) {
    let service = Service::start(&pool);
    let receiver = Receiver::start(|received, _| match received.path.as_str() {
        "/large" => "x".repeat(10 << 20).into_response(),
        "/endless" => {
            let chunks = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b'y'; 1024])));
            Body::from_stream(chunks).into_response()
        }
        "/binary" => Bytes::from_static(b"a\0\xff").into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    for (at, expected) in [
        ("/large", Some("x".repeat(4096))),
        ("/endless", Some("y".repeat(4096))),
        ("/binary", Some("a\u{fffd}\u{fffd}".to_owned())),
        ("/empty", None),
    ] {
        let webhook = create(&service, &receiver.url(at), json!({"event_types": ["run.failed"]})).await;
        record(&pool, "run.failed", 1).await;
        let log = ended(&service, &webhook, 1).await;
        assert_eq!(log[0]["state"], "delivered", "{at}");
        let shown = delivery(&service, &log[0]["id"]).await;
        assert_eq!(shown["attempt_log"][0]["answer"], json!(expected), "{at}");
        service.delete(&path(&webhook)).await.expect(200);
    }
}

/// Pitfall 12: more than 16 KiB are not read, and the connection is dropped. The clock stands still, so no time-out
/// helps.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_connection_of_an_answer_is_dropped_at_16_kib(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let dropped: Arc<Mutex<Vec<String>>> = Arc::default();
    let ends = Arc::clone(&dropped);
    // So many bytes as the path says, and no end.
    let receiver = Receiver::start(move |received, _| {
        let bytes = received.path[1..].parse().expect("a number");
        let end = Dropped(Arc::clone(&ends), received.path.clone());
        let body = stream::unfold((Some(vec![b'x'; bytes]), end), async |(mut bytes, end)| {
            let Some(bytes) = bytes.take() else { return std::future::pending().await };
            Some((Ok::<_, std::io::Error>(Bytes::from(bytes)), (None, end)))
        });
        Body::from_stream(body).into_response()
    })
    .await;
    let is_dropped = |path: &str| dropped.lock().expect("no panic").iter().any(|dropped| dropped == path);
    let short = create(&service, &receiver.url("/16383"), json!({})).await;
    let long = create(&service, &receiver.url("/16384"), json!({})).await;
    record(&pool, "run.failed", 1).await;
    assert_eq!(ended(&service, &long, 1).await[0]["state"], "delivered");
    eventually("its connection is closed", async || is_dropped("/16384").then_some(())).await;
    receiver.got("/16383", 1).await;
    let list = format!("{}/deliveries", path(&short));
    assert_eq!(service.get(&list).await.expect(200)["items"][0]["is_under_way"], true);
    assert!(!is_dropped("/16383"), "one byte more may come");
    clock.advance(Duration::from_secs(15));
    assert_eq!(ended(&service, &short, 1).await[0]["state"], "delivered", "the status has come");
    eventually("this one is closed too", async || is_dropped("/16383").then_some(())).await;
}

/// Says by which path it was dropped.
struct Dropped(Arc<Mutex<Vec<String>>>, String);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.lock().expect("no panic").push(self.1.clone());
    }
}

/// Pitfall 8: no spelling of an address inside is taken, and no redirect leads there.
#[sqlx::test(migrator = "MIGRATOR")]
async fn no_url_and_no_redirect_leads_inside(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("EGRESS_ALLOW", "")]));
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "１２７.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[::]",
        "224.0.0.1",
    ] {
        for scheme in ["https", "http"] {
            let body = json!({"name": "n", "url": format!("{scheme}://{host}/"), "event_types": ["*"]});
            let answer = service.post(WEBHOOKS, &body).await;
            assert_eq!(answer.field_errors(), ["body.url value_error"], "{scheme}://{host}");
        }
    }
    let plain = json!({"name": "n", "url": "http://93.184.215.14/", "event_types": ["*"]});
    assert_eq!(service.post(WEBHOOKS, &plain).await.field_errors(), ["body.url value_error"], "without TLS");
    // A name that leads inside is refused where it is resolved.
    let named = create(&service, "https://localhost:9/", json!({})).await;
    let tested = service.post(&format!("{}/test", path(&named)), &json!({})).await.expect(200);
    assert_eq!((&tested["outcome"], &tested["status_code"]), (&json!("not_allowed"), &json!(null)));
    service.stop().await;

    let service = Service::start(&pool);
    let inside = Receiver::content().await;
    let target = inside.url("/inside");
    let receiver =
        Receiver::start(move |_, _| (StatusCode::FOUND, [("location", target.clone())]).into_response()).await;
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    let tested = service.post(&format!("{}/test", path(&webhook)), &json!({})).await.expect(200);
    assert_eq!((&tested["outcome"], &tested["status_code"]), (&json!("status"), &json!(302)));
    // The same for a delivery.
    record(&pool, "run.failed", 1).await;
    assert_eq!(failures(&service, &webhook, 1).await["failures"], 1);
    let failed = format!("{}/deliveries?state=pending", path(&webhook));
    let failed = service.get(&failed).await.expect(200)["items"][0].clone();
    assert_eq!((&failed["attempts"], &failed["status_code"]), (&json!(1), &json!(302)));
    assert_eq!(failed["error"], "the answer is 302; redirects are not followed");
    assert!(!failed["next_attempt_at"].is_null(), "{failed}");
    assert_eq!(inside.at("/inside").len(), 0);
}

/// The failures of an endpoint, as soon as there are so many.
async fn failures(service: &Service, webhook: &Value, count: i64) -> Value {
    eventually(&format!("{count} failures"), async || {
        let found = get(service, webhook).await;
        (found["failures"].as_i64() >= Some(count)).then_some(found)
    })
    .await
}

/// Pitfall 4: ten thousand failures in an hour switch nothing off; a hundred and twenty hours do, and one success begins
/// them anew.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_is_given_up_by_time_and_not_by_count(pool: PgPool) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let clock = Clock::stopped();
    // One attempt an event.
    let settings = [("WEBHOOK_RETRY_SECONDS", "604800")];
    let service = Service::start_by(config(&pool, &settings), clock.clone());
    let works = Arc::new(AtomicBool::new(false));
    let is_working = Arc::clone(&works);
    let receiver = Receiver::start(move |_, _| {
        let works = is_working.load(Ordering::SeqCst);
        if works { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }.into_response()
    })
    .await;
    let webhook = create(&service, &receiver.url("/"), json!({"max_in_flight": 64})).await;
    // The first and the last hundred of them are real.
    for count in [100, 10_000] {
        record(&pool, "run.failed", 100).await;
        failures(&service, &webhook, count).await;
        let others = "UPDATE webhook_states SET failures = failures + 9800 WHERE failures = 100";
        sqlx::query(others).execute(&pool).await.expect("those in between");
        clock.advance(Duration::from_mins(30));
    }
    assert_eq!(
        (&get(&service, &webhook).await["enabled"], &get(&service, &webhook).await["health"]),
        (&json!(true), &json!("failing"))
    );
    clock.advance(Duration::from_hours(118));
    works.store(true, Ordering::SeqCst);
    record(&pool, "run.failed", 1).await;
    eventually("a success clears the failures", async || {
        (get(&service, &webhook).await["failures"] == 0).then_some(())
    })
    .await;
    works.store(false, Ordering::SeqCst);
    record(&pool, "run.failed", 1).await;
    failures(&service, &webhook, 1).await;
    clock.advance(Duration::from_hours(119));
    record(&pool, "run.failed", 1).await;
    assert_eq!(failures(&service, &webhook, 2).await["enabled"], true, "119 h");
    clock.advance(Duration::from_hours(2));
    record(&pool, "run.failed", 1).await;
    let given_up = eventually("it is disabled", async || {
        Some(get(&service, &webhook).await).filter(|found| found["enabled"] == false)
    })
    .await;
    assert_eq!((&given_up["disabled_reason"], &given_up["health"]), (&json!("no_success"), &json!("disabled")));
}

/// Pitfall 5: others hear of it, the audit trail has it, and the metrics show it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_that_is_gone_is_disabled_at_once_and_others_hear_of_it(pool: PgPool) {
    let service = Service::start(&pool);
    let receiver = Receiver::start(|received, _| {
        if received.path == "/gone" { StatusCode::GONE } else { StatusCode::OK }.into_response()
    })
    .await;
    let gone = create(&service, &receiver.url("/gone"), json!({"name": "old one"})).await;
    let other = create(&service, &receiver.url("/other"), json!({"event_types": ["webhook.disabled"]})).await;
    record(&pool, "run.failed", 1).await;
    let told = receiver.got("/other", 1).await.remove(0).json();
    assert_eq!((&told["type"], &told["data"]["webhook"]["id"]), (&json!("webhook.disabled"), &gone["id"]));
    assert_eq!(
        (&told["data"]["webhook"]["name"], &told["data"]["webhook"]["reason"]),
        (&json!("old one"), &json!("gone"))
    );
    let found = get(&service, &gone).await;
    assert_eq!((&found["enabled"], &found["disabled_reason"]), (&json!(false), &json!("gone")));
    assert_eq!(ended(&service, &gone, 1).await[0]["state"], "failed");
    let trail = service.get("/api/v1/audit-logs?entity_type=webhook&action=disable").await.expect(200);
    assert_eq!((&trail["total"], &trail["items"][0]["user_id"]), (&json!(1), &json!("system")));
    let id = gone["id"].as_str().expect("an id");
    eventually("the metrics name it", async || {
        let text = service.get("/metrics").await.text;
        text.contains(&format!("webhook_disabled{{webhook_id=\"{id}\"}} 1")).then_some(())
    })
    .await;
    assert_eq!(ended(&service, &other, 1).await.len(), 1);
}

/// Pitfall 13: the log goes by whole days, but not what an endpoint is still to get.
#[sqlx::test(migrator = "MIGRATOR")]
async fn old_days_are_dropped_whole_unless_something_is_still_to_be_sent(pool: PgPool) {
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    let receiver = Receiver::content().await;
    let webhook = create(&service, &receiver.url("/slow"), json!({"max_in_flight": 1})).await;
    let sql = "
        CREATE TABLE webhook_deliveries_20260101 PARTITION OF webhook_deliveries
            FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z');
        CREATE TABLE webhook_deliveries_20260102 PARTITION OF webhook_deliveries
            FOR VALUES FROM ('2026-01-02Z') TO ('2026-01-03Z');
        CREATE TABLE webhook_attempts_20260101 PARTITION OF webhook_attempts
            FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z');";
    sqlx::raw_sql(sql).execute(&pool).await.expect("partitions");
    for (day, state) in [("2026-01-01T12:00:00Z", "delivered"), ("2026-01-02T12:00:00Z", "pending")] {
        let sql = "INSERT INTO webhook_deliveries (id, created_at, webhook_id, organization_id, event_id, event_type, event_at,
                       body, state, due_at)
                   SELECT gen_random_uuid(), $1::timestamptz, id, 'default', gen_random_uuid(), 'run.failed', $1::timestamptz,
                       '{}', $2, now() + interval '1 day' FROM webhooks";
        sqlx::query(sql).bind(day).bind(state).execute(&pool).await.expect("a delivery");
    }
    let days = async || -> Vec<String> {
        let sql = "SELECT relname::text FROM pg_class WHERE relname ~ '^webhook_(deliveries|attempts)_202601' AND relkind = 'r'
                   ORDER BY 1";
        sqlx::query_scalar(sql).fetch_all(&pool).await.expect("a catalogue")
    };
    let own = own_pool(&pool);
    let keep = async || db::webhooks::keep_partitions(&own, 14).await.expect("kept");
    // The service reads the tables too, and a drop waits for no reader.
    let keeps_only = async |left: &'static [&'static str]| {
        eventually("the other days are dropped", async || {
            keep().await;
            (days().await == left).then_some(())
        })
        .await;
    };
    keeps_only(&["webhook_deliveries_20260102"]).await;
    service.delete(&path(&webhook)).await.expect(200);
    // A reader of the table delays nobody but the drop.
    let mut reader = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM webhook_deliveries LIMIT 1").execute(&mut *reader).await.expect("read");
    keep().await;
    assert_eq!(days().await, ["webhook_deliveries_20260102"]);
    reader.commit().await.expect("done");
    keeps_only(&[]).await;
}

/// If no process has made partitions for some days, deliveries are made and sent all the same.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_day_without_a_partition_loses_nothing(pool: PgPool) {
    let parts = async || -> Vec<String> {
        let sql = "SELECT inhrelid::regclass::text FROM pg_inherits
                   WHERE inhparent IN ('webhook_deliveries'::regclass, 'webhook_attempts'::regclass) ORDER BY 1";
        sqlx::query_scalar(sql).fetch_all(&pool).await.expect("partitions")
    };
    // The migration has made those of today and the next eight days, and the default ones.
    let made = parts().await;
    assert_eq!(made.len(), 20);
    let drop_days = async || {
        for part in parts().await.iter().filter(|part| !part.ends_with("_other_days")) {
            sqlx::query(sqlx::AssertSqlSafe(format!("DROP TABLE {part}"))).execute(&pool).await.expect("dropped");
        }
    };
    drop_days().await;
    let service = Service::start(&pool);
    let receiver = Receiver::content().await;
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    record(&pool, "run.failed", 1).await;
    let log = ended(&service, &webhook, 1).await;
    assert_eq!(log[0]["state"], "delivered");
    assert_eq!(delivery(&service, &log[0]["id"]).await["attempt_log"][0]["status_code"], 204);
    service.stop().await;
    let count = async |table: &str| -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM ONLY {table}_other_days"));
        sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a count")
    };
    assert_eq!((count("webhook_deliveries").await, count("webhook_attempts").await), (1, 1));
    let own = own_pool(&pool);
    let keep = async |days| db::webhooks::keep_partitions(&own, days).await.expect("kept");
    keep(14).await;
    // Those of the days from the day after tomorrow on are made again.
    assert_eq!(parts().await.len(), 16);
    // A day that has rows already keeps them where they are, until they are too old.
    drop_days().await;
    for table in ["webhook_deliveries", "webhook_attempts"] {
        let sql = format!("UPDATE {table} SET created_at = created_at + interval '5 days'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.expect("moved");
    }
    keep(14).await;
    assert_eq!(parts().await.len(), 14);
    assert_eq!((count("webhook_deliveries").await, count("webhook_attempts").await), (1, 1));
    for table in ["webhook_deliveries", "webhook_attempts"] {
        let sql = format!("UPDATE {table} SET created_at = created_at - interval '25 days'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.expect("moved");
    }
    sqlx::query("UPDATE webhook_deliveries SET state = 'pending'").execute(&pool).await.expect("done");
    keep(14).await;
    assert_eq!((count("webhook_deliveries").await, count("webhook_attempts").await), (1, 1), "it is still to be sent");
    sqlx::query("UPDATE webhook_deliveries SET state = 'delivered'").execute(&pool).await.expect("done");
    keep(14).await;
    assert_eq!((count("webhook_deliveries").await, count("webhook_attempts").await), (0, 0));
    assert_eq!(parts().await.len(), 16);
}
