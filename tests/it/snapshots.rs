//! Snapshots of the OpenAPI document and of large bodies: a member that is added, lost, renamed or moved shows in a
//! review. After an intended change: `INSTA_UPDATE=always ./deploy-api.sh test --test it -- snapshots`.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

/// The same body with ids, instants and hashes replaced by their kinds.
fn normalized(mut body: Value) -> Value {
    match &mut body {
        Value::Object(members) => members.values_mut().for_each(|member| *member = normalized(member.take())),
        Value::Array(items) => items.iter_mut().for_each(|item| *item = normalized(item.take())),
        Value::String(text) => *text = kinds(text),
        _ => {}
    }
    body
}

/// A text in which uuids, instants and long hexadecimal numbers are replaced by their kinds.
fn kinds(text: &str) -> String {
    let is_instant =
        text.len() >= 20 && text.ends_with('Z') && text[4..].starts_with('-') && text[10..].starts_with('T');
    if is_instant {
        return "[instant]".to_owned();
    }
    let parts = text.split_inclusive(|c: char| !c.is_ascii_hexdigit() && c != '-');
    parts
        .map(|part| {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_hexdigit() && c != '-');
            let rest = &part[word.len()..];
            // An id may stand behind a prefix such as `run-`.
            match word.len() {
                36.. if uuid::Uuid::try_parse(&word[word.len() - 36..]).is_ok() => {
                    format!("{}[uuid]{rest}", &word[..word.len() - 36])
                }
                16.. => format!("[hex]{rest}"),
                _ => part.to_owned(),
            }
        })
        .collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_openapi_document_is_as_it_was(pool: PgPool) {
    let document = Service::start(&pool).get("/openapi.json").await.expect(200);
    // Extensions of an operation come in no order.
    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!("openapi", document) });
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn bodies_are_as_they_were(pool: PgPool) {
    let service = Service::start(&pool);
    let agent = service.agent("worker", "http://127.0.0.1:9/a").await;
    let workflow = service
        .post(
            "/api/v1/workflows",
            &json!({
                "name": "orders", "description": "Every type of step.", "start_step": "ask",
                "input_schema": {"type": "object", "properties": {"text": {"type": "string"}}},
                "steps": {
                    "ask": {"id": "ask", "agent_name": "worker", "next_step": "both",
                            "input_mapping": {"text": "${workflow.input.text}"}, "timeout_ms": 1000},
                    "both": {"id": "both", "type": "parallel", "next_step": "pause",
                             "parallel_steps": ["left", "right"]},
                    "left": {"id": "left", "agent_name": "worker", "input_mapping": {}},
                    "right": {"id": "right", "agent_name": "worker", "input_mapping": {}},
                    "pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}},
                },
            }),
        )
        .await;
    let workflow = workflow.expect(201);
    let id = workflow["id"].as_str().expect("an id").to_owned();
    let run = service
        .post(&format!("/api/v1/workflows/{id}/execute"), &json!({"input_data": {"text": "a"}}))
        .await
        .expect(202);
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    let sql = "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, output_data, started_at, completed_at)
               VALUES ('att-1', $1, 'ask', 'ask', 'worker', 'COMPLETED', '{\"text\": \"a\"}', '{\"answer\": 1}', '2026-02-03', '2026-02-04')";
    sqlx::query(sql).bind(&run_id).execute(&pool).await.expect("a row as the reference executor writes it");

    let mut bodies = serde_json::Map::new();
    bodies.insert("agent".to_owned(), agent);
    bodies.insert("workflow".to_owned(), workflow);
    bodies.insert("run, accepted".to_owned(), run);
    for path in [
        "/api/v1/agents".to_owned(),
        "/api/v1/workflows?page_size=5".to_owned(),
        format!("/api/v1/workflows/{id}/versions"),
        "/api/v1/export".to_owned(),
        "/api/v1/runs".to_owned(),
        format!("/api/v1/runs/{run_id}"),
        format!("/api/v1/runs/{run_id}/steps"),
        format!("/api/v1/runs/{run_id}/logs"),
        "/api/v1/audit-logs".to_owned(),
        "/api/v1/runs/missing".to_owned(),
        "/api/v1/runs?page_size=0&sort_by=nothing".to_owned(),
    ] {
        let answer = service.get(&path).await;
        bodies.insert(format!("GET {} {}", kinds(&path), answer.status.as_u16()), answer.json());
    }
    let refused = service.post("/api/v1/workflows", &json!({"name": "", "steps": {"a": {"type": "odd"}}})).await;
    bodies.insert("workflow, refused".to_owned(), refused.expect(422));
    insta::assert_json_snapshot!("bodies", normalized(bodies.into()));
}
