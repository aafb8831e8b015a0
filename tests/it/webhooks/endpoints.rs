//! Endpoints: creating, reading, changing and choosing events.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use super::{Receiver, WEBHOOKS, create, delivery, ended, get, patch, path, record, secret};
use crate::{
    access::Admin,
    service::{Service, config, in_turn},
};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_secret_is_in_the_first_answer_only_and_stored_encrypted(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("ENCRYPTION_KEY", KEY)]));
    let body = json!({"name": "n", "url": "https://example.com/hook?token=hunter2", "event_types": ["run.*"],
        "headers": {"Authorization": "Bearer hunter3"}});
    let made = service.post(WEBHOOKS, &body).await;
    let location = made.header("location").map(str::to_owned);
    let made = made.expect(201);
    let secret = secret(&made).to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "{secret}");
    assert_eq!(location, Some(path(&made)));
    let shown = service.get(&path(&made)).await;
    let list = service.get(WEBHOOKS).await;
    let trail = service.get("/api/v1/audit-logs").await;
    for answer in [&shown, &list, &trail] {
        for hidden in [secret.as_str(), "hunter3"] {
            assert!(!answer.text.contains(hidden), "{hidden}: {}", answer.text);
        }
    }
    assert!(!trail.text.contains("hunter2"), "{}", trail.text);
    let shown = shown.json();
    assert_eq!(shown["secret_hint"], secret[..8]);
    assert_eq!(shown["headers"], json!({"authorization": "********"}));
    assert_eq!((&shown["health"], &shown["enabled"]), (&json!("healthy"), &json!(true)));
    let stored: String = sqlx::query_scalar("SELECT sealed::text FROM webhooks").fetch_one(&pool).await.expect("a row");
    assert!(stored.contains("encrypted") && !stored.contains("whsec_"), "{stored}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_member_has_its_limits(pool: PgPool) {
    let service = Service::start(&pool);
    for (more, field) in [
        (json!({"name": " "}), "body.name value_error"),
        (json!({"url": "ftp://example.com/"}), "body.url value_error"),
        (json!({"url": "https://u:p@example.com/"}), "body.url value_error"),
        (json!({"url": "https://example.com/#x"}), "body.url value_error"),
        (json!({"url": "http://example.com/"}), ""),
        (json!({"event_types": []}), "body.event_types value_error"),
        (json!({"event_types": ["Run.x"]}), "body.event_types.0 value_error"),
        (json!({"event_types": ["run.failed", "run.complete"]}), "body.event_types.1 value_error"),
        (json!({"workflow_names": []}), "body.workflow_names value_error"),
        (json!({"filter": "${event.data"}), "body.filter value_error"),
        (json!({"filter": "${data.status} == 'FAILED'"}), "body.filter value_error"),
        (json!({"filter": "'x'"}), "body.filter value_error"),
        (json!({"payload": "fat"}), "body.payload value_error"),
        (json!({"ordering": "fifo"}), "body.ordering value_error"),
        (json!({"headers": {"webhook-id": "x"}}), "body.headers.webhook-id value_error"),
        (json!({"headers": {"Host": "x"}}), "body.headers.Host value_error"),
        (json!({"headers": {"x y": "x"}}), "body.headers.x y value_error"),
        (json!({"headers": {"x": "a\nb"}}), "body.headers.x value_error"),
        (json!({"headers": {"x": "********"}}), "body.headers.x value_error"),
        (json!({"max_in_flight": 0}), "body.max_in_flight greater_than_equal"),
        (json!({"rate_per_second": 0}), "body.rate_per_second greater_than_equal"),
        (json!({"signature": "rsa"}), "body.signature value_error"),
        (json!({"secret": "short"}), "body.secret value_error"),
        (
            json!({"signature": "ed25519", "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}),
            "body.secret value_error",
        ),
        (json!({"surprise": 1}), "body.surprise extra_forbidden"),
    ] {
        let mut body = json!({"name": "n", "url": "https://example.com/", "event_types": ["*"]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = service.post(WEBHOOKS, &body).await;
        if field.is_empty() {
            // A name may lead to a listed address; where it is resolved that is checked.
            answer.expect(201);
        } else {
            assert_eq!(answer.field_errors(), [field], "{more}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_needs_the_version_that_was_read_and_keeps_what_is_masked(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let more = json!({"headers": {"x-key": "k1", "x-other": "o1"}, "workflow_names": ["a"], "filter": "${event.data.n} is null"});
    let webhook = create(&service, &receiver.url("/"), more).await;
    let tag = service.get(&path(&webhook)).await.header("etag").expect("a tag").to_owned();
    let changed = json!({"headers": {"x-key": "********"}, "workflow_names": null, "filter": null});
    let headers = [("content-type", "application/json"), ("if-match", tag.as_str())];
    let first = service.send("PATCH", &path(&webhook), &headers, changed.to_string()).await.expect(200);
    assert_eq!((&first["headers"], &first["workflow_names"]), (&json!({"x-key": "********"}), &json!(null)));
    let second = service.send("PATCH", &path(&webhook), &headers, json!({"name": "late"}).to_string()).await;
    assert_eq!(second.error(412)["code"], "precondition_failed");
    assert_eq!(service.send("DELETE", &path(&webhook), &headers, "").await.status, 412);
    record(&pool, "run.failed", 1).await;
    let got = receiver.got("/", 1).await.remove(0);
    assert_eq!((got.header("x-key"), got.header("x-other")), ("k1", ""));
    // A replacement resets what it does not name.
    let whole = json!({"name": "renamed", "url": receiver.url("/put"), "event_types": ["run.failed"]});
    let put = service.put(&path(&webhook), &whole).await.expect(200);
    assert_eq!((&put["name"], &put["headers"], &put["max_in_flight"]), (&json!("renamed"), &json!({}), &json!(8)));
    assert_eq!(put["secret_hint"], webhook["secret_hint"]);
    let actions = service.get("/api/v1/audit-logs?entity_type=webhook").await.expect(200);
    let actions: Vec<_> =
        actions["items"].as_array().expect("a list").iter().map(|entry| entry["action"].clone()).collect();
    assert_eq!(actions, ["update", "update", "create"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeated_create_request_makes_one_webhook_and_an_organisation_has_32(pool: PgPool) {
    let service = Service::start(&pool);
    let body = json!({"name": "n", "url": "https://example.com/", "event_types": ["*"]}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let first = service.send("POST", WEBHOOKS, &headers, body.clone()).await.expect(201);
    let again = service.send("POST", WEBHOOKS, &headers, body.clone()).await;
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.expect(201)["secret"], first["secret"]);
    let more = (0..40).map(|_| service.send("POST", WEBHOOKS, &headers[..1], body.clone()));
    let made = in_turn(more).await;
    let refused: Vec<_> = made.into_iter().filter(|answer| answer.status != 201).collect();
    assert_eq!(refused.len(), 9);
    for answer in refused {
        assert_eq!(answer.error(403)["code"], "quota_exceeded");
    }
    assert_eq!(service.get(WEBHOOKS).await.expect(200)["total"], 32);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_endpoint_gets_the_events_that_it_chooses(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    create(&service, &receiver.url("/all"), json!({})).await;
    create(&service, &receiver.url("/group"), json!({"event_types": ["run.*"]})).await;
    create(&service, &receiver.url("/named"), json!({"event_types": ["step.failed"]})).await;
    create(&service, &receiver.url("/workflow"), json!({"workflow_names": ["ship"]})).await;
    let filter = "${event.type} == 'run.failed' and ${event.data.amount} > 10";
    create(&service, &receiver.url("/filter"), json!({"filter": filter})).await;
    for (event_type, workflow, amount) in [
        ("run.failed", "ship", 11),
        ("run.failed", "other", 10),
        ("step.failed", "ship", 1),
        ("agent.recovered", "", 0),
    ] {
        let sql = "SELECT record_event('default', $1, NULL, jsonb_build_object('amount', $3::int), nullif($2, ''))";
        sqlx::query(sql).bind(event_type).bind(workflow).bind(amount).execute(&pool).await.expect("an event");
    }
    let types = async |path: &str, count| {
        let got = receiver.got(path, count).await;
        let mut types: Vec<String> =
            got.iter().map(|got| got.json()["type"].as_str().expect("a type").to_owned()).collect();
        types.sort_unstable();
        types
    };
    assert_eq!(types("/all", 3).await, ["agent.recovered", "run.failed", "run.failed"]);
    assert_eq!(types("/group", 2).await, ["run.failed", "run.failed"]);
    assert_eq!(types("/named", 1).await, ["step.failed"]);
    assert_eq!(types("/workflow", 1).await, ["run.failed"]);
    assert_eq!(types("/filter", 1).await, ["run.failed"]);
}

/// Pitfall 11: a receiver can take its time with a new secret.
#[sqlx::test(migrator = "MIGRATOR")]
async fn both_secrets_sign_until_the_grace_is_over(pool: PgPool) {
    let clock = workflow_api::clock::Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::content().await;
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    let rotated = service.post(&format!("{}/rotate-secret", path(&webhook)), &json!({"grace_seconds": 60})).await;
    let rotated = rotated.expect(200);
    let (old, new) = (secret(&webhook), secret(&rotated));
    assert_ne!(old, new);
    record(&pool, "run.failed", 1).await;
    let during = receiver.got("/", 1).await.remove(0);
    assert!(during.is_signed_with(old) && during.is_signed_with(new));
    assert_eq!(during.header("webhook-signature").split(' ').count(), 2);
    clock.advance(std::time::Duration::from_secs(61));
    record(&pool, "run.failed", 1).await;
    let after = receiver.got("/", 2).await.remove(1);
    assert!(!after.is_signed_with(old) && after.is_signed_with(new));
    assert_eq!(after.header("webhook-signature").split(' ').count(), 1);
    let wrong = json!({"secret": "whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="});
    let refused = service.post(&format!("{}/rotate-secret", path(&webhook)), &wrong).await;
    assert_eq!(refused.field_errors(), ["body.secret value_error"]);
}

/// Whether one of the signatures is of that public key.
fn is_signed_by(received: &super::Received, public_key: &str) -> bool {
    let key = STANDARD.decode(public_key.strip_prefix("whpk_").expect("its prefix")).expect("base64");
    let (id, at) = (received.header("webhook-id"), received.header("webhook-timestamp"));
    let message = format!("{id}.{at}.{}", received.body);
    received.header("webhook-signature").split(' ').any(|signature| {
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").expect("its version")).expect("base64");
        UnparsedPublicKey::new(&ED25519, &key).verify(message.as_bytes(), &signature).is_ok()
    })
}

/// A receiver needs the public key only, which everybody who reads webhooks sees.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_delivery_with_ed25519_is_verified_with_the_public_key_that_is_shown(pool: PgPool) {
    let clock = workflow_api::clock::Clock::stopped();
    let service = Service::start_by(config(&pool, &[("ENCRYPTION_KEY", KEY)]), clock.clone());
    let receiver = Receiver::content().await;
    let webhook = create(&service, &receiver.url("/"), json!({"signature": "ed25519"})).await;
    assert!(secret(&webhook).starts_with("whsk_"));
    let public = async || get(&service, &webhook).await["public_key"].as_str().expect("a public key").to_owned();
    let first = public().await;
    record(&pool, "run.failed", 1).await;
    let got = receiver.got("/", 1).await.remove(0);
    assert!(is_signed_by(&got, &first), "{got:?}");
    assert_eq!(got.header("webhook-signature").split(' ').count(), 1);
    let changed = super::Received { body: got.body.replace("run.failed", "run.failee"), ..got };
    assert!(!is_signed_by(&changed, &first));
    let rotate = format!("{}/rotate-secret", path(&webhook));
    let rotated = service.post(&rotate, &json!({"grace_seconds": 60})).await.expect(200);
    assert!(secret(&rotated).starts_with("whsk_"));
    let second = public().await;
    assert_ne!(first, second);
    record(&pool, "run.failed", 1).await;
    let during = receiver.got("/", 2).await.remove(1);
    assert!(is_signed_by(&during, &first) && is_signed_by(&during, &second), "{during:?}");
    assert_eq!(during.header("webhook-signature").split(' ').count(), 2);
    clock.advance(std::time::Duration::from_secs(61));
    record(&pool, "run.failed", 1).await;
    let after = receiver.got("/", 3).await.remove(2);
    assert!(!is_signed_by(&after, &first) && is_signed_by(&after, &second), "{after:?}");
    assert_eq!(after.header("webhook-signature").split(' ').count(), 1);
    let other = service.post(&rotate, &json!({"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})).await;
    assert_eq!(other.field_errors(), ["body.secret value_error"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_is_sent_at_once_and_not_repeated_and_says_nothing_about_the_endpoint(pool: PgPool) {
    use axum::response::IntoResponse as _;
    let service = Service::start(&pool);
    let receiver = Receiver::start(|_, _| (http::StatusCode::IM_A_TEAPOT, "short and stout").into_response()).await;
    let webhook = create(&service, &receiver.url("/"), json!({"enabled": false})).await;
    let answer = service.post(&format!("{}/test", path(&webhook)), &json!({})).await.expect(200);
    assert_eq!((&answer["outcome"], &answer["status_code"]), (&json!("status"), &json!(418)));
    assert_eq!(answer["answer"], "short and stout");
    assert!(answer["started_at"].is_string(), "{answer}");
    let got = receiver.got("/", 1).await.remove(0);
    assert!(got.is_signed_with(secret(&webhook)));
    assert_eq!(got.json()["type"], "webhook.ping");
    let log = ended(&service, &webhook, 1).await;
    assert_eq!((&log[0]["state"], &log[0]["attempts"]), (&json!("failed"), &json!(1)));
    assert_eq!(get(&service, &webhook).await["failures"], 0);
    let refused = service.post(&format!("{}/enable", path(&webhook)), &json!({})).await.error(409);
    assert_eq!(refused["code"], "webhook_probe_failed");
    assert_eq!(get(&service, &webhook).await["enabled"], false);
    let enabled = service.post(&format!("{}/enable", path(&webhook)), &json!({"probe": false})).await.expect(200);
    assert_eq!((&enabled["enabled"], &enabled["disabled_reason"]), (&json!(true), &json!(null)));
    let test = format!("{}/test", path(&webhook));
    service.post(&test, &json!({"event_type": "run.failed"})).await.expect(200);
    let got = receiver.got("/", 3).await.remove(2).json();
    assert_eq!((&got["type"], &got["data"]["is_test"]), (&json!("run.failed"), &json!(true)));
    assert_eq!((&got["data"]["status"], &got["data"]["organization_id"]), (&json!("FAILED"), &json!("default")));
    for wrong in ["run.*", "run.ended"] {
        let refused = service.post(&test, &json!({"event_type": wrong})).await;
        assert_eq!(refused.field_errors(), ["body.event_type value_error"], "{wrong}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_an_endpoint_repeats_of_its_own_headers_is_masked(pool: PgPool) {
    use axum::response::IntoResponse as _;
    let service = Service::start(&pool);
    let receiver = Receiver::start(|received, _| {
        let sent = received.header("authorization");
        let text = format!("got {sent}, {} for {}", &sent["Bearer ".len()..], received.header("x-env"));
        ([("content-type", sent.to_owned())], format!("{text}{}", ".".repeat(5000))).into_response()
    })
    .await;
    let headers = json!({"authorization": "Bearer hunter2-the-token", "x-env": "v2"});
    let webhook = create(&service, &receiver.url("/"), json!({"headers": headers})).await;
    let shown = service.post(&format!("{}/test", path(&webhook)), &json!({})).await.expect(200);
    assert_eq!(shown["answer"].as_str().expect("a text")[..21], *"got ***, *** for v2..");
    let log = ended(&service, &webhook, 1).await;
    let attempts = delivery(&service, &log[0]["id"]).await["attempt_log"].take();
    assert_eq!((&attempts[0]["content_type"], &attempts[0]["answer"]), (&json!("***"), &shown["answer"]));
    assert_eq!(attempts[0]["answer"].as_str().map(str::len), Some(4096));
}

/// Pitfall 9: the test shows no page of an address inside to those who may not see it.
#[sqlx::test(migrator = "MIGRATOR")]
async fn answers_from_inside_are_shown_to_administrators_only(pool: PgPool) {
    use axum::response::IntoResponse as _;
    let admin = Admin::start(&pool, &[]);
    let receiver = Receiver::start(|_, _| "an internal page".into_response()).await;
    let body = json!({"name": "n", "url": receiver.url("/"), "event_types": ["*"]});
    let webhook = admin.post(WEBHOOKS, &body).await.expect(201);
    let test = format!("{}/test", path(&webhook));
    let (key, _) = admin.key(&json!({"name": "editor", "role": "editor"})).await;
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let seen = admin.service.send("POST", &test, &headers, "{}").await.expect(200);
    assert_eq!((&seen["answer"], &seen["is_answer_hidden"]), (&json!(null), &json!(true)));
    let seen = admin.post(&test, &json!({})).await.expect(200);
    assert_eq!((&seen["answer"], &seen["is_answer_hidden"]), (&json!("an internal page"), &json!(false)));
    let list = admin.get(&format!("{}/deliveries", path(&webhook))).await.expect(200);
    let one = format!("/api/v1/webhook-deliveries/{}", list["items"][0]["id"].as_str().expect("an id"));
    assert_eq!(admin.get(&one).await.expect(200)["attempt_log"][0]["answer"], "an internal page");
    let hidden = admin.service.send("GET", &one, &headers, "").await.expect(200);
    assert_eq!(hidden["attempt_log"][0]["answer"], json!(null));
    // Viewers read, and change nothing.
    let (viewer, _) = admin.key(&json!({"name": "viewer", "role": "viewer"})).await;
    let headers = [("x-api-key", viewer.as_str()), ("content-type", "application/json")];
    assert_eq!(admin.service.send("GET", WEBHOOKS, &headers, "").await.status, 200);
    for (method, path) in [("POST", WEBHOOKS.to_owned()), ("POST", test), ("DELETE", path(&webhook))] {
        assert_eq!(admin.service.send(method, &path, &headers, body.to_string()).await.status, 403, "{method} {path}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn deliveries_are_found_by_state_type_run_and_status(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let webhook = create(&service, &receiver.url("/"), json!({})).await;
    record(&pool, "run.failed", 3).await;
    record(&pool, "run.completed", 2).await;
    ended(&service, &webhook, 5).await;
    let total = async |query: &str| {
        service.get(&format!("{}/deliveries?{query}", path(&webhook))).await.expect(200)["total"].clone()
    };
    assert_eq!(total("state=delivered").await, 5);
    assert_eq!(total("state=failed,held").await, 0);
    assert_eq!(total("event_type=run.failed").await, 3);
    assert_eq!(total("status_code=204&event_type=run.completed").await, 2);
    assert_eq!(total("run_id=run-none").await, 0);
    assert_eq!(total("created_before=2020-01-01T00:00:00Z").await, 0);
    assert_eq!(total("from=2100-01-01T00:00:00Z").await, 0);
    assert_eq!(total("to=2020-01-01T00:00:00Z").await, 0);
    assert_eq!(total("from=2020-01-01T00:00:00Z&to=4102444800").await, 5);
    for (query, error) in [
        ("status_code=x", "query.status_code int_parsing"),
        ("from=yesterday", "query.from datetime_parsing"),
        ("to=0&created_before=0", "query.to value_error"),
    ] {
        let wrong = service.get(&format!("{}/deliveries?{query}", path(&webhook))).await;
        assert_eq!(wrong.field_errors(), [error]);
    }
    let mut seen = Vec::new();
    let mut query = "page_size=2".to_owned();
    loop {
        let page = service.get(&format!("{}/deliveries?{query}", path(&webhook))).await.expect(200);
        seen.extend(page["items"].as_array().expect("a list").iter().map(|item| item["id"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("page_size=2&cursor={cursor}");
    }
    assert_eq!(seen.len(), 5);
    delivery(&service, &seen[0]).await;
    assert_eq!(patch(&service, &json!({"id": uuid::Uuid::nil()}), &json!({"name": "x"})).await.status, 404);
}
