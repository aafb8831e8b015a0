//! The health of agents, against a little HTTP server of the test.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, http::HeaderMap, routing::get};
use futures_util::future::join_all;
use http::{StatusCode, header};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Service, config};

/// Starts agents of all kinds on one port, an agent a path, and returns their address.
async fn agents() -> String {
    let card = |path: &str| format!("{path}/.well-known/agent-card.json");
    let router = Router::new()
        .route(&card(""), get(async || r#"{"name":"root"}"#))
        .route(&card("/described"), get(async || r#"{"description":"adds numbers","version":"2","n":1e2}"#))
        .route(&card("/broken"), get(async || (StatusCode::INTERNAL_SERVER_ERROR, "{}")))
        .route(&card("/created"), get(async || (StatusCode::CREATED, "{}")))
        .route(&card("/text"), get(async || "hello"))
        .route(&card("/list"), get(async || "[]"))
        .route(&card("/empty"), get(async || ""))
        .route(
            &card("/moved"),
            get(async || (StatusCode::FOUND, [(header::LOCATION, "/described/.well-known/agent-card.json")])),
        )
        .route(&card("/silent"), get(std::future::pending::<()>))
        .route(
            &card("/echo"),
            get(async |headers: HeaderMap| {
                let shown = |name: &str| headers.get(name).map(|value| value.to_str().expect("ASCII").to_owned());
                let names = ["authorization", "x-key", "content-type"];
                json!(names.map(|name| (name, shown(name))).into_iter().collect::<std::collections::HashMap<_, _>>())
                    .to_string()
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Registers an agent of these members and checks its health.
async fn health(service: &Service, members: Value) -> Value {
    let agent = service.post("/api/v1/agents", &members).await.expect(201);
    let path = format!("/api/v1/agents/{}/health", agent["id"].as_str().expect("an id"));
    let health = service.get(&path).await.expect(200);
    let names: Vec<_> = health.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(names, ["agent_card", "message", "response_time_ms", "status", "timestamp"]);
    assert!(health["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{health}");
    health
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_is_healthy_if_it_answers_with_a_card(pool: PgPool) {
    let (service, address) = (Service::start(&pool), agents().await);
    let described = health(&service, json!({"name": "a", "url": format!("{address}/described/")})).await;
    assert_eq!((&described["status"], &described["message"]), (&json!("healthy"), &json!("adds numbers")));
    assert_eq!(described["agent_card"]["version"], "2");
    assert!(described["response_time_ms"].is_u64(), "{described}");
    // An address without a path, which is stored with a slash.
    let root = health(&service, json!({"name": "b", "url": address})).await;
    assert_eq!((&root["status"], &root["agent_card"]), (&json!("healthy"), &json!({"name": "root"})));
    assert!(root["message"].is_string());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_is_unhealthy_if_its_answer_is_no_card(pool: PgPool) {
    let (service, address) = (Service::start(&pool), agents().await);
    for (path, gist) in [
        ("broken", "500"),
        ("created", "201"),
        ("moved", "302"),
        ("text", "The agent's card is not JSON: JSON decode error at byte 0; it is text/plain and begins with hello"),
        ("list", "card"),
        ("empty", "card"),
    ] {
        let health = health(&service, json!({"name": path, "url": format!("{address}/{path}")})).await;
        assert_eq!((&health["status"], &health["agent_card"]), (&json!("unhealthy"), &Value::Null), "{path}");
        assert!(health["message"].as_str().is_some_and(|message| message.contains(gist)), "{path}: {health}");
        assert!(health["response_time_ms"].is_u64(), "{path}: {health}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_is_unhealthy_if_it_does_not_answer(pool: PgPool) {
    let (service, address) = (Service::start(&pool), agents().await);
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let half = listener.local_addr().expect("an address");
    let silent_later = Router::new().route("/.well-known/agent.json", get(std::future::pending::<()>));
    tokio::spawn(async move { axum::serve(listener, silent_later).await });
    for (name, url, gist) in [
        ("silent", format!("{address}/silent"), "1000 ms"),
        ("silent later", format!("http://{half}/"), "1000 ms"),
        ("closed", format!("http://{closed}/"), "The agent cannot be reached: Connection refused"),
        ("tls", address.replace("http:", "https:"), "The agent cannot be reached: received corrupt message"),
        ("name", "http://nowhere.invalid/".to_owned(), "The agent cannot be reached: failed to lookup address"),
    ] {
        let health = health(&service, json!({"name": name, "url": url, "timeout_ms": 1000})).await;
        assert_eq!((&health["status"], &health["agent_card"]), (&json!("unhealthy"), &Value::Null), "{name}");
        assert_eq!(health["response_time_ms"], Value::Null, "{name}");
        assert!(health["message"].as_str().is_some_and(|message| message.contains(gist)), "{name}: {health}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_card_is_found_where_agents_have_it(pool: PgPool) {
    let service = Service::start(&pool);
    for (number, (path, url, asked)) in [
        ("/.well-known/agent-card.json", "/a2a", 2),
        ("/a2a/.well-known/agent-card.json", "/a2a/", 1),
        ("/.well-known/agent.json", "/", 2),
        ("/a2a/.well-known/agent.json", "/a2a", 3),
        ("/.well-known/agent.json", "/a2a", 4),
        ("/.well-known/agent-card.json?assistant_id=7", "/?assistant_id=7", 1),
        ("/a2a/.well-known/agent-card.json?assistant_id=7", "/a2a?assistant_id=7#it", 1),
        ("/nowhere", "/a2a", 4),
    ]
    .into_iter()
    .enumerate()
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let router = Router::new().fallback(async move |uri: http::Uri| {
            counted.fetch_add(1, Ordering::Relaxed);
            if uri == path { (StatusCode::OK, "{}") } else { (StatusCode::NOT_FOUND, "<title>nothing</title>") }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        let agent = json!({"name": format!("a{number}"), "url": format!("http://{address}{url}")});
        let health = health(&service, agent).await;
        let expected = if path == "/nowhere" { "unhealthy" } else { "healthy" };
        assert_eq!((&health["status"], calls.load(Ordering::Relaxed)), (&json!(expected), asked), "{path}: {health}");
        if expected == "unhealthy" {
            assert_eq!(health["message"], "The agent answered with status 404: <title>nothing</title>");
        }
    }
}

/// A body that stops in the middle is a time-out too, not a bad card.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_agent_that_stops_in_the_middle_of_its_card_has_timed_out(pool: PgPool) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let service = Service::start(&pool);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let stalling = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}").await.expect("the client reads");
        let _ = stream.read(&mut request).await; // until the client gives up
    });
    let url = format!("http://{address}/");
    let health = health(&service, json!({"name": "stalls", "url": url, "timeout_ms": 1000})).await;
    stalling.await.expect("the agent does not panic");
    assert_eq!(health["status"], "unhealthy");
    assert!(health["message"].as_str().is_some_and(|message| message.contains("1000 ms")), "{health}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_check_carries_the_credentials_of_the_agent(pool: PgPool) {
    let (service, address) = (Service::start(&pool), agents().await);
    for (name, auth_type, auth_config, expected) in [
        ("none", "none", json!(null), json!({"authorization": null, "x-key": null})),
        ("bearer", "bearer", json!({"token": "t1"}), json!({"authorization": "Bearer t1", "x-key": null})),
        (
            "apikey",
            "apikey",
            json!({"key": "k1", "header_name": "X-Key"}),
            json!({"authorization": null, "x-key": "k1"}),
        ),
    ] {
        let url = format!("{address}/echo");
        let agent = json!({"name": name, "url": url, "auth_type": auth_type, "auth_config": auth_config});
        let mut card = health(&service, agent).await["agent_card"].take();
        let content_type = card.as_object_mut().expect("an object").remove("content-type");
        assert_eq!((card, content_type), (expected, Some(json!("application/json"))), "{name}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn there_is_no_health_of_an_agent_that_does_not_exist(pool: PgPool) {
    let service = Service::start(&pool);
    let unknown = service.get("/api/v1/agents/00000000-0000-0000-0000-000000000000/health").await.error(404);
    assert_eq!(unknown["code"], "agent_not_found");
    service.get("/api/v1/agents/abc/health").await.error(422);
}

/// Entries of the audit trail about the health of agents, the oldest first: action and what is said.
async fn health_entries(service: &Service) -> Vec<(String, Value)> {
    let entries = service.get("/api/v1/audit-logs?entity_type=agent&page_size=100").await.expect(200);
    let mut entries: Vec<_> = entries["items"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| (entry["action"].as_str().expect("text").to_owned(), entry["after"]["health"].clone()))
        .filter(|(action, _)| action.starts_with("health_"))
        .collect();
    entries.reverse();
    entries
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_of_health_is_audited_once_whoever_checks_and_how_often(pool: PgPool) {
    let is_up = Arc::new(AtomicUsize::new(1));
    let served = Arc::clone(&is_up);
    let answer = async move || match served.load(Ordering::Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "{}"),
        _ => (StatusCode::OK, r#"{"name":"it"}"#),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let router = Router::new().route("/.well-known/agent-card.json", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    // Two processes, and one without an audit trail.
    let services = [Service::start(&pool), Service::start(&pool)];
    let silent = Service::start_with(config(&pool, &[("ENABLE_AUDIT_LOGGING", "false")]));
    let agent = services[0].agent("a", &url).await;
    let agent_path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    let path = format!("{agent_path}/health");
    let (services, path) = (&services, path.as_str());
    let check_all = async |expected: &str| {
        let checks = services.iter().flat_map(|service| (0..3).map(move |_| service.get(path)));
        for health in join_all(checks).await {
            assert_eq!(health.expect(200)["status"], expected);
        }
    };
    check_all("healthy").await;
    assert!(health_entries(&services[0]).await.is_empty(), "it was never anything else");
    is_up.store(0, Ordering::Relaxed);
    assert_eq!(silent.get(path).await.expect(200)["status"], "unhealthy");
    assert!(health_entries(&services[0]).await.is_empty());
    check_all("unhealthy").await;
    check_all("unhealthy").await;
    let of = |(action, health): &(String, Value)| format!("{action} {} {}", health["source"], health["message"]);
    let entries: Vec<String> = health_entries(&services[0]).await.iter().map(of).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert!(entries[0].starts_with(r#"health_failing "check" "The agent answered with status 503"#), "{entries:?}");
    is_up.store(1, Ordering::Relaxed);
    check_all("healthy").await;
    let entries: Vec<String> = health_entries(&services[0]).await.iter().map(of).collect();
    assert_eq!(entries[1..], [r#"health_recovered "check" "The agent answers""#]);
    // What was said of one address is not said of another.
    is_up.store(0, Ordering::Relaxed);
    check_all("unhealthy").await;
    services[0].put(&agent_path, &json!({"url": format!("{url}other")})).await.expect(200);
    is_up.store(1, Ordering::Relaxed);
    check_all("healthy").await;
    assert_eq!(health_entries(&services[0]).await.len(), 3);
}
