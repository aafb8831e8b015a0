//! Workflows by name: looking up, executing, and bringing a name to a wanted definition.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const BY_NAME: &str = "/api/v1/workflow-names";

fn wanted(text: &str) -> Value {
    json!({"description": "d", "start_step": "s", "steps": {
        "s": {"id": "s", "agent_name": "worker", "input_mapping": {"text": text, "n": 1.0}}}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_former_paths_lead_to_the_same(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let former = "/api/v1/workflows/by-name/my%20flow%2F%C3%A4";
    let made = service.put(former, &wanted("a")).await.expect(201);
    let same = service.get(&format!("{BY_NAME}/my%20flow%2F%C3%A4")).await.expect(200);
    assert_eq!((service.get(former).await.expect(200), &same["id"]), (same.clone(), &made["id"]));
    service.post(&format!("{former}/execute"), &json!({"input_data": {"text": "t"}})).await.expect(202);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_name_leads_to_its_newest_version_while_that_is_active(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    service.chain("my flow/ä", &["worker"]).await;
    let second = service.chain("my flow/ä", &["worker", "worker"]).await;
    let path = format!("{BY_NAME}/my%20flow%2F%C3%A4");
    assert_eq!(service.get(&path).await.expect(200), second);
    let execute = async || service.post(&format!("{path}/execute"), &json!({"input_data": {"text": "t"}})).await;
    assert_eq!(execute().await.expect(202)["workflow_id"], second["id"]);
    service.post(&format!("{path}/execute"), &json!({})).await.error(422);
    let by_id = format!("/api/v1/workflows/{}", second["id"].as_str().expect("an id"));
    service.put(&by_id, &json!({"status": "inactive"})).await.expect(200);
    // What it was before is retired with it.
    service.get(&path).await.error(404);
    execute().await.error(404);
    assert_eq!(service.get("/api/v1/export").await.expect(200)["workflows"], json!([]));
    service.put(&by_id, &json!({"status": "active"})).await.expect(200);
    service.delete(&by_id).await.expect(200);
    execute().await.error(404);
    for unknown in ["nothing", "%00", "%FF", "versions"] {
        assert_eq!(service.get(&format!("{BY_NAME}/{unknown}")).await.error(404)["code"], "workflow_not_found");
        service.post(&format!("{BY_NAME}/{unknown}/execute"), &json!({"input_data": {}})).await.error(404);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn putting_the_same_content_changes_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let path = format!("{BY_NAME}/w");
    let first = service.put(&path, &wanted("a")).await.expect(201);
    assert_eq!((&first["version"], &first["name"]), (&json!(1), &json!("w")));
    assert_eq!(service.put(&path, &wanted("a")).await.expect(200), first);
    let second = service.put(&path, &wanted("b")).await.expect(200);
    assert_eq!((&second["version"], &second["id"]), (&json!(2), &first["id"]));
    let mut described = wanted("b");
    described["description"] = json!("other");
    let described = service.put(&path, &described).await.expect(200);
    assert_eq!((&described["version"], &described["description"]), (&json!(2), &json!("other")));
    // Numbers count by value, and long ones to their last digit.
    let long = |last: u8| {
        let body = wanted("b").to_string().replace("1.0", &format!("1234567890123456789012345678{last}"));
        service.send("PUT", &path, &[("content-type", "application/json")], body)
    };
    assert_eq!(long(1).await.expect(200)["version"], 3);
    assert_eq!(long(1).await.expect(200)["version"], 3);
    assert_eq!(long(2).await.expect(200)["version"], 4);
    service.delete(&format!("/api/v1/workflows/{}", first["id"].as_str().expect("an id"))).await.expect(200);
    // What was put before does not come back by itself.
    service.get(&path).await.error(404);
    let created = service.put(&path, &wanted("a")).await;
    let location = created.header("location").expect("a Location").to_owned();
    assert_eq!(created.expect(201)["version"], 5);
    assert_eq!(service.get(&location).await.expect(200)["version"], 5);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wanted_definition_is_checked_as_any(pool: PgPool) {
    let service = Service::start(&pool);
    let put = async |name: &str, body: &Value| service.put(&format!("{BY_NAME}/{name}"), body).await;
    assert_eq!(put("w", &wanted("a")).await.error(400)["code"], "agent_not_found");
    let mut named = wanted("a");
    named["name"] = json!("other");
    assert_eq!(put("w", &named).await.field_errors(), ["body.name value_error"]);
    assert_eq!(put("%20", &wanted("a")).await.field_errors(), ["path.name value_error"]);
    assert_eq!(put(&"x".repeat(256), &wanted("a")).await.field_errors(), ["path.name string_too_long"]);
    assert_eq!(put("w", &json!({})).await.field_errors(), ["body.start_step missing", "body.steps missing"]);
    service.get(&format!("{BY_NAME}/w")).await.error(404);
}
