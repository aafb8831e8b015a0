//! Sending: signatures, retries, isolation, order.

use std::time::Duration;

use axum::response::IntoResponse as _;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use super::{Receiver, WEBHOOKS, create, delivery, ended, get, in_state, path, record, secret};
use crate::{
    access::Admin,
    path::Executor,
    service::{Service, config, eventually},
};

/// Pitfall 10: what arrives is verified by the official crate, byte by byte, whatever the numbers and letters are.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_delivery_is_signed_as_the_official_verifier_wants_it(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let thin = create(&service, &receiver.url("/thin"), json!({"event_types": ["run.*"]})).await;
    let full =
        create(&service, &receiver.url("/full"), json!({"payload": "full", "headers": {"X-Tenant": "t 1"}})).await;
    let workflow_id = service.one_step_workflow().await;
    let input = r#"{"input_data":{"text":"caf\u00e9","rate":1.0,"big":123456789012345678901234567890}}"#;
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let path_of_run = format!("/api/v1/workflows/{workflow_id}/execute");
    let run = service.send("POST", &path_of_run, &headers, input).await.expect(202);
    let run_id = run["run_id"].as_str().expect("an id");
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let at_thin = receiver.got("/thin", 1).await.remove(0);
    let at_full = receiver.got("/full", 1).await.remove(0);
    for (received, webhook) in [(&at_thin, &thin), (&at_full, &full)] {
        assert!(received.is_verified_with(secret(webhook)), "{received:?}");
        assert_eq!(received.header("content-type"), "application/json");
        assert!(received.header("user-agent").starts_with("workflow-api/"));
        assert_eq!((received.header("webhook-attempt"), received.header("webhook-depth")), ("1", "0"));
        assert!(received.header("traceparent").starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{received:?}");
        assert_eq!(received.header("webhook-signature").split(' ').count(), 1);
    }
    assert!(!at_thin.is_verified_with(secret(&full)));
    assert_eq!(at_thin.header("webhook-id"), at_full.header("webhook-id"), "the id is that of the event");
    assert!(at_thin.header("webhook-id").starts_with("evt_") && !at_thin.header("webhook-id").contains('.'));
    assert_eq!(at_full.header("x-tenant"), "t 1");
    for part in [r#""rate":1.0"#, r#""big":123456789012345678901234567890"#, "café"] {
        let compact = at_full.body.replace(": ", ":");
        assert!(compact.contains(part) && !at_thin.body.contains(part), "{part}: {}", at_full.body);
    }
    let body = at_thin.json();
    assert_eq!(body["type"], "run.cancelled");
    let data = &body["data"];
    assert_eq!((&data["run_id"], &data["status"]), (&json!(run_id), &json!("CANCELLED")));
    assert!(data["seq"].as_i64() > Some(0), "{data}");
    let link = data["links"]["run"].as_str().expect("a link");
    assert!(link.ends_with(&format!("/api/v1/runs/{run_id}")), "{link}");
    let log = ended(&service, &thin, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["status_code"]), (&json!("delivered"), &json!(204)));
    let shown = delivery(&service, &log[0]["id"]).await;
    assert_eq!(shown["body"], body);
    assert_eq!(
        (&shown["attempt_log"][0]["number"], &shown["attempt_log"][0]["outcome"]),
        (&json!(1), &json!("success"))
    );
    assert_eq!(shown["event_id"], at_thin.header("webhook-id"));
}

/// Pitfall 7: each attempt of the schedule happens, at its time.
#[sqlx::test(migrator = "MIGRATOR")]
async fn all_ten_attempts_happen_at_their_times(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::start(|_, _| StatusCode::INTERNAL_SERVER_ERROR.into_response()).await;
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    record(&pool, "run.failed", 1).await;
    let schedule = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
    let mut bodies = Vec::new();
    for (index, planned) in schedule.into_iter().enumerate() {
        let got = receiver.got("/", index + 1).await;
        assert_eq!(got[index].header("webhook-attempt"), (index + 1).to_string());
        bodies.push(got[index].body.clone());
        eventually("the attempt is recorded", async || {
            (get(&service, &webhook).await["failures"] == json!(index + 1)).then_some(())
        })
        .await;
        let due: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM due_at - now() - make_interval(secs => $1))::float8 FROM webhook_deliveries",
        )
        .bind(clock.lead().as_secs_f64())
        .fetch_one(&pool)
        .await
        .expect("a time");
        let planned = f64::from(planned);
        // The database's clock runs on while the test does.
        assert!(due > planned * 0.8 - 60.0 && due <= planned * 1.2, "attempt {}: {due} of {planned}", index + 2);
        clock.advance(Duration::from_secs_f64(due.max(0.0) + 0.001));
    }
    receiver.got("/", 10).await;
    let log = ended(&service, &webhook, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["attempts"]), (&json!("failed"), &json!(10)));
    assert_eq!(log[0]["error"], "the answer is 500");
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "every attempt has the same bytes");
    let all = receiver.at("/");
    assert!(all.iter().all(|received| received.is_signed_with(secret(&webhook))));
    let ids: std::collections::BTreeSet<_> =
        all.iter().map(|received| received.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(get(&service, &webhook).await["health"], "failing");
    let shown = delivery(&service, &log[0]["id"]).await;
    assert_eq!(shown["attempt_log"].as_array().map(Vec::len), Some(10));
    // By hand: one attempt more, and no schedule.
    let again = format!("/api/v1/webhook-deliveries/{}/redeliver", log[0]["id"].as_str().expect("an id"));
    service.post(&again, &json!({})).await.expect(202);
    assert_eq!(receiver.got("/", 11).await[10].header("webhook-attempt"), "11");
    assert_eq!(ended(&service, &webhook, 1).await[0]["attempts"], 11);
    service.post(&again, &json!({"restart_schedule": true})).await.expect(202);
    receiver.got("/", 12).await;
    eventually("the schedule begins again", async || {
        let list = service.get(&format!("{}/deliveries", path(&webhook))).await.expect(200);
        (list["items"][0]["attempts"] == 12 && !list["items"][0]["next_attempt_at"].is_null()).then_some(())
    })
    .await;
}

