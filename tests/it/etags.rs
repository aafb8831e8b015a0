//! `ETag`, `If-Match` and `If-None-Match` of agents and workflows.

use futures_util::future::join_all;
use serde_json::json;
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Answer, Service};

const JSON: (&str, &str) = ("content-type", "application/json");

fn etag(answer: &Answer) -> String {
    let tag = answer.header("etag").expect("an ETag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    tag
}

/// A path of an agent and one of a workflow.
async fn resources(service: &Service) -> [String; 2] {
    let agent = service.agent("worker", "http://a").await;
    let workflow = service.chain("w", &["worker"]).await;
    let id = |value: &serde_json::Value| value["id"].as_str().expect("an id").to_owned();
    [format!("/api/v1/agents/{}", id(&agent)), format!("/api/v1/workflows/{}", id(&workflow))]
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_tag_changes_with_the_resource_and_only_then(pool: PgPool) {
    let service = Service::start(&pool);
    let created = service.post("/api/v1/agents", &json!({"name": "first", "url": "http://a"})).await;
    let tag = etag(&created);
    let path = format!("/api/v1/agents/{}", created.expect(201)["id"].as_str().expect("an id"));
    assert_eq!(etag(&service.get(&path).await), tag);
    for path in resources(&service).await {
        let first = etag(&service.get(&path).await);
        let put = service.put(&path, &json!({"description": "new"})).await;
        let second = etag(&put);
        assert_ne!(first, second, "{path}");
        assert_eq!(etag(&service.get(&path).await), second, "{path}");
        // Nothing is different afterwards.
        assert_eq!(etag(&service.put(&path, &json!({"description": "new"})).await), second, "{path}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_a_client_has_already_is_304(pool: PgPool) {
    let service = Service::start(&pool);
    for path in resources(&service).await {
        let tag = etag(&service.get(&path).await);
        for (given, status) in [
            (tag.clone(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"other\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
            ("other".to_owned(), 422),
        ] {
            let answer = service.send("GET", &path, &[("if-none-match", &given)], "").await;
            assert_eq!(answer.status.as_u16(), status, "{path} {given}: {}", answer.text);
            assert_eq!(answer.text.is_empty(), status == 304, "{path} {given}");
            assert!(status == 422 || etag(&answer) == tag, "{path} {given}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_of_what_has_changed_is_412(pool: PgPool) {
    let service = Service::start(&pool);
    for path in resources(&service).await {
        let stale = etag(&service.get(&path).await);
        let fresh = etag(&service.put(&path, &json!({"description": "new"})).await);
        for (method, body) in [("PUT", r#"{"description":"newer"}"#), ("DELETE", "")] {
            let answer = service.send(method, &path, &[JSON, ("if-match", &stale)], body).await.error(412);
            assert_eq!(answer["code"], "precondition_failed", "{method} {path}");
        }
        let shown = service.get(&path).await.expect(200);
        assert_eq!((&shown["description"], &shown["status"]), (&json!("new"), &json!("active")));

        // Of many who change the same state at once, one succeeds.
        let bodies: Vec<String> =
            (0..5).map(|index| json!({"description": format!("by {index}")}).to_string()).collect();
        let headers = [JSON, ("if-match", fresh.as_str())];
        let answers = join_all(bodies.iter().map(|body| service.send("PUT", &path, &headers, body.clone()))).await;
        let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 412, 412, 412, 412], "{path}");

        let fresh = etag(&service.get(&path).await);
        service.send("DELETE", &path, &[("if-match", &fresh)], "").await.expect(200);
        service.send("DELETE", &path, &[("if-match", "*")], "").await.expect(200);
    }
    let unknown = "/api/v1/agents/00000000-0000-0000-0000-000000000000";
    service.send("DELETE", unknown, &[("if-match", "\"x\"")], "").await.error(404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_definition_put_by_name_and_a_roll_back_heed_the_condition(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let path = "/api/v1/workflow-names/w";
    let body = |text: &str| {
        json!({"start_step": "s", "steps": {"s": {"id": "s", "agent_name": "worker", "input_mapping": {"text": text}}}})
            .to_string()
    };
    // Nothing is there that could be meant.
    service.send("PUT", path, &[JSON, ("if-match", "*")], body("a")).await.error(412);
    let created = service.send("PUT", path, &[JSON], body("a")).await;
    let first = etag(&created);
    let id = created.expect(201)["id"].as_str().expect("an id").to_owned();
    assert_eq!(etag(&service.get(path).await), first);
    assert_eq!(service.send("GET", path, &[("if-none-match", &first)], "").await.status, 304);
    let second = etag(&service.send("PUT", path, &[JSON, ("if-match", &first)], body("b")).await);
    assert_ne!(second, first);
    for text in ["b", "c"] {
        service.send("PUT", path, &[JSON, ("if-match", &first)], body(text)).await.error(412);
    }
    let roll_back = format!("/api/v1/workflows/{id}/rollback");
    service.send("POST", &roll_back, &[JSON, ("if-match", &first)], r#"{"version":1}"#).await.error(412);
    service.send("POST", &roll_back, &[JSON, ("if-match", &second)], r#"{"version":1}"#).await.expect(200);
}
