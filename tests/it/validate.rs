//! `POST /workflows/validate`: everything about a definition, and nothing stored.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const VALIDATE: &str = "/api/v1/workflows/validate";

fn kinds(entries: &Value) -> Vec<String> {
    let text = |entry: &Value, name: &str| entry[name].as_str().expect("text").to_owned();
    let entries = entries.as_array().expect("a list").iter();
    entries.map(|entry| format!("{} {}", text(entry, "field"), text(entry, "type"))).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_valid_definition_is_shown_in_its_normal_form_and_not_stored(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let body = json!({"name": "w", "start_step": "p", "steps": {
        "p": {"id": "p", "type": "parallel", "parallel_steps": ["a", "b"], "next_step": "c"},
        "a": {"id": "a", "agent_name": "worker", "input_mapping": {"t": "${workflow.input.t}"}},
        "b": {"id": "b", "agent_name": "worker", "input_mapping": {}},
        "c": {"id": "c", "agent_name": "worker", "input_mapping": {"t": "${a.output.text}"}},
    }});
    let answer = service.post(VALIDATE, &body).await.expect(200);
    assert_eq!((&answer["valid"], &answer["errors"], &answer["warnings"]), (&json!(true), &json!([]), &json!([])));
    let expected = json!({
        "steps": {"agent": 3, "parallel": 1}, "total_steps": 4, "agents": ["worker"], "depth": 2, "start_step": "p",
        "end_steps": ["c"], "unreachable_steps": [],
    });
    assert_eq!(answer["summary"], expected);
    assert_eq!(service.get("/api/v1/workflows").await.expect(200)["total"], 0);
    let stored = service.post("/api/v1/workflows", &body).await.expect(201);
    assert_eq!(stored["workflow_data"], answer["workflow_data"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn errors_are_an_answer_and_not_a_failure(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("idle", "http://a").await;
    let id = service.get("/api/v1/agents?name=idle").await.expect(200)["items"][0]["id"].clone();
    let path = format!("/api/v1/agents/{}", id.as_str().expect("an id"));
    service.put(&path, &json!({"status": "inactive"})).await.expect(200);
    let step = |id: &str, agent: &str, next: Value| json!({"id": id, "agent_name": agent, "next_step": next, "input_mapping": {}});
    let with = |steps: Value| json!({"name": "w", "start_step": "a", "steps": steps});
    for (body, errors, has_summary) in [
        (json!({}), vec!["body.name missing", "body.start_step missing", "body.steps missing"], false),
        (with(json!({"a b": step("a b", "x", Value::Null)})), vec!["body.steps.a b.id value_error"], false),
        (
            with(json!({"a": step("a", "x", Value::Null), "z": step("z", "x", Value::Null)})),
            vec!["body value_error"],
            true,
        ),
        (
            with(json!({"a": step("a", "gone", json!("b")), "b": step("b", "idle", Value::Null)})),
            vec!["body.steps.a.agent_name agent_not_found", "body.steps.b.agent_name agent_not_active"],
            true,
        ),
        (
            with(
                json!({"a": {"id": "a", "agent_name": "x", "input_mapping": {"text": [{"of": "by ${gone.output.text}"}]}}}),
            ),
            vec!["body.steps.a.input_mapping.text unknown_step"],
            true,
        ),
    ] {
        let answer = service.post(VALIDATE, &body).await.expect(200);
        assert_eq!(
            (answer["valid"].clone(), kinds(&answer["errors"])),
            (json!(false), errors.iter().map(|e| (*e).to_owned()).collect())
        );
        assert_eq!(answer["summary"].is_object(), has_summary, "{answer}");
    }
    let answer = service
        .post(VALIDATE, &with(json!({"a": step("a", "x", Value::Null), "z": step("z", "x", Value::Null)})))
        .await;
    assert_eq!(answer.expect(200)["summary"]["unreachable_steps"], json!(["z"]));
    for body in ["{", "[]"] {
        service.send("POST", VALIDATE, &[("content-type", "application/json")], body).await.error(422);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_meant_is_a_warning(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let body = json!({"name": "w", "start_step": "a", "note": 1, "steps": {
        "a": {"id": "a", "agent_name": "worker", "next_step": "b", "colour": "red", "input_mapping": {
            "later": "${b.output.text}", "unknown": ["${gone.output.text:-none}"], "root": "${input.text}", "fine": "${workflow.input}"}},
        "b": {"id": "b", "agent_name": "worker", "input_mapping": {"loop": "${loop.item}"}},
    }});
    let answer = service.post(VALIDATE, &body).await.expect(200);
    assert_eq!(answer["valid"], true);
    let expected = [
        "body.note unknown_member",
        "body.steps.a.colour unknown_member",
        "body.steps.a.input_mapping.later reference_never_resolves",
        "body.steps.a.input_mapping.root malformed_reference",
        "body.steps.a.input_mapping.unknown unknown_step",
        "body.steps.b.input_mapping.loop reference_outside_loop",
    ];
    assert_eq!(kinds(&answer["warnings"]), expected);
    // Who writes is told as well, of what is stored; who reads is not.
    let created = service.post("/api/v1/workflows", &body).await.expect(201);
    let mut told = kinds(&created["warnings"]);
    told.sort();
    assert_eq!(told, expected[2..]);
    let path = format!("/api/v1/workflows/{}", created["id"].as_str().expect("an id"));
    assert_eq!(service.get(&path).await.expect(200).get("warnings"), None);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn members_about_questions_that_have_no_effect_are_warnings(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("asks", "http://a").await;
    for (name, kind, config, fallbacks) in [
        ("tool", "mcp", json!({"tool": "t"}), json!([])),
        ("model", "openai", json!({"model": "m"}), json!([])),
        ("plain", "http", json!(null), json!([])),
        ("helped", "http", json!(null), json!(["asks"])),
    ] {
        let agent = json!({"name": name, "url": "http://a", "kind": kind, "config": config, "fallbacks": fallbacks});
        service.post("/api/v1/agents", &agent).await.expect(201);
    }
    let all = json!({"on_question": "output", "question_config": {}, "context_id": "c", "task_id": "t"});
    let step = |id: &str, given: &Value, next: Option<&str>| {
        let mut step = json!({"id": id, "agent_name": id, "input_mapping": {}, "next_step": next});
        step.as_object_mut().expect("an object").extend(given.as_object().expect("an object").clone());
        step
    };
    let body = json!({"name": "w", "start_step": "asks", "steps": {
        "asks": step("asks", &all, Some("helped")),
        "helped": step("helped", &all, Some("model")),
        "model": step("model", &json!({"on_question": "ask", "context_id": "c"}), Some("plain")),
        "plain": step("plain", &json!({"on_question": "fail", "task_id": "t"}), Some("tool")),
        "tool": step("tool", &all, Some("pause")),
        "pause": {"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}, "on_question": "ask", "next_step": "callback"},
        "callback": {"id": "callback", "type": "callback", "context_id": "c"},
    }});
    let answer = service.post(VALIDATE, &body).await.expect(200);
    assert_eq!(answer["valid"], true, "{answer}");
    let expected = [
        "body.steps.callback.context_id member_without_effect",
        "body.steps.model.context_id member_without_effect",
        "body.steps.model.on_question member_without_effect",
        "body.steps.pause.on_question member_without_effect",
        "body.steps.plain.task_id member_without_effect",
        "body.steps.tool.context_id member_without_effect",
        "body.steps.tool.on_question member_without_effect",
        "body.steps.tool.task_id member_without_effect",
    ];
    let mut told = kinds(&answer["warnings"]);
    told.sort();
    assert_eq!(told, expected);
    let created = service.post("/api/v1/workflows", &body).await.expect(201);
    let mut told = kinds(&created["warnings"]);
    told.sort();
    assert_eq!(told, expected);
}