/// Pitfall 2: an endpoint that does not answer keeps its own places, and nobody else's. The clock stands still, so nothing
/// times out.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_that_hangs_delays_no_other(pool: PgPool) {
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    let receiver = Receiver::content().await;
    create(&service, &receiver.url("/slow"), json!({"max_in_flight": 4})).await;
    create(&service, &receiver.url("/fast"), json!({})).await;
    record(&pool, "run.completed", 1000).await;
    receiver.got("/fast", 1000).await;
    assert_eq!(receiver.count("/slow"), 4, "no more than it may have at a time");
}

/// Five time-outs in a row leave an endpoint one place.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_that_times_out_gets_one_delivery_at_a_time(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::content().await;
    let one_at_a_time = json!({"max_in_flight": 1, "event_types": ["run.completed"]});
    let webhook = create(&service, &receiver.url("/slow"), one_at_a_time).await;
    record(&pool, "run.completed", 20).await;
    for count in 1..=5 {
        receiver.got("/slow", count).await;
        clock.advance(Duration::from_secs(15));
        eventually("the time-out is recorded", async || {
            (get(&service, &webhook).await["failures"] == json!(count)).then_some(())
        })
        .await;
    }
    super::patch(&service, &webhook, &json!({"max_in_flight": 8})).await.expect(200);
    receiver.got("/slow", 6).await;
    // What is sent later elsewhere has been taken after all that may be sent there.
    create(&service, &receiver.url("/other"), json!({"event_types": ["run.failed"]})).await;
    record(&pool, "run.failed", 1).await;
    receiver.got("/other", 1).await;
    assert_eq!(receiver.count("/slow"), 6);
    receiver.open();
    eventually("the answer is recorded, and the others follow", async || {
        clock.advance(Duration::from_mins(10));
        (in_state(&pool, "delivered").await == 21).then_some(())
    })
    .await;
    assert_eq!(get(&service, &webhook).await["failures"], 0);
}

