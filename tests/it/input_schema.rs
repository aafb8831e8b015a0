//! A workflow's JSON Schema for its input: stored with the content, checked before anything is written.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const WORKFLOWS: &str = "/api/v1/workflows";

fn body(schema: &Value) -> Value {
    json!({"name": "w", "start_step": "s", "input_schema": schema, "steps": {
        "s": {"id": "s", "agent_name": "worker", "input_mapping": {"text": "${workflow.input.text}"}}}})
}

fn text_schema() -> Value {
    json!({"type": "object", "required": ["text"], "properties": {
        "text": {"type": "string"}, "items": {"type": "array", "items": {"type": "integer"}}}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_input_that_breaks_the_schema_starts_no_run(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.post(WORKFLOWS, &body(&text_schema())).await.expect(201);
    assert_eq!(workflow["input_schema"], text_schema());
    let path = format!("{WORKFLOWS}/{}", workflow["id"].as_str().expect("an id"));
    for execute in [format!("{path}/execute"), format!("{WORKFLOWS}/by-name/w/execute")] {
        let long = "x".repeat(100_000);
        for (input, errors) in [
            (json!({}), vec!["body.input_data schema_error"]),
            (
                json!({"text": 1, "items": [1, "two"]}),
                vec!["body.input_data.items.1 schema_error", "body.input_data.text schema_error"],
            ),
            (json!({"text": 1, "more": long}), vec!["body.input_data.text schema_error"]),
        ] {
            let mut found = service.post(&execute, &json!({"input_data": input})).await.field_errors();
            found.sort();
            assert_eq!(found, errors);
        }
        assert_eq!(
            service.post(&execute, &json!({"input_data": []})).await.field_errors(),
            ["body.input_data dict_type"]
        );
    }
    assert_eq!(service.get("/api/v1/runs").await.expect(200)["total"], 0);
    service.post(&format!("{path}/execute"), &json!({"input_data": {"text": "t", "items": [1]}})).await.expect(202);
    // Another schema counts from the next request on, in both directions.
    service.put(&path, &json!({"input_schema": {"required": ["other"]}})).await.expect(200);
    service.post(&format!("{path}/execute"), &json!({"input_data": {"other": 1}})).await.expect(202);
    service.post(&format!("{path}/execute"), &json!({"input_data": {"text": "t"}})).await.error(422);
    service.put(&path, &json!({"input_schema": null})).await.expect(200);
    service.post(&format!("{path}/execute"), &json!({"input_data": {}})).await.expect(202);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_schema_is_a_part_of_the_versioned_content(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let first = service.post(WORKFLOWS, &body(&text_schema())).await.expect(201);
    let path = format!("{WORKFLOWS}/{}", first["id"].as_str().expect("an id"));
    // The same one again, and a change that does not name it.
    let same = service.put(&path, &json!({"input_schema": text_schema()})).await.expect(200);
    assert_eq!(same, first);
    assert_eq!(service.put(&path, &json!({"description": "d"})).await.expect(200)["input_schema"], text_schema());
    let second = service.put(&path, &json!({"input_schema": {}})).await.expect(200);
    assert_eq!((&second["version"], &second["input_schema"]), (&json!(2), &json!({})));
    assert_eq!(service.get(&format!("{path}/versions/1")).await.expect(200)["input_schema"], text_schema());
    let diff = service.get(&format!("{path}/versions/1/diff/2")).await.expect(200);
    assert_eq!(diff["input_schema"], json!({"before": text_schema(), "after": {}}));
    let third = service.post(&format!("{path}/rollback"), &json!({"version": 1})).await.expect(200);
    assert_eq!((&third["version"], &third["input_schema"]), (&json!(3), &text_schema()));
    let mut wanted = body(&text_schema());
    wanted["description"] = third["description"].clone();
    wanted.as_object_mut().expect("an object").remove("name");
    let by_name = format!("{WORKFLOWS}/by-name/w");
    assert_eq!(service.put(&by_name, &wanted).await.expect(200), third);
    wanted["input_schema"] = Value::Null;
    let fourth = service.put(&by_name, &wanted).await.expect(200);
    assert_eq!((&fourth["version"], &fourth["input_schema"]), (&json!(4), &Value::Null));
    service.put(&by_name, &body_without_name()).await.expect(200);
    let document = service.get("/api/v1/export").await.expect(200);
    assert_eq!(document["workflows"][0]["input_schema"], text_schema());
    assert_eq!(service.post("/api/v1/import", &document).await.expect(200)["unchanged"]["workflows"], json!(["w"]));
}

fn body_without_name() -> Value {
    let mut body = body(&text_schema());
    body.as_object_mut().expect("an object").remove("name");
    body
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_schema_that_is_none_or_could_hang_is_refused(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.post(WORKFLOWS, &body(&Value::Null)).await.expect(201);
    let path = format!("{WORKFLOWS}/{}", workflow["id"].as_str().expect("an id"));
    for (schema, kind) in [
        (json!(true), "dict_type"),
        (json!({"type": 7}), "value_error"),
        (json!({"$ref": "http://169.254.169.254/latest"}), "value_error"),
        (json!({"$ref": "#"}), "value_error"),
        (json!({"description": "x".repeat(70_000)}), "value_error"),
    ] {
        let expected = [format!("body.input_schema {kind}")];
        assert_eq!(service.post(WORKFLOWS, &body(&schema)).await.field_errors(), expected);
        assert_eq!(service.put(&path, &json!({"input_schema": schema})).await.field_errors(), expected);
    }
}
