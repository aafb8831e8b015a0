//! How much one may ask for, and who is refused when there is too much to do.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{MethodRouter, get},
};
use futures_util::future::join_all;
use http::HeaderMap;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::OpenApi;
use workflow_api::{
    access::api_key::ApiKey,
    api::{
        self,
        gate::{Gate, layer::GateLayer},
        vocabulary::app::App,
    },
    clock::Clock,
    config::Config,
    db::{self, migrations::MIGRATOR},
    lifecycle::Lifecycle,
};

use crate::{
    access::{Admin, claims, now, secret, signed},
    service::{Answer, Service, config, eventually},
};

const AGENTS: &str = "/api/v1/agents";
/// Paths under no limit.
const OPEN: [&str; 9] =
    ["/", "/health", "/health/live", "/health/ready", "/metrics", "/docs", "/docs/start.js", "/redoc", "/openapi.json"];
const PREFLIGHT: [(&str, &str); 2] = [("origin", "http://localhost:3000"), ("access-control-request-method", "GET")];

/// A refusal as it has to be. How long to wait, in seconds.
#[track_caller]
fn refused(answer: Answer) -> u64 {
    let secs = answer.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After in seconds");
    assert_eq!(answer.error(429)["code"], "rate_limited");
    assert!(secs >= 1);
    secs
}

