//! Runs: lists, steps, cancelling and starting again, also of runs and steps that other programs have written.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Service, records};

const RUNS: &str = "/api/v1/runs";

async fn execute_sql(pool: &PgPool, sql: &str) -> u64 {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
        .rows_affected()
}

/// A run as the reference executor or a script writes it.
async fn insert_run(pool: &PgPool, run_id: &str, status: &str, created_at: &str) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, created_at, updated_at)
               VALUES ($1, 'wf-a-1', 'a', $2, $3::timestamp, $3::timestamp)";
    let insert = sqlx::query(sql).bind(run_id).bind(status).bind(created_at);
    insert.execute(pool).await.expect("the row is valid");
}

fn run_ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().map(|item| item["run_id"].as_str().expect("an id")).collect()
}

async fn steps_of(service: &Service, run_id: &str) -> Vec<Value> {
    let steps = service.get(&format!("{RUNS}/{run_id}/steps")).await.expect(200);
    steps.as_array().expect("a bare array").clone()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_of_another_program_has_every_member(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool, "ext-1", "RUNNING", "2026-02-03 09:00:00").await;
    let mut expected = json!({
        "id": "ext-1", "run_id": "ext-1", "workflow_id": "wf-a-1", "workflow_name": "a", "workflow_definition_id": null,
        "workflow_version": null, "status": "RUNNING", "input_data": null, "triggered_by": null, "cancelled_by": null, "error_message": null, "error_code": null,
        "created_at": "2026-02-03T09:00:00Z", "updated_at": "2026-02-03T09:00:00Z", "completed_at": null,
        "cancelled_at": null, "priority": 5, "paused_at": null, "parent_run_id": null, "parent_step_id": null,
        "limits": null, "flow_control": null, "trigger": null,
    });
    assert_eq!(service.get(RUNS).await.expect(200)["items"], json!([expected]));
    // The run by itself shows what it gave, too.
    for member in ["output_data", "error_code", "usage", "waiting"] {
        expected[member] = json!(null);
    }
    assert_eq!(service.get(&format!("{RUNS}/ext-1")).await.expect(200), expected);
    // The reference writes JSON nulls.
    execute_sql(&pool, "UPDATE workflow_runs SET input_data = 'null'").await;
    assert_eq!(service.get(&format!("{RUNS}/ext-1")).await.expect(200), expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_is_not_there_is_404_whatever_its_id(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool, "a/b ü", "PENDING", "2026-02-03 09:00").await;
    assert_eq!(service.get(&format!("{RUNS}/a%2Fb%20%C3%BC")).await.expect(200)["run_id"], "a/b ü");
    for id in ["missing", "a%2Fb", "%00", "run-%00", "%FF", "%ED%A0%80", "..", "%2E%2E%2Fhealth", "'%20OR%201=1--", "%"]
    {
        for (method, act) in
            [("GET", ""), ("GET", "/steps"), ("POST", "/cancel"), ("POST", "/retry"), ("POST", "/pause")]
        {
            let answer = service.send(method, &format!("{RUNS}/{id}{act}"), &[], "").await;
            assert_eq!(answer.error(404)["code"], "run_not_found", "{method} {id}{act}");
        }
    }
}

/// Four runs, of which `d` has no time of completion.
async fn four_runs(pool: &PgPool) {
    for (id, status, created_at) in [
        ("a", "COMPLETED", "2026-02-03 09:00:00"),
        ("b", "FAILED", "2026-02-03 10:00:00.5"),
        ("c", "COMPLETED", "2026-02-03 11:00:00"),
        ("d", "RUNNING", "2026-02-03 12:00:00"),
    ] {
        insert_run(pool, id, status, created_at).await;
    }
    let more = "UPDATE workflow_runs SET completed_at = created_at + interval '1 day' WHERE run_id IN ('b', 'c');
        UPDATE workflow_runs SET completed_at = created_at + interval '2 days' WHERE run_id = 'a';
        UPDATE workflow_runs SET workflow_definition_id = 'def', workflow_id = 'def' WHERE run_id IN ('a', 'd');
        UPDATE workflow_runs SET updated_at = '2026-03-01' WHERE run_id = 'b'";
    execute_sql(pool, more).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_list_is_filtered_sorted_and_paged(pool: PgPool) {
    let service = Service::start(&pool);
    four_runs(&pool).await;
    for (query, expected, total) in [
        ("", "dcba", 4),
        ("sort_order=asc", "abcd", 4),
        ("sort_order=Asc&sort_by=nonsense", "abcd", 4),
        ("sort_by=completed_at", "dacb", 4), // absent ones first
        ("sort_by=completed_at&sort_order=asc", "bcad", 4),
        ("sort_by=updated_at", "bdca", 4),
        ("sort_by=status&sort_order=asc&page_size=3", "acb", 4),
        ("sort_by=run_id%20DESC%3B--", "dcba", 4),
        ("status=COMPLETED", "ca", 2),
        ("status=completed", "", 0),
        ("status=COMPLETED&status=FAILED", "b", 1),
        ("workflow_id=def", "da", 2),
        ("workflow_definition_id=def&status=RUNNING", "d", 1),
        ("workflow_id=wf-a-1&sort_order=asc", "bc", 2),
        ("page=2&page_size=3", "a", 4),
        ("page=5&page_size=3", "", 4),
        ("created_after=2026-02-03T11:00:00", "dc", 2),
        ("created_before=2026-02-03T11:00:00", "cba", 3),
        ("created_after=2026-02-03T10:00:00.5&created_before=2026-02-03T11:00:00Z", "cb", 2),
        ("created_after=2026-02-03T12:00:00%2B01:00", "dc", 2),
        ("created_after=2026-02-03T12:00:00+01:00", "dc", 2), // form decoding makes a space of it
        ("created_before=2026-02-03+10:00-01:00", "cba", 3),
        ("created_after=2026-02-03_11:00:00.000001", "d", 1),
        ("created_after=1770116400", "dc", 2),
        ("created_after=1770116400000", "dc", 2),
        ("created_before=1770116399.999", "ba", 2),
        ("created_after=2026-02-04", "", 0),
    ] {
        let page = service.get(&format!("{RUNS}?{query}")).await.expect(200);
        assert_eq!((run_ids(&page).concat(), &page["total"]), (expected.to_owned(), &json!(total)), "{query}");
    }
    let page = service.get(&format!("{RUNS}?page=2&page_size=3")).await.expect(200);
    assert_eq!(json!([page["page"], page["page_size"], page["total_pages"]]), json!([2, 3, 2]));
    for (query, field) in
        [("created_after=yesterday", "query.created_after"), ("created_before=x", "query.created_before")]
    {
        let answer = service.get(&format!("{RUNS}?{query}")).await;
        assert_eq!(answer.field_errors(), [format!("{field} datetime_parsing")]);
        answer.error(422);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn steps_are_an_array_in_the_order_of_their_start(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool, "ext-1", "RUNNING", "2026-02-03 09:00").await;
    assert_eq!(steps_of(&service, "ext-1").await, [Value::Null; 0]);
    let rows = r#"INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, output_data,
            started_at, completed_at, error_message)
        VALUES ('ext-1-s-2', 'ext-1', 's', 'worker', 'worker', 'COMPLETED', 'null', '[1, "two"]', '2026-02-03 09:02',
                '2026-02-03 09:03', NULL),
            ('ext-1-s-1', 'ext-1', 's', 'worker', 'worker', 'FAILED', '{"text": "x"}', NULL, '2026-02-03 09:01',
                '2026-02-03 09:02', 'no answer'),
            ('ext-1-t-1', 'ext-1', 't', 'worker', 'worker', 'RUNNING', '{}', 'null', '2026-02-03 09:04', NULL, NULL);
        UPDATE step_executions SET parent_step_id = 'p', branch_name = 'b', join_policy = 'all' WHERE step_id = 't'"#;
    execute_sql(&pool, rows).await;
    let step = |id: &str, at: &str, more: Value| {
        let mut step = json!({
            "id": id, "run_id": "ext-1", "step_id": "s", "step_name": "worker", "agent_name": "worker",
            "started_at": format!("2026-02-03T{at}:00Z"), "completed_at": null, "error_message": null,
            "output_data": null, "input_data": {}, "parent_step_id": null, "branch_name": null, "join_policy": null,
            "child_run_id": null, "usage": null,
        });
        step.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
        step
    };
    let expected = [
        step(
            "ext-1-s-1",
            "09:01",
            json!({"status": "FAILED", "input_data": {"text": "x"}, "error_message": "no answer",
            "completed_at": "2026-02-03T09:02:00Z"}),
        ),
        step(
            "ext-1-s-2",
            "09:02",
            json!({"status": "COMPLETED", "output_data": [1, "two"],
            "completed_at": "2026-02-03T09:03:00Z"}),
        ),
        step(
            "ext-1-t-1",
            "09:04",
            json!({"status": "RUNNING", "step_id": "t", "parent_step_id": "p", "branch_name": "b",
            "join_policy": "all"}),
        ),
    ];
    assert_eq!(steps_of(&service, "ext-1").await, expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_run_says_when_by_whom_and_why(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    for (body, error_message) in [
        (json!({"reason": "started by mistake"}), json!("Cancelled: started by mistake")),
        (json!({"reason": "é".repeat(500)}), json!(format!("Cancelled: {}", "é".repeat(500)))),
        (json!({"reason": ""}), Value::Null),
        (json!({"reason": null, "unknown": 1}), Value::Null),
        (json!({}), Value::Null),
        (Value::Null, Value::Null),
    ] {
        let run_id = service.execute(&workflow_id).await;
        let run = service.post(&format!("{RUNS}/{run_id}/cancel"), &body).await.expect(200);
        assert_eq!((&run["status"], &run["cancelled_by"]), (&json!("CANCELLED"), &json!("system")));
        assert_eq!((&run["error_message"], &run["cancelled_at"]), (&error_message, &run["updated_at"]), "{body}");
        assert_eq!(service.get(&format!("{RUNS}/{run_id}")).await.expect(200), run);
    }
    let run_id = service.execute(&workflow_id).await;
    service.send("POST", &format!("{RUNS}/{run_id}/cancel"), &[], "").await.expect(200);
    let sent = records(&service.config, &service.config.kafka.cancellation_topic, 7).await;
    assert_eq!(sent.iter().filter(|record| record.key == run_id && record.value["run_id"] == run_id).count(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_running_run_can_be_cancelled_and_its_open_steps_end(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool, "ext-1", "RUNNING", "2026-02-03 09:00").await;
    let rows = "UPDATE workflow_runs SET error_message = 'a former one';
        INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, completed_at) VALUES
            ('1', 'ext-1', 's', 'w', 'w', 'COMPLETED', '{}', '2026-02-03 09:02'),
            ('2', 'ext-1', 't', 'w', 'w', 'RUNNING', '{}', NULL), ('3', 'ext-1', 'u', 'w', 'w', 'PENDING', '{}', NULL)";
    execute_sql(&pool, rows).await;
    let run = service.post(&format!("{RUNS}/ext-1/cancel"), &json!({})).await.expect(200);
    assert_eq!((&run["status"], &run["error_message"]), (&json!("CANCELLED"), &json!("a former one")));
    let steps = steps_of(&service, "ext-1").await;
    for step in &steps {
        let expected = if step["id"] == "1" { "COMPLETED" } else { "FAILED" };
        assert_eq!((&step["status"], step["completed_at"].is_string()), (&json!(expected), true), "{step}");
    }
    let audited: (Value, String) = sqlx::query_as("SELECT changes, user_id FROM audit_logs WHERE action = 'cancel'")
        .fetch_one(&pool)
        .await
        .expect("the audit row");
    assert_eq!(audited, (json!({"reason": null, "previous_status": "RUNNING"}), "system".to_owned()));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancellation_that_is_not_valid_changes_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    insert_run(&pool, "ext-1", "RUNNING", "2026-02-03 09:00").await;
    for (body, expected) in [
        (json!({"reason": "é".repeat(501)}), "body.reason string_too_long"),
        (json!({"reason": 1}), "body.reason string_type"),
        (json!([]), "body model_attributes_type"),
        (json!("stop"), "body model_attributes_type"),
    ] {
        let answer = service.post(&format!("{RUNS}/ext-1/cancel"), &body).await;
        assert_eq!(answer.field_errors(), [expected], "{body}");
        answer.error(422);
    }
    assert_eq!(service.get(&format!("{RUNS}/ext-1")).await.expect(200)["status"], "RUNNING");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_in_the_wrong_state_is_neither_cancelled_nor_retried(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    for status in ["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"] {
        insert_run(&pool, status, status, "2026-02-03 09:00").await;
        let sql =
            format!("UPDATE workflow_runs SET workflow_definition_id = '{workflow_id}' WHERE run_id = '{status}'");
        execute_sql(&pool, &sql).await;
    }
    for (act, refused) in
        [("cancel", ["COMPLETED", "FAILED", "CANCELLED"].as_slice()), ("retry", &["PENDING", "RUNNING", "COMPLETED"])]
    {
        for status in refused {
            let before = service.get(&format!("{RUNS}/{status}")).await.expect(200);
            let error = service.post(&format!("{RUNS}/{status}/{act}"), &json!({})).await.error(400);
            assert_eq!(error["code"], "run_wrong_state", "{act} {status}");
            assert!(error["detail"].as_str().is_some_and(|detail| detail.contains(status)), "{error}");
            assert_eq!(service.get(&format!("{RUNS}/{status}")).await.expect(200), before);
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_goes_on_with_the_same_run_and_the_present_definition(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    insert_run(&pool, "test-run 1", "FAILED", "2026-02-03 09:00").await;
    let sql = format!(
        "UPDATE workflow_runs SET workflow_definition_id = '{workflow_id}', error_message = 'x', completed_at = now(),
             input_data = 'null'"
    );
    execute_sql(&pool, &sql).await;
    let steps = json!({"t": {"id": "t", "agent_name": "worker", "input_mapping": {}}});
    let update = json!({"steps": steps, "start_step": "t"});
    service.put(&format!("/api/v1/workflows/{workflow_id}"), &update).await.expect(200);

    let mut retried = service.post(&format!("{RUNS}/test-run%201/retry"), &Value::Null).await.expect(202);
    let members = retried.as_object_mut().expect("an object");
    let mut take = |name: &str| members.remove(name).unwrap_or_else(|| panic!("{name} is there"));
    assert_eq!((take("new_run_id"), take("original_run_id")), (json!("test-run 1"), json!("test-run 1")));
    assert!(take("message").is_string() && take("timestamp").is_string());
    for name in ["error_message", "cancelled_at", "cancelled_by", "completed_at"] {
        assert_eq!(retried[name], Value::Null, "{name}");
    }
    assert_eq!(retried["status"], "PENDING");
    // Without the extra members, which would switch on a panel of the UI.
    assert_eq!(service.get(&format!("{RUNS}/test-run%201")).await.expect(200), retried);

    let sent = records(&service.config, &service.config.kafka.execution_topic, 1).await;
    assert_eq!((sent[0].key.as_str(), &sent[0].value["run_id"]), ("test-run 1", &json!("test-run 1")));
    assert_eq!(
        (&sent[0].value["input_data"], &sent[0].value["workflow_plan"]["start_step"]),
        (&json!({}), &json!("t"))
    );
    let previous: Value = sqlx::query_scalar("SELECT changes FROM audit_logs WHERE action = 'retry'")
        .fetch_one(&pool)
        .await
        .expect("the audit row");
    assert_eq!(previous, json!({"previous_status": "FAILED"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancelled_run_can_be_retried_with_any_body_that_is_an_object(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    for body in [json!({}), json!({"resume_from_step": "s0"}), json!({"resume_from_step": null, "other": 1})] {
        service.post(&format!("{RUNS}/{run_id}/cancel"), &json!({"reason": "x"})).await.expect(200);
        let retried = service.post(&format!("{RUNS}/{run_id}/retry"), &body).await.expect(202);
        assert_eq!((&retried["status"], &retried["input_data"]), (&json!("PENDING"), &json!({"text": "hello"})));
    }
    service.post(&format!("{RUNS}/{run_id}/cancel"), &json!({})).await.expect(200);
    let answer = service.post(&format!("{RUNS}/{run_id}/retry"), &json!({"resume_from_step": 1})).await;
    assert_eq!(answer.field_errors(), ["body.resume_from_step string_type"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_without_its_definition_is_not_retried(pool: PgPool) {
    let service = Service::start(&pool);
    let gone = uuid::Uuid::new_v4().to_string();
    for (run_id, definition_id, status, code) in [
        ("a", None, 400, "run_without_definition"),
        ("b", Some("not-a-uuid"), 404, "workflow_not_found"),
        ("c", Some(gone.as_str()), 404, "workflow_not_found"),
    ] {
        insert_run(&pool, run_id, "FAILED", "2026-02-03 09:00").await;
        let update = sqlx::query("UPDATE workflow_runs SET workflow_definition_id = $1 WHERE run_id = $2");
        update.bind(definition_id).bind(run_id).execute(&pool).await.expect("the row is there");
        let error = service.post(&format!("{RUNS}/{run_id}/retry"), &json!({})).await.error(status);
        assert_eq!(error["code"], code, "{run_id}");
        assert_eq!(service.get(&format!("{RUNS}/{run_id}")).await.expect(200)["status"], "FAILED");
    }
}

/// The reference executor writes states without looking at the present one.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_blind_update_does_not_resurrect_a_run_that_has_ended(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    let cancelled = service.post(&format!("{RUNS}/{run_id}/cancel"), &json!({"reason": "x"})).await.expect(200);
    for set in [
        "status = 'RUNNING', updated_at = now()",
        "status = 'COMPLETED', completed_at = now(), updated_at = now()",
        "status = 'FAILED', error_message = 'y', completed_at = now()",
    ] {
        execute_sql(&pool, &format!("UPDATE workflow_runs SET {set}")).await;
        assert_eq!(service.get(&format!("{RUNS}/{run_id}")).await.expect(200), cancelled, "after SET {set}");
    }
    // Until somebody retries it: then it goes the usual way again.
    service.post(&format!("{RUNS}/{run_id}/retry"), &json!({})).await.expect(202);
    execute_sql(&pool, "UPDATE workflow_runs SET status = 'RUNNING'").await;
    execute_sql(&pool, "UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now()").await;
    assert_eq!(service.get(&format!("{RUNS}/{run_id}")).await.expect(200)["status"], "COMPLETED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn of_many_who_cancel_or_retry_a_run_at_once_one_succeeds(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    for (act, success) in [("cancel", 200), ("retry", 202)] {
        let (path, body) = (format!("{RUNS}/{run_id}/{act}"), json!({}));
        let answers = futures_util::future::join_all((0..8).map(|_| service.post(&path, &body))).await;
        let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status.as_u16()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [success, 400, 400, 400, 400, 400, 400, 400], "{act}");
    }
    let audited: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_logs WHERE action IN ('cancel', 'retry')")
        .fetch_one(&pool)
        .await
        .expect("audit rows");
    assert_eq!(audited, 2);
}
