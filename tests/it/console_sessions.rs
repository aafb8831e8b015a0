//! Signing in to the console: who may, from where, and for how long.

use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt as _;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    access::{Permission, api_key::ApiKey},
    actions::api_keys::store_given,
    db::migrations::MIGRATOR,
    trace::hex,
};

use crate::{
    access::{Admin, SECRET, claims, now, secret, signed},
    service::{Answer, Service, config, own_pool},
};

const SESSION: &str = "/console/session";
const HOST: (&str, &str) = ("host", "api.example");
const SAME: (&str, &str) = ("sec-fetch-site", "same-origin");
const ORIGIN: (&str, &str) = ("origin", "https://api.example");

fn token(more: &Value) -> String {
    format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims(more), &secret(), Algorithm::HS256))
}

/// Signs in from the page of the console.
async fn sign_in(service: &Service, credentials: (&str, &str)) -> Answer {
    service.send("POST", SESSION, &[HOST, SAME, ORIGIN, credentials], "").await
}

/// `Cookie` of a browser that has signed in.
fn cookie(answer: &Answer) -> String {
    assert_eq!(answer.status.as_u16(), 201, "{}", answer.text);
    let cookie = answer.header("set-cookie").expect("a cookie");
    cookie.split(';').next().expect("a pair").to_owned()
}

