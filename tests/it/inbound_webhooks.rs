//! Webhook triggers: what other services deliver at `/hooks/…`. The rules of each provider are tested beside
//! `src/inbound`, with signatures of the providers' own libraries.

mod at_once;

use std::{io::Write as _, time::Duration};

use aws_lc_rs::hmac;
use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use flate2::{Compression, write::GzEncoder};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Answer, Service, config, eventually, passing};

const SECRET: &str = "a secret of both sides";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &parts.concat()).as_ref().to_vec()
}

/// Headers of a delivery as GitHub signs it.
pub fn github(body: &[u8], id: &str, secret: &str) -> Vec<(&'static str, String)> {
    let signature = format!("sha256={}", hex(&hmac_sha256(secret.as_bytes(), &[body])));
    vec![
        ("x-hub-signature-256", signature),
        ("x-github-delivery", id.to_owned()),
        ("x-github-event", "push".to_owned()),
        ("content-type", "application/json".to_owned()),
    ]
}

pub async fn deliver(service: &Service, path: &str, headers: &[(&str, String)], body: impl Into<Body>) -> Answer {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    service.send("POST", path, &headers, body).await
}

/// A service with the workflow `one-step`.
async fn started(pool: &PgPool) -> Service {
    let service = Service::start(pool);
    service.one_step_workflow().await;
    service
}

/// Creates a webhook trigger of the workflow `one-step`.
pub async fn create(service: &Service, name: &str, config: Value) -> Value {
    let body = json!({"name": name, "kind": "webhook", "workflow_name": "one-step", "config": config});
    service.post("/api/v1/triggers", &body).await.expect(201)
}

/// The path of the address that the answer to the create request shows.
pub fn path_of(created: &Value) -> String {
    let url = created["url"].as_str().expect("a URL");
    let path = url.strip_prefix("http://localhost:8000").expect("the public URL");
    let token = created["token"].as_str().expect("a token");
    assert_eq!(path, format!("/api/v1/hooks/{token}"));
    assert_eq!(token.len(), 64, "32 bytes");
    path.to_owned()
}

async fn trigger(service: &Service, created: &Value) -> Value {
    service.get(&format!("/api/v1/triggers/{}", created["id"].as_str().expect("an id"))).await.expect(200)
}

async fn input_of(service: &Service, run_id: &Value) -> Value {
    let run_id = run_id.as_str().expect("a run id");
    service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["input_data"].clone()
}

async fn runs(service: &Service) -> Vec<Value> {
    let page = service.get("/api/v1/runs?page_size=100").await.expect(200);
    page["items"].as_array().expect("a list").clone()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_delivery_starts_a_run_with_what_it_has_and_a_repeat_finds_that_run(pool: PgPool) {
    let service = started(&pool).await;
    let body = json!({"name": "n", "kind": "webhook", "workflow_name": "one-step", "priority": 7,
        "input": {"text": "${trigger.body.text}", "event": "${trigger.headers.x-github-event}", "q": "${trigger.query.q}",
            "method": "${trigger.method}"},
        "config": {"preset": "github", "secrets": [SECRET]}});
    let created = service.post("/api/v1/triggers", &body).await.expect(201);
    let path = format!("{}?q=1", path_of(&created));
    let body = r#"{"text":"hello"}"#;
    let headers = github(body.as_bytes(), "d-1", SECRET);
    let first = deliver(&service, &path, &headers, body).await;
    assert_eq!(first.header("idempotency-replayed"), None);
    let first = first.expect(202);
    let repeat = deliver(&service, &path, &headers, body).await;
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    assert_eq!(repeat.expect(200), first);
    assert_eq!(
        input_of(&service, &first["run_id"]).await,
        json!({"text": "hello", "event": "push", "q": "1", "method": "POST"})
    );
    let other = github(body.as_bytes(), "d-2", SECRET);
    let second = deliver(&service, &path, &other, body).await.expect(202);
    assert_ne!(second["run_id"], first["run_id"]);
    let runs = runs(&service).await;
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!(run["triggered_by"], "trigger:n");
        assert_eq!(run["priority"], 7);
        assert_eq!(run["trigger"]["kind"], "webhook");
        assert_eq!(run["trigger"]["id"], created["id"]);
    }
    let shown = trigger(&service, &created).await;
    assert_eq!(shown["counters"]["fired"], 2);
}

