//! Compressed answers, and those that are not.

use std::io::Read as _;

use axum::body::Body;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{access::Admin, memory::insert_large_entries, service::Service};

/// The coding of an answer to a GET, its header of that name, and its bytes.
async fn get(
    service: &Service,
    path: &str,
    headers: &[(&str, &str)],
    name: &str,
) -> (Option<String>, Option<String>, Vec<u8>) {
    let (parts, body) = service.open("GET", path, headers, Body::empty()).await.into_parts();
    assert!(parts.status == 200 || parts.status == 304, "{path}: {}", parts.status);
    let text = |name: &str| {
        let values: Vec<_> = parts.headers.get_all(name).iter().map(|value| value.to_str().expect("text")).collect();
        (!values.is_empty()).then(|| values.join(", "))
    };
    (text("content-encoding"), text(name), body.collect().await.expect("a body").to_bytes().to_vec())
}

fn gunzip(bytes: &[u8]) -> Value {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).expect("gzip");
    serde_json::from_str(&text).expect("JSON")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_is_compressed_for_who_asks_and_its_tag_goes_on_counting(pool: PgPool) {
    let service = Service::start(&pool);
    let agents: Vec<String> = (0..20).map(|index| format!("agent-{index}")).collect();
    for name in &agents {
        service.agent(name, "http://a").await;
    }
    let names: Vec<&str> = agents.iter().map(String::as_str).collect();
    let workflow = service.chain("long", &names).await;
    let path = format!("/api/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    let (coding, tag, plain) = get(&service, &path, &[], "etag").await;
    let tag = tag.expect("a tag");
    assert_eq!((coding, tag.starts_with('"')), (None, true));
    for (accepted, expected) in [("gzip, br", "gzip"), ("gzip, deflate, br, zstd", "zstd")] {
        let (coding, weak, bytes) = get(&service, &path, &[("accept-encoding", accepted)], "etag").await;
        assert_eq!(coding.as_deref(), Some(expected));
        assert_eq!(weak.as_deref(), Some(format!("W/{tag}").as_str()));
        assert!(bytes.len() * 3 < plain.len(), "{} of {}", bytes.len(), plain.len());
        if expected == "gzip" {
            assert_eq!(gunzip(&bytes), workflow);
        }
        // The tag counts for a repeat, and for a change.
        let known = [("accept-encoding", accepted), ("if-none-match", weak.as_deref().expect("a tag"))];
        let (coding, vary, bytes) = get(&service, &path, &known, "vary").await;
        assert_eq!((coding, bytes.len()), (None, 0));
        assert!(vary.is_some_and(|vary| vary.contains("accept-encoding")));
    }
    let change = [("content-type", "application/json"), ("if-match", &format!("W/{tag}"))];
    service.send("PUT", &path, &change, json!({"description": "changed"}).to_string()).await.expect(200);
    for refused in ["br", "gzip;q=0", "identity;q=0", "*;q=0"] {
        assert_eq!(get(&service, &path, &[("accept-encoding", refused)], "etag").await.0, None, "{refused}");
    }
    let (_, vary, _) = get(&service, &path, &[], "vary").await;
    assert!(vary.is_some());
    // Metrics and the document too, and nothing that is small.
    assert_eq!(get(&service, "/openapi.json", &[("accept-encoding", "gzip")], "vary").await.0.as_deref(), Some("gzip"));
    assert_eq!(get(&service, "/health", &[("accept-encoding", "gzip")], "vary").await.0, None);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_carries_secrets_and_event_streams_are_sent_as_they_are(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    for index in 0..20 {
        let agent = json!({"name": format!("agent-{index}"), "url": "http://a", "auth_type": "bearer",
            "auth_config": {"token": "secret".repeat(20)}});
        admin.post("/api/v1/agents", &agent).await.expect(201);
        admin.key(&json!({"name": format!("key-{index}"), "role": "viewer"})).await;
    }
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'COMPLETED')";
    sqlx::query(sql).execute(&pool).await.expect("a run");
    let headers = [("authorization", admin.bearer.as_str()), ("accept-encoding", "gzip, zstd")];
    for path in
        ["/api/v1/agents", "/api/v1/api-keys", "/api/v1/export", "/api/v1/runs/r/events", "/api/v1/runs/r/callbacks"]
    {
        assert_eq!(get(&admin.service, path, &headers, "vary").await.0, None, "{path}");
    }
    let (coding, ..) = get(&admin.service, "/api/v1/audit-logs", &headers, "vary").await;
    assert_eq!(coding.as_deref(), Some("zstd"));
}

/// A body that is made piece by piece is asked again behind its end.
#[sqlx::test(migrator = "MIGRATOR")]
async fn answers_that_are_made_piece_by_piece_are_compressed_to_their_end(pool: PgPool) {
    let service = Service::start(&pool);
    let sql = "
        INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status) VALUES ('r', 'w', 'w', 'RUNNING');
        INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
            SELECT n, 'r', 's', 's', 'a', 'COMPLETED', jsonb_build_object('text', repeat(md5(n::text), 20000)) FROM generate_series(1, 20) n";
    sqlx::raw_sql(sql).execute(&pool).await.expect("rows");
    insert_large_entries(&pool).await;
    for path in [
        "/api/v1/runs/r/steps",
        "/api/v1/workflows",
        "/api/v1/audit-logs/export",
        "/api/v1/audit-logs/export?format=csv",
    ] {
        let (coding, _, plain) = get(&service, path, &[], "vary").await;
        assert_eq!(coding, None);
        let (coding, _, bytes) = get(&service, path, &[("accept-encoding", "gzip")], "vary").await;
        assert_eq!(coding.as_deref(), Some("gzip"), "{path}");
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text).expect("gzip");
        assert_eq!(text, plain, "{path}");
    }
}
