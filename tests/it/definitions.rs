//! What a definition has to look like: the rules of the contract's workflow-definition.md, over HTTP.

use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::Service;

const WORKFLOWS: &str = "/api/v1/workflows";

/// An agent step with some more members.
fn step(id: &str, more: &Value) -> Value {
    merged(&json!({"id": id, "agent_name": "worker", "input_mapping": {}}), more)
}

fn merged(to: &Value, more: &Value) -> Value {
    let mut to = to.clone();
    to.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
    to
}

/// A valid body whose start `a` has these steps beside it.
fn steps(a: &Value, others: &[&str]) -> Value {
    let mut steps = serde_json::Map::from_iter([("a".to_owned(), a.clone())]);
    steps.extend(others.iter().map(|id| ((*id).to_owned(), step(id, &json!({})))));
    json!({"name": "w", "start_step": "a", "steps": steps})
}

/// A body whose only step, `a`, has these members and no agent.
fn container(members: &Value, others: &[&str]) -> Value {
    steps(&merged(&json!({"id": "a"}), members), others)
}

/// Each body is refused with these `field type` entries, and nothing is stored.
async fn refused(pool: &PgPool, table: impl IntoIterator<Item = (Value, &str)>) {
    let service = Service::start(pool);
    service.agent("worker", "http://a").await;
    for (body, expected) in table {
        let answer = service.post(WORKFLOWS, &body).await;
        assert_eq!((answer.status.as_u16(), answer.field_errors().join(", ")), (422, expected.to_owned()), "{body}");
        answer.error(422);
    }
    assert_eq!(service.get(WORKFLOWS).await.expect(200)["total"], 0);
}

