//! Push notifications: what a client of a workflow is told of its task, where, and when.

use std::time::Duration;

use axum::response::IntoResponse as _;
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    actions::rotate_keys::{Rotation, rotate_keys},
    clock::Clock,
    db::{migrations::MIGRATOR, sealed::Column, webhooks::pushes::clean_up},
    vault::Vault,
};

use super::{Member, V0, V1, approvals, calling, error, message_0, message_1, put, result, shout};
use crate::{
    access::Admin,
    path::Executor,
    service::{Service, config, eventually, own_pool},
    webhooks::{Received, Receiver},
};

const CREATE: &str = "CreateTaskPushNotificationConfig";
const GET: &str = "GetTaskPushNotificationConfig";
const LIST: &str = "ListTaskPushNotificationConfigs";
const DELETE: &str = "DeleteTaskPushNotificationConfig";

/// A message of 1.0 that is answered at once, with push notifications to that address.
fn told(id: &str, url: &str) -> Value {
    let mut message = message_1(id, &json!([{"text": "x"}]));
    message["configuration"] = json!({"returnImmediately": true, "taskPushNotificationConfig": {"url": url}});
    message
}

/// The states of the notifications at that path, as soon as there are so many.
async fn states(receiver: &Receiver, path: &str, count: usize) -> Vec<String> {
    let state = |received: &Received| {
        let body = received.json();
        let status = if body["kind"] == "task" { &body["status"] } else { &body["statusUpdate"]["status"] };
        status["state"].as_str().unwrap_or_else(|| panic!("a state: {body}")).to_owned()
    };
    receiver.got(path, count).await.iter().map(state).collect()
}

