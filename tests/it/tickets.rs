//! Credentials that end while something is open: event streams, waits, answers that are read while they are sent, and tickets.

use std::time::Duration;

use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use workflow_api::{access::api_key::ApiKey, actions::api_keys::store_given, db::migrations::MIGRATOR};

use crate::{
    access::{Admin, claims, now, secret, signed},
    memory::insert_large_entries,
    service::{Service, config, eventually, own_pool},
};

const EVENTS: &str = "/api/v1/runs/r%201/events";

async fn insert_run(pool: &PgPool) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES
               ('r 1', 'w', 'w', 'PENDING'), ('r2', 'w', 'w', 'PENDING')";
    sqlx::query(sql).execute(pool).await.expect("runs");
}

fn token(more: &Value) -> String {
    format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims(more), &secret(), jsonwebtoken::Algorithm::HS256))
}

/// An open stream that has sent its first event.
async fn open(service: &Service, path: &str, headers: &[(&str, &str)]) -> Body {
    let (parts, mut body) = service.open("GET", path, headers, Body::empty()).await.into_parts();
    assert_eq!(parts.status, 200);
    let mut text = Vec::new();
    while !text.ends_with(b"\n\n") || !text.windows(11).any(|part| part == b"run.created") {
        text.extend(body.frame().await.expect("a frame").expect("data").into_data().expect("data"));
    }
    body
}

