//! One version, the difference between two, and the way back.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const UNKNOWN: &str = "/api/v1/workflows/00000000-0000-0000-0000-000000000000";

/// Two versions under one id: a chain of one step, then another step, start and description.
async fn two_versions(service: &Service) -> (String, Value, Value) {
    service.agent("worker", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let path = format!("/api/v1/workflows/{}", first["id"].as_str().expect("an id"));
    let steps = json!({
        "first": {"id": "first", "agent_name": "worker", "next_step": "s0", "input_mapping": {}},
        "s0": {"id": "s0", "agent_name": "worker", "input_mapping": {"text": "${first.output.text}"}},
    });
    let change = json!({"start_step": "first", "steps": steps, "description": "two"});
    let second = service.put(&path, &change).await.expect(200);
    (path, first, second)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_version_is_shown_by_its_number(pool: PgPool) {
    let service = Service::start(&pool);
    let (path, first, second) = two_versions(&service).await;
    assert_eq!(service.get(&format!("{path}/versions/2")).await.expect(200), second);
    let archived = service.get(&format!("{path}/versions/1")).await.expect(200);
    assert_eq!((&archived["version"], &archived["workflow_data"]), (&json!(1), &first["workflow_data"]));
    assert_eq!(service.get(&format!("{path}/versions/3")).await.error(404)["code"], "version_not_found");
    assert_eq!(service.get(&format!("{UNKNOWN}/versions/1")).await.error(404)["code"], "workflow_not_found");
    for bad in ["0", "-1", "one", "1.0", "99999999999"] {
        let answer = service.get(&format!("{path}/versions/{bad}")).await;
        assert_eq!(answer.field_errors(), ["path.version int_parsing"], "{bad}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_diff_names_every_member_that_changed(pool: PgPool) {
    let service = Service::start(&pool);
    let (path, _, second) = two_versions(&service).await;
    let diff = service.get(&format!("{path}/versions/1/diff/2")).await.expect(200);
    let expected = json!({
        "name": "w", "from_version": 1, "to_version": 2, "identical": false,
        "description": {"before": null, "after": "two"},
        "start_step": {"before": "s0", "after": "first"}, "input_schema": null, "expose": null, "limits": null,
        "deadline_seconds": null, "deadline_action": null, "silence_hours": null,
        "steps": {
            "added": {"first": second["workflow_data"]["steps"]["first"]},
            "removed": {},
            "changed": {"s0": {"input_mapping": {
                "before": {"text": "${workflow.input.text}"}, "after": {"text": "${first.output.text}"}}}},
        },
    });
    assert_eq!(diff, expected);
    let back = service.get(&format!("{path}/versions/2/diff/1")).await.expect(200);
    assert_eq!(back["steps"]["removed"], expected["steps"]["added"]);
    let same = service.get(&format!("{path}/versions/2/diff/2")).await.expect(200);
    assert_eq!((&same["identical"], &same["start_step"]), (&json!(true), &Value::Null));
    service.get(&format!("{path}/versions/1/diff/9")).await.error(404);
    assert_eq!(service.get(&format!("{path}/versions/1/diff/x")).await.field_errors(), ["path.other int_parsing"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn rolling_back_makes_the_old_content_the_newest_version(pool: PgPool) {
    let service = Service::start(&pool);
    let (path, first, second) = two_versions(&service).await;
    let rollback = format!("{path}/rollback");
    let third = service.post(&rollback, &json!({"version": 1})).await.expect(200);
    assert_eq!((&third["id"], &third["version"], &third["description"]), (&first["id"], &json!(3), &Value::Null));
    assert_eq!(third["workflow_data"]["steps"], first["workflow_data"]["steps"]);
    assert_eq!(third["workflow_data"]["version"], "3");
    assert_eq!(service.get(&path).await.expect(200), third);
    let archived = service.get(&format!("{path}/versions/2")).await.expect(200);
    assert_eq!(archived["workflow_data"], second["workflow_data"]);
    assert_eq!(service.get(&format!("{path}/versions/1/diff/3")).await.expect(200)["identical"], true);
    // A repeat of what is there is no change.
    assert_eq!(service.post(&rollback, &json!({"version": 3})).await.expect(200), third);
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit_logs WHERE entity_type = 'workflow' ORDER BY id")
            .fetch_all(&pool)
            .await
            .expect("audit rows");
    assert_eq!(actions.iter().filter(|action| *action == "update").count(), 2, "{actions:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_roll_back_can_fail_and_changes_nothing_then(pool: PgPool) {
    let service = Service::start(&pool);
    let (path, _, second) = two_versions(&service).await;
    let rollback = format!("{path}/rollback");
    assert_eq!(service.post(&rollback, &json!({"version": 7})).await.error(404)["code"], "version_not_found");
    assert_eq!(
        service.post(&format!("{UNKNOWN}/rollback"), &json!({"version": 1})).await.error(404)["code"],
        "workflow_not_found"
    );
    for (body, error) in
        [(json!({}), "body.version missing"), (json!({"version": 0}), "body.version greater_than_equal")]
    {
        assert_eq!(service.post(&rollback, &body).await.field_errors(), [error]);
    }
    let agent = service.get("/api/v1/agents?name=worker").await.expect(200)["items"][0]["id"].clone();
    service.delete(&format!("/api/v1/agents/{}", agent.as_str().expect("an id"))).await.expect(200);
    assert_eq!(service.post(&rollback, &json!({"version": 1})).await.error(400)["code"], "agent_not_active");
    assert_eq!(service.get(&path).await.expect(200), second);
}