async fn answer(service: &Service, name: &str, task: &Value, id: &str) -> Value {
    let mut message = message_1(id, &json!([{"text": "yes"}]));
    message["message"]["taskId"] = task["id"].clone();
    result(service, name, &V1, "SendMessage", &message).await["task"].clone()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_client_is_told_of_each_state_of_its_task_in_the_form_of_its_version(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    put(&service, "ask", &approvals()).await;
    let mut sent = told("m", &receiver.url("/new"));
    sent["message"]["contextId"] = json!("talk");
    let push = &mut sent["configuration"]["taskPushNotificationConfig"];
    push["token"] = json!("my-token");
    push["authentication"] = json!({"scheme": "Bearer", "credentials": "my-credentials"});
    let task = result(&service, "ask", &V1, "SendMessage", &sent).await["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_SUBMITTED");
    let mut sent = message_0("n", &json!([{"kind": "text", "text": "y"}]));
    sent["configuration"] = json!({"blocking": false, "pushNotificationConfig": {
        "url": receiver.url("/old"), "token": "other-token",
        "authentication": {"schemes": ["Basic", "Bearer"], "credentials": "dTpw"},
    }});
    let old_task = result(&service, "ask", &V0, "message/send", &sent).await;
    let _executor = Executor::start(&service);

    assert_eq!(states(&receiver, "/new", 2).await, ["TASK_STATE_WORKING", "TASK_STATE_INPUT_REQUIRED"]);
    let asked = receiver.at("/new").remove(1);
    for (name, value) in [
        ("content-type", "application/a2a+json"),
        ("authorization", "Bearer my-credentials"),
        ("x-a2a-notification-token", "my-token"),
        ("webhook-attempt", "1"),
    ] {
        assert_eq!(asked.header(name), value, "{name}");
    }
    assert!(asked.header("webhook-id").starts_with("evt_") && !asked.headers.contains_key("webhook-signature"));
    let body = asked.json();
    let update = &body["statusUpdate"];
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
    assert_eq!((&update["taskId"], &update["contextId"]), (&task["id"], &json!("talk")));
    let shown = result(&service, "ask", &V1, "GetTask", &json!({"id": task["id"]})).await;
    assert_eq!(update["status"]["message"], shown["status"]["message"], "the questions are those of the task");
    assert!(update["status"]["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{update}");

    assert_eq!(states(&receiver, "/old", 2).await, ["working", "input-required"]);
    let asked = receiver.at("/old").remove(1);
    for (name, value) in [
        ("content-type", "application/json"),
        ("authorization", "Basic dTpw"),
        ("x-a2a-notification-token", "other-token"),
    ] {
        assert_eq!(asked.header(name), value, "{name}");
    }
    let body = asked.json();
    assert_eq!((&body["kind"], &body["id"], &body["contextId"]), (&json!("task"), &old_task["id"], &old_task["id"]));
    assert_eq!(body["status"]["message"]["parts"][0], json!({"kind": "text", "text": "Is one fine?"}));

    answer(&service, "ask", &task, "a-1").await;
    let ended = answer(&service, "ask", &task, "a-2").await;
    assert_eq!(ended["status"]["state"], "TASK_STATE_COMPLETED", "{ended}");
    let all = states(&receiver, "/new", 4).await;
    assert_eq!(all[2..], ["TASK_STATE_INPUT_REQUIRED", "TASK_STATE_COMPLETED"]);
    result(&service, "ask", &V0, "tasks/cancel", &json!({"id": old_task["id"]})).await;
    assert_eq!(states(&receiver, "/old", 3).await[2], "canceled");
    assert_eq!(receiver.at("/new").len(), 4, "each task has its own notifications");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_configuration_for_a_task_that_has_begun_is_told_of_its_present_state_first(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    let _executor = Executor::start(&service);
    put(&service, "ask", &approvals()).await;
    let task =
        result(&service, "ask", &V1, "SendMessage", &message_1("m", &json!([{"text": "x"}]))).await["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_INPUT_REQUIRED");
    let params = json!({"taskId": task["id"], "pushNotificationConfig": {"url": receiver.url("/old")}});
    let made = result(&service, "ask", &V0, "tasks/pushNotificationConfig/set", &params).await;
    let shown = json!({"id": task["id"], "url": receiver.url("/old")});
    assert_eq!(made, json!({"taskId": task["id"], "pushNotificationConfig": shown}));
    assert_eq!(states(&receiver, "/old", 1).await, ["input-required"]);
    assert_eq!(receiver.at("/old")[0].json()["status"]["message"]["parts"][0]["text"], "Is one fine?");
    // One that comes with an answer is told of what the answer leads to.
    let mut message = told("a", &receiver.url("/new"));
    message["configuration"]["taskPushNotificationConfig"]["id"] = json!("new");
    message["message"]["taskId"] = task["id"].clone();
    message["message"]["parts"] = json!([{"text": "no"}]);
    result(&service, "ask", &V1, "SendMessage", &message).await;
    assert_eq!(states(&receiver, "/new", 2).await, ["TASK_STATE_INPUT_REQUIRED", "TASK_STATE_FAILED"]);
    let status = receiver.at("/new").remove(1).json()["statusUpdate"]["status"].clone();
    let why = status["message"]["parts"][0]["text"].as_str().expect("a reason");
    assert!(why.contains("rejected"), "{why}");
    assert_eq!(states(&receiver, "/old", 2).await[1], "failed");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_of_a_sub_workflow_is_told_to_the_client_of_the_task(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    for (name, definition) in [("inner", approvals()), ("middle", calling("inner")), ("outer", calling("middle"))] {
        put(&service, name, &definition).await;
    }
    result(&service, "outer", &V1, "SendMessage", &told("m", &receiver.url("/"))).await;
    let _executor = Executor::start(&service);
    assert_eq!(states(&receiver, "/", 2).await, ["TASK_STATE_WORKING", "TASK_STATE_INPUT_REQUIRED"]);
    let status = receiver.at("/").remove(1).json()["statusUpdate"]["status"].clone();
    assert_eq!(status["message"]["parts"][0]["text"], "Is one fine?");
}

/// Number of attempts of the only notification to that path that waits, as soon as it is that.
async fn attempted(pool: &PgPool, config: &str, attempts: i32) {
    eventually("the attempt is recorded", async || {
        let sql = "SELECT d.attempts = $2 AND d.lease IS NULL FROM webhook_deliveries d JOIN task_pushes p ON p.id = d.push_id
                   WHERE p.name = $1 AND d.state = 'pending'";
        let found: Option<bool> =
            sqlx::query_scalar(sql).bind(config).bind(attempts).fetch_optional(pool).await.expect("a row");
        found.filter(|is_it| *is_it).map(|_| ())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_notification_is_repeated_until_it_arrives_and_a_deleted_configuration_sends_nothing_more(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::start(|received, before| match (received.path.as_str(), before) {
        ("/again", 0) | ("/never", _) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => StatusCode::OK.into_response(),
    })
    .await;
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let task = result(&service, "shout", &V1, "SendMessage", &told("m", &receiver.url("/fine"))).await["task"].clone();
    for name in ["again", "never"] {
        let params = json!({"taskId": task["id"], "id": name, "url": receiver.url(&format!("/{name}"))});
        let made = result(&service, "shout", &V1, CREATE, &params).await;
        assert_eq!(made, params);
    }
    result(&service, "shout", &V1, "CancelTask", &json!({"id": task["id"]})).await;
    // One that fails delays no other.
    assert_eq!(states(&receiver, "/fine", 1).await, ["TASK_STATE_CANCELED"]);
    attempted(&pool, "again", 1).await;
    attempted(&pool, "never", 1).await;
    clock.advance(Duration::from_mins(1));
    let again = receiver.got("/again", 2).await;
    assert_eq!((again[0].body == again[1].body, again[1].header("webhook-attempt")), (true, "2"));
    assert_eq!(again[0].header("webhook-id"), again[1].header("webhook-id"));
    attempted(&pool, "never", 2).await;

    let named = json!({"taskId": task["id"], "id": "never"});
    for _ in 0..2 {
        assert_eq!(result(&service, "shout", &V1, DELETE, &named).await, json!({}), "a repeat changes nothing");
    }
    assert_eq!(error(&service, "shout", &V1, GET, &named).await["code"], -32001);
    let run = format!("/api/v1/runs/{}", task["id"].as_str().expect("an id"));
    clock.advance(Duration::from_hours(100));
    service.post(&format!("{run}/retry"), &json!({})).await.expect(202);
    service.post(&format!("{run}/cancel"), &json!({})).await.expect(200);
    receiver.got("/fine", 2).await;
    receiver.got("/again", 3).await;
    assert_eq!(receiver.at("/never").len(), 2);
    let sql =
        "SELECT array_agg(DISTINCT state || ' ' || coalesce(error, '') ORDER BY state || ' ' || coalesce(error, ''))
               FROM webhook_deliveries WHERE state <> 'delivered'";
    eventually("nothing waits", async || {
        let left: Option<Vec<String>> = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("states");
        (left == Some(vec!["failed the configuration was deleted".to_owned()])).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_a_configuration_is_said_by_field_and_starts_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let fields = async |headers: &[(&str, &str)], method: &str, params: Value| {
        let error = error(&service, "shout", headers, method, &params).await;
        assert_eq!(error["code"], -32602, "{params}: {error}");
        let violations = error["data"][0]["fieldViolations"].as_array().expect("violations").iter();
        violations.map(|violation| violation["field"].as_str().expect("a field").to_owned()).collect::<Vec<_>>()
    };
    let address = "https://example.com/hook";
    for url in ["http://1.1.1.1/", "https://10.0.0.1/", "http://169.254.169.254/x", "ftp://example.com/", "x", ""] {
        let field = "configuration.taskPushNotificationConfig.url";
        assert_eq!(fields(&V1, "SendMessage", told("m", url)).await, [field], "{url}");
        let mut old = message_0("m", &json!([{"kind": "text", "text": "x"}]));
        old["configuration"] = json!({"pushNotificationConfig": {"url": url}});
        let field = "configuration.pushNotificationConfig.url";
        assert_eq!(fields(&V0, "message/send", old).await, [field], "{url}");
    }
    assert_eq!(service.get("/api/v1/runs").await.expect(200)["total"], 0, "what was refused has left no run behind");

    let mut sent = message_1("m", &json!([{"text": "x"}]));
    sent["configuration"] = json!({"returnImmediately": true});
    let id = result(&service, "shout", &V1, "SendMessage", &sent).await["task"]["id"].clone();
    for (params, field) in [
        (json!({"taskId": id}), "url"),
        (json!({"url": address}), "taskId"),
        (json!({"taskId": id, "url": "https://u:p@example.com/"}), "url"),
        (json!({"taskId": id, "url": format!("{address}?{}", "x".repeat(2048))}), "url"),
        (json!({"taskId": id, "url": address, "id": "x".repeat(256)}), "id"),
        (json!({"taskId": id, "url": address, "token": "a\nb"}), "token"),
        (json!({"taskId": id, "url": address, "token": "x".repeat(1025)}), "token"),
        (json!({"taskId": id, "url": address, "authentication": {}}), "authentication.scheme"),
        (json!({"taskId": id, "url": address, "authentication": {"scheme": "a b"}}), "authentication.scheme"),
        (
            json!({"taskId": id, "url": address, "authentication": {"scheme": "A", "credentials": "\u{e9}"}}),
            "authentication.credentials",
        ),
    ] {
        assert_eq!(fields(&V1, CREATE, params.clone()).await, [field], "{params}");
    }
    let set = "tasks/pushNotificationConfig/set";
    for (params, field) in [
        (json!({"taskId": id}), "pushNotificationConfig"),
        (json!({"taskId": id, "pushNotificationConfig": {"url": "https://10.0.0.1/"}}), "pushNotificationConfig.url"),
    ] {
        assert_eq!(fields(&V0, set, params.clone()).await, [field], "{params}");
    }
    assert_eq!(fields(&V1, GET, json!({})).await, ["taskId"]);
    assert_eq!(fields(&V1, DELETE, json!({"taskId": id})).await, ["id"]);
    assert_eq!(fields(&V0, "tasks/pushNotificationConfig/list", json!({})).await, ["id"]);
    for (headers, method, params) in [
        (&V1[..], CREATE, json!({"taskId": "run-x", "url": address})),
        (&V1, GET, json!({"taskId": "run-x", "id": "a"})),
        (&V1, GET, json!({"taskId": id, "id": "a"})),
        (&V1, LIST, json!({"taskId": "run-x"})),
        (&V1, DELETE, json!({"taskId": "run-x", "id": "a"})),
        (&V0, "tasks/pushNotificationConfig/get", json!({"id": id})),
    ] {
        assert_eq!(error(&service, "shout", headers, method, &params).await["code"], -32001, "{method} {params}");
    }

    // Eight, of which each can be replaced.
    for number in 0..8 {
        let params = json!({"taskId": id, "url": address, "id": format!("c-{number}")});
        result(&service, "shout", &V1, CREATE, &params).await;
    }
    assert_eq!(fields(&V1, CREATE, json!({"taskId": id, "url": address})).await, ["pushNotificationConfig"]);
    let params = json!({"taskId": id, "id": "c-3", "url": "https://example.com/other?key=secret"});
    let replaced = result(&service, "shout", &V1, CREATE, &params).await;
    let masked = json!("https://example.com/other?key=********");
    assert_eq!(replaced["url"], masked, "values of the query may be secrets");
    let listed = result(&service, "shout", &V1, LIST, &json!({"taskId": id})).await;
    assert_eq!((listed["configs"].as_array().map(Vec::len), &listed["nextPageToken"]), (Some(8), &json!("")));
    assert_eq!((&listed["configs"][3]["id"], &listed["configs"][3]["url"]), (&json!("c-3"), &masked));
    let old = result(&service, "shout", &V0, "tasks/pushNotificationConfig/list", &json!({"id": id})).await;
    assert_eq!(old[3], json!({"taskId": id, "pushNotificationConfig": {"id": "c-3", "url": masked}}));
    let named = json!({"id": id, "pushNotificationConfigId": "c-3"});
    assert_eq!(result(&service, "shout", &V0, "tasks/pushNotificationConfig/get", &named).await, old[3]);
    assert_eq!(result(&service, "shout", &V0, "tasks/pushNotificationConfig/delete", &named).await, Value::Null);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_configuration_belongs_to_its_task_and_organisation_and_is_no_webhook(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (editor, other) = (Member::new(&admin, "one", "editor").await, Member::new(&admin, "two", "editor").await);
    let (one, two) = (Member::new(&admin, "one", "operator").await, Member::new(&admin, "two", "operator").await);
    let viewer = Member::new(&admin, "one", "viewer").await;
    editor.define(false).await;
    other.define(false).await;
    let receiver = Receiver::content().await;
    let mut sent = told("m", &receiver.url("/"));
    let push = &mut sent["configuration"]["taskPushNotificationConfig"];
    push["authentication"] = json!({"scheme": "Bearer", "credentials": "very-secret"});
    push["token"] = json!("very-secret");
    let task = one.rpc("one", "SendMessage", &sent).await.expect(200)["result"]["task"]["id"].clone();
    let named = json!({"taskId": task, "id": task});
    let mut created = named.clone();
    created["url"] = json!(receiver.url("/other"));
    for (method, params) in [(CREATE, &created), (GET, &named), (LIST, &named), (DELETE, &named)] {
        assert_eq!(two.rpc("two", method, params).await.expect(200)["error"]["code"], -32001, "{method}");
        assert_eq!(two.rpc("one", method, params).await.error(404)["code"], "workflow_not_found");
    }
    // Reading needs what reading the task needs, and changing what sending a message needs.
    let shown = viewer.rpc("one", GET, &named).await.expect(200)["result"].clone();
    let expected =
        json!({"id": task, "taskId": task, "url": receiver.url("/"), "authentication": {"scheme": "Bearer"}});
    assert_eq!(shown, expected, "without the token and the credentials");
    assert_eq!(viewer.rpc("one", LIST, &named).await.expect(200)["result"]["configs"], json!([expected]));
    for (method, params) in [(CREATE, &created), (DELETE, &named)] {
        assert_eq!(viewer.rpc("one", method, params).await.error(403)["code"], "forbidden");
    }
    // It is none of the organisation's webhooks, and counts as none.
    assert_eq!(editor.send("GET", "/api/v1/webhooks", &Value::Null).await.expect(200)["items"], json!([]));
    let lane: String =
        sqlx::query_scalar("SELECT webhook_id::text FROM task_pushes").fetch_one(&pool).await.expect("one");
    for (method, path) in [("GET", ""), ("DELETE", ""), ("GET", "/deliveries")] {
        editor.send(method, &format!("/api/v1/webhooks/{lane}{path}"), &Value::Null).await.error(404);
    }
    one.rpc("one", "CancelTask", &json!({"id": task})).await.expect(200);
    receiver.got("/", 1).await;
    let sql = "SELECT id::text FROM webhook_deliveries";
    let delivery: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("one");
    editor.send("GET", &format!("/api/v1/webhook-deliveries/{delivery}"), &Value::Null).await.error(404);
    let sql = "SELECT string_agg(action || ' ' || coalesce(changes::text, ''), ' ') FROM audit_logs
               WHERE action LIKE '%push_config'";
    one.rpc("one", DELETE, &named).await.expect(200);
    let audited: String = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("entries");
    assert!(audited.contains("set_push_config") && audited.contains("delete_push_config"), "{audited}");
    assert!(!audited.contains("very-secret"), "{audited}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn events_of_other_runs_are_not_recorded_for_a_configuration(pool: PgPool) {
    let (service, receiver) = (Service::start(&pool), Receiver::content().await);
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let task = result(&service, "shout", &V1, "SendMessage", &told("m", &receiver.url("/"))).await["task"].clone();
    let mut other = message_1("n", &json!([{"text": "x"}]));
    other["configuration"] = json!({"returnImmediately": true});
    let other = result(&service, "shout", &V1, "SendMessage", &other).await["task"].clone();
    for id in [&other["id"], &task["id"]] {
        result(&service, "shout", &V1, "CancelTask", &json!({"id": id})).await;
    }
    receiver.got("/", 1).await;
    let sql = "SELECT array_agg(run_id::text) FROM webhook_events";
    let recorded: Vec<String> = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("events");
    assert_eq!(json!(recorded), json!([task["id"]]));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn configurations_are_removed_when_their_task_has_ended_and_all_is_sent(pool: PgPool) {
    let clock = Clock::stopped();
    let service = Service::start_by(config(&pool, &[]), clock.clone());
    let receiver = Receiver::start(|received, before| {
        let fails = received.path == "/again" && before == 0;
        if fails { StatusCode::INTERNAL_SERVER_ERROR.into_response() } else { StatusCode::OK.into_response() }
    })
    .await;
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let mut tasks = Vec::new();
    for path in ["/ended", "/open", "/again", "/gone"] {
        let task =
            result(&service, "shout", &V1, "SendMessage", &told(path, &receiver.url(path))).await["task"].clone();
        tasks.push(task["id"].as_str().expect("an id").to_owned());
        if path != "/open" {
            result(&service, "shout", &V1, "CancelTask", &json!({"id": task["id"]})).await;
            receiver.got(path, 1).await;
        }
    }
    attempted(&pool, &tasks[2], 1).await;
    let in_state = async |path: &str, state: &str| {
        let sql = "SELECT count(*) FROM webhook_deliveries d JOIN task_pushes p ON p.id = d.push_id
                   WHERE p.url LIKE '%' || $1 AND d.state = $2";
        eventually("the outcome is written", async || {
            let count: i64 = sqlx::query_scalar(sql).bind(path).bind(state).fetch_one(&pool).await.expect("a count");
            (count == 1).then_some(())
        })
        .await;
    };
    in_state("/ended", "delivered").await;
    in_state("/gone", "delivered").await;
    let left = async || -> Vec<String> {
        let own = own_pool(&pool);
        clean_up(&own).await.expect("no error");
        let sql = "SELECT coalesce(array_agg(substring(url FROM '[a-z]+$') ORDER BY url), '{}') FROM task_pushes";
        sqlx::query_scalar(sql).fetch_one(&pool).await.expect("names")
    };
    sqlx::query("DELETE FROM workflow_runs WHERE run_id = $1").bind(&tasks[3]).execute(&pool).await.expect("a run");
    assert_eq!(left().await.len(), 4, "not at once: a retry goes on to tell");
    for sql in [
        "UPDATE task_pushes SET created_at = created_at - interval '2 days'",
        "UPDATE workflow_runs SET updated_at = updated_at - interval '2 days'",
        "UPDATE webhooks SET updated_at = updated_at - interval '2 days'",
    ] {
        sqlx::query(sql).execute(&pool).await.expect("rows");
    }
    assert_eq!(left().await, ["again", "open"]);
    clock.advance(Duration::from_mins(1));
    receiver.got("/again", 2).await;
    in_state("/again", "delivered").await;
    assert_eq!(left().await, ["open"]);
    result(&service, "shout", &V1, DELETE, &json!({"taskId": tasks[1], "id": tasks[1]})).await;
    assert!(left().await.is_empty());
    let lanes: i64 = sqlx::query_scalar("SELECT count(*) FROM webhooks").fetch_one(&pool).await.expect("a count");
    assert_eq!(lanes, 0, "queues without a configuration are removed, too");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_secrets_of_a_configuration_are_encrypted_and_rotated(pool: PgPool) {
    const OLD: &str = "0000000000000000000000000000000000000000000000000000000000000001";
    const NEW: &str = "0000000000000000000000000000000000000000000000000000000000000002";
    let receiver = Receiver::content().await;
    let service = Service::start_with(config(&pool, &[("ENCRYPTION_KEY", OLD)]));
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let mut sent = told("m", &receiver.url("/"));
    sent["configuration"]["taskPushNotificationConfig"]["token"] = json!("very-secret");
    let task = result(&service, "shout", &V1, "SendMessage", &sent).await["task"].clone();
    service.stop().await;
    let sealed: String =
        sqlx::query_scalar("SELECT sealed::text FROM task_pushes").fetch_one(&pool).await.expect("one");
    assert!(sealed.contains("encrypted") && !sealed.contains("very-secret"), "{sealed}");
    let both = Vault::parse(&format!("{NEW},{OLD}")).expect("keys");
    let rotation = rotate_keys(&own_pool(&pool), &both).await.expect("no error");
    assert_eq!(rotation, Rotation { changed: 1, ..Rotation::default() });
    let alone = rotate_keys(&own_pool(&pool), &Vault::parse(OLD).expect("a key")).await.expect("no error");
    assert_eq!(alone.failed_pushes.len(), 1);
    let needed = Column::Pushes.key_ids(&pool).await.expect("rows");
    assert_eq!(needed, Vault::parse(NEW).expect("a key").key_ids());
    let service = Service::start_with(config(&pool, &[("ENCRYPTION_KEY", NEW)]));
    result(&service, "shout", &V1, "CancelTask", &json!({"id": task["id"]})).await;
    assert_eq!(receiver.got("/", 1).await[0].header("x-a2a-notification-token"), "very-secret");
}
