//! Workflows as A2A agents, in both versions of the protocol.

mod pushes;

use std::{pin::pin, time::Duration};

use axum::body::Body;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::{
    access::Admin,
    agent_questions::{asking, asking_step},
    path::{Agent, shouting},
    service::{Answer, Service, eventually, passing},
    steps::{World, agent_step},
};

const V1: [(&str, &str); 2] = [("content-type", "application/json"), ("a2a-version", "1.0")];
const V0: [(&str, &str); 1] = [("content-type", "application/json")];
const DATA: &str = "application/json";

/// A workflow that calls the agent `a` with the text of its input.
fn shout() -> Value {
    let step = agent_step("s", &json!({"text": "${workflow.input.text}"}));
    json!({"start_step": "s", "steps": {"s": step}, "expose": {"a2a": true}})
}

/// A workflow of two approvals, of which each asks a question.
fn approvals() -> Value {
    let approval = |id: &str, next: Option<&str>| {
        json!({"id": id, "type": "callback", "next_step": next, "callback_config": {"approval": {}},
            "input_mapping": {"question": format!("Is {id} fine?"), "about": "${workflow.input.text:-?}"}})
    };
    json!({"start_step": "one", "steps": {"one": approval("one", Some("two")), "two": approval("two", None)},
        "expose": {"a2a": true}})
}

async fn put(service: &Service, name: &str, definition: &Value) -> Value {
    let stored = service.put(&format!("/api/v1/workflow-names/{name}"), definition).await;
    assert!(stored.status.is_success(), "{}", stored.text);
    stored.json()
}

/// The answer to a call of the agent of that name.
async fn call(service: &Service, name: &str, headers: &[(&str, &str)], method: &str, params: &Value) -> Answer {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string();
    service.send("POST", &format!("/a2a/default/{name}"), headers, body).await
}

/// The result of a call.
async fn result(service: &Service, name: &str, headers: &[(&str, &str)], method: &str, params: &Value) -> Value {
    let answer = call(service, name, headers, method, params).await.expect(200);
    assert_eq!((&answer["jsonrpc"], &answer["id"], answer.get("error")), (&json!("2.0"), &json!(7), None), "{answer}");
    answer["result"].clone()
}

/// The error of a call.
async fn error(service: &Service, name: &str, headers: &[(&str, &str)], method: &str, params: &Value) -> Value {
    let answer = call(service, name, headers, method, params).await.expect(200);
    assert_eq!(answer.get("result"), None, "{answer}");
    answer["error"].clone()
}

fn message_1(id: &str, parts: &Value) -> Value {
    json!({"message": {"messageId": id, "role": "ROLE_USER", "parts": parts}})
}

fn message_0(id: &str, parts: &Value) -> Value {
    json!({"message": {"kind": "message", "messageId": id, "role": "user", "parts": parts}})
}

