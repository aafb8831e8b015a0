//! Which origins a browser lets call.

use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::{SECRET, claims, secret, signed},
    service::{Answer, Service, config},
};

const UI: &str = "http://localhost:3000";
const EVIL: &str = "https://evil.test";

async fn preflight(service: &Service, origin: &str, method: &str) -> Answer {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", method),
        ("access-control-request-headers", "content-type,x-own"),
    ];
    service.send("OPTIONS", "/api/v1/workflows", &headers, "").await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_ui_may_call_with_credentials_by_default(pool: PgPool) {
    let service = Service::start(&pool);
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
        let answer = preflight(&service, UI, method).await;
        assert_eq!(answer.status.as_u16(), 200);
        assert_eq!(answer.header("access-control-allow-origin"), Some(UI));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(answer.header("access-control-max-age"), Some("600"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,x-own"));
        assert!(answer.header("access-control-allow-methods").is_some_and(|methods| methods.contains(method)));
        assert!(answer.header("vary").is_some_and(|vary| vary.to_lowercase().contains("origin")));
    }
    let refused = preflight(&service, EVIL, "POST").await;
    assert_eq!((refused.status.as_u16(), refused.header("access-control-allow-origin")), (400, None));
}

/// The UI shows the text of an error, and can read it only if the answer carries the headers.
#[sqlx::test(migrator = "MIGRATOR")]
async fn answers_of_every_kind_carry_the_headers(pool: PgPool) {
    let setting = ("JWT_SECRET", SECRET);
    let (open, closed) = (Service::start(&pool), Service::start_with(config(&pool, &[setting])));
    let uuid = "00000000-0000-0000-0000-000000000000";
    let long = format!("/api/v1/runs/{}", "x".repeat(9000));
    let viewer = claims(&serde_json::json!({"role": "viewer"}));
    let viewer = signed(&serde_json::json!({"alg": "HS256"}), &viewer, &secret(), jsonwebtoken::Algorithm::HS256);
    let (viewer, large) = (format!("Bearer {viewer}"), "x".repeat((1 << 20) + 1));
    for (service, method, path, status) in [
        (&open, "GET", "/api/v1/agents", 200),
        (&open, "GET", "/health", 200),
        (&open, "GET", "/api/v1/runs/missing", 404),
        (&open, "GET", "/nowhere", 404),
        (&open, "PATCH", "/api/v1/agents", 405),
        (&open, "POST", "/api/v1/agents", 422),
        (&open, "GET", "/api/v1/agents/", 307),
        (&open, "GET", long.as_str(), 414),
        (&open, "PUT", &format!("/api/v1/workflows/{uuid}"), 422),
        (&closed, "GET", "/api/v1/agents", 401),
        (&closed, "POST", "/api/v1/agents", 403),
        (&open, "POST", "/api/v1/workflows", 413),
    ] {
        let (credentials, body) = match status {
            403 => (viewer.as_str(), ""),
            413 => ("", large.as_str()),
            _ => ("", ""),
        };
        let headers = |origin| [("origin", origin), ("authorization", credentials)];
        let answer = service.send(method, path, &headers(UI), body.to_owned()).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(UI), "{method} {path}");
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"), "{method} {path}");
        assert!(answer.header("access-control-expose-headers").is_some_and(|names| names.contains("x-correlation-id")));
        let answer = service.send(method, path, &headers(EVIL), body.to_owned()).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{method} {path}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn origins_methods_headers_and_credentials_can_be_set(pool: PgPool) {
    let any = [("CORS_ORIGINS", "*"), ("CORS_ALLOW_CREDENTIALS", "false")];
    let service = Service::start_with(config(&pool, &any));
    let answer = preflight(&service, EVIL, "POST").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert_eq!(answer.header("access-control-allow-credentials"), None);

    // Browsers refuse the star together with credentials.
    let service = Service::start_with(config(&pool, &[("CORS_ORIGINS", "*")]));
    let answer = preflight(&service, EVIL, "POST").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(EVIL));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));

    let listed = [
        ("CORS_ORIGINS", "http://a.test, http://b.test"),
        ("CORS_ALLOW_METHODS", "GET,POST"),
        ("CORS_ALLOW_HEADERS", "Content-Type,Authorization"),
    ];
    let service = Service::start_with(config(&pool, &listed));
    let answer = preflight(&service, "http://b.test", "POST").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("http://b.test"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET,POST"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("content-type,authorization"));
    assert_eq!(preflight(&service, UI, "POST").await.header("access-control-allow-origin"), None);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_options_request_that_is_no_preflight_is_a_request_like_others(pool: PgPool) {
    let service = Service::start(&pool);
    for headers in [&[][..], &[("origin", "http://localhost:3000")], &[("access-control-request-method", "POST")]] {
        let answer = service.send("OPTIONS", "/api/v1/workflows", headers, "").await;
        assert_eq!(answer.header("allow"), Some("GET,HEAD,POST"), "{headers:?}");
        assert_eq!(answer.expect(405)["code"], "method_not_allowed");
        service.send("OPTIONS", "/nowhere", headers, "").await.expect(404);
    }
}