/// Reads a stream to its end.
async fn ends(body: Body) {
    body.collect().await.expect("an end");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stream_ends_with_the_credentials_that_it_was_opened_with(pool: PgPool) {
    let admin = Admin::start(&pool, &[("JWT_EXPIRATION_MINUTES", "60")]);
    let service = &admin.service;
    insert_run(&pool).await;
    // One that has no end makes others without an end.
    let first = ApiKey::generate("live");
    assert!(store_given(&own_pool(&pool), &first, true).await.expect("stored"));
    let first = ("x-api-key", first.expose());
    let key_of = async |body: Value| {
        let headers = [first, ("content-type", "application/json")];
        let made = service.send("POST", "/api/v1/api-keys", &headers, body.to_string()).await.expect(201);
        made["key"].as_str().expect("a key").to_owned()
    };
    let key = key_of(json!({"name": "lasting", "role": "viewer"})).await;
    let end = chrono::DateTime::from_timestamp(now() + 7200, 0).expect("an instant").to_rfc3339();
    let ending = key_of(json!({"name": "ending", "role": "viewer", "expires_at": end})).await;
    let issued = service.send("POST", "/api/v1/auth/token", &[("x-api-key", &key)], "").await.expect(200);
    let of_key = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let plain = token(&json!({"exp": now() + 3600}));
    let ticket = |header: (&'static str, String)| async move {
        let path = "/api/v1/runs/r%201/events/ticket";
        let made = service.send("POST", path, &[(header.0, &header.1)], "").await.expect(201);
        made["url"].as_str().expect("a path").to_owned()
    };
    let tickets = [ticket(("authorization", of_key.clone())).await, ticket(("authorization", plain.clone())).await];
    let streams = [
        open(service, EVENTS, &[("authorization", &of_key)]).await,
        open(service, EVENTS, &[("authorization", &plain)]).await,
        open(service, &tickets[0], &[]).await,
        open(service, &tickets[1], &[]).await,
    ];
    let lasting = open(service, EVENTS, &[("x-api-key", &key)]).await;
    let ending = open(service, EVENTS, &[("x-api-key", &ending)]).await;
    // Clocks may be 30 s apart.
    service.clock.advance(Duration::from_secs(3600 + 31));
    for stream in streams {
        ends(stream).await;
    }
    for header in [&of_key, &plain] {
        service.send("GET", EVENTS, &[("authorization", header)], "").await.error(401);
    }
    service.clock.advance(Duration::from_hours(1));
    ends(ending).await;
    // The key without an end is as good as before.
    let again = open(service, EVENTS, &[("x-api-key", &key)]).await;
    drop((lasting, again));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_is_read_while_it_is_sent_breaks_off_when_its_credentials_end(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    insert_large_entries(&pool).await;
    let bearer = token(&json!({"exp": now() + 3600}));
    let headers = [("authorization", bearer.as_str())];
    let mut bodies = Vec::new();
    for path in ["/api/v1/workflows", "/api/v1/audit-logs", "/api/v1/audit-logs/export"] {
        let response = admin.service.open("GET", path, &headers, Body::empty()).await;
        assert_eq!(response.status(), 200, "{path}");
        let mut body = response.into_body();
        body.frame().await.expect("a piece").expect("one that comes");
        bodies.push((path, body));
    }
    admin.service.clock.advance(Duration::from_secs(3700));
    for (path, body) in bodies {
        assert!(body.collect().await.is_err(), "{path} is sent to its end");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_waits_is_told_nothing_after_his_token_has_ended(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    admin.post("/api/v1/agents", &json!({"name": "worker", "url": "http://127.0.0.1:9/"})).await.expect(201);
    let steps = json!({"a": {"id": "a", "agent_name": "worker", "input_mapping": {}}});
    let workflow = json!({"name": "w", "start_step": "a", "steps": steps});
    let workflow = admin.post("/api/v1/workflows", &workflow).await.expect(201);
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let bearer = token(&json!({"exp": now() + 20}));
    let headers = [("authorization", bearer.as_str()), ("prefer", "wait=60")];
    let waits = service.send("POST", &path, &headers, r#"{"input_data":{}}"#);
    let ending = async {
        let run = eventually("the run is there", || async {
            let sql = "SELECT run_id FROM workflow_runs";
            sqlx::query_scalar::<_, String>(sql).fetch_optional(&pool).await.expect("an answer")
        })
        .await;
        // Clocks may be 30 s apart. The wait goes on.
        service.clock.advance(Duration::from_secs(55));
        let sql = "UPDATE workflow_runs SET status = 'FAILED' WHERE run_id = $1";
        sqlx::query(sql).bind(run).execute(&pool).await.expect("the end");
    };
    let (answer, ()) = futures_util::future::join(waits, ending).await;
    assert_eq!(answer.expect(202)["status"], "PENDING");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_ticket_opens_the_stream_of_its_run_for_a_minute_and_nothing_else(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    insert_run(&pool).await;
    let (key, id) = admin.key(&json!({"name": "viewer", "role": "viewer"})).await;
    let made = service.send("POST", &format!("{EVENTS}/ticket"), &[("x-api-key", &key)], "").await;
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let made = made.expect(201);
    let ticket = made["ticket"].as_str().expect("a ticket").to_owned();
    let url = made["url"].as_str().expect("a path").to_owned();
    assert_eq!(url, format!("{EVENTS}?ticket={ticket}"));
    drop(open(service, &url, &[]).await);
    // On every replica.
    let other = Service::start_with(config(&pool, &[("JWT_SECRET", crate::access::SECRET)]));
    drop(open(&other, &url, &[]).await);
    for path in [
        format!("/api/v1/runs/r2/events?ticket={ticket}"),
        format!("/api/v1/runs/r%201?ticket={ticket}"),
        format!("/api/v1/runs/r%201/logs?ticket={ticket}"),
        format!("{AGENTS}?ticket={ticket}"),
        format!("{EVENTS}?ticket={}A", &ticket[..ticket.len() - 1]),
        format!("{EVENTS}?ticket="),
        format!("{EVENTS}?ticket=AAAA"),
    ] {
        service.get(&path).await.error(401);
    }
    service.send("POST", &format!("{EVENTS}/ticket?ticket={ticket}"), &[], "").await.error(401);
    service.send("POST", "/api/v1/runs/none/events/ticket", &[("x-api-key", &key)], "").await.error(404);
    // It counts no longer than the key.
    admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    service.get(&url).await.error(401);
    let made = admin.post(&format!("{EVENTS}/ticket"), &json!({})).await.expect(201);
    let url = made["url"].as_str().expect("a path").to_owned();
    drop(open(service, &url, &[]).await);
    service.clock.advance(Duration::from_secs(61));
    service.get(&url).await.error(401);
}

const AGENTS: &str = "/api/v1/agents";

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cursor_is_good_on_every_replica_and_a_forged_one_nowhere(pool: PgPool) {
    let (service, other) = (Service::start(&pool), Service::start(&pool));
    insert_run(&pool).await;
    let page = service.get("/api/v1/runs?page_size=1").await.expect(200);
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    other.get(&format!("/api/v1/runs?page_size=1&cursor={cursor}")).await.expect(200);
    // With the checksum of former releases, and values of other types.
    for (list, position) in [
        ("runs", json!({"value": {"integer": 1}, "id": {"text": "x"}})),
        ("runs", json!({"value": {"text": "x"}, "id": {"uuid": "0a0a0a0a-0a0a-4a0a-8a0a-0a0a0a0a0a0a"}})),
        ("agents", json!({"value": {"integer": 1}, "id": {"text": "x"}})),
        ("workflows", json!({"value": "absent", "id": {"text": "x"}})),
    ] {
        let text = json!({"p": position, "b": false, "n": 2}).to_string();
        let query = Sha256::digest(json!([list, []]).to_string());
        let digest = Sha256::new().chain_update(query).chain_update(&text).finalize();
        let cursor = BASE64_URL_SAFE_NO_PAD.encode([&digest[..16], text.as_bytes()].concat());
        let answer = service.get(&format!("/api/v1/{list}?cursor={cursor}")).await;
        assert_eq!(answer.error(400)["code"], "invalid_cursor", "{list} {position}");
    }
    // The siblings of cursors.
    for id in ["-1", "99999999999999999999", "1.5", "1;2", "999"] {
        service.get(&format!("{EVENTS}?last_event_id={id}")).await.error(400);
    }
}