fn shown<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("text")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_request_is_limited_by_default(pool: PgPool) {
    let service = Service::start(&pool);
    for _ in 0..50 {
        let answer = service.send_from("192.0.2.1", "GET", AGENTS, &[]).await;
        assert!(answer.headers.keys().all(|name| !name.as_str().contains("ratelimit")), "{:?}", answer.headers);
        answer.expect(200);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_address_may_ask_for_so_much_and_is_told_what_is_left(pool: PgPool) {
    let settings = [("RATE_LIMIT_PER_ADDRESS", "6"), ("RATE_LIMIT_BURST", "3"), ("TRUSTED_PROXIES", "10.0.0.0/8")];
    let service = Service::start_with(config(&pool, &settings));
    for left in ["2", "1", "0"] {
        let answer = service.send_from("192.0.2.1", "GET", AGENTS, &[]).await;
        let header = |name| shown(&answer.headers, name);
        assert_eq!(header("ratelimit-policy"), "\"address\";q=3;w=30");
        assert!(header("ratelimit").starts_with(&format!("\"address\";r={left};t=")), "{}", header("ratelimit"));
        for prefix in ["ratelimit", "x-ratelimit"] {
            let of = |what: &str| shown(&answer.headers, &format!("{prefix}-{what}"));
            assert_eq!((of("limit"), of("remaining"), of("window")), ("3", left, "30"));
            assert!(of("reset").parse::<u64>().is_ok_and(|secs| secs <= 30));
        }
        answer.expect(200);
    }
    let answer = service.send_from("192.0.2.1", "GET", AGENTS, &[("origin", "http://localhost:3000")]).await;
    assert_eq!(shown(&answer.headers, "x-ratelimit-remaining"), "0");
    assert_eq!(answer.header("access-control-allow-origin"), Some("http://localhost:3000"));
    let exposed = answer.header("access-control-expose-headers").expect("a list");
    assert!(["retry-after", "ratelimit", "x-ratelimit-remaining"].iter().all(|name| exposed.contains(name)));
    assert!(refused(answer) <= 10);
    // What asks for nothing is not refused.
    for path in OPEN {
        let answer = service.send_from("192.0.2.1", "GET", path, &[]).await;
        assert!([200, 503].contains(&answer.status.as_u16()), "{path}: {}", answer.status);
        assert!(answer.header("ratelimit").is_none(), "{path}");
    }
    let preflight = service.send_from("192.0.2.1", "OPTIONS", AGENTS, &PREFLIGHT).await;
    assert_eq!(preflight.status.as_u16(), 200);
    // Nor are others, who are not whom they say.
    service.send_from("192.0.2.2", "GET", AGENTS, &[]).await.expect(200);
    refused(service.send_from("192.0.2.1", "GET", AGENTS, &[("x-forwarded-for", "192.0.2.9")]).await);
    refused(service.send_from("::ffff:192.0.2.1", "GET", AGENTS, &[]).await);
    refused(service.send_from("10.1.2.3", "GET", AGENTS, &[("x-forwarded-for", "1.1.1.1, 192.0.2.1")]).await);
    refused(service.send_from("10.1.2.3", "GET", AGENTS, &[("forwarded", "for=\"192.0.2.1:80\"")]).await);
    service.send_from("10.1.2.3", "GET", AGENTS, &[("x-forwarded-for", "192.0.2.3")]).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn addresses_of_one_ipv6_network_are_one(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("RATE_LIMIT_PER_ADDRESS", "2")]));
    for address in ["2001:db8:1:2::1", "2001:db8:1:2:ffff::9"] {
        service.send_from(address, "GET", AGENTS, &[]).await.expect(200);
    }
    refused(service.send_from("2001:db8:1:2:3:4:5:6", "GET", AGENTS, &[]).await);
    service.send_from("2001:db8:1:3::1", "GET", AGENTS, &[]).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_principal_may_ask_for_so_much_from_wherever_he_comes(pool: PgPool) {
    let admin = Admin::start(&pool, &[("RATE_LIMIT_PER_PRINCIPAL", "4")]);
    let (key, _) = admin.key(&json!({"name": "batch", "role": "viewer"})).await;
    let service = &admin.service;
    let token = |subject: &str| {
        let claims = claims(&json!({"sub": subject}));
        format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims, &secret(), jsonwebtoken::Algorithm::HS256))
    };
    let issued = service.send("POST", "/api/v1/auth/token", &[("x-api-key", &key)], "").await.expect(200);
    let of_key = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let (one, other) = (token("one"), token("other"));
    for (headers, left) in [
        // The key, which has asked for its token already; and that token.
        ([("x-api-key", key.as_str())], "2"),
        ([("authorization", of_key.as_str())], "1"),
        ([("x-api-key", key.as_str())], "0"),
        // One subject.
        ([("authorization", one.as_str())], "3"),
        ([("authorization", one.as_str())], "2"),
        ([("authorization", one.as_str())], "1"),
        ([("authorization", one.as_str())], "0"),
        // Another.
        ([("authorization", other.as_str())], "3"),
    ] {
        let answer = service.send("GET", AGENTS, &headers, "").await;
        assert_eq!(shown(&answer.headers, "ratelimit-remaining"), left);
        assert_eq!(shown(&answer.headers, "ratelimit-policy"), "\"principal\";q=4;w=60");
        answer.expect(200);
    }
    for header in [("x-api-key", &key), ("authorization", &of_key), ("authorization", &one)] {
        refused(service.send("GET", AGENTS, &[(header.0, header.1)], "").await);
    }
    service.send("GET", AGENTS, &[("authorization", &other)], "").await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_guesses_is_refused_and_his_neighbours_are_not(pool: PgPool) {
    let admin = Admin::start(&pool, &[("RATE_LIMIT_FAILED_AUTH", "6")]);
    let (known, _) = admin.key(&json!({"name": "known", "role": "viewer"})).await;
    let (unknown, _) = admin.key(&json!({"name": "not met yet", "role": "viewer"})).await;
    let service = &admin.service;
    let address = "198.51.100.7";
    let send = |name: &'static str, value: String| async move {
        service.send_from(address, "GET", AGENTS, &[(name, &value)]).await
    };
    let token = |more: Value, key: &[u8]| {
        let key = jsonwebtoken::EncodingKey::from_secret(key);
        format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims(&more), &key, jsonwebtoken::Algorithm::HS256))
    };
    let forged = || token(json!({}), b"another secret of somebody who guesses");
    send("x-api-key", known.clone()).await.expect(200);
    // Of every kind of guess one.
    for (name, value) in [
        ("x-api-key", ApiKey::generate("live").expose().to_owned()),
        ("x-api-key", "no key".to_owned()),
        ("authorization", forged()),
        ("authorization", "Bearer a.b.c".to_owned()),
    ] {
        let answer = send(name, value).await;
        assert!(answer.header("ratelimit").is_some_and(|text| text.starts_with("\"failed-authentication\"")));
        assert_eq!(answer.error(401)["code"], "unauthorized");
    }
    // What is no guess does not count.
    for _ in 0..10 {
        service.send_from(address, "GET", AGENTS, &[]).await.error(401);
        send("authorization", token(json!({"exp": now() - 3600}), crate::access::SECRET.as_bytes())).await.error(401);
        send("authorization", "Basic dXNlcjpwYXNz".to_owned()).await.error(401);
    }
    for _ in 0..2 {
        send("authorization", forged()).await.error(401);
    }
    let guesses = (0..40).map(|index| match index % 3 {
        0 => send("authorization", forged()),
        _ => send("x-api-key", ApiKey::generate("live").expose().to_owned()),
    });
    for answer in join_all(guesses).await {
        assert!(refused(answer) <= 10);
    }
    // Who has what is right is let in, also one who was never here before.
    send("x-api-key", known).await.expect(200);
    send("x-api-key", unknown).await.expect(200);
    send("authorization", admin.bearer.clone()).await.expect(200);
    // Elsewhere nothing is known of all that.
    service.send_from("198.51.100.8", "GET", AGENTS, &[("authorization", &forged())]).await.error(401);
    for path in OPEN {
        let answer = service.send_from(address, "GET", path, &[("authorization", &forged())]).await;
        assert!([200, 503].contains(&answer.status.as_u16()), "{path}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn keys_of_suspects_are_looked_for_together(pool: PgPool) {
    let admin = Admin::start(&pool, &[("RATE_LIMIT_FAILED_AUTH", "1")]);
    let service = &admin.service;
    let guess = || async {
        let key = ApiKey::generate("live");
        service.send_from("198.51.100.7", "GET", AGENTS, &[("x-api-key", key.expose())]).await
    };
    guess().await.error(401);
    // Counts the statements that read the table.
    let sql = "CREATE SEQUENCE statements; ALTER TABLE api_keys RENAME TO kept_keys; CREATE VIEW api_keys AS
        SELECT * FROM kept_keys WHERE (SELECT nextval('statements')) > 0";
    sqlx::raw_sql(sql).execute(&pool).await.expect("a view");
    for answer in join_all((0..500).map(|_| guess())).await {
        refused(answer);
    }
    let statements: i64 =
        sqlx::query_scalar("SELECT last_value FROM statements").fetch_one(&pool).await.expect("a number");
    assert!((1..50).contains(&statements), "{statements}");
}

/// Nobody can read or write agents until the connection is dropped.
async fn lock_agents(pool: &PgPool) -> PgConnection {
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await.expect("a connection");
    sqlx::raw_sql("BEGIN; LOCK TABLE agents IN ACCESS EXCLUSIVE MODE").execute(&mut connection).await.expect("a lock");
    connection
}

const SLOW: &str = "/api/v1/slow";

/// Service with a stopped clock, and the same service with only that handler at [`SLOW`].
fn with_slow_route(config: &Config, handler: MethodRouter) -> (Service, Service) {
    let (lifecycle, drained, clock) = (Lifecycle::new(), CancellationToken::new(), Clock::stopped());
    let pool = db::pool(&config.database);
    let app = App::start(config.clone(), pool, &lifecycle, &drained, clock.clone()).expect("the parts start");
    let gate = Gate::start(app, &lifecycle).expect("the gate starts");
    let slow = Router::new().route(SLOW, handler).layer(GateLayer::new(&gate, &OpenApi::default()));
    let service = |router| Service {
        config: config.clone(),
        lifecycle: lifecycle.clone(),
        drained: drained.clone(),
        router,
        clock: clock.clone(),
    };
    (service(api::router(&gate)), service(slow))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_too_much_is_refused_at_once_and_health_answers(pool: PgPool) {
    let done = Arc::new(Semaphore::new(0));
    let until_done = Arc::clone(&done);
    let handler = get(async move || until_done.acquire().await.expect("it is not closed").forget());
    let (service, slow) = with_slow_route(&config(&pool, &[("MAX_CONCURRENT_REQUESTS", "2")]), handler);
    service.get(AGENTS).await.expect(200);
    let headers = [("origin", "http://localhost:3000")];
    let waiting = join_all((0..2).map(|_| slow.get(SLOW)));
    let more = async {
        for _ in 0..20 {
            let answer = service.send("POST", AGENTS, &headers, "{}").await;
            assert_eq!(answer.header("access-control-allow-origin"), Some("http://localhost:3000"));
            assert_eq!(answer.header("retry-after"), Some("2"));
            assert_eq!(answer.error(503)["code"], "overloaded");
        }
        for path in OPEN {
            let answer = service.get(path).await;
            assert!(answer.status.as_u16() == 200 || path == "/health/ready", "{path}: {}", answer.status);
        }
        done.add_permits(2);
    };
    let (answers, ()) = futures_util::future::join(waiting, more).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    service.get(AGENTS).await.expect(200);
}

/// While authentication is off, an address has the part of an organisation.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_organisation_that_floods_the_service_leaves_permits_for_the_others(pool: PgPool) {
    let done = Arc::new(Semaphore::new(0));
    let until_done = Arc::clone(&done);
    let handler = get(async move || until_done.acquire().await.expect("it is not closed").forget());
    let (service, slow) = with_slow_route(&config(&pool, &[("MAX_CONCURRENT_REQUESTS", "4")]), handler);
    let flood = join_all((0..3).map(|_| slow.send_from("192.0.2.1", "GET", SLOW, &[])));
    let others = async {
        for _ in 0..20 {
            let answer = service.send_from("192.0.2.1", "GET", AGENTS, &[]).await;
            assert_eq!(answer.header("retry-after"), Some("2"));
            assert_eq!(answer.error(429)["code"], "too_many_concurrent_requests");
            service.send_from("192.0.2.2", "GET", AGENTS, &[]).await.expect(200);
        }
        done.add_permits(3);
    };
    let (answers, ()) = futures_util::future::join(flood, others).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    service.send_from("192.0.2.1", "GET", AGENTS, &[]).await.expect(200);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn who_only_waits_takes_no_place(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_CONCURRENT_REQUESTS", "1")]));
    let workflow = service.one_step_workflow().await;
    let run = service.execute(&workflow).await;
    // A stream that goes on.
    let stream = service.open("GET", &format!("/api/v1/runs/{run}/events"), &[], axum::body::Body::empty()).await;
    assert_eq!(stream.status().as_u16(), 200);
    service.get(AGENTS).await.expect(200);
    // A request that waits for the end of its run.
    let headers = [("prefer", "wait=60"), ("content-type", "application/json")];
    let path = format!("/api/v1/workflows/{workflow}/execute");
    let waits = service.send("POST", &path, &headers, r#"{"input_data":{}}"#);
    let others = async {
        let waiting = eventually("the second run is there and others are served", || async {
            let runs = service.get("/api/v1/runs").await;
            if runs.status.as_u16() != 200 {
                return None;
            }
            let runs = runs.json();
            let other = runs["items"].as_array()?.iter().find(|other| other["run_id"] != run.as_str())?;
            other["run_id"].as_str().map(str::to_owned)
        })
        .await;
        eventually("it is cancelled", || async {
            let answer = service.post(&format!("/api/v1/runs/{waiting}/cancel"), &json!({})).await;
            (answer.status.as_u16() == 200).then_some(())
        })
        .await;
    };
    let (answer, ()) = futures_util::future::join(waits, others).await;
    assert_eq!(answer.expect(200)["status"], "CANCELLED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_handler_that_is_given_up_keeps_its_place_until_it_ends(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_CONCURRENT_REQUESTS", "1")]));
    let lock = lock_agents(&pool).await;
    // The client hangs up.
    let mut request = Box::pin(service.get(AGENTS));
    assert!(futures_util::poll!(&mut request).is_pending());
    drop(request);
    assert_eq!(service.get(AGENTS).await.error(503)["code"], "overloaded");
    drop(lock);
    eventually("the permit is free", || async { (service.get(AGENTS).await.status.as_u16() == 200).then_some(()) })
        .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_handler_is_given_up_within_ten_seconds(pool: PgPool) {
    let (_service, slow) = with_slow_route(&config(&pool, &[]), get(std::future::pending::<()>));
    let mut answer = Box::pin(slow.get(SLOW));
    assert!(futures_util::poll!(&mut answer).is_pending());
    slow.clock.advance(Duration::from_secs(9));
    assert!(futures_util::poll!(&mut answer).is_pending());
    slow.clock.advance(Duration::from_secs(1));
    let answer = answer.await;
    assert_eq!(answer.header("retry-after"), Some("2"));
    assert_eq!(answer.error(503)["code"], "timeout");
}
