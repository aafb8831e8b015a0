//! Tests of workflows without agents: what they say, that runs do the same, and that nothing is stored or sent.

use std::collections::BTreeMap;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use crate::{
    path::{Agent, Call},
    service::{Service, config, records},
    steps::{World, agent_step},
};

const TEST: &str = "/api/v1/workflows/test";

/// An agent of kind `http` that repeats its input, and fails if the input says so.
fn repeating(_: usize, call: &Call) -> Response {
    if call.body["fail"] == true {
        return (StatusCode::BAD_REQUEST, Json(json!({"detail": "no such term"}))).into_response();
    }
    Json(call.body.clone()).into_response()
}

async fn world(pool: &PgPool) -> (World, Agent) {
    let (agent, url) = Agent::start(repeating).await;
    let world = World::start(pool, &[]).await;
    let agent_a = json!({"name": "a", "url": url, "kind": "http",
        "retry_config": {"max_retries": 2, "initial_delay_ms": 100, "max_delay_ms": 1000}});
    world.service.post("/api/v1/agents", &agent_a).await.expect(201);
    (world, agent)
}

/// `step status parent branch` of each attempt with its values, sorted: what ran side by side has no order.
fn attempts(rows: &Value) -> Vec<String> {
    let rows = rows.as_array().expect("a list").iter().filter(|row| row["attempt"] != 0);
    let shown = |row: &Value| {
        let opaque = row["step_id"].as_str().is_some_and(|id| id.starts_with("wait"));
        let value = |name: &str| if opaque { json!("…") } else { row[name].clone() };
        let (input, output) = (value("input_data"), value("output_data"));
        let (status, error) = (&row["status"], &row["error_message"]);
        let place = format!("{} {} {}", row["parent_step_id"], row["branch_name"], row["join_policy"]);
        format!("{} {status} {place} {input} {output} {error}", row["step_id"])
    };
    let mut shown: Vec<_> = rows.map(shown).collect();
    shown.sort();
    shown
}