/// C3, test 1: each preset from outside; the signatures of the providers' libraries are in `src/inbound`.
#[sqlx::test(migrator = "MIGRATOR")]
async fn every_preset_accepts_what_is_signed_by_its_rule_and_nothing_else(pool: PgPool) {
    let service = started(&pool).await;
    let now = service.clock.now().timestamp().to_string();
    let body = br#"{"id":"evt_1","event_id":"Ev1","text":"x"}"#;
    let key = [7; 24];
    let standard = format!("whsec_{}", BASE64_STANDARD.encode(key));
    let sign = |parts: &[&[u8]]| hex(&hmac_sha256(SECRET.as_bytes(), parts));
    let timed = sign(&[now.as_bytes(), b".", body]);
    let slack = sign(&[b"v0:", now.as_bytes(), b":", body]);
    let signed = BASE64_STANDARD.encode(hmac_sha256(&key, &[b"msg_1.", now.as_bytes(), b".", body]));
    let text = |text: &str| text.to_owned();
    let basic = BASE64_STANDARD.encode("user:password");
    let cases = [
        (json!({"preset": "github", "secrets": [SECRET]}), github(body, "d", SECRET)),
        (
            json!({"preset": "stripe", "secrets": [SECRET]}),
            vec![("stripe-signature", format!("t={now},v1={},v1={timed}", "0".repeat(64)))],
        ),
        (
            json!({"preset": "slack", "secrets": [SECRET]}),
            vec![("x-slack-signature", format!("v0={slack}")), ("x-slack-request-timestamp", now.clone())],
        ),
        (
            json!({"preset": "standard", "secrets": [standard]}),
            vec![
                ("webhook-id", text("msg_1")),
                ("webhook-timestamp", now.clone()),
                ("webhook-signature", format!("v1,{signed}")),
            ],
        ),
        (
            json!({"preset": "hmac", "secrets": ["another secret", SECRET], "header": "X-Sig", "prefix": "s=",
                "signed": "{timestamp}.{body}", "timestamp_header": "X-Time", "dedupe": "${trigger.body.id}"}),
            vec![("x-sig", format!("s={timed}")), ("x-time", now.clone())],
        ),
        (
            json!({"preset": "basic", "secrets": ["user:password"], "dedupe_header": "x-id"}),
            vec![("authorization", format!("Basic {basic}")), ("x-id", text("1"))],
        ),
        (
            json!({"preset": "header", "secrets": [SECRET], "header": "authorization", "prefix": "Bearer ",
                "dedupe_header": "x-id"}),
            vec![("authorization", format!("Bearer {SECRET}")), ("x-id", text("1"))],
        ),
    ];
    for (index, (config, headers)) in cases.into_iter().enumerate() {
        let preset = config["preset"].as_str().expect("a name").to_owned();
        let created = create(&service, &format!("{preset}-{index}"), config).await;
        let by_token = path_of(&created);
        let by_name = format!("/api/v1/hooks/default/{preset}-{index}");
        let first = deliver(&service, &by_token, &headers, body.to_vec()).await.expect(202);
        // Verified by both addresses, and the same delivery by both.
        let second = deliver(&service, &by_name, &headers, body.to_vec()).await;
        assert_eq!(second.header("idempotency-replayed"), Some("true"), "{preset}");
        assert_eq!(second.expect(200), first, "{preset}");
        // What the run sees has no credentials.
        let input = input_of(&service, &first["run_id"]).await;
        assert_eq!(input["trigger"]["body"]["id"], "evt_1", "{preset}");
        let seen = input.to_string();
        for secret in [SECRET, &timed, &slack, &signed, &basic, "password"] {
            assert!(!seen.contains(secret), "{preset}: {seen}");
        }
        if !["basic", "header"].contains(&preset.as_str()) {
            let refused = deliver(&service, &by_token, &headers, [&body[..], b" "].concat()).await.error(401);
            assert_eq!(refused["code"], "delivery_refused");
        }
        let refused = deliver(&service, &by_name, &[], body.to_vec()).await.error(401);
        assert_eq!(refused["code"], "delivery_refused");
    }
    assert_eq!(runs(&service).await.len(), 7);
}