/// The events of a stream, to its end.
async fn events(service: &Service, name: &str, headers: &[(&str, &str)], method: &str, params: &Value) -> Vec<Value> {
    let answer = call(service, name, headers, method, params).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{}", answer.text);
    let events = answer.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = events.map(|event| serde_json::from_str::<Value>(event).expect("JSON"));
    events
        .map(|event| {
            assert_eq!((&event["jsonrpc"], &event["id"]), (&json!("2.0"), &json!(7)));
            event["result"].clone()
        })
        .collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_card_of_an_exposed_workflow_is_valid_in_both_versions(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    let path = "/a2a/default/say%20it/.well-known/agent-card.json";
    assert_eq!(service.get(path).await.error(404)["code"], "workflow_not_found");
    let mut definition = shout();
    definition["expose"] = json!(null);
    put(&service, "say%20it", &definition).await;
    assert_eq!(service.get(path).await.error(404)["code"], "workflow_not_found");
    definition["expose"] = json!({"a2a": true, "examples": ["Say hello"]});
    let stored = put(&service, "say%20it", &definition).await;
    assert_eq!((&stored["version"], &stored["expose"]["a2a"]), (&json!(1), &json!(true)));

    let answer = service.get(path).await;
    assert_eq!(answer.header("cache-control"), Some("public, max-age=60"));
    let tag = answer.header("etag").expect("a tag").to_owned();
    let card = answer.expect(200);
    let url = "http://localhost:8000/a2a/default/say%20it";
    let interface = |version: &str| json!({"url": url, "protocolBinding": "JSONRPC", "protocolVersion": version});
    assert_eq!(card["supportedInterfaces"], json!([interface("1.0"), interface("0.3")]));
    assert_eq!(
        (&card["url"], &card["preferredTransport"], &card["protocolVersion"]),
        (&json!(url), &json!("JSONRPC"), &json!("0.3.0"))
    );
    assert_eq!(card["capabilities"], json!({"streaming": true, "pushNotifications": true, "extendedAgentCard": false}));
    assert_eq!((&card["name"], &card["version"]), (&json!("say it"), &json!("1")));
    assert_eq!(card["skills"][0]["examples"], json!(["Say hello"]));
    assert!(card["description"].as_str().is_some_and(|text| !text.is_empty()));
    assert_eq!(card.get("securitySchemes"), None, "authentication is off");
    let again = service.send("GET", path, &[("if-none-match", tag.as_str())], "").await;
    assert_eq!(again.status.as_u16(), 304);
    assert_eq!(service.get("/a2a/default/say%20it/.well-known/agent.json").await.expect(200), card, "clients of 0.2");
    definition["description"] = json!("Says it.");
    put(&service, "say%20it", &definition).await;
    let changed = service.send("GET", path, &[("if-none-match", tag.as_str())], "").await.expect(200);
    assert_eq!(changed["description"], "Says it.");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_exposure_is_stored_exported_and_changed_without_a_new_version(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    let stored = put(&service, "flow", &shout()).await;
    let path = format!("/api/v1/workflows/{}", stored["id"].as_str().expect("an id"));
    let expose = json!({"a2a": true, "public_card": false, "mcp": {"name": "flow-tool"}});
    let changed = service.put(&path, &json!({"expose": {"a2a": true, "mcp": {"name": "flow-tool"}}})).await.expect(200);
    assert_eq!((&changed["expose"], &changed["version"]), (&expose, &json!(1)));
    let export = service.get("/api/v1/export").await.expect(200);
    assert_eq!(export["workflows"][0]["expose"], expose);
    let imported = service.post("/api/v1/import", &export).await.expect(200);
    assert_eq!(imported["unchanged"]["workflows"], json!(["flow"]));
    // New steps are a new version; the exposure stays that of the workflow.
    let steps = json!({"s": agent_step("s", &json!({"text": "other"}))});
    let newer = service.put(&path, &json!({"steps": steps})).await.expect(200);
    assert_eq!((&newer["expose"], &newer["version"]), (&expose, &json!(2)));
    let old = service.get(&format!("{path}/versions/1")).await.expect(200);
    assert_eq!(old["expose"], Value::Null);
    let rolled = service.post(&format!("{path}/rollback"), &json!({"version": 1})).await.expect(200);
    assert_eq!((&rolled["expose"], &rolled["version"]), (&expose, &json!(3)));
    let cleared = service.put(&path, &json!({"expose": null})).await.expect(200);
    assert_eq!(cleared["expose"], Value::Null);
    let sql = "SELECT previous || jsonb_build_object('after', changes) FROM audit_logs WHERE action = 'update'
               ORDER BY created_at DESC LIMIT 1";
    let entry: Value = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("an entry");
    assert_eq!(entry, json!({"expose": expose, "after": {"expose": null}}));
    // Two workflows have no tool of the same name, and none has that of a fixed tool.
    service.put(&path, &json!({"expose": {"mcp": {"name": "taken"}}})).await.expect(200);
    let mut other = shout();
    other["expose"] = json!({"mcp": {"name": "taken"}});
    let refused = service.put("/api/v1/workflow-names/other", &other).await;
    assert_eq!(refused.field_errors(), ["body.expose.mcp.name value_error"]);
    for expose in [json!({"mcp": {"name": "run_start"}}), json!({"a2a": "yes"}), json!({"mpc": {}}), json!([])] {
        let refused = service.put(&path, &json!({"expose": expose})).await;
        assert_eq!(refused.field_errors().len(), 1, "{expose}: {}", refused.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_message_starts_a_run_and_is_answered_with_its_output(pool: PgPool) {
    let (agent, url) = Agent::start(shouting).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    put(service, "shout", &shout()).await;

    let sent = message_1("m-1", &json!([{"text": "hello"}]));
    let task = result(service, "shout", &V1, "SendMessage", &sent).await["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_COMPLETED", "{task}");
    let part = &task["artifacts"][0]["parts"][1];
    assert_eq!((&part["data"]["text"], &part["mediaType"]), (&json!("HELLO"), &json!(DATA)), "{task}");
    assert_eq!(task["artifacts"][0]["parts"][0]["text"], "HELLO");
    assert_eq!((&task["contextId"], task.get("kind")), (&task["id"], None));
    let id = task["id"].as_str().expect("an id").to_owned();
    let run = service.get(&format!("/api/v1/runs/{id}")).await.expect(200);
    assert_eq!((&run["status"], &run["input_data"]), (&json!("COMPLETED"), &json!({"text": "hello"})));
    let told = result(service, "shout", &V1, "GetTask", &json!({"id": id, "historyLength": 3})).await;
    let first = json!([{"messageId": format!("{id}-input"), "contextId": id, "taskId": id, "role": "ROLE_USER", "parts": [{"text": "hello"}]}]);
    assert_eq!((&told["history"], task.get("history")), (&first, None));
    // The same message is the same task; another one under its id is refused.
    let again = result(service, "shout", &V1, "SendMessage", &sent).await["task"].clone();
    assert_eq!(again["id"], id);
    let other = error(service, "shout", &V1, "SendMessage", &message_1("m-1", &json!([{"text": "x"}]))).await;
    assert_eq!(
        (&other["code"], &other["data"][0]["fieldViolations"][0]["field"]),
        (&json!(-32602), &json!("message.messageId"))
    );
    assert_eq!(agent.calls().len(), 1);

    let parts = json!([{"kind": "data", "data": {"text": "old", "n": 12_345_678_901_234_567_890_u64}}]);
    let mut sent = message_0("m-2", &parts);
    sent["message"]["contextId"] = json!("talk-1");
    let task = result(service, "shout", &V0, "message/send", &sent).await;
    assert_eq!(
        (&task["kind"], &task["status"]["state"], &task["contextId"]),
        (&json!("task"), &json!("completed"), &json!("talk-1"))
    );
    assert_eq!(task["artifacts"][0]["parts"][1]["kind"], "data");
    let got = result(service, "shout", &V0, "tasks/get", &json!({"id": task["id"]})).await;
    assert_eq!(got, task);
    let got = result(service, "shout", &V1, "GetTask", &json!({"id": task["id"], "historyLength": 0})).await;
    assert_eq!((&got["contextId"], &got["status"]["state"]), (&json!("talk-1"), &json!("TASK_STATE_COMPLETED")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_wrong_with_a_call_is_an_error_of_the_protocol(pool: PgPool) {
    let (_agent, url) = Agent::start(|_, call| crate::steps::refusing(call)).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let mut definition = shout();
    definition["input_schema"] =
        json!({"type": "object", "required": ["text"], "properties": {"text": {"maxLength": 3}}});
    put(service, "shout", &definition).await;
    let failed =
        result(service, "shout", &V1, "SendMessage", &message_1("m", &json!([{"text": "abc"}]))).await["task"].clone();
    assert_eq!(failed["status"]["state"], "TASK_STATE_FAILED", "{failed}");
    assert!(
        failed["status"]["message"]["parts"][0]["text"].as_str().is_some_and(|text| text.contains("no such term")),
        "{failed}"
    );
    let id = &failed["id"];

    let text = json!([{"text": "abc"}]);
    let with = |name: &str, value: &Value| {
        let mut message = message_1("m-2", &text);
        message["message"][name] = value.clone();
        message
    };
    for (headers, method, params, code, reason) in [
        (&V1[..], "GetTask", json!({"id": "run-x"}), -32001, "TASK_NOT_FOUND"),
        (&V1, "CancelTask", json!({"id": "run-x"}), -32001, "TASK_NOT_FOUND"),
        (&V1, "SubscribeToTask", json!({"id": "run-x"}), -32001, "TASK_NOT_FOUND"),
        (&V0, "tasks/get", json!({"id": "run-x"}), -32001, "TASK_NOT_FOUND"),
        (&V1, "SendMessage", with("taskId", &json!("run-x")), -32001, "TASK_NOT_FOUND"),
        (&V1, "CancelTask", json!({"id": id}), -32002, "TASK_NOT_CANCELABLE"),
        (&V1, "SubscribeToTask", json!({"id": id}), -32004, "UNSUPPORTED_OPERATION"),
        (&V1, "SendMessage", with("taskId", id), -32004, "UNSUPPORTED_OPERATION"),
        (&V1, "GetExtendedAgentCard", json!({}), -32004, "UNSUPPORTED_OPERATION"),
        (&V0, "agent/getAuthenticatedExtendedCard", json!({}), -32007, "EXTENDED_AGENT_CARD_NOT_CONFIGURED"),
        (&V1, "SendMessage", message_1("m-4", &json!([{"url": "http://x/"}])), -32005, "CONTENT_TYPE_NOT_SUPPORTED"),
        (&[("a2a-version", "2.0")], "SendMessage", json!({}), -32009, "VERSION_NOT_SUPPORTED"),
    ] {
        let error = error(service, "shout", headers, method, &params).await;
        let info = &error["data"][0];
        assert_eq!((&error["code"], &info["reason"]), (&json!(code), &json!(reason)), "{method} {params}: {error}");
        let kind = "type.googleapis.com/google.rpc.ErrorInfo";
        assert_eq!((&info["@type"], &info["domain"]), (&json!(kind), &json!("a2a-protocol.org")));
    }
    for (method, params, field) in [
        ("SendMessage", message_1("m-5", &json!([{"text": "too long"}])), "message.parts.text"),
        ("SendMessage", message_1("m-6", &json!([{"data": {}}])), "message.parts"),
        ("SendMessage", json!({}), "message"),
        ("SendMessage", message_1("m-7", &json!([])), "message.parts"),
        ("SendMessage", with("role", &json!("user")), "message.role"),
        ("SendMessage", with("messageId", &json!(null)), "message.messageId"),
        ("GetTask", json!({}), "id"),
        ("GetTask", json!({"id": id, "historyLength": -1}), "historyLength"),
        ("ListTasks", json!({"pageSize": 101}), "pageSize"),
        ("ListTasks", json!({"pageSize": 0}), "pageSize"),
        ("ListTasks", json!({"status": "TASK_STATE_RUNNING"}), "status"),
        ("ListTasks", json!({"statusTimestampAfter": "yesterday"}), "statusTimestampAfter"),
        ("ListTasks", json!({"pageToken": "forged"}), "pageToken"),
    ] {
        let error = error(service, "shout", &V1, method, &params).await;
        assert_eq!(error["code"], -32602, "{method} {params}: {error}");
        let bad = &error["data"][0];
        assert_eq!(bad["@type"], "type.googleapis.com/google.rpc.BadRequest");
        assert_eq!(bad["fieldViolations"][0]["field"], field, "{method} {params}: {error}");
        assert!(bad["fieldViolations"][0]["description"].is_string());
    }
    for (body, code) in [
        ("{", -32700),
        ("", -32700),
        ("[]", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"x"}}]"#, -32600),
        (r#"{"jsonrpc":"2.0","method":"GetTask","params":{"id":"x"}}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"Unknown"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"message/send"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"GetTask","params":[1]}"#, -32602),
    ] {
        let answer = service.send("POST", "/a2a/default/shout", &V1, body).await.expect(200);
        assert_eq!(answer["error"]["code"], code, "{body}: {answer}");
    }
    let typed = service.send("POST", "/a2a/default/shout", &[("content-type", "text/plain")], "{}").await;
    assert_eq!(typed.error(415)["code"], "unsupported_media_type");
    assert_eq!(
        call(service, "nothing", &V1, "GetTask", &json!({"id": id})).await.error(404)["code"],
        "workflow_not_found"
    );
    let runs = service.get("/api/v1/runs").await.expect(200);
    assert_eq!(runs["total"], 1, "nothing that was refused has left a run behind");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_asks_requires_input_and_goes_on_with_the_answer(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    put(service, "ask", &approvals()).await;
    let task =
        result(service, "ask", &V1, "SendMessage", &message_1("m", &json!([{"text": "this"}]))).await["task"].clone();
    let status = &task["status"];
    assert_eq!(status["state"], "TASK_STATE_INPUT_REQUIRED", "{task}");
    assert_eq!(
        (&status["message"]["role"], &status["message"]["parts"][0]["text"]),
        (&json!("ROLE_AGENT"), &json!("Is one fine?"))
    );
    let asked = &status["message"]["parts"][1]["data"];
    assert_eq!(
        (&asked["step_id"], &asked["is_approval"], &asked["input"]["about"]),
        (&json!("one"), &json!(true), &json!("this"))
    );
    let old = result(service, "ask", &V0, "tasks/get", &json!({"id": task["id"]})).await;
    assert_eq!(
        (&old["status"]["state"], &old["status"]["message"]["kind"]),
        (&json!("input-required"), &json!("message"))
    );

    let answer = |id: &str, parts: &Value| {
        let mut message = message_1(id, parts);
        message["message"]["taskId"] = task["id"].clone();
        message
    };
    let vague = error(service, "ask", &V1, "SendMessage", &answer("a-0", &json!([{"text": "well …"}]))).await;
    assert_eq!(vague["code"], -32602, "{vague}");
    let mut elsewhere = answer("a-0", &json!([{"text": "yes"}]));
    elsewhere["message"]["contextId"] = json!("another");
    assert_eq!(error(service, "ask", &V1, "SendMessage", &elsewhere).await["code"], -32602);
    let yes = answer("a-1", &json!([{"text": "yes"}]));
    let next = result(service, "ask", &V1, "SendMessage", &yes).await["task"].clone();
    assert_eq!(
        (&next["id"], &next["status"]["message"]["parts"][0]["text"]),
        (&task["id"], &json!("Is two fine?")),
        "{next}"
    );
    // A repeat of the first answer does not answer the second question.
    let repeated = result(service, "ask", &V1, "SendMessage", &yes).await["task"].clone();
    assert_eq!(repeated["status"]["message"]["parts"][0]["text"], "Is two fine?");
    let waiting = result(service, "ask", &V1, "ListTasks", &json!({"status": "TASK_STATE_INPUT_REQUIRED"})).await;
    assert_eq!((&waiting["totalSize"], &waiting["tasks"][0]["id"]), (&json!(1), &task["id"]));
    assert_eq!(
        result(service, "ask", &V1, "ListTasks", &json!({"status": "TASK_STATE_WORKING"})).await["totalSize"],
        0
    );
    let no = answer("a-2", &json!([{"data": {"approved": false}}, {"text": "too late"}]));
    let ended = result(service, "ask", &V1, "SendMessage", &no).await["task"].clone();
    assert_eq!(ended["status"]["state"], "TASK_STATE_FAILED", "{ended}");
    let why = ended["status"]["message"]["parts"][0]["text"].as_str().expect("a reason");
    assert!(why.contains("rejected") && why.contains("too late"), "{why}");
    let logs = service.get(&format!("/api/v1/runs/{}/logs", task["id"].as_str().expect("an id"))).await.expect(200);
    let answers =
        logs["items"].as_array().expect("entries").iter().filter(|entry| entry["kind"] == "callback.answered");
    assert_eq!(answers.count(), 2);
}

/// A workflow whose only step is another workflow.
fn calling(name: &str) -> Value {
    let step = json!({"id": "call", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": name}});
    json!({"start_step": "call", "steps": {"call": step}, "expose": {"a2a": true}})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_of_a_sub_workflow_is_one_of_the_task_and_is_answered_there(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    for (name, definition) in [("inner", approvals()), ("middle", calling("inner")), ("outer", calling("middle"))] {
        put(service, name, &definition).await;
    }
    let sent = message_1("m", &json!([{"text": "x"}]));
    let task = result(service, "outer", &V1, "SendMessage", &sent).await["task"].clone();
    let parts = &task["status"]["message"]["parts"];
    assert_eq!(
        (&task["status"]["state"], &parts[0]["text"]),
        (&json!("TASK_STATE_INPUT_REQUIRED"), &json!("Is one fine?")),
        "{task}"
    );
    let sub_run = service.get("/api/v1/runs?workflow_name=inner").await.expect(200)["items"][0]["run_id"].clone();
    assert_eq!((&parts[1]["data"]["sub_run_id"], &parts[1]["data"]["step_id"]), (&sub_run, &json!("one")));
    let waiting = async |name: &str| {
        let params = json!({"status": "TASK_STATE_INPUT_REQUIRED"});
        result(service, name, &V1, "ListTasks", &params).await["totalSize"].clone()
    };
    assert_eq!((waiting("outer").await, waiting("middle").await), (json!(1), json!(1)));

    // One who subscribes sees the questions of the sub-workflow, and the end.
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "SubscribeToTask", "params": {"id": task["id"]}});
    let mut stream = service.open("POST", "/a2a/default/outer", &V1, Body::from(body.to_string())).await.into_body();
    let mut text = String::new();
    for (part, word) in [("Is one fine?", "yes"), ("Is two fine?", "approved"), ("TASK_STATE_COMPLETED", "")] {
        while !text.contains(part) {
            let frame = stream.frame().await.unwrap_or_else(|| panic!("{part} is missing: {text}"));
            text += std::str::from_utf8(&frame.expect("no error").into_data().expect("data")).expect("text");
        }
        if !word.is_empty() {
            let mut message = message_1(word, &json!([{"text": word}]));
            message["message"]["taskId"] = task["id"].clone();
            let answered = result(service, "outer", &V1, "SendMessage", &message).await["task"].clone();
            let state = if word == "yes" { "TASK_STATE_INPUT_REQUIRED" } else { "TASK_STATE_COMPLETED" };
            assert_eq!(answered["status"]["state"], state, "{answered}");
        }
    }
    assert!(stream.frame().await.is_none(), "{text}");
    let shown = text.matches(r#""text":"Is two fine?""#).count();
    assert_eq!(shown, 1, "a question is shown once: {text}");
    assert_eq!(waiting("outer").await, 0);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn questions_of_one_step_are_told_apart_by_their_ids(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let service = &world.service;
    let step = json!({"id": "ok", "type": "callback", "callback_config": {"approval": {}},
        "input_mapping": {"question": "Is ${workflow.input.what} fine?"}});
    put(service, "inner", &json!({"start_step": "ok", "steps": {"ok": step}})).await;
    let call = |id: &str| {
        json!({"id": id, "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"},
            "input_mapping": {"what": id}})
    };
    let both = json!({"id": "both", "type": "parallel", "parallel_steps": ["left", "right"]});
    let steps = json!({"both": both, "left": call("left"), "right": call("right")});
    put(service, "outer", &json!({"start_step": "both", "steps": steps, "expose": {"a2a": true}})).await;
    let mut sent = message_1("m", &json!([{"text": "x"}]));
    sent["configuration"] = json!({"returnImmediately": true});
    let id = result(service, "outer", &V1, "SendMessage", &sent).await["task"]["id"].clone();
    let parts = eventually("both ask", async || {
        let task = result(service, "outer", &V1, "GetTask", &json!({"id": id})).await;
        task["status"]["message"]["parts"].as_array().filter(|parts| parts.len() == 4).cloned()
    })
    .await;
    let right = parts.iter().position(|part| part["text"] == "Is right fine?").expect("a question");
    let question_id = &parts[right + 1]["data"]["question_id"];
    let answer = |message_id: &str, metadata: &Value| {
        let mut message = message_1(message_id, &json!([{"text": "no"}]));
        message["message"]["taskId"] = id.clone();
        message["message"]["metadata"] = metadata.clone();
        message
    };
    for (metadata, field) in [
        (json!({}), "message.metadata.question_id"),
        (json!({"step_id": "ok"}), "message.metadata.question_id"),
        (json!({"step_id": "other"}), "message.metadata.step_id"),
        (json!({"question_id": "other"}), "message.metadata.question_id"),
    ] {
        let error = error(service, "outer", &V1, "SendMessage", &answer("a", &metadata)).await;
        assert_eq!(error["data"][0]["fieldViolations"][0]["field"], field, "{metadata}: {error}");
    }
    let metadata = json!({"question_id": question_id});
    let next = result(service, "outer", &V1, "SendMessage", &answer("b", &metadata)).await["task"].clone();
    let left = next["status"]["message"]["parts"].as_array().expect("parts").clone();
    assert_eq!((left.len(), &left[0]["text"]), (2, &json!("Is left fine?")), "{next}");
    let mut yes = answer("c", &json!({}));
    yes["message"]["parts"] = json!([{"text": "yes"}]);
    let ended = result(service, "outer", &V1, "SendMessage", &yes).await["task"].clone();
    let why = ended["status"]["message"]["parts"][0]["text"].as_str().expect("a reason");
    assert!(ended["status"]["state"] == "TASK_STATE_FAILED" && why.contains("right"), "{ended}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_stream_shows_the_task_its_log_its_output_and_its_end(pool: PgPool) {
    let (_agent, url) = Agent::start(shouting).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    put(service, "shout", &shout()).await;
    put(service, "ask", &approvals()).await;

    let seen =
        events(service, "shout", &V1, "SendStreamingMessage", &message_1("m", &json!([{"text": "hello"}]))).await;
    let task = &seen[0]["task"];
    assert!(task["id"].is_string(), "{seen:?}");
    let states: Vec<_> = seen.iter().filter_map(|event| event["statusUpdate"]["status"]["state"].as_str()).collect();
    let (last, before) = states.split_last().expect("states");
    assert_eq!(*last, "TASK_STATE_COMPLETED", "{seen:?}");
    assert!(before.iter().all(|state| *state == "TASK_STATE_WORKING"), "{states:?}");
    let texts = seen.iter().filter_map(|event| event["statusUpdate"]["status"]["message"]["parts"][0]["text"].as_str());
    assert!(texts.clone().any(|text| text.contains("answered 200")), "{seen:?}");
    let artifact = seen.iter().rev().nth(1).expect("an event")["artifactUpdate"].clone();
    assert_eq!(
        (&artifact["artifact"]["parts"][0]["text"], &artifact["lastChunk"]),
        (&json!("HELLO"), &json!(true)),
        "{seen:?}"
    );

    let seen =
        events(service, "ask", &V0, "message/stream", &message_0("n", &json!([{"kind": "text", "text": "x"}]))).await;
    let state = seen[0]["status"]["state"].as_str().expect("a state");
    assert!(seen[0]["kind"] == "task" && ["submitted", "working"].contains(&state), "{seen:?}");
    let last = seen.last().expect("an event");
    assert_eq!(
        (&last["kind"], &last["status"]["state"], &last["final"]),
        (&json!("status-update"), &json!("input-required"), &json!(true))
    );
    assert_eq!(last["status"]["message"]["parts"][0]["text"], "Is one fine?");
    let id = seen[0]["id"].clone();
    // One who subscribes sees all questions, and the end.
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tasks/resubscribe", "params": {"id": id}}).to_string();
    let mut stream = service.open("POST", "/a2a/default/ask", &V0, Body::from(body)).await.into_body();
    let mut text = String::new();
    for (part, word) in [("Is one fine?", "approve"), ("Is two fine?", "approved"), ("\"final\":true", "")] {
        while !text.contains(part) {
            let frame = stream.frame().await.unwrap_or_else(|| panic!("{part} is missing: {text}"));
            let data = frame.expect("no error").into_data().expect("data");
            text += std::str::from_utf8(&data).expect("text");
        }
        if !word.is_empty() {
            let mut message = message_0(word, &json!([{"kind": "text", "text": word}]));
            message["message"]["taskId"] = id.clone();
            result(service, "ask", &V0, "message/send", &message).await;
        }
    }
    assert!(stream.frame().await.is_none(), "{text}");
    assert!(text.contains("artifact-update") && text.contains("\"completed\""), "{text}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn tasks_are_listed_by_their_last_change_conversation_and_state(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let mut other = shout();
    other["expose"] = json!({"a2a": true});
    put(&service, "other", &other).await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut sent = message_1(&format!("m-{number}"), &json!([{"text": "x"}]));
        sent["configuration"] = json!({"returnImmediately": true});
        if number % 2 == 0 {
            sent["message"]["contextId"] = json!("talk");
        }
        let task = result(&service, "shout", &V1, "SendMessage", &sent).await["task"].clone();
        assert_eq!(task["status"]["state"], "TASK_STATE_SUBMITTED");
        ids.push(task["id"].as_str().expect("an id").to_owned());
    }
    let list = async |params: Value| result(&service, "shout", &V1, "ListTasks", &params).await;
    let ids_of = |list: &Value| -> Vec<String> {
        let tasks = list["tasks"].as_array().expect("tasks").iter();
        tasks.map(|task| task["id"].as_str().expect("an id").to_owned()).collect()
    };
    let newest: Vec<_> = ids.iter().rev().cloned().collect();
    let all = list(json!({})).await;
    assert_eq!(
        (ids_of(&all), &all["totalSize"], &all["nextPageToken"], &all["pageSize"]),
        (newest.clone(), &json!(5), &json!(""), &json!(50))
    );
    assert_eq!(all["tasks"][0].get("artifacts"), None);
    let first = list(json!({"pageSize": 3})).await;
    let second = list(json!({"pageSize": 3, "pageToken": first["nextPageToken"]})).await;
    assert_eq!([ids_of(&first), ids_of(&second)].concat(), newest);
    assert_eq!(second["nextPageToken"], "");
    let talk = list(json!({"contextId": "talk"})).await;
    assert_eq!((ids_of(&talk), &talk["totalSize"]), (vec![ids[4].clone(), ids[2].clone(), ids[0].clone()], &json!(3)));
    // A task without a conversation is one by itself, which a later message may continue.
    let mut sent = message_1("m-9", &json!([{"text": "x"}]));
    sent["configuration"] = json!({"returnImmediately": true});
    sent["message"]["contextId"] = json!(ids[1]);
    let next =
        result(&service, "shout", &V1, "SendMessage", &sent).await["task"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(ids_of(&list(json!({"contextId": ids[1]})).await), [next, ids[1].clone()]);
    let cancelled = result(&service, "shout", &V1, "CancelTask", &json!({"id": ids[2]})).await;
    assert_eq!(cancelled["status"]["state"], "TASK_STATE_CANCELED");
    let after = cancelled["status"]["timestamp"].clone();
    assert_eq!(ids_of(&list(json!({"status": "TASK_STATE_CANCELED"})).await), [ids[2].clone()]);
    assert_eq!(ids_of(&list(json!({"contextId": "talk", "status": "TASK_STATE_SUBMITTED"})).await).len(), 2);
    assert_eq!(ids_of(&list(json!({"status": "TASK_STATE_REJECTED"})).await).len(), 0);
    assert_eq!(ids_of(&list(json!({"statusTimestampAfter": after})).await), [ids[2].clone()]);
    let with = list(json!({"includeArtifacts": true, "pageSize": 1})).await;
    assert_eq!(with["tasks"][0]["artifacts"], json!([]));
    // Those of another workflow are not its tasks.
    assert_eq!(result(&service, "other", &V1, "ListTasks", &json!({})).await["totalSize"], 0);
    assert_eq!(error(&service, "other", &V1, "GetTask", &json!({"id": ids[0]})).await["code"], -32001);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_call_waits_a_minute_at_most_and_a_client_that_leaves_cancels_nothing(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let body = |id: &str| {
        let params = message_1(id, &json!([{"text": "x"}]));
        json!({"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": params}).to_string()
    };
    let runs = async |count: i64| {
        eventually("the runs are there", async || {
            let runs = service.get("/api/v1/runs").await.expect(200);
            (runs["total"] == count).then_some(())
        })
        .await;
    };
    let mut waiting = pin!(service.open("POST", "/a2a/default/shout", &V1, Body::from(body("m"))));
    tokio::select! {
        _ = &mut waiting => panic!("it did not wait"),
        () = runs(1) => {}
    }
    let (answer, waited) = passing(&service.clock, Duration::from_secs(2), waiting).await;
    assert!(waited >= Duration::from_mins(1), "{waited:?}");
    let task = Answer::read(answer).await.expect(200)["result"]["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_SUBMITTED");
    {
        let leaving = service.open("POST", "/a2a/default/shout", &V1, Body::from(body("n")));
        let mut leaving = pin!(leaving);
        tokio::select! {
            _ = &mut leaving => panic!("it did not wait"),
            () = runs(2) => {}
        }
    }
    let listed = result(&service, "shout", &V1, "ListTasks", &json!({})).await;
    assert_eq!(listed["totalSize"], 2);
}

/// A member of an organisation, with an API key.
struct Member<'a> {
    service: &'a Service,
    key: String,
    organization: &'static str,
}

impl<'a> Member<'a> {
    async fn new(admin: &'a Admin, organization: &'static str, role: &str) -> Self {
        let created = admin.post("/api/v1/organizations", &json!({"id": organization, "name": organization})).await;
        assert!([201, 409].contains(&created.status.as_u16()), "{}", created.text);
        let body = json!({"name": format!("{role} of {organization}"), "role": role, "organization_id": organization});
        Self { service: &admin.service, key: admin.key(&body).await.0, organization }
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [("x-api-key", self.key.as_str()), ("content-type", "application/json"), ("a2a-version", "1.0")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.service.send(method, path, &headers, body).await
    }

    async fn rpc(&self, organization: &str, method: &str, params: &Value) -> Answer {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.send("POST", &format!("/a2a/{organization}/flow"), &body).await
    }

    async fn define(&self, public_card: bool) {
        let steps = json!({"w": {"id": "w", "type": "wait", "wait_config": {"duration_seconds": 600}}});
        let expose = json!({"a2a": true, "public_card": public_card});
        let body = json!({"start_step": "w", "steps": steps, "expose": expose});
        self.send("PUT", "/api/v1/workflow-names/flow", &body).await.expect(201);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn organisations_never_see_each_others_agents_and_tasks(pool: PgPool) {
    let admin = Admin::start(&pool, &[]);
    let (one, two) = (Member::new(&admin, "one", "editor").await, Member::new(&admin, "two", "editor").await);
    let (first, second) = (Member::new(&admin, "one", "operator").await, Member::new(&admin, "two", "operator").await);
    one.define(false).await;
    two.define(true).await;
    let mut sent = message_1("m", &json!([{"text": "x"}]));
    sent["configuration"] = json!({"returnImmediately": true});
    let mut ids = Vec::new();
    for member in [&first, &second] {
        let task = member.rpc(member.organization, "SendMessage", &sent).await.expect(200)["result"]["task"].clone();
        ids.push(task["id"].clone());
    }
    assert_ne!(ids[0], ids[1], "a message id counts within its organisation");
    for (member, own, other) in [(&first, &ids[0], &ids[1]), (&second, &ids[1], &ids[0])] {
        let theirs = if member.organization == "one" { "two" } else { "one" };
        let listed = member.rpc(member.organization, "ListTasks", &json!({})).await.expect(200);
        assert_eq!((&listed["result"]["totalSize"], &listed["result"]["tasks"][0]["id"]), (&json!(1), own));
        for (method, params) in [
            ("GetTask", json!({"id": other})),
            ("CancelTask", json!({"id": other})),
            ("SubscribeToTask", json!({"id": other})),
        ] {
            let answer = member.rpc(member.organization, method, &params).await.expect(200);
            assert_eq!(answer["error"]["code"], -32001, "{method}: {answer}");
            assert_eq!(member.rpc(theirs, method, &params).await.error(404)["code"], "workflow_not_found");
        }
        let mut answer = message_1("a", &json!([{"text": "x"}]));
        answer["message"]["taskId"] = other.clone();
        assert_eq!(member.rpc(member.organization, "SendMessage", &answer).await.expect(200)["error"]["code"], -32001);
        assert_eq!(member.rpc(theirs, "SendMessage", &sent).await.error(404)["code"], "workflow_not_found");
        let card = format!("/a2a/{}/flow/.well-known/agent-card.json", member.organization);
        let card = member.send("GET", &card, &json!(null)).await.expect(200);
        assert_eq!(card["securitySchemes"]["api_key"]["apiKeySecurityScheme"]["name"], "X-API-Key");
        assert_eq!(card["securityRequirements"][0]["schemes"]["bearer"]["list"], json!([]));
        let card = format!("/a2a/{theirs}/flow/.well-known/agent-card.json");
        let shown = member.send("GET", &card, &json!(null)).await;
        if theirs == "two" {
            // A public card is one for callers of other organisations too.
            assert_eq!(shown.header("cache-control"), Some("public, max-age=60"));
            assert_eq!(shown.expect(200)["url"], "http://localhost:8000/a2a/two/flow");
        } else {
            assert_eq!(shown.error(404)["code"], "workflow_not_found");
        }
    }
    // Without credentials only the public card is served, and what is hidden looks like what does not exist.
    let service = &admin.service;
    let card = |organization: &str| format!("/a2a/{organization}/flow/.well-known/agent-card.json");
    let public = service.get(&card("two")).await;
    assert_eq!(public.header("cache-control"), Some("public, max-age=60"));
    assert_eq!(public.expect(200)["name"], "flow");
    for hidden in ["one", "default", "nowhere"] {
        assert_eq!(service.get(&card(hidden)).await.error(401)["code"], "unauthorized", "{hidden}");
    }
    assert_eq!(service.send("POST", "/a2a/two/flow", &V1, "{}").await.error(401)["code"], "unauthorized");
    // The methods need what the routes of runs need.
    let viewer = Member::new(&admin, "one", "viewer").await;
    assert_eq!(viewer.rpc("one", "SendMessage", &sent).await.error(403)["code"], "forbidden");
    assert_eq!(viewer.rpc("one", "CancelTask", &json!({"id": ids[0]})).await.error(403)["code"], "forbidden");
    assert_eq!(viewer.rpc("one", "GetTask", &json!({"id": ids[0]})).await.expect(200)["result"]["id"], ids[0]);
    assert_eq!(viewer.send("GET", &card("one"), &json!(null)).await.error(403)["code"], "forbidden");
    let watcher = Member::new(&admin, "two", "viewer").await;
    assert_eq!(watcher.send("GET", &card("two"), &json!(null)).await.expect(200)["name"], "flow");
    let bound = json!({"name": "bound", "role": "operator", "organization_id": "one", "workflows": ["another"]});
    let bound = Member { service, key: admin.key(&bound).await.0, organization: "one" };
    assert_eq!(bound.rpc("one", "GetTask", &json!({"id": ids[0]})).await.error(404)["code"], "workflow_not_found");
    let denied = admin.get("/api/v1/audit-logs?action=denied").await;
    assert_eq!(denied.status.as_u16(), 200, "{}", denied.text);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn streams_of_tasks_count_as_event_streams(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    put(&service, "shout", &shout()).await;
    let mut sent = message_1("m", &json!([{"text": "x"}]));
    sent["configuration"] = json!({"returnImmediately": true});
    let id = result(&service, "shout", &V1, "SendMessage", &sent).await["task"]["id"].clone();
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "SubscribeToTask", "params": {"id": id}}).to_string();
    let mut open = Vec::new();
    for _ in 0..workflow_api::run_poller::MAX_WATCHERS_OF_ORGANIZATION {
        let mut stream = service.open("POST", "/a2a/default/shout", &V1, Body::from(body.clone())).await.into_body();
        let first = stream.frame().await.expect("an event").expect("no error");
        assert!(first.is_data());
        open.push(stream);
    }
    let refused = service.send("POST", "/a2a/default/shout", &V1, body).await;
    assert_eq!(refused.error(429)["code"], "too_many_streams");
    let streamed = call(&service, "shout", &V1, "SendStreamingMessage", &message_1("n", &json!([{"text": "x"}]))).await;
    assert_eq!(streamed.error(429)["code"], "too_many_streams");
    assert_eq!(service.get("/api/v1/runs").await.expect(200)["total"], 1, "the refused message has started no run");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_question_of_an_agent_is_one_of_the_workflow_and_another_workflow_can_answer_it(pool: PgPool) {
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let (tasks, _agent, url) = asking(json!([{"text": "Which?"}, {"text": "How many?", "schema": schema}]), true).await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let step = asking_step("ask", &json!({}));
    put(service, "ask", &json!({"start_step": "ask", "steps": {"ask": step}, "expose": {"a2a": true}})).await;
    let task =
        result(service, "ask", &V1, "SendMessage", &message_1("m", &json!([{"text": "x"}]))).await["task"].clone();
    let message = &task["status"]["message"];
    assert_eq!(task["status"]["state"], "TASK_STATE_INPUT_REQUIRED", "{task}");
    assert_eq!((&message["parts"][0]["text"], message.get("metadata")), (&json!("Which?"), None));
    let answer = |id: &str, parts: &Value| {
        let mut message = message_1(id, parts);
        message["message"]["taskId"] = task["id"].clone();
        message
    };
    let next =
        result(service, "ask", &V1, "SendMessage", &answer("m2", &json!([{"text": "blue"}]))).await["task"].clone();
    let second = &next["status"]["message"];
    assert_eq!((&second["parts"][0]["text"], &second["metadata"]["answer_schema"]), (&json!("How many?"), &schema));
    assert_ne!(second["messageId"], message["messageId"], "the next question is another message");
    let wrong = error(service, "ask", &V1, "SendMessage", &answer("m3", &json!([{"text": "two"}]))).await;
    assert_eq!(wrong["code"], -32602, "{wrong}");
    let done = result(service, "ask", &V1, "SendMessage", &answer("m4", &json!([{"text": "{\"n\": 2}"}]))).await;
    assert_eq!(done["task"]["status"]["state"], "TASK_STATE_COMPLETED", "{done}");
    assert_eq!(tasks.said(), [[json!("begin"), json!("blue"), json!({"n": 2})]]);
}