/// Sends what a page of the console sends.
async fn send(service: &Service, method: &str, path: &str, cookie: &str, body: &Value) -> Answer {
    let headers = [HOST, SAME, ORIGIN, ("cookie", cookie), ("content-type", "application/json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    service.send(method, path, &headers, body).await
}

async fn get(service: &Service, path: &str, cookie: &str) -> Answer {
    service.send("GET", path, &[HOST, SAME, ("cookie", cookie)], "").await
}

async fn status(service: &Service, cookie: &str) -> u16 {
    get(service, "/api/v1/runs", cookie).await.status.as_u16()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_browser_signs_in_with_a_key_or_a_token_and_has_exactly_their_rights(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let (key, _) = admin.key(&json!({"name": "viewer", "role": "viewer", "scopes": ["runs:read"]})).await;
    for (credentials, kind, subject, role, permissions, may_write) in [
        (("x-api-key", key), "api_key", "api-key:viewer", "viewer", json!(["runs:read"]), false),
        (
            ("authorization", token(&json!({"sub": "ann", "role": "operator", "roles": ["manager", "clerk"]}))),
            "token",
            "ann",
            "operator",
            json!(["agents:read", "workflows:read", "runs:read", "runs:write", "webhooks:read"]),
            true,
        ),
    ] {
        let answer = sign_in(service, (credentials.0, &credentials.1)).await;
        let attributes: Vec<_> = answer.header("set-cookie").expect("a cookie").split("; ").skip(1).collect();
        assert_eq!(attributes, ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict", "Secure"]);
        let cookie = cookie(&answer);
        assert!(cookie.starts_with("__Host-wf="), "{cookie}");
        assert!(!answer.text.contains(cookie.split('=').nth(1).expect("a value")), "the page never sees it");
        let body = answer.json();
        let now = get(service, SESSION, &cookie).await.expect(200);
        for shown in [&body, &now] {
            assert_eq!((&shown["authentication"], &shown["signed_in"]), (&json!(true), &json!(true)), "{shown}");
            assert_eq!((&shown["subject"], &shown["role"]), (&json!(subject), &json!(role)), "{shown}");
            let roles = if kind == "token" { json!(["manager", "clerk"]) } else { json!([]) };
            assert_eq!((&shown["roles"], &shown["credential"]), (&roles, &json!(kind)), "{shown}");
            assert_eq!(
                (&shown["permissions"], &shown["organization_id"]),
                (&permissions, &json!("default")),
                "{shown}"
            );
            assert!(shown["expires_at"].is_string() && shown["server_time"].is_string(), "{shown}");
        }
        assert_eq!(body["expires_at"], now["expires_at"]);
        assert_eq!(status(service, &cookie).await, 200);
        let pause = send(service, "POST", "/api/v1/runs/none/pause", &cookie, &json!({})).await;
        assert_eq!(pause.status.as_u16(), if may_write { 404 } else { 403 }, "{}", pause.text);
        // What the audit trail says is what it says of the credentials.
        let denied = send(service, "POST", "/api/v1/agents", &cookie, &json!({})).await;
        assert_eq!(denied.status.as_u16(), 403);
    }
    let nobody = service.get(SESSION).await.expect(200);
    assert_eq!((&nobody["roles"], &nobody["credential"]), (&json!([]), &json!(null)));
    assert_eq!(
        (&nobody["signed_in"], &nobody["subject"], &nobody["permissions"]),
        (&json!(false), &json!(null), &json!([]))
    );
    let entries = admin.get("/api/v1/audit-logs?entity_type=session").await.expect(200);
    let entries: Vec<_> = entries["items"].as_array().expect("entries").iter().map(Value::to_string).collect();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert!(entries.iter().all(|entry| entry.contains("sign_in")), "{entries:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_cookie_counts_for_requests_of_the_consoles_own_pages_only(pool: PgPool) {
    let admin = Admin::start(&pool, &[("PUBLIC_URL", "https://public.example/wf")]);
    let service = &admin.service;
    let session = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    let browser = ("cookie", session.as_str());
    for (headers, expected) in [
        (&[HOST, SAME, browser][..], 200),
        (&[HOST, SAME, ORIGIN, browser], 200),
        (&[HOST, SAME, ("origin", "https://public.example"), browser], 200),
        (&[HOST, browser], 401),
        (&[HOST, ORIGIN, browser], 401),
        (&[HOST, ("sec-fetch-site", "same-site"), browser], 401),
        (&[HOST, ("sec-fetch-site", "cross-site"), browser], 401),
        (&[HOST, ("sec-fetch-site", "none"), browser], 401),
        (&[HOST, SAME, SAME, browser], 401),
        (&[HOST, SAME, ("origin", "https://evil.example"), browser], 401),
        (&[HOST, SAME, ("origin", "http://localhost:3000"), browser], 401),
        (&[HOST, SAME, ("origin", "null"), browser], 401),
    ] {
        let answer = service.send("GET", "/api/v1/agents", headers, "").await;
        assert_eq!(answer.status.as_u16(), expected, "{headers:?}: {}", answer.text);
        let shown = service.send("GET", SESSION, headers, "").await.expect(200);
        assert_eq!(shown["signed_in"], json!(expected == 200), "{headers:?}");
        let change = service.send("POST", "/api/v1/agents", headers, r#"{"name":"x","url":"http://a"}"#).await;
        assert_eq!(change.status.as_u16() == 401, expected == 401, "{headers:?}: {}", change.text);
    }
    // The plain cookie is for this machine.
    let plain = session.replace("__Host-wf=", "wf=");
    for (host, expected) in [("localhost:8000", 200), ("127.0.0.1:8000", 200), ("api.example", 401)] {
        let headers = [("host", host), SAME, ("cookie", plain.as_str())];
        assert_eq!(service.send("GET", "/api/v1/agents", &headers, "").await.status.as_u16(), expected, "{host}");
    }
    let local = [("host", "localhost:8000"), SAME, ("origin", "http://localhost:8000")];
    let headers = [local[0], local[1], local[2], ("authorization", admin.bearer.as_str())];
    let signed_in = service.send("POST", SESSION, &headers, "").await;
    let set = signed_in.header("set-cookie").expect("a cookie");
    assert!(set.starts_with("wf=") && !set.contains("Secure") && set.contains("HttpOnly; SameSite=Strict"), "{set}");
    // Other protocols have their own clients, and a session must not make lasting credentials of itself.
    assert_eq!(send(service, "POST", "/mcp", &session, &json!({})).await.status.as_u16(), 401);
    assert_eq!(send(service, "POST", "/a2a/default/none", &session, &json!({})).await.status.as_u16(), 401);
    let (key, _) = admin.key(&json!({"name": "k", "role": "admin"})).await;
    let of_key = cookie(&sign_in(service, ("x-api-key", &key)).await);
    for session in [&session, &of_key] {
        let token = send(service, "POST", "/api/v1/auth/token", session, &json!(null)).await;
        assert_eq!(token.error(403)["code"], "api_key_required");
        assert_eq!(send(service, "POST", SESSION, session, &json!(null)).await.error(401)["code"], "unauthorized");
    }
    // Whoever sends credentials of their own is known by these.
    let wrong = [HOST, SAME, browser, ("x-api-key", "wf_live_wrong")];
    assert_eq!(service.send("GET", "/api/v1/agents", &wrong, "").await.status.as_u16(), 401);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_a_page_of_the_console_signs_in_and_out(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let session = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    let bearer = ("authorization", admin.bearer.as_str());
    for headers in [
        &[HOST][..],
        &[HOST, ORIGIN],
        &[HOST, ("sec-fetch-site", "cross-site"), ORIGIN],
        &[HOST, ("sec-fetch-site", "same-site"), ("origin", "https://other.api.example")],
        &[HOST, SAME, ("origin", "https://evil.example")],
    ] {
        for (method, more) in [("POST", bearer), ("DELETE", ("cookie", session.as_str())), ("DELETE", bearer)] {
            let headers: Vec<_> = headers.iter().copied().chain([more]).collect();
            let answer = service.send(method, SESSION, &headers, "").await;
            assert_eq!(answer.header("set-cookie"), None, "{method} {headers:?}");
            assert_eq!(answer.error(403)["code"], "cross_site", "{method} {headers:?}");
        }
    }
    assert_eq!(status(service, &session).await, 200);
    assert_eq!(sessions(&pool).await, 1);
}

async fn sessions(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM console_sessions").fetch_one(pool).await.expect("a count")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_session_ends_when_its_browser_signs_out_and_with_it_what_is_open(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'PENDING')",
    )
    .execute(&pool)
    .await
    .expect("a run");
    let session = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    let other = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    assert_ne!(session, other);
    let headers = [HOST, SAME, ("cookie", session.as_str())];
    let stream = service.open("GET", "/api/v1/runs/r/events", &headers, Body::empty()).await;
    assert_eq!(stream.status(), 200);
    let signed_out = send(service, "DELETE", SESSION, &session, &json!(null)).await;
    assert_eq!((signed_out.status.as_u16(), signed_out.text.as_str()), (204, ""));
    let cleared: Vec<_> =
        signed_out.headers.get_all("set-cookie").iter().map(|value| value.to_str().expect("text")).collect();
    assert_eq!(cleared.len(), 2);
    assert!(cleared.iter().all(|cleared| cleared.contains("=; Path=/; Max-Age=0")), "{cleared:?}");
    assert_eq!(get(service, "/api/v1/runs", &session).await.error(401)["code"], "unauthorized");
    assert_eq!(get(service, SESSION, &session).await.expect(200)["signed_in"], false);
    // The stream was opened by the session, so it ends with it.
    service.clock.advance(Duration::from_secs(2));
    stream.into_body().collect().await.expect("an end");
    assert_eq!(status(service, &other).await, 200, "another browser stays");
    assert_eq!(send(service, "DELETE", SESSION, &session, &json!(null)).await.status.as_u16(), 204, "again");
    let entries = admin.get("/api/v1/audit-logs?entity_type=session&action=sign_out").await.expect(200);
    assert_eq!(entries["items"].as_array().map(Vec::len), Some(1), "{entries}");
    // Another process learns of it within seconds.
    let elsewhere = Service::start_with(config(&pool, &[("JWT_SECRET", SECRET)]));
    assert_eq!(status(&elsewhere, &other).await, 200);
    send(service, "DELETE", SESSION, &other, &json!(null)).await;
    elsewhere.clock.advance(Duration::from_secs(5));
    assert_eq!(status(&elsewhere, &other).await, 401);
}

/// All tabs of a browser share a cookie.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_page_of_another_session_does_nothing_with_the_cookie_of_this_one(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let mut sessions = Vec::new();
    for subject in ["ann", "bob"] {
        let token = token(&json!({"sub": subject, "role": "editor"}));
        let answer = sign_in(service, ("authorization", &token)).await;
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        sessions.push((cookie(&answer), id));
    }
    let [(first, id), (second, _)] = &sessions[..] else { panic!("two sessions") };
    assert_eq!(get(service, SESSION, first).await.expect(200)["id"], json!(id));
    let agent = json!({"name": "a", "url": "http://127.0.0.1:1/"}).to_string();
    for (cookie, named, status) in [(second, id.as_str(), 401), (first, "x", 401), (first, id, 201)] {
        let headers =
            [HOST, SAME, ORIGIN, ("cookie", cookie), ("content-type", "application/json"), ("console-session", named)];
        let answer = service.send("POST", "/api/v1/agents", &headers, agent.clone()).await;
        assert_eq!(answer.status, status, "{}", answer.text);
        if status == 401 {
            assert_eq!(answer.error(401)["code"], "session_changed");
        }
    }
    let nobody = service.get(SESSION).await.expect(200);
    assert_eq!(nobody["id"], json!(null));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_session_ends_after_twelve_hours_or_with_its_credentials(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    // Keys of this one do not end with the token of a test.
    let lasting = ApiKey::generate("live");
    assert!(store_given(&own_pool(&pool), &lasting, true).await.expect("stored"));
    let (ending, id) = admin.key(&json!({"name": "ending", "role": "admin"})).await;
    let short = token(&json!({"sub": "short", "exp": now() + 3600}));
    let of_key = cookie(&sign_in(service, ("x-api-key", lasting.expose())).await);
    let of_revoked = cookie(&sign_in(service, ("x-api-key", &ending)).await);
    let of_token = cookie(&sign_in(service, ("authorization", &short)).await);
    for session in [&of_key, &of_revoked, &of_token] {
        assert_eq!(status(service, session).await, 200);
    }
    let path = format!("/api/v1/api-keys/{id}");
    send(service, "DELETE", &path, &of_key, &json!(null)).await.expect(200);
    assert_eq!(get(service, "/api/v1/runs", &of_revoked).await.error(401)["code"], "unauthorized");
    assert_eq!(status(service, &of_key).await, 200);
    service.clock.advance(Duration::from_mins(59));
    assert_eq!(status(service, &of_token).await, 200);
    service.clock.advance(Duration::from_mins(2));
    assert_eq!(status(service, &of_token).await, 401, "the token has ended");
    service.clock.advance(Duration::from_hours(12) - Duration::from_mins(62));
    assert_eq!(status(service, &of_key).await, 200);
    service.clock.advance(Duration::from_mins(2));
    assert_eq!(status(service, &of_key).await, 401, "twelve hours are over");
    // The loop deletes what has ended by the database's clock.
    sqlx::query("UPDATE console_sessions SET expires_at = now() WHERE subject = 'short'")
        .execute(&pool)
        .await
        .expect("done");
    workflow_api::db::console_sessions::expire(&own_pool(&pool)).await.expect("deleted");
    let left: Vec<String> =
        sqlx::query_scalar("SELECT subject FROM console_sessions").fetch_all(&pool).await.expect("rows");
    assert!(left.len() == 2 && !left.contains(&"short".to_owned()), "{left:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_session_follows_its_key_and_ends_with_the_secret_that_signed_its_token(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let (key, _) = admin.key(&json!({"name": "changing", "role": "admin"})).await;
    let of_key = cookie(&sign_in(service, ("x-api-key", &key)).await);
    let of_token = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    assert_eq!(get(service, "/api/v1/audit-logs", &of_key).await.status.as_u16(), 200);
    sqlx::query("UPDATE api_keys SET role = 'viewer' WHERE name = 'changing'").execute(&pool).await.expect("done");
    service.clock.advance(Duration::from_secs(5));
    assert_eq!(get(service, "/api/v1/audit-logs", &of_key).await.error(403)["code"], "forbidden");
    assert_eq!(get(service, SESSION, &of_key).await.expect(200)["role"], "viewer");
    // The same database, after the secret was replaced.
    let secret = "7c1f0a93d5b84e26f1603bd79c28ae415d0296f3b87ce14a6092d3f58b71ec04";
    let rotated = Service::start_with(config(&pool, &[("JWT_SECRET", secret)]));
    assert_eq!(status(&rotated, &of_token).await, 401);
    assert_eq!(status(&rotated, &of_key).await, 200);
    assert_eq!(status(service, &of_token).await, 200);
    // A token of a key ends with the key, too.
    let (key, id) = admin.key(&json!({"name": "parent", "role": "admin"})).await;
    let issued = service.send("POST", "/api/v1/auth/token", &[("x-api-key", &key)], "").await.expect(200);
    let bearer = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let session = cookie(&sign_in(service, ("authorization", &bearer)).await);
    assert_eq!(get(service, SESSION, &session).await.expect(200)["credential"], "token");
    assert_eq!(status(service, &session).await, 200);
    admin.delete(&format!("/api/v1/api-keys/{id}")).await.expect(200);
    assert_eq!(status(service, &session).await, 401);
    // The tables give nothing away by which somebody could sign in.
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT to_jsonb(s)::text FROM console_sessions s").fetch_all(&pool).await.expect("rows");
    let token = admin.bearer.trim_start_matches("Bearer ");
    let hex = hex(token.as_bytes());
    for row in rows {
        assert!(!row.contains(token) && !row.contains(&hex[..40]) && !row.contains(&key), "{row}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_organizations_never_mix(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    admin.post("/api/v1/organizations", &json!({"id": "acme", "name": "Acme"})).await.expect(201);
    let own = cookie(&sign_in(service, ("authorization", &admin.bearer)).await);
    let acme = token(&json!({"sub": "admin", "organization_id": "acme"}));
    let acme = cookie(&sign_in(service, ("authorization", &acme)).await);
    for (session, organization) in [(&own, "default"), (&acme, "acme")] {
        assert_eq!(get(service, SESSION, session).await.expect(200)["organization_id"], organization);
        let agent = json!({"name": organization, "url": "http://a"});
        send(service, "POST", "/api/v1/agents", session, &agent).await.expect(201);
    }
    for (session, organization) in [(&own, "default"), (&acme, "acme")] {
        let agents = get(service, "/api/v1/agents", session).await.expect(200);
        let names: Vec<_> =
            agents["items"].as_array().expect("agents").iter().map(|agent| agent["name"].clone()).collect();
        assert_eq!(names, [organization]);
    }
    // Both in one request: browsers send no second one, and of two the first counts.
    let both = format!("{acme}; {own}");
    assert_eq!(get(service, SESSION, &both).await.expect(200)["organization_id"], "acme");
    admin.put("/api/v1/organizations/acme", &json!({"status": "suspended"})).await.expect(200);
    assert_eq!(status(service, &acme).await, 401);
    assert_eq!(status(service, &own).await, 200);
    send(service, "DELETE", SESSION, &own, &json!(null)).await;
    assert_eq!(
        sessions(&pool).await,
        1,
        "the session of another organisation is left, although its subject is the same"
    );
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn guessing_is_limited_and_costs_no_query(pool: PgPool) {
    let settings = [("JWT_SECRET", SECRET), ("RATE_LIMIT_FAILED_AUTH", "3")];
    let service = Service::start_with(config(&pool, &settings));
    let bearer = token(&json!({}));
    let from = async |method: &str, path: &str, more: (&str, &str)| {
        service.send_from("192.0.2.1", method, path, &[HOST, SAME, ORIGIN, more]).await
    };
    let valid = from("POST", SESSION, ("authorization", &bearer)).await;
    let valid = cookie(&valid);
    let made = ApiKey::generate("live");
    let forged = format!("__Host-wf={}", "A".repeat(64));
    for (method, path, guess) in [
        ("POST", SESSION, ("x-api-key", made.expose())),
        ("POST", SESSION, ("authorization", "Bearer a.b.c")),
        ("GET", "/api/v1/runs", ("cookie", forged.as_str())),
    ] {
        assert_eq!(from(method, path, guess).await.error(401)["code"], "unauthorized", "{guess:?}");
    }
    for (method, path, guess) in [
        ("POST", SESSION, ("authorization", "Bearer a.b.c")),
        ("GET", "/api/v1/runs", ("cookie", forged.as_str())),
        ("GET", "/api/v1/runs", ("cookie", "__Host-wf=")),
    ] {
        let refused = from(method, path, guess).await;
        assert!(refused.header("retry-after").is_some(), "{guess:?}");
        assert_eq!(refused.error(429)["code"], "rate_limited", "{guess:?}");
    }
    // Neither who signs in rightly nor who has done so is locked out with them.
    assert_eq!(from("GET", "/api/v1/runs", ("cookie", &valid)).await.status.as_u16(), 200);
    assert_eq!(from("POST", SESSION, ("authorization", &bearer)).await.status.as_u16(), 201);
    // A forged cookie is refused without its table.
    sqlx::query("ALTER TABLE console_sessions RENAME TO away").execute(&pool).await.expect("done");
    service.clock.advance(Duration::from_mins(2));
    assert_eq!(from("GET", "/api/v1/runs", ("cookie", &forged)).await.status.as_u16(), 401);
    assert_eq!(from("GET", "/api/v1/runs", ("authorization", &bearer)).await.status.as_u16(), 200);
    assert!(from("GET", "/api/v1/runs", ("cookie", &valid)).await.status.is_server_error());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_oldest_of_many_sessions_of_a_caller_end(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let service = &admin.service;
    let mut cookies = Vec::new();
    for _ in 0..21 {
        service.clock.advance(Duration::from_secs(1));
        cookies.push(cookie(&sign_in(service, ("authorization", &admin.bearer)).await));
    }
    assert_eq!(sessions(&pool).await, 20);
    assert_eq!(status(service, &cookies[0]).await, 401);
    assert_eq!((status(service, &cookies[1]).await, status(service, &cookies[20]).await), (200, 200));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_authentication_everybody_is_in_and_nobody_signs_in(pool: PgPool) {
    let service = Service::start(&pool);
    let shown = service.get(SESSION).await.expect(200);
    assert_eq!((&shown["authentication"], &shown["signed_in"]), (&json!(false), &json!(true)), "{shown}");
    assert_eq!((&shown["subject"], &shown["role"]), (&json!("system"), &json!("admin")), "{shown}");
    assert_eq!((&shown["roles"], &shown["credential"]), (&json!([]), &json!(null)), "{shown}");
    assert_eq!(shown["permissions"].as_array().map(Vec::len), Some(Permission::ALL.len()), "{shown}");
    let refused = service.send("POST", SESSION, &[HOST, SAME, ORIGIN, ("authorization", "Bearer x")], "").await;
    assert_eq!(refused.error(409)["code"], "authentication_off");
    assert_eq!(service.send("DELETE", SESSION, &[HOST, SAME, ORIGIN], "").await.status.as_u16(), 204);
}
