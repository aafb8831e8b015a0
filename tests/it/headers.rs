//! What answers say to browsers and caches.

use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::Admin,
    service::{Service, config},
};

const UI: &str = "http://localhost:3000";

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_answer_can_be_neither_framed_nor_guessed_at_nor_kept_by_others(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = service.one_step_workflow().await;
    let run = service.execute(&workflow).await;
    let preflight = [("origin", UI), ("access-control-request-method", "GET")];
    for (method, path, headers, cache) in [
        ("GET", "/", &[][..], "no-store"),
        ("GET", "/health", &[], "no-store"),
        ("GET", "/metrics", &[], "no-store"),
        ("GET", "/docs", &[], "no-cache"),
        ("GET", "/redoc", &[], "no-cache"),
        ("GET", "/openapi.json", &[], "no-cache"),
        ("GET", "/docs/start.js", &[], "public, max-age=3600"),
        ("GET", "/api/v1/agents", &[], "no-store"),
        ("GET", "/api/v1/runs", &[("origin", UI)], "no-store"),
        ("GET", &format!("/api/v1/workflows/{workflow}"), &[], "private, no-cache"),
        ("GET", &format!("/api/v1/workflows/{workflow}/graph"), &[("accept", "image/svg+xml")], "no-store"),
        ("GET", &format!("/api/v1/runs/{run}"), &[], "no-store"),
        ("GET", &format!("/api/v1/runs/{run}/logs"), &[], "no-store"),
        ("GET", "/api/v1/runs/missing", &[], "no-store"),
        ("GET", "/nowhere", &[], "no-store"),
        ("GET", "/api/v1/agents/", &[], "no-store"),
        ("PATCH", "/api/v1/agents", &[], "no-store"),
        ("POST", "/api/v1/agents", &[], "no-store"),
        ("OPTIONS", "/api/v1/agents", &preflight, "no-store"),
        ("OPTIONS", "/api/v1/agents", &[("origin", "http://evil.test"), preflight[1]], "no-store"),
    ] {
        let answer = service.send(method, path, headers, "").await;
        let header = |name| answer.header(name);
        for (name, expected) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-site"),
            ("cache-control", cache),
        ] {
            let values: Vec<_> = answer.headers.get_all(name).iter().collect();
            assert_eq!(values, [expected], "{name} of {method} {path}");
        }
        let policies: Vec<_> = answer.headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies.len(), 1, "{method} {path}");
        let policy = header("content-security-policy").expect("text");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("'unsafe-eval'") && !policy.contains("script-src 'self' '"), "{policy}");
        assert_eq!((header("server"), header("x-powered-by"), header("strict-transport-security")), (None, None, None));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_has_a_tag_is_asked_for_again_under_the_same_credentials(pool: PgPool) {
    let admin = Admin::start(&pool, &[("API_KEY_HEADER", "X-Own-Key")]);
    let agent = admin.post("/api/v1/agents", &json!({"name": "a", "url": "http://a"})).await.expect(201);
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    let first = admin.get(&path).await;
    let tag = first.header("etag").expect("a tag").to_owned();
    let headers = [("authorization", admin.bearer.as_str()), ("if-none-match", tag.as_str()), ("origin", UI)];
    let again = admin.service.send("GET", &path, &headers, "").await;
    assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""));
    for answer in [first, again] {
        assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        let vary: Vec<_> = answer.headers.get_all("vary").iter().filter_map(|value| value.to_str().ok()).collect();
        let vary = vary.join(", ").to_lowercase();
        assert!(["origin", "authorization", "x-own-key", "cookie"].iter().all(|name| vary.contains(name)), "{vary}");
    }
    let key = admin.post("/api/v1/api-keys", &json!({"name": "k", "role": "viewer"})).await;
    assert_eq!(key.header("cache-control"), Some("no-store"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn only_who_came_by_tls_is_told_to_do_so_again(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("TRUSTED_PROXIES", "10.0.0.0/8")]));
    let off = Service::start_with(config(&pool, &[("TRUSTED_PROXIES", "10.0.0.0/8"), ("HSTS_MAX_AGE_SECS", "0")]));
    let age = Some("max-age=31536000");
    for (service, peer, headers, expected) in [
        (&service, "10.1.1.1", &[("x-forwarded-proto", "https")][..], age),
        (&service, "10.1.1.1", &[("forwarded", "for=192.0.2.1;proto=https")], age),
        (&service, "10.1.1.1", &[("x-forwarded-proto", "http")], None),
        (&service, "10.1.1.1", &[], None),
        (&service, "192.0.2.1", &[("x-forwarded-proto", "https")], None),
        (&off, "10.1.1.1", &[("x-forwarded-proto", "https")], None),
    ] {
        for path in ["/health", "/api/v1/agents", "/docs", "/nowhere"] {
            let answer = service.send_from(peer, "GET", path, headers).await;
            assert_eq!(answer.header("strict-transport-security"), expected, "{peer} {path} {headers:?}");
        }
    }
}

/// Whose word counts for the address does not decide where an answer leads to.
#[sqlx::test(migrator = "MIGRATOR")]
async fn no_answer_leads_to_a_host_that_a_header_names(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("TRUSTED_PROXIES", "10.0.0.0/8")]));
    for peer in ["10.1.1.1", "192.0.2.1"] {
        let headers = [("x-forwarded-host", "evil.test"), ("host", "evil.test"), ("x-forwarded-prefix", "/evil")];
        let answer = service.send_from(peer, "GET", "/api/v1/agents/", &headers).await;
        assert_eq!(answer.header("location"), Some("/api/v1/agents"));
        for path in ["/", "/openapi.json", "/docs"] {
            assert!(!service.send_from(peer, "GET", path, &headers).await.text.contains("evil"), "{path}");
        }
    }
}