/// Definitions with inputs and mocks that say what the agent does: each is run, and tested, with the same result.
fn definitions() -> Vec<(&'static str, Value, Value, Value)> {
    let failing = json!({"fail": {"code": "http_4xx", "message": "HTTP 400: Bad Request, no such term"}});
    let fail = json!({"fail": true});
    let with_next = |step: Value, next: &str| {
        let mut step = step;
        step["next_step"] = json!(next);
        step
    };
    let chain = json!({
        "one": with_next(agent_step("one", &json!({"term": "${workflow.input.term}"})), "two"),
        "two": agent_step("two", &json!({"text": "Check: ${one.output.term}", "none": "${one.output.none:-7}"})),
    });
    let fan = json!({
        "fan": {"id": "fan", "type": "parallel", "parallel_steps": ["en", "fr"], "next_step": "join"},
        "en": agent_step("en", &json!({"lang": "en"})), "fr": agent_step("fr", &fail),
        "join": agent_step("join", &json!({"en": "${en.output.lang}"})),
    });
    let branch = |condition: &str| {
        json!({
            "if": {"id": "if", "type": "conditional", "condition": {"expression": condition},
                "if_true_step": "yes", "if_false_step": "no", "next_step": "end"},
            "yes": agent_step("yes", &json!({"said": "yes"})), "no": agent_step("no", &json!({"said": "no"})),
            "end": agent_step("end", &json!({"taken": "${if.output.branch_taken}"})),
        })
    };
    let each = |mode: &str, on_error: &str| {
        json!({
            "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
                "loop_body": ["check", "note"], "execution_mode": mode, "on_error": on_error}},
            "check": agent_step("check", &json!({"v": "${loop.item.v}", "last": "${loop.is_last}"})),
            "note": agent_step("note", &json!({"v": "${check.output.v}", "at": "${loop.index}"})),
        })
    };
    let fork = |policy: &str| {
        json!({
            "race": {"id": "race", "type": "fork_join", "fork_join_config": {"join_policy": policy,
                "branches": {"x": {"steps": ["good"]}, "y": {"steps": ["bad"]}}}},
            "good": agent_step("good", &json!({"n": 1})), "bad": agent_step("bad", &fail),
        })
    };
    let nested = json!({
        "outer": {"id": "outer", "type": "parallel", "parallel_steps": ["each", "deep"]},
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["wait-a-moment", "if"]}},
        "if": {"id": "if", "type": "conditional", "condition": {"expression": "${loop.item.v} > 1"}, "if_true_step": "deep"},
        "deep": agent_step("deep", &json!({"v": "${workflow.input.items[0].v}"})),
        "wait-a-moment": {"id": "wait-a-moment", "type": "wait", "wait_config": {"duration_seconds": 0}},
    });
    let items = json!({"items": [{"v": 1}, {"v": 2}, {"w": 3}]});
    let two = json!({"items": [{"v": 1}, {"v": 2}]});
    vec![
        ("one", chain.clone(), json!({"term": "quorum"}), json!({})),
        ("one", chain, json!({"other": 1}), json!({})),
        ("fan", fan, json!({}), json!({"fr": failing})),
        ("if", branch("${workflow.input.n} > 1"), json!({"n": 2}), json!({})),
        ("if", branch("${workflow.input.n} > 1"), json!({"n": 1}), json!({})),
        ("if", branch("${workflow.input.n} > 1"), json!({}), json!({})),
        ("each", each("sequential", "stop"), items.clone(), json!({})),
        ("each", each("sequential", "continue"), items.clone(), json!({})),
        ("each", each("parallel", "collect"), items, json!({})),
        ("each", each("parallel", "stop"), two.clone(), json!({})),
        ("race", fork("all"), json!({}), json!({"bad": failing})),
        ("race", fork("n_of_m"), json!({}), json!({"bad": failing})),
        ("outer", nested, two, json!({})),
    ]
    .into_iter()
    .map(|(start, mut steps, input, mocks)| {
        if steps["race"]["fork_join_config"]["join_policy"] == "n_of_m" {
            steps["race"]["fork_join_config"]["n_required"] = json!(2);
        }
        (start, steps, input, mocks)
    })
    .collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_says_what_a_run_does(pool: PgPool) {
    let (world, _agent) = world(&pool).await;
    for (start, steps, input, mocks) in definitions() {
        let id = world.define(start, &steps).await;
        let body = json!({"input_data": input, "mocks": mocks});
        let tested = world.service.post(&format!("/api/v1/workflows/{id}/test"), &body).await.expect(200);
        let ran = world.run(start, &steps, &input).await;
        assert_eq!(attempts(&tested["steps"]), attempts(&json!(ran.rows)), "{steps}");
        let seen = |run: &Value| (run["status"].clone(), run["output_data"].clone(), run["error_message"].clone());
        assert_eq!(seen(&tested), seen(&ran.run), "{steps}");
    }
}

/// Tables that loops of the service write by themselves.
const OF_LOOPS: [&str; 4] = ["processes", "audit_seals", "audit_unsealed", "storage_samples"];