/// C3, test 2: the body is verified as it is, and read without a change of its numbers and texts.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_is_verified_as_received_and_its_values_are_kept(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = path_of(&created);
    for (index, (body, expected)) in [
        ("{ \"a\" :\t1.0 ,\r\n \"b\": 123456789012345678901234567890 }\n", json!({"a": 1.0})),
        ("\u{feff}{\"a\":\"\\u00e9\\ud83d\\ude00\\/\"}", json!({"a": "é😀/"})),
        ("{\"a\":\"é\"}", json!({"a": "é"})),
    ]
    .into_iter()
    .enumerate()
    {
        let headers = github(body.as_bytes(), &format!("d-{index}"), SECRET);
        let run = deliver(&service, &path, &headers, body).await.expect(202);
        let input = input_of(&service, &run["run_id"]).await;
        assert_eq!(input["trigger"]["body"]["a"], expected["a"], "{body}");
        let text: String = sqlx::query_scalar("SELECT input_data::text FROM workflow_runs WHERE run_id = $1")
            .bind(run["run_id"].as_str())
            .fetch_one(&pool)
            .await
            .expect("a run");
        assert_eq!(text.contains("\"b\": 123456789012345678901234567890"), index == 0, "{text}");
        assert_eq!(text.contains("\"a\": 1.0,"), index == 0, "{text}");
    }
    let form = "a=1&b=x+y";
    let mut headers = github(form.as_bytes(), "form", SECRET);
    headers.retain(|(name, _)| *name != "content-type");
    headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
    let run = deliver(&service, &path, &headers, form).await.expect(202);
    assert_eq!(input_of(&service, &run["run_id"]).await["trigger"]["body"], json!({"a": "1", "b": "x y"}));
    let not_json = deliver(&service, &path, &github(b"{", "bad", SECRET), "{").await;
    assert_eq!(not_json.status, 422, "{}", not_json.text);
}