/// Pitfall 3: a failure at one endpoint sends nothing twice to another.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_failure_of_one_endpoint_sends_nothing_again_to_another(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::start(|received, _| {
        if received.path == "/bad" { StatusCode::BAD_GATEWAY } else { StatusCode::OK }.into_response()
    })
    .await;
    create(&service, &receiver.url("/bad"), json!({})).await;
    create(&service, &receiver.url("/good"), json!({})).await;
    record(&pool, "run.completed", 1).await;
    receiver.got("/good", 1).await;
    for count in 1..=3 {
        receiver.got("/bad", count).await;
        eventually("it waits for the next attempt", async || {
            let sql = "SELECT 1 FROM webhook_deliveries WHERE state = 'pending' AND lease IS NULL AND attempts = $1";
            let number = i32::try_from(count).expect("small");
            sqlx::query_scalar::<_, i32>(sql).bind(number).fetch_optional(&pool).await.expect("an answer")
        })
        .await;
        clock.advance(Duration::from_hours(3));
    }
    receiver.got("/bad", 4).await;
    assert_eq!(receiver.count("/good"), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn deliveries_of_a_run_wait_for_each_other_if_the_endpoint_wants_that(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    // The first attempt of each run's first event fails.
    let receiver = Receiver::start(|received, _| {
        let data = received.json();
        let is_first = received.header("webhook-attempt") == "1" && data["data"]["n"] == 1;
        if is_first { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }.into_response()
    })
    .await;
    let webhook = create(&service, &receiver.url("/"), json!({"ordering": "per_run"})).await;
    let workflow_id = service.one_step_workflow().await;
    let runs = [service.execute(&workflow_id).await, service.execute(&workflow_id).await];
    for n in 1..=3 {
        for run_id in &runs {
            sqlx::query("SELECT record_event('default', 'run.waiting', $1, jsonb_build_object('n', $2::int))")
                .bind(run_id)
                .bind(n)
                .execute(&pool)
                .await
                .expect("an event");
        }
    }
    receiver.got("/", 2).await;
    eventually("both have failed", async || (get(&service, &webhook).await["failures"] == 2).then_some(())).await;
    assert_eq!(receiver.count("/"), 2, "the others wait");
    clock.advance(Duration::from_secs(10));
    let got = receiver.got("/", 8).await;
    for run_id in &runs {
        let of_run: Vec<Value> =
            got.iter().map(super::Received::json).filter(|body| body["data"]["run_id"] == json!(run_id)).collect();
        let order: Vec<i64> = of_run.iter().filter_map(|body| body["data"]["n"].as_i64()).collect();
        assert_eq!(order, [1, 1, 2, 3]);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_replicas_send_each_delivery_once(pool: PgPool) {
    let one = Service::start(&pool);
    let other = Service::start_with(one.config.clone());
    let receiver = Receiver::content().await;
    create(&one, &receiver.url("/a"), json!({"max_in_flight": 16})).await;
    create(&other, &receiver.url("/b"), json!({"ordering": "per_run"})).await;
    record(&pool, "run.completed", 500).await;
    for path in ["/a", "/b"] {
        let got = receiver.got(path, 500).await;
        let ids: std::collections::BTreeSet<_> = got.iter().map(|received| received.header("webhook-id")).collect();
        assert_eq!(ids.len(), 500);
    }
    eventually("all are recorded", async || (in_state(&pool, "delivered").await == 1000).then_some(())).await;
    assert_eq!((receiver.count("/a"), receiver.count("/b")), (500, 500));
}

/// Pitfall 16: after a change of the URL the old one gets nothing but what is under way.
#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_is_sent_to_an_old_url_or_a_deleted_endpoint(pool: PgPool) {
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    let receiver = Receiver::content().await;
    let webhook = create(&service, &receiver.url("/slow"), json!({"max_in_flight": 1})).await;
    record(&pool, "run.completed", 10).await;
    receiver.got("/slow", 1).await;
    super::patch(&service, &webhook, &json!({"url": receiver.url("/new")})).await.expect(200);
    receiver.open();
    receiver.got("/new", 9).await;
    assert_eq!(receiver.count("/slow"), 1);
    super::patch(&service, &webhook, &json!({"enabled": false})).await.expect(200);
    record(&pool, "run.completed", 3).await;
    eventually("they are held", async || (in_state(&pool, "held").await == 3).then_some(())).await;
    service.delete(&path(&webhook)).await.expect(200);
    let other = create(&service, &receiver.url("/other"), json!({})).await;
    record(&pool, "run.completed", 1).await;
    ended(&service, &other, 1).await;
    assert_eq!(receiver.count("/new"), 9);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_rate_is_kept_until_the_time_comes(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::content().await;
    create(&service, &receiver.url("/limited"), json!({"rate_per_second": 100})).await;
    create(&service, &receiver.url("/other"), json!({})).await;
    let sql = "UPDATE webhook_states s SET next_at = now() + interval '1 hour' FROM webhooks w
               WHERE w.id = s.webhook_id AND w.rate_per_second = 100 RETURNING next_at";
    let next_at: chrono::DateTime<chrono::Utc> = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a time");
    record(&pool, "run.completed", 20).await;
    receiver.got("/other", 20).await;
    assert_eq!(receiver.count("/limited"), 0);
    clock.advance(Duration::from_hours(1));
    receiver.got("/limited", 20).await;
    let is_counted: bool =
        sqlx::query_scalar("SELECT max(next_at) >= $1 + interval '200 milliseconds' FROM webhook_states")
            .bind(next_at)
            .fetch_one(&pool)
            .await
            .expect("an answer");
    assert!(is_counted, "each delivery takes its part of a second");
}

/// Pitfall 17: the depth of the chain is told.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_depth_of_a_chain_is_sent(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    create(&service, &receiver.url("/"), json!({})).await;
    let sql =
        r#"SELECT record_event('default', 'run.completed', NULL, '{"trigger": {"kind": "webhook", "depth": 3}}')"#;
    sqlx::query(sql).execute(&pool).await.expect("an event");
    let got = receiver.got("/", 1).await.remove(0);
    assert_eq!(got.header("webhook-depth"), "3");
    assert_eq!(got.json()["data"]["trigger"]["depth"], 3);
}

/// B2: the address of an open callback is in full payloads only, and shown in the log to those who may answer.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_full_payload_of_a_waiting_run_has_the_address_of_its_callback(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let _executor = Executor::start(service);
    let receiver = Receiver::content().await;
    let mut hooks = Vec::new();
    for payload in ["full", "thin"] {
        let url = receiver.url(&format!("/{payload}"));
        let body = json!({"name": payload, "url": url, "event_types": ["run.waiting"], "payload": payload});
        hooks.push(admin.post(WEBHOOKS, &body).await.expect(201));
    }
    let step = json!({"id": "ok", "type": "callback", "callback_config": {}});
    let workflow = json!({"name": "asks", "start_step": "ok", "steps": {"ok": step}});
    let workflow = admin.post("/api/v1/workflows", &workflow).await.expect(201);
    let execute = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let run = admin.post(&execute, &json!({"input_data": {}})).await.expect(202)["run_id"].clone();
    let full = receiver.got("/full", 1).await.remove(0).json();
    let thin = receiver.got("/thin", 1).await.remove(0);
    let url = full["data"]["callback_url"].as_str().expect("an address").to_owned();
    let callback = url.strip_prefix("http://localhost:8000").expect("the public URL").to_owned();
    assert!(!thin.body.contains("callback_url"), "{}", thin.body);
    // The log shows it to those who may answer anyway.
    let list = admin.get(&format!("{}/deliveries", path(&hooks[0]))).await.expect(200);
    let at = format!("/api/v1/webhook-deliveries/{}", list["items"][0]["id"].as_str().expect("an id"));
    for (role, seen) in [("operator", url.as_str()), ("viewer", "********")] {
        let (key, _) = admin.key(&json!({"name": role, "role": role})).await;
        let shown = service.send("GET", &at, &[("x-api-key", key.as_str())], "").await.expect(200);
        assert_eq!(shown["body"]["data"]["callback_url"], seen, "{role}");
        assert_eq!(shown["body"]["data"]["run_id"], run, "{role}");
    }
    service.post(&callback, &json!({"fine": true})).await.expect(200);
    let sql = "SELECT status FROM workflow_runs";
    eventually("it has ended", async || {
        let status: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a run");
        (status == "COMPLETED").then_some(())
    })
    .await;
}

/// B4 and pitfall 14: a receiver that asks for time gets it, a minute at least and up to twice the pause.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_receiver_is_left_alone_for_as_long_as_it_asks_within_bounds(pool: PgPool) {
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    let cases = [
        (503, Some("31536000"), 120.0..=120.0),
        (429, Some("Fri, 01 Jan 2100 00:00:00 GMT"), 120.0..=120.0),
        (503, Some("90"), 90.0..=90.0),
        (504, Some("1"), 60.0..=60.0),
        (502, None, 60.0..=60.0),
        (500, Some("7"), 7.0..=7.0),
        (500, Some("31536000"), 8.0..=12.0),
        (500, Some("soon"), 4.0..=6.0),
        (500, None, 4.0..=6.0),
    ];
    let answers = cases.clone();
    let receiver = Receiver::start(move |received, _| {
        let number = usize::try_from(received.json()["data"]["n"].as_u64().expect("a number")).expect("small");
        let (status, retry_after, _) = &answers[number - 1];
        let mut answer = StatusCode::from_u16(*status).expect("a status").into_response();
        if let Some(value) = retry_after {
            answer.headers_mut().insert("retry-after", value.parse().expect("a value"));
        }
        answer
    })
    .await;
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    let count = i32::try_from(cases.len()).expect("small");
    record(&pool, "run.failed", count).await;
    eventually("all have failed", async || (get(&service, &webhook).await["failures"] == count).then_some(())).await;
    let list = service.get(&format!("{}/deliveries", path(&webhook))).await.expect(200);
    assert_eq!(list["total"], count);
    for item in list["items"].as_array().expect("a list") {
        let shown = delivery(&service, &item["id"]).await;
        let number = usize::try_from(shown["body"]["data"]["n"].as_u64().expect("a number")).expect("small");
        let (status, retry_after, expected) = &cases[number - 1];
        let attempt = &shown["attempt_log"][0];
        assert_eq!((&attempt["status_code"], &attempt["retry_after"]), (&json!(status), &json!(retry_after)));
        let time = |value: &Value| -> chrono::DateTime<chrono::Utc> {
            value.as_str().expect("a time").parse().unwrap_or_else(|error| panic!("{error}: {value}"))
        };
        let pause = (time(&shown["next_attempt_at"]) - time(&attempt["started_at"])).as_seconds_f64();
        // The database keeps microseconds.
        let rounded = (pause * 1000.0).round() / 1000.0;
        assert!(expected.contains(&rounded), "{status} with {retry_after:?}: {pause} s");
    }
}
