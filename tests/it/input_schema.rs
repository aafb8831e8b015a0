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
    for execute in [format!("{path}/execute"), "/api/v1/workflow-names/w/execute".to_owned()] {
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
    let by_name = "/api/v1/workflow-names/w";
    assert_eq!(service.put(by_name, &wanted).await.expect(200), third);
    wanted["input_schema"] = Value::Null;
    let fourth = service.put(by_name, &wanted).await.expect(200);
    assert_eq!((&fourth["version"], &fourth["input_schema"]), (&json!(4), &Value::Null));
    service.put(by_name, &body_without_name()).await.expect(200);
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
        // In all, more states than all patterns may have; 33 KB, and once 682 MiB.
        (
            json!({"properties": (0..1000).map(|n| (format!("p{n}"), json!({"pattern": format!("{n}[a-z]{{14000}}")})))
            .collect::<serde_json::Map<_, _>>()}),
            "value_error",
        ),
    ] {
        let expected = [format!("body.input_schema {kind}")];
        let validation = service.post(&format!("{WORKFLOWS}/validate"), &body(&schema)).await.expect(200);
        assert_eq!(validation["errors"][0]["field"], "body.input_schema");
        let mut wanted = body(&schema);
        wanted.as_object_mut().expect("an object").remove("name");
        assert_eq!(service.put("/api/v1/workflow-names/w", &wanted).await.field_errors(), expected);
        let document = json!({"format": "workflow-api/definitions", "version": 1, "workflows": [body(&schema)]});
        let imported = service.post("/api/v1/import", &document).await.field_errors();
        assert_eq!(imported, [format!("body.workflows.0.input_schema {kind}")]);
        assert_eq!(service.post(WORKFLOWS, &body(&schema)).await.field_errors(), expected);
        assert_eq!(service.put(&path, &json!({"input_schema": schema})).await.field_errors(), expected);
    }
}

/// A schema that looks at each number of `n` 1500 times, and an input with more than the 30 million looks that may be.
fn costly() -> (Value, Value) {
    let mut looks = vec![json!({"$ref": "#/$defs/a"}); 1500];
    looks.push(json!(true));
    let schema = json!({"properties": {"n": {"items": {"anyOf": looks}}}, "$defs": {"a": {"type": "string"}}});
    (schema, json!({"n": vec![1; 21_000]}))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_input_that_takes_too_much_checking_is_refused_where_runs_begin(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let (schema, input) = costly();
    let workflow = service.post(WORKFLOWS, &body(&schema)).await.expect(201);
    let path = format!("{WORKFLOWS}/{}/execute", workflow["id"].as_str().expect("an id"));
    let refused = ["body.input_data schema_too_costly"];
    assert_eq!(service.post(&path, &json!({"input_data": input})).await.field_errors(), refused);
    let run = service.post(&path, &json!({"input_data": {"n": []}})).await.expect(202);
    let run = format!("/api/v1/runs/{}", run["run_id"].as_str().expect("an id"));
    service.post(&format!("{run}/cancel"), &json!({})).await.expect(200);
    assert_eq!(service.post(&format!("{run}/retry"), &json!({"input_data": input})).await.field_errors(), refused);
    assert_eq!(service.get(&run).await.expect(200)["status"], "CANCELLED");
    service.post(&format!("{run}/retry"), &json!({"input_data": {"n": []}})).await.expect(202);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_whose_input_is_checked_holds_no_lock_meanwhile(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let workflow = service.post(WORKFLOWS, &body(&text_schema())).await.expect(201);
    let run = service.execute(workflow["id"].as_str().expect("an id")).await;
    let run = format!("/api/v1/runs/{run}");
    service.post(&format!("{run}/cancel"), &json!({})).await.expect(200);
    // The definition changes between the check and the run's lock: the check counts for nothing.
    let mut held = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT 1 FROM workflow_runs FOR UPDATE").execute(&mut *held).await.expect("the lock");
    let (path, body) = (format!("{run}/retry"), json!({"input_data": {"text": "t"}}));
    let change = async {
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        crate::service::eventually("the retry waits for the run", async || {
            let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&pool).await.expect("a count");
            (waiting > 0).then_some(())
        })
        .await;
        sqlx::query("UPDATE workflow_definitions SET input_schema = '{\"required\": [\"other\"]}'")
            .execute(&mut *held)
            .await
            .expect("the change");
        held.commit().await.expect("a commit");
    };
    let (retry, ()) = futures_util::join!(service.post(&path, &body), change);
    assert_eq!(retry.field_errors(), ["body.input_data schema_error"]);
    assert_eq!(service.get(&run).await.expect(200)["status"], "CANCELLED");
}