/// C3, tests 4 and 7: each refusal looks the same from outside, and the owner sees the reason.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refusal_has_one_text_and_its_reason_is_for_the_owner(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "n", json!({"preset": "stripe", "secrets": [SECRET]})).await;
    let (path, body) = (path_of(&created), r#"{"id":"evt_1"}"#);
    let now = service.clock.now().timestamp();
    let signed = |at: i64, secret: &str| {
        let signature = hex(&hmac_sha256(secret.as_bytes(), &[at.to_string().as_bytes(), b".", body.as_bytes()]));
        vec![("stripe-signature", format!("t={at},v1={signature}"))]
    };
    let mut texts = Vec::new();
    for (headers, reason) in [
        (vec![], "the header stripe-signature is missing"),
        (vec![("stripe-signature", String::new())], "the header stripe-signature is not in the form of the preset"),
        (signed(now, "another secret"), "the signature is not by one of the secrets"),
        (signed(now - 330, SECRET), "seconds ago; at most 300 are accepted"),
        (signed(now + 330, SECRET), "seconds ahead; at most 300 are accepted"),
        (vec![("stripe-signature", "t=x,v1=00".to_owned())], "does not have a time in seconds"),
    ] {
        // Only one refusal a second is recorded.
        sqlx::query("UPDATE webhook_triggers SET refused_at = refused_at - interval '2 seconds'")
            .execute(&pool)
            .await
            .expect("done");
        let mut refused = deliver(&service, &path, &headers, body).await.error(401);
        for member in ["timestamp", "request_id"] {
            refused.as_object_mut().expect("an object").remove(member);
        }
        texts.push(refused.to_string());
        // It is recorded after the answer.
        eventually(reason, async || {
            let shown = trigger(&service, &created).await;
            shown["webhook"]["refused_for"].as_str().filter(|shown| shown.contains(reason)).map(drop)
        })
        .await;
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    assert_eq!(runs(&service).await.len(), 0);
    let shown = trigger(&service, &created).await;
    assert_eq!(shown["webhook"]["refused"], 6);
    // Of those within a second one is recorded; what comes later is, which shows that the others were dealt with.
    sqlx::query("UPDATE webhook_triggers SET refused_at = now() + interval '1 hour'")
        .execute(&pool)
        .await
        .expect("done");
    deliver(&service, &path, &signed(now, "another secret"), body).await.error(401);
    let own = crate::service::own_pool(&pool);
    let id = created["id"].as_str().expect("an id").parse().expect("a UUID");
    workflow_api::db::inbound::record_refusal(&own, id, "again").await.expect("done");
    assert_eq!(trigger(&service, &created).await["webhook"]["refused"], 6);
    deliver(&service, &path, &signed(now - 290, SECRET), body).await.expect(202);
}

/// C3, test 5: the same delivery fifty times at once, over two processes.
#[sqlx::test(migrator = "MIGRATOR")]
async fn fifty_equal_deliveries_at_once_start_one_run(pool: PgPool) {
    let (one, other) = (started(&pool).await, Service::start(&pool));
    let created = create(&one, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let (path, body) = (path_of(&created), "{}");
    let headers = github(body.as_bytes(), "d-1", SECRET);
    let answers = join_all((0..50).map(|index| {
        let service = if index % 2 == 0 { &one } else { &other };
        deliver(service, &path, &headers, body)
    }))
    .await;
    let mut started = 0;
    let mut run_ids: Vec<String> = Vec::new();
    for answer in answers {
        started += usize::from(answer.status == 202);
        assert_eq!(answer.status == 200, answer.header("idempotency-replayed") == Some("true"));
        assert!([200, 202].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.text);
        run_ids.push(answer.json()["run_id"].as_str().expect("an id").to_owned());
    }
    run_ids.dedup();
    assert_eq!((started, run_ids.len(), runs(&one).await.len()), (1, 1, 1));
    // Also once the row of the delivery has expired: the id of the run follows from that of the delivery.
    sqlx::query("DELETE FROM webhook_trigger_deliveries").execute(&pool).await.expect("deleted");
    let late = deliver(&one, &path, &headers, body).await;
    assert_eq!(late.header("idempotency-replayed"), Some("true"));
    assert_eq!(late.expect(200)["run_id"], run_ids[0].as_str());
}

/// C3, test 6: a body in chunks and one that is compressed; the signature is over the bytes received.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_may_come_in_chunks_and_compressed_within_limits(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = path_of(&created);
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    };
    let text = json!({"text": "x".repeat(100_000)}).to_string();
    let chunks = || {
        let chunks: Vec<_> =
            text.as_bytes().chunks(1000).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
        Body::from_stream(futures_util::stream::iter(chunks))
    };
    let run = deliver(&service, &path, &github(text.as_bytes(), "chunks", SECRET), chunks()).await.expect(202);
    assert_eq!(
        input_of(&service, &run["run_id"]).await["trigger"]["body"]["text"].as_str().map(str::len),
        Some(100_000)
    );
    let compressed = |bytes: &[u8], id: &str| {
        let body = gzip(bytes);
        let mut headers = github(&body, id, SECRET);
        headers.push(("content-encoding", "gzip".to_owned()));
        (headers, body)
    };
    let (headers, body) = compressed(text.as_bytes(), "gzip");
    let run = deliver(&service, &path, &headers, body.clone()).await.expect(202);
    assert_eq!(
        input_of(&service, &run["run_id"]).await["trigger"]["body"]["text"].as_str().map(str::len),
        Some(100_000)
    );
    // The signature of the decompressed text is not that of the delivery.
    let mut over_text = github(text.as_bytes(), "gzip-2", SECRET);
    over_text.push(("content-encoding", "gzip".to_owned()));
    deliver(&service, &path, &over_text, body).await.error(401);
    let (headers, bomb) = compressed(&vec![b' '; 100 << 20], "bomb");
    assert!(bomb.len() < 1 << 20);
    assert_eq!(deliver(&service, &path, &headers, bomb).await.error(413)["code"], "payload_too_large");
    let mut brotli = github(b"{}", "br", SECRET);
    brotli.push(("content-encoding", "br".to_owned()));
    let refused = deliver(&service, &path, &brotli, "{}").await;
    assert_eq!(refused.header("accept-encoding"), Some("gzip, identity"));
    refused.error(415);
    let large = vec![b' '; (1 << 20) + 1];
    let refused = deliver(&service, &path, &github(&large, "large", SECRET), large).await.error(413);
    assert_eq!(refused["code"], "payload_too_large");
}