async fn accepted(pool: &PgPool, bodies: impl IntoIterator<Item = Value>) {
    let service = Service::start(pool);
    service.agent("worker", "http://a").await;
    for body in bodies {
        service.post(WORKFLOWS, &body).await.expect(201);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_body_has_a_name_a_start_and_steps(pool: PgPool) {
    let valid = steps(&step("a", &json!({})), &[]);
    let with = |more: Value| merged(&valid, &more);
    let table = [
        (json!({}), "body.name missing, body.start_step missing, body.steps missing"),
        (json!([]), "body model_attributes_type"),
        (json!("text"), "body model_attributes_type"),
        (Value::Null, "body missing"),
        (with(json!({"name": null})), "body.name string_type"),
        (with(json!({"name": ""})), "body.name string_too_short"),
        (with(json!({"name": " \t"})), "body.name value_error"),
        (with(json!({"name": "é".repeat(256)})), "body.name string_too_long"),
        (with(json!({"description": 1})), "body.description string_type"),
        (with(json!({"start_step": ""})), "body.start_step string_too_short"),
        (with(json!({"start_step": " "})), "body.start_step value_error"),
        (with(json!({"start_step": 1})), "body.start_step string_type"),
        (with(json!({"steps": {}})), "body.steps too_short"),
        (with(json!({"steps": []})), "body.steps dict_type"),
        (with(json!({"steps": {"a": 1}})), "body.steps.a model_attributes_type"),
        (with(json!({"steps": {"a": {}}})), "body.steps.a.id missing"),
        // All members are reported, and the rules over the definition wait until the members are right.
        (
            with(json!({"name": 1, "start_step": "missing", "steps": {"a": {"id": 1, "type": 1}}})),
            "body.name string_type, body.steps.a.id string_type, body.steps.a.type string_type",
        ),
    ];
    refused(&pool, table).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_step_has_what_its_type_needs(pool: PgPool) {
    let agent = |more: Value| steps(&step("a", &more), &[]);
    let condition = json!({"expression": "1 == 1"});
    let table = [
        (agent(json!({"id": "a b"})), "body.steps.a.id value_error"),
        (agent(json!({"id": ""})), "body.steps.a.id string_too_short"),
        (agent(json!({"type": "Agent"})), "body.steps.a.type value_error"),
        (agent(json!({"type": "wait_for_event"})), "body.steps.a.type value_error"),
        (agent(json!({"type": "sub_workflow"})), "body.steps.a value_error"),
        (agent(json!({"agent_name": ""})), "body.steps.a.agent_name string_too_short"),
        (agent(json!({"agent_name": " "})), "body.steps.a.agent_name value_error"),
        (agent(json!({"agent_name": "é".repeat(256)})), "body.steps.a.agent_name string_too_long"),
        (agent(json!({"agent_name": null})), "body.steps.a value_error"),
        (agent(json!({"input_mapping": null})), "body.steps.a value_error"),
        (agent(json!({"input_mapping": []})), "body.steps.a.input_mapping dict_type"),
        (agent(json!({"next_step": ""})), "body value_error"),
        (container(&json!({"type": "parallel"}), &[]), "body.steps.a value_error"),
        (container(&json!({"type": "parallel", "parallel_steps": ["b"]}), &["b"]), "body.steps.a value_error"),
        (
            container(&json!({"type": "parallel", "parallel_steps": ["b", "c"], "max_parallelism": 0}), &["b", "c"]),
            "body.steps.a value_error",
        ),
        (container(&json!({"type": "conditional", "if_true_step": "b"}), &["b"]), "body.steps.a value_error"),
        (container(&json!({"type": "conditional", "condition": condition}), &[]), "body.steps.a value_error"),
        (
            container(&json!({"type": "conditional", "condition": {"expression": " "}, "if_true_step": "b"}), &["b"]),
            "body.steps.a.condition.expression value_error",
        ),
        (
            container(&json!({"type": "conditional", "condition": {}, "if_true_step": "b"}), &["b"]),
            "body.steps.a.condition.expression missing",
        ),
        (container(&json!({"type": "loop"}), &[]), "body.steps.a value_error"),
        (
            container(&json!({"type": "loop", "loop_config": {"collection": " ", "loop_body": ["b"]}}), &["b"]),
            "body.steps.a.loop_config.collection value_error",
        ),
        (
            container(
                &json!({"type": "loop", "loop_config": {"collection": "${workflow.input.x}", "loop_body": [],
            "max_iterations": 0, "on_error": "ignore", "execution_mode": "x"}}),
                &[],
            ),
            "body.steps.a.loop_config.loop_body too_short, body.steps.a.loop_config.execution_mode value_error, \
             body.steps.a.loop_config.max_iterations greater_than_equal, body.steps.a.loop_config.on_error value_error",
        ),
        (container(&json!({"type": "fork_join"}), &[]), "body.steps.a value_error"),
        (
            container(&json!({"type": "fork_join", "fork_join_config": {"branches": {"x": {"steps": ["b"]}}}}), &["b"]),
            "body.steps.a.fork_join_config.branches too_short",
        ),
        (
            container(
                &json!({"type": "fork_join", "fork_join_config": {"join_policy": "ALL", "branches":
            {"x": {"steps": ["b"], "timeout_seconds": 0}, "y": {"steps": []}}}}),
                &["b"],
            ),
            "body.steps.a.fork_join_config.branches.x.timeout_seconds greater_than_equal, \
             body.steps.a.fork_join_config.branches.y.steps too_short, \
             body.steps.a.fork_join_config.join_policy value_error",
        ),
        (
            container(
                &json!({"type": "fork_join", "fork_join_config": {"join_policy": "n_of_m", "n_required": 3,
            "branches": {"x": {"steps": ["b"]}, "y": {"steps": ["c"]}}}}),
                &["b", "c"],
            ),
            "body.steps.a value_error",
        ),
    ];
    refused(&pool, table).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_steps_of_a_definition_fit_together(pool: PgPool) {
    let agent = |more: Value, others: &[&str]| steps(&step("a", &more), others);
    let broken = "body value_error";
    let looped =
        |body: &str| json!({"type": "loop", "loop_config": {"collection": "${workflow.input.x}", "loop_body": [body]}});
    let parallel = |one: &str, other: &str| json!({"type": "parallel", "parallel_steps": [one, other]});
    let condition = json!({"expression": "1 == 1"});
    let nested = |b: Value| {
        let mut body = container(&parallel("b", "c"), &["c"]);
        body["steps"]["b"] = merged(&json!({"id": "b"}), &b);
        body
    };
    let table = [
        (merged(&agent(json!({}), &[]), &json!({"start_step": "missing"})), broken),
        (agent(json!({"id": "b"}), &[]), broken),
        (agent(json!({"next_step": "missing"}), &[]), broken),
        (agent(json!({"next_step": "a"}), &[]), broken),
        (agent(json!({}), &["b"]), broken), // cannot be reached
        (container(&parallel("b", "missing"), &["b"]), broken),
        (container(&looped("missing"), &[]), broken),
        (container(&json!({"type": "conditional", "condition": condition, "if_false_step": "missing"}), &[]), broken),
        (
            container(
                &json!({"type": "fork_join", "fork_join_config": {"branches":
            {"x": {"steps": ["b"]}, "y": {"steps": ["missing"]}}}}),
                &["b"],
            ),
            broken,
        ),
        (container(&looped("a"), &[]), broken), // contains itself
        (nested(looped("a")), broken),          // contains itself through another
    ];
    refused(&pool, table).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_shipped_definitions_do_is_accepted(pool: PgPool) {
    let looped = json!({"type": "loop", "loop_config": {"collection": "${workflow.input.x}", "loop_body": ["b"]}});
    // A member that points back at its block: `next_step` of nested steps is never followed.
    let mut back = container(&json!({"type": "parallel", "parallel_steps": ["b", "c"]}), &["c"]);
    back["steps"]["b"] = step("b", &json!({"next_step": "c"}));
    let every_null = json!({
        "type": null, "next_step": null, "parallel_steps": null, "max_parallelism": null, "condition": null,
        "if_true_step": null, "if_false_step": null, "loop_config": null, "fork_join_config": null,
    });
    let literals = json!({"input_mapping": {"n": 1, "l": [true, null], "o": {"x": "${workflow.input.x}"}}});
    let unicode = json!({"name": " ü ", "start_step": "schritt-größe_1", "steps":
        {"schritt-größe_1": step("schritt-größe_1", &json!({"unknown": {"deep": []}}))}});
    let bodies = [
        container(&looped, &["b"]),
        back,
        steps(&step("a", &every_null), &[]),
        steps(&step("a", &literals), &[]),
        steps(&step("a", &json!({"next_step": "b", "parallel_steps": []})), &["b"]),
        unicode,
    ];
    accepted(&pool, bodies).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_exposure_which_only_the_newest_version_has_is_compared_too(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://a").await;
    let steps = |text: &str| json!({"s": {"id": "s", "agent_name": "a", "input_mapping": {"text": text}}});
    let body = json!({"name": "w", "start_step": "s", "steps": steps("1"), "expose": {"a2a": true}});
    let workflow = service.post("/api/v1/workflows", &body).await.expect(201);
    let path = format!("/api/v1/workflows/{}", workflow["id"].as_str().expect("an id"));
    service.put(&path, &json!({"start_step": "s", "steps": steps("2")})).await.expect(200);
    let diff = async |first: i32, second: i32| {
        service.get(&format!("{path}/versions/{first}/diff/{second}")).await.expect(200)
    };
    let exposed = json!({"a2a": true, "public_card": false});
    let newer = diff(1, 2).await;
    assert_eq!(newer["expose"], json!({"before": null, "after": exposed}));
    assert_eq!((&newer["identical"], &newer["input_schema"]), (&json!(false), &Value::Null));
    assert_eq!(diff(2, 1).await["expose"], json!({"before": exposed, "after": null}));
    // It is no content: the same content is identical, whatever its exposure.
    service.post(&format!("{path}/rollback"), &json!({"version": 1})).await.expect(200);
    let same = diff(1, 3).await;
    assert_eq!((&same["identical"], &same["expose"]["after"]), (&json!(true), &exposed));
    assert_eq!(diff(1, 2).await["expose"], Value::Null);
}