/// Number of rows of each other table.
async fn rows(pool: &PgPool) -> BTreeMap<String, i64> {
    let sql = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
               WHERE schemaname NOT IN ('pg_catalog', 'information_schema')";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(pool).await.expect("tables");
    let mut rows = BTreeMap::new();
    for table in tables.into_iter().filter(|table| !OF_LOOPS.iter().any(|name| table.contains(name))) {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count = sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count");
        rows.insert(table, count);
    }
    assert!(rows.len() > 10);
    rows
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_stores_nothing_sends_nothing_and_calls_nobody(pool: PgPool) {
    let (agent, url) = Agent::start(repeating).await;
    let service = Service::start(&pool);
    service.agent("a", &url).await;
    let inner = json!({"name": "inner", "start_step": "one", "steps": {"one": agent_step("one", &json!({}))}});
    service.post("/api/v1/workflows", &inner).await.expect(201);
    let steps = json!({
        "one": {"id": "one", "agent_name": "a", "input_mapping": {"u": "${ask.callback_url}"}, "next_step": "ask"},
        "ask": {"id": "ask", "type": "callback", "next_step": "sub"},
        "sub": {"id": "sub", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "inner"}, "next_step": "wait"},
        "wait": {"id": "wait", "type": "wait", "wait_config": {"duration": "P1D"}},
    });
    let workflow = json!({"name": "w", "start_step": "one", "steps": steps});
    let id = service.post("/api/v1/workflows", &workflow).await.expect(201)["id"].clone();
    let path = format!("/api/v1/workflows/{}", id.as_str().expect("an id"));
    let before = rows(&pool).await;
    let body = json!({"input_data": {}, "mocks": {"ask": {"output": {}}}});
    let tested = service.post(&format!("{path}/test"), &body).await.expect(200);
    assert_eq!(tested["status"], "COMPLETED", "{tested}");
    let unstored = json!({"definition": workflow, "input_data": {}});
    assert_eq!(service.post(TEST, &unstored).await.expect(200)["status"], "WAITING");
    service.post(&format!("{path}/versions/1/backtest"), &json!({})).await.expect(200);
    assert_eq!(rows(&pool).await, before);
    assert!(agent.calls().is_empty());
    // The only record is that of a run that was really started.
    let run_id = service.execute(id.as_str().expect("an id")).await;
    let records = records(&service.config, &service.config.kafka.execution_topic, 1).await;
    assert_eq!(records[0].value["run_id"], json!(run_id));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_definition_is_tested_before_its_agents_exist(pool: PgPool) {
    let service = Service::start(&pool);
    let definition = json!({"name": "w", "start_step": "one", "input_schema": {"type": "object", "required": ["n"]},
        "steps": {"one": {"id": "one", "agent_name": "gone", "input_mapping": {"n": "${workflow.input.n}"}}}});
    let mocks = json!({"one": {"expression": "${step.input.n} * 2", "fail": {"times": 1}}});
    let body =
        json!({"definition": definition, "input_data": {"n": 4}, "mocks": mocks, "start_time": "2026-02-03T09:00:00Z"});
    let tested = service.post(TEST, &body).await;
    let again = service.post(TEST, &body).await;
    assert_eq!(tested.text, again.text, "the same request has the same answer");
    let tested = tested.expect(200);
    assert_eq!((&tested["status"], &tested["output_data"]), (&json!("COMPLETED"), &json!(8)));
    assert_eq!((&tested["start_time"], &tested["duration_ms"]), (&json!("2026-02-03T09:00:00Z"), &json!(1000)));
    assert_eq!(tested["warnings"][0]["type"], "agent_not_found");
    assert_eq!(tested["steps"][1]["attempt"], 2);

    let refused = async |change: fn(&mut Value)| {
        let mut body = body.clone();
        change(&mut body);
        service.post(TEST, &body).await.field_errors()
    };
    assert_eq!(refused(|body| body["input_data"] = json!({})).await.len(), 1);
    assert_eq!(refused(|body| body["definition"] = json!(1)).await, ["body.definition model_attributes_type"]);
    let no_steps = refused(|body| body["definition"]["steps"] = json!({})).await;
    assert_eq!(no_steps, ["body.definition.steps too_short"]);
    let expected = ["body.mocks.one.fail.code value_error", "body.mocks.one.delay_seconds greater_than_equal"];
    let bad = |body: &mut Value| body["mocks"]["one"] = json!({"fail": {"code": "no"}, "delay_seconds": -1});
    assert_eq!(refused(bad).await, expected);
    let bad = |body: &mut Value| body["mocks"]["one"] = json!({"output": 1, "expression": "2"});
    assert_eq!(refused(bad).await, ["body.mocks.one value_error"]);
    let bad = |body: &mut Value| body["mocks"]["one"] = json!({"expression": "2 +", "outptu": 1});
    assert_eq!(refused(bad).await, ["body.mocks.one.outptu extra_forbidden", "body.mocks.one.expression value_error"]);
    assert_eq!(refused(|body| body["missing_mocks"] = json!("x")).await, ["body.missing_mocks value_error"]);
    assert_eq!(refused(|body| body["mock"] = json!({})).await, ["body.mock extra_forbidden"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn any_version_is_tested(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("a", "http://127.0.0.1:9/").await;
    let with = |text: &str| json!({"name": "w", "start_step": "one", "steps": {"one": agent_step("one", &json!({"t": text}))}});
    let id = service.post("/api/v1/workflows", &with("first")).await.expect(201)["id"].clone();
    let path = format!("/api/v1/workflows/{}", id.as_str().expect("an id"));
    service.put(&path, &json!({"start_step": "one", "steps": with("second")["steps"]})).await.expect(200);
    let tested = async |body: Value| service.post(&format!("{path}/test"), &body).await;
    assert_eq!(tested(json!({"input_data": {}})).await.expect(200)["output_data"], json!({"t": "second"}));
    assert_eq!(tested(json!({"input_data": {}, "version": 1})).await.expect(200)["output_data"], json!({"t": "first"}));
    assert_eq!(tested(json!({"input_data": {}, "version": 3})).await.error(404)["code"], "version_not_found");
    assert_eq!(tested(json!({"input_data": []})).await.field_errors().len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_test_is_bounded_and_so_is_its_answer(pool: PgPool) {
    // The clock is stopped: on a busy machine the request may take longer than requests may.
    let service = Service::start_by(config(&pool, &[]), Clock::stopped());
    let each = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["one"],
            "execution_mode": "parallel"}},
        "one": {"id": "one", "agent_name": "gone", "input_mapping": {"all": "${workflow.input.text}"}},
    });
    let definition = json!({"name": "w", "start_step": "each", "steps": each});
    let items: Vec<i32> = (0..20_000).collect();
    let input = json!({"items": items, "text": "x".repeat(20_000)});
    let body = json!({"definition": definition, "input_data": input, "mocks": {"one": {"output": "x".repeat(100)}}});
    let answer = service.post(TEST, &body).await;
    assert!(answer.text.len() < 16 << 20, "{} bytes", answer.text.len());
    let tested = answer.expect(200);
    assert_eq!(tested["status"], "STOPPED", "{}", tested["error_message"]);
    let steps = tested["steps"].as_array().expect("a list");
    assert!(steps.len() < 10_500, "{}", steps.len());
    let last = steps.last().expect("a step");
    assert_eq!((&last["input_data"], &last["input_data_omitted"]), (&json!(null), &json!(true)));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_back_test_replays_what_was_recorded(pool: PgPool) {
    let (world, agent) = world(&pool).await;
    let service = &world.service;
    let steps = |text: &str| {
        json!({
            "one": {"id": "one", "agent_name": "a", "next_step": "if", "input_mapping": {"n": "${workflow.input.n}"}},
            "if": {"id": "if", "type": "conditional", "condition": {"expression": format!("${{one.output.n}} > {text}")},
                "if_true_step": "big", "if_false_step": "small", "next_step": "wait"},
            "big": agent_step("big", &json!({"said": "big"})), "small": agent_step("small", &json!({"said": "small"})),
            "wait": {"id": "wait", "type": "wait", "wait_config": {"duration_seconds": 0}, "next_step": "end"},
            "end": agent_step("end", &json!({"taken": "${if.output.branch_taken}", "fail": "${workflow.input.fail:-false}"})),
        })
    };
    let id = world.define("one", &steps("5")).await;
    let mut run_ids = Vec::new();
    for input in [json!({"n": 3}), json!({"n": 7}), json!({"n": 9, "fail": true})] {
        let path = format!("/api/v1/workflows/{id}/execute");
        let run = service.post(&path, &json!({"input_data": input})).await.expect(202);
        let run_id = run["run_id"].as_str().expect("an id").to_owned();
        world.end(run_id.clone()).await;
        run_ids.push(run_id);
    }
    let calls = agent.calls().len();
    let path = format!("/api/v1/workflows/{id}");
    let same = service.post(&format!("{path}/versions/1/backtest"), &json!({"last": 10})).await.expect(200);
    let summary = json!({"found": 3, "same": 3, "changed": 0, "path_changed": 0, "output_changed": 0, "status_changed": 0,
        "with_missing_recordings": 0, "skipped": 0});
    assert_eq!(same["summary"], summary, "{same}");
    assert_eq!(same["runs"][2]["run_id"], json!(run_ids[0]), "the last one first");
    assert_eq!(same["runs"][0]["replayed_status"], "FAILED");

    service.put(&path, &json!({"start_step": "one", "steps": steps("8")})).await.expect(200);
    let other = service.post(&format!("{path}/versions/2/backtest"), &json!({})).await.expect(200);
    assert_eq!((&other["summary"]["same"], &other["summary"]["path_changed"]), (&json!(2), &json!(1)), "{other}");
    let changed = &other["runs"][1];
    assert_eq!((&changed["run_id"], &changed["result"]), (&json!(run_ids[1]), &json!("changed")));
    assert_eq!(changed["steps_without_recording"], json!(["small"]));
    let of = |change: &Value| format!("{} {}", change["path"].as_str().unwrap_or_default(), change["change"]);
    let changes: Vec<String> = changed["changes"].as_array().expect("a list").iter().map(of).collect();
    let expected = [r#"end "input""#, r#"if "output""#, r#"if/else/small "added""#, r#"if/then/big "removed""#];
    assert_eq!(changes, expected);
    assert_eq!(changed["changes"][0]["replayed"]["taken"], "else");
    let with_mock = json!({"last": 2, "mocks": {"small": {"output": {"said": "mocked"}}}});
    let mocked = service.post(&format!("{path}/versions/2/backtest"), &with_mock).await.expect(200);
    assert_eq!((&mocked["summary"]["found"], &mocked["version"]), (&json!(2), &json!(2)));
    assert_eq!(
        service.post(&format!("{path}/versions/2/backtest"), &json!({"last": 51})).await.field_errors(),
        ["body.last less_than_equal"]
    );
    service.post(&format!("{path}/versions/3/backtest"), &json!({})).await.error(404);
    assert_eq!(agent.calls().len(), calls, "no agent is called");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_back_test_skips_runs_that_it_cannot_replay_and_says_why(pool: PgPool) {
    let (world, _agent) = world(&pool).await;
    let service = &world.service;
    let steps = json!({"one": {"id": "one", "agent_name": "a", "input_mapping": {"n": "${workflow.input.n}"}}});
    let id = world.define("one", &steps).await;
    let mut run_ids = Vec::new();
    for n in 0..4 {
        let path = format!("/api/v1/workflows/{id}/execute");
        let run = service.post(&path, &json!({"input_data": {"n": n}})).await.expect(202);
        let run_id = run["run_id"].as_str().expect("an id").to_owned();
        world.end(run_id.clone()).await.output();
        run_ids.push(run_id);
    }
    for (sql, run_id) in [
        // As of a run of the reference deployment that failed before its first step.
        ("DELETE FROM step_executions WHERE run_id = $1", &run_ids[0]),
        // One that compresses well, and one that has too many attempts.
        ("UPDATE step_executions SET output_data = to_jsonb(repeat('x', 5000000)) WHERE run_id = $1", &run_ids[1]),
        (
            "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, started_at)
             SELECT n::text, $1, 'one', 'a', 'a', 'FAILED', '{}', now() AT TIME ZONE 'UTC' FROM generate_series(1, 2001) AS n",
            &run_ids[2],
        ),
    ] {
        sqlx::query(sql).bind(run_id).execute(&pool).await.expect(sql);
    }
    let tested = service.post(&format!("/api/v1/workflows/{id}/versions/1/backtest"), &json!({})).await.expect(200);
    let summary = &tested["summary"];
    assert_eq!((&summary["found"], &summary["same"], &summary["skipped"]), (&json!(4), &json!(1), &json!(3)));
    let of = |run: &Value| json!([run["run_id"], run["result"], run["skipped"], run["replayed_status"]]);
    let runs: Vec<Value> = tested["runs"].as_array().expect("a list").iter().map(of).collect();
    let expected = [
        json!([run_ids[3], "same", null, "COMPLETED"]),
        json!([run_ids[2], "skipped", "too_large", null]),
        json!([run_ids[1], "skipped", "too_large", null]),
        json!([run_ids[0], "skipped", "no_recording", null]),
    ];
    assert_eq!(runs, expected);
}