/// C3, test 7: what cannot be used is refused when the trigger is saved; secrets are never shown again.
#[sqlx::test(migrator = "MIGRATOR")]
async fn secrets_are_required_kept_and_never_shown(pool: PgPool) {
    let key = "00".repeat(32);
    let service = Service::start_with(config(&pool, &[("ENCRYPTION_KEY", key.as_str())]));
    service.one_step_workflow().await;
    for (config, error) in [
        (json!({"preset": "github"}), "body.config.secrets missing"),
        (json!({"preset": "github", "secrets": null}), "body.config.secrets missing"),
        (json!({"preset": "github", "secrets": []}), "body.config.secrets value_error"),
        (json!({"preset": "github", "secrets": [""]}), "body.config.secrets.0 string_too_short"),
        (json!({"preset": "none", "secrets": [SECRET]}), "body.config.secrets value_error"),
        (json!({"preset": "hmac", "secrets": [SECRET]}), "body.config.header missing"),
        (json!({"preset": "x", "secrets": [SECRET]}), "body.config.preset value_error"),
    ] {
        let body = json!({"name": "n", "kind": "webhook", "workflow_name": "one-step", "config": config});
        let refused = service.post("/api/v1/triggers", &body).await;
        assert_eq!((refused.status.as_u16(), refused.field_errors()), (422, vec![error.to_owned()]), "{config}");
    }
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let (path, token) = (path_of(&created), created["token"].as_str().expect("a token").to_owned());
    assert_eq!(created["config"], json!({"preset": "github"}));
    let at = format!("/api/v1/triggers/{}", created["id"].as_str().expect("an id"));
    let works = async |id: &str, secret: &str, path: &str| {
        deliver(&service, path, &github(b"{}", id, secret), "{}").await.status.as_u16()
    };
    assert_eq!(works("1", SECRET, &path).await, 202);
    // A change of the rest keeps the secrets; new ones replace them.
    service.put(&at, &json!({"config": {"preset": "github", "filter": "${trigger.body.n} is null"}})).await.expect(200);
    assert_eq!(works("2", SECRET, &path).await, 202);
    service
        .put(&at, &json!({"config": {"preset": "github", "secrets": ["the next secret", SECRET]}}))
        .await
        .expect(200);
    assert_eq!((works("3", SECRET, &path).await, works("4", "the next secret", &path).await), (202, 202));
    service.put(&at, &json!({"config": {"preset": "github", "secrets": ["the next secret"]}})).await.expect(200);
    assert_eq!((works("5", SECRET, &path).await, works("6", "the next secret", &path).await), (401, 202));
    // The secrets of another preset are not those of this one.
    let refused = service.put(&at, &json!({"config": {"preset": "slack"}})).await;
    assert_eq!(refused.field_errors(), ["body.config.secrets missing"]);
    // Another token.
    let rotated = service.post(&format!("{at}/token"), &json!({})).await;
    assert_eq!(rotated.header("cache-control"), Some("no-store"));
    let rotated = rotated.expect(200);
    assert_ne!(rotated["token"], created["token"]);
    let next = path_of(&rotated);
    assert_eq!((works("7", "the next secret", &path).await, works("8", "the next secret", &next).await), (404, 202));
    // Nowhere but in the answers that make them.
    let mut shown = String::new();
    for path in [&at, "/api/v1/triggers", "/api/v1/audit-logs", "/api/v1/runs"] {
        shown += &service.get(path).await.expect(200).to_string();
    }
    for table in ["triggers", "webhook_triggers", "webhook_trigger_deliveries", "audit_logs", "workflow_runs"] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT coalesce(json_agg(t)::text, '') FROM {table} t"));
        shown += &sqlx::query_scalar::<_, String>(sql).fetch_one(&pool).await.expect("rows");
    }
    let next_token = rotated["token"].as_str().expect("a token");
    for secret in [SECRET, "the next secret", &token, next_token] {
        assert!(!shown.contains(secret), "{secret}");
    }
    let hash = format!("\\\\x{}", hex(&Sha256::digest(next_token)));
    assert!(shown.contains(&hash), "only the hash of the token is stored");
    service.delete(&at).await;
    assert_eq!(works("9", "the next secret", &next).await, 404);
}

/// C3, test 8: unknown addresses look alike, cost as much as wrong signatures, and count as wrong credentials.
#[sqlx::test(migrator = "MIGRATOR")]
async fn guesses_look_alike_and_are_limited(pool: PgPool) {
    let settings = [("RATE_LIMIT_FAILED_AUTH", "5")];
    let service = Service::start_with(config(&pool, &settings));
    service.one_step_workflow().await;
    let signed = create(&service, "signed", json!({"preset": "github", "secrets": [SECRET]})).await;
    let open = create(&service, "open", json!({"preset": "none"})).await;
    let (signed, open) = (path_of(&signed), path_of(&open));
    let unknown = format!("/api/v1/hooks/{}", "0".repeat(64));
    let from = async |peer: &str, path: &str, headers: &[(&str, String)]| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Answer::read(service.open_from(peer, "POST", path, &headers, Body::from("{}")).await).await
    };
    for (index, (path, status)) in [
        (unknown.as_str(), 404),
        ("/api/v1/hooks/x", 404),
        ("/api/v1/hooks/%ff", 404),
        (&signed, 401),
        ("/api/v1/hooks/default/signed", 401),
        // Without a proof beside the address, a name is not enough.
        ("/api/v1/hooks/default/open", 401),
        ("/api/v1/hooks/default/unknown", 401),
        ("/api/v1/hooks/other/signed", 401),
        ("/api/v1/hooks/Not%20One/%00", 401),
    ]
    .into_iter()
    .enumerate()
    {
        let peer = format!("10.0.0.{index}");
        for attempt in 0..7 {
            let answer = from(&peer, path, &[]).await;
            // The sixth wrong one is refused for its number, whatever it is.
            assert_eq!(answer.status.as_u16(), if attempt < 5 { status } else { 429 }, "{path} {attempt}");
        }
        // A valid delivery is accepted from every address.
        assert_eq!(from(&peer, &open, &[]).await.status.as_u16(), 202);
        let id = format!("d-{index}");
        assert_eq!(from(&peer, &signed, &github(b"{}", &id, SECRET)).await.status.as_u16(), 202);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_delivery_that_is_not_wanted_or_only_tries_the_address_starts_no_run(pool: PgPool) {
    let service = started(&pool).await;
    let filtered = json!({"preset": "github", "secrets": [SECRET], "filter": "${trigger.body.action} == 'opened'"});
    let created = create(&service, "n", filtered).await;
    let path = path_of(&created);
    let send = async |body: &str, id: &str| {
        deliver(&service, &path, &github(body.as_bytes(), id, SECRET), body.to_owned()).await
    };
    for body in [r#"{"action":"closed"}"#, "{}", "null"] {
        let answer = send(body, "d").await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (204, ""), "{body}");
    }
    let broken = service
        .put(
            &format!("/api/v1/triggers/{}", created["id"].as_str().expect("an id")),
            &json!({"config": {"preset": "github", "filter": "${trigger.body.n} > 1"}}),
        )
        .await;
    broken.expect(200);
    assert_eq!(send(r#"{"n":"x"}"#, "d").await.field_errors(), ["body value_error"]);
    assert!(
        trigger(&service, &created).await["webhook"]["refused_for"].as_str().expect("a reason").starts_with("filter: ")
    );
    send(r#"{"n":2}"#, "d").await.expect(202);
    let mut ping = github(b"{}", "ping", SECRET);
    ping.retain(|(name, _)| *name != "x-github-event");
    ping.push(("x-github-event", "ping".to_owned()));
    deliver(&service, &path, &ping, "{}").await.expect(200);
    ping[0].1 = "sha256=00".to_owned();
    deliver(&service, &path, &ping, "{}").await.error(401);
    let slack = create(&service, "slack", json!({"preset": "slack", "secrets": [SECRET]})).await;
    let body = r#"{"type":"url_verification","challenge":"c-1","token":"t"}"#;
    let now = service.clock.now().timestamp().to_string();
    let signature = hex(&hmac_sha256(SECRET.as_bytes(), &[b"v0:", now.as_bytes(), b":", body.as_bytes()]));
    let headers = [("x-slack-signature", format!("v0={signature}")), ("x-slack-request-timestamp", now)];
    let challenged = deliver(&service, &path_of(&slack), &headers, body).await.expect(200);
    assert_eq!(challenged, json!({"challenge": "c-1"}));
    assert_eq!(runs(&service).await.len(), 1);
    let shown = trigger(&service, &created).await;
    assert_eq!((&shown["counters"]["filtered"], &shown["counters"]["fired"]), (&json!(3), &json!(1)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_start_a_run_is_recorded_and_can_be_delivered_again(pool: PgPool) {
    let service = Service::start(&pool);
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let (path, headers) = (path_of(&created), github(b"{}", "d-1", SECRET));
    let refused = deliver(&service, &path, &headers, "{}").await.error(422);
    assert_eq!(refused["code"], "workflow_not_found");
    let shown = trigger(&service, &created).await;
    assert_eq!(shown["counters"]["failed_to_start"], 1);
    service.one_step_workflow().await;
    let at = format!("/api/v1/triggers/{}", created["id"].as_str().expect("an id"));
    service.post(&format!("{at}/pause"), &json!({"note": "why"})).await.expect(200);
    let paused = deliver(&service, &path, &headers, "{}").await;
    assert_eq!(paused.header("retry-after"), Some("60"));
    assert_eq!(paused.error(503)["code"], "trigger_paused");
    deliver(&service, &path, &[], "{}").await.error(401);
    service.post(&format!("{at}/resume"), &json!({})).await.expect(200);
    // The same delivery, which has started no run yet.
    deliver(&service, &path, &headers, "{}").await.expect(202);
    // The end of a chain of runs, each started by the one before.
    for (depth, status) in [("0", 202), ("15", 202), ("16", 422), ("70000", 422), ("x", 422), ("-1", 422)] {
        let mut headers = github(b"{}", &format!("depth-{depth}"), SECRET);
        headers.push(("webhook-depth", depth.to_owned()));
        let answer = deliver(&service, &path, &headers, "{}").await;
        assert_eq!(answer.status.as_u16(), status, "{depth}: {}", answer.text);
        if status == 202 {
            let run = answer.json()["run_id"].as_str().expect("an id").to_owned();
            let run = service.get(&format!("/api/v1/runs/{run}")).await.expect(200);
            assert_eq!(run["trigger"]["depth"].as_i64(), depth.parse::<i64>().ok().map(|depth| depth + 1));
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn deliveries_are_forgotten_after_seven_days(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = path_of(&created);
    for id in ["old", "new"] {
        deliver(&service, &path, &github(b"{}", id, SECRET), "{}").await.expect(202);
    }
    let sql = "UPDATE webhook_trigger_deliveries SET created_at = now() - interval '7 days 1 minute'
               WHERE run_id = (SELECT run_id FROM workflow_runs ORDER BY created_at LIMIT 1)";
    sqlx::query(sql).execute(&pool).await.expect("done");
    crate::service::eventually("the old delivery is forgotten", async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM webhook_trigger_deliveries").fetch_one(&pool).await.expect("rows");
        (left == 1).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sender_may_wait_for_the_end_of_the_run(pool: PgPool) {
    let service = started(&pool).await;
    let created = create(&service, "n", json!({"preset": "github", "secrets": [SECRET]})).await;
    let path = format!("{}?wait=10", path_of(&created));
    // Nobody executes it: the answer comes after the time, and has the status.
    let headers = github(b"{}", "d-1", SECRET);
    let (answer, waited) =
        passing(&service.clock, Duration::from_secs(1), deliver(&service, &path, &headers, "{}")).await;
    assert!(waited.as_secs() >= 10, "{waited:?}");
    let first = answer.expect(202);
    assert_eq!(first["status"], "PENDING");
    let run_id = first["run_id"].as_str().expect("an id");
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let ended = deliver(&service, &path, &headers, "{}").await.expect(200);
    assert_eq!(ended, json!({"run_id": run_id, "status": "CANCELLED"}));
    for wait in ["11", "-1", "x"] {
        let path = format!("{}?wait={wait}", path_of(&created));
        assert_eq!(deliver(&service, &path, &headers, "{}").await.status, 422, "{wait}");
    }
}
