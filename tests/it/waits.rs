//! Steps that wait for something outside of their run: times, callbacks, other workflows. A run that only waits is
//! parked: no executor owns it.

use std::{collections::HashSet, time::Duration};

use axum::body::Body;
use chrono::{DateTime, SubsecRound as _, Utc};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{
    clock::Clock,
    db::{
        executions::{self, Limits},
        migrations::MIGRATOR,
    },
};

use crate::{
    path::{self, Executor, attempts, ended},
    service::{Answer, Service, eventually, in_turn},
    steps::{World, agent_step, input_of, repeating},
};

const MINUTE: Duration = Duration::from_mins(1);

/// Waits until the run is parked.
pub async fn parked(pool: &PgPool, run_id: &str) {
    let sql = "SELECT executor_id IS NULL AND wake_at IS NOT NULL AND parked_at IS NOT NULL AND status = 'RUNNING'
               FROM workflow_runs WHERE run_id = $1";
    eventually("the run is parked", async || {
        let is_parked: bool = sqlx::query_scalar(sql).bind(run_id).fetch_one(pool).await.expect("a run");
        is_parked.then_some(())
    })
    .await;
}

/// Advances the clock of the executors by a minute. The database's clock cannot be advanced: attempts under way are made
/// a minute older, and parked runs that are due by then are made due now.
pub async fn a_minute_passes(world: &World, pool: &PgPool) {
    world.service.clock.advance(MINUTE);
    let sql = "UPDATE step_executions SET started_at = started_at - interval '1 minute' WHERE completed_at IS NULL";
    sqlx::query(sql).execute(pool).await.expect("done");
    let sql = "UPDATE workflow_runs SET wake_at = least(wake_at, now()) WHERE wake_at <= $1";
    sqlx::query(sql).bind(world.service.clock.now()).execute(pool).await.expect("done");
}

/// The addresses of the run's open callbacks, once there are so many.
pub async fn callbacks(service: &Service, run_id: &str, count: usize) -> Vec<Value> {
    eventually("the callbacks are open", async || {
        let open = service.get(&format!("/api/v1/runs/{run_id}/callbacks")).await.expect(200);
        let open = open.as_array().expect("an array").clone();
        let begun = open.iter().all(|callback| callback["step_execution_id"].is_string());
        (open.len() == count && begun).then_some(open)
    })
    .await
}

/// The path of a callback's address.
pub fn path_of(url: &Value) -> String {
    let url = url.as_str().expect("a URL");
    let path = url.strip_prefix("http://localhost:8000").expect("the public URL");
    assert!(path.starts_with("/api/v1/callbacks/") && path.len() > "/api/v1/callbacks/".len() + 40, "{path}");
    path.to_owned()
}

fn callback(id: &str, next: Option<&str>) -> Value {
    json!({"id": id, "type": "callback", "next_step": next, "input_mapping": {"question": "${workflow.input.q:-?}"}})
}

fn wait(id: &str, next: Option<&str>, config: &Value) -> Value {
    json!({"id": id, "type": "wait", "next_step": next, "wait_config": config})
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wait_ends_after_its_time_and_parks_the_run_meanwhile(pool: PgPool) {
    let (agent, url) = repeating().await;
    let clock = Clock::stopped();
    let world = World::start_by(&pool, &[("a", &url)], &[], clock.clone()).await;
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
    let until = text(clock.now() + MINUTE);
    for (config, time) in [
        (json!({"until": until}), MINUTE),
        (json!({"until": "2020-02-03T09:00:00+01:00"}), Duration::ZERO),
        (json!({"duration_seconds": 0}), Duration::ZERO),
        (json!({"duration_seconds": 0.05}), Duration::from_millis(50)),
        (json!({"duration_seconds": 60}), MINUTE),
        (json!({"duration_seconds": "${workflow.input.secs}"}), MINUTE),
        (json!({"duration": "PT${workflow.input.text}S"}), MINUTE),
        (json!({"duration": "PT59.7S"}), Duration::from_millis(59_700)),
    ] {
        let began = clock.now();
        let steps = json!({
            "pause": wait("pause", Some("after"), &config.clone()),
            "after": agent_step("after", &json!({"until": "${pause.output.until}"}))});
        let run_id = world.begin("pause", &steps, &json!({"secs": 60, "text": "60"})).await;
        if time > Duration::from_secs(1) {
            parked(&pool, &run_id).await;
            assert_eq!(attempts(&world.service, &run_id).await, ["pause PENDING"], "{config}");
            assert_eq!(world.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "RUNNING");
            a_minute_passes(&world, &pool).await;
        } else if !time.is_zero() {
            eventually("the wait begins", async || {
                (attempts(&world.service, &run_id).await == ["pause PENDING"]).then_some(())
            })
            .await;
            clock.advance(time);
        }
        let done = world.end(run_id).await;
        done.output();
        assert_eq!(done.attempts(), ["pause COMPLETED", "after COMPLETED"], "{config}");
        let row = done.row("pause");
        assert_eq!(row["output_data"]["until"], row["input_data"]["until"]);
        let at = DateTime::parse_from_rfc3339(row["output_data"]["until"].as_str().expect("text")).expect("a time");
        match config["until"].as_str() {
            Some(until) => assert_eq!(at, DateTime::parse_from_rfc3339(until).expect("a time")),
            None => assert_eq!(at, (began + time).trunc_subsecs(6), "{config}"),
        }
    }
    assert_eq!(agent.calls().len(), 8);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wait_that_cannot_be_made_fails_the_step(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for (config, cause) in [
        (json!({"duration_seconds": "${workflow.input.no}"}), "there is no member 'no'"),
        (json!({"duration_seconds": "${workflow.input.text}"}), "must be a number"),
        (json!({"duration_seconds": "${workflow.input.negative}"}), "must be from 0 to"),
        (json!({"duration": "${workflow.input.text}"}), "ISO 8601 duration"),
        (json!({"until": "${workflow.input.text}"}), "a time with a zone"),
    ] {
        let steps = json!({"pause": wait("pause", None, &config.clone())});
        let failed = world.run("pause", &steps, &json!({"text": "soon", "negative": -1})).await;
        assert!(failed.cause().contains(cause) && failed.cause().contains("wait_config"), "{}", failed.cause());
        assert_eq!(failed.attempts(), Vec::<String>::new());
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_definition_with_steps_that_wait_is_checked(pool: PgPool) {
    let service = Service::start(&pool);
    let refused = async |step: Value| -> Vec<String> {
        let mut step = step;
        step["id"] = json!("s");
        let body = json!({"name": "n", "start_step": "s", "steps": {"s": step}});
        let answer = service.post("/api/v1/workflows", &body).await;
        assert_eq!(answer.status, 422, "{}", answer.text);
        answer.field_errors()
    };
    for (step, expected) in [
        (json!({"type": "wait"}), "body.steps.s value_error"),
        (json!({"type": "wait", "wait_config": {}}), "body.steps.s.wait_config value_error"),
        (
            json!({"type": "wait", "wait_config": {"duration": "PT1S", "duration_seconds": 1}}),
            "body.steps.s.wait_config value_error",
        ),
        (
            json!({"type": "wait", "wait_config": {"duration_seconds": -1}}),
            "body.steps.s.wait_config.duration_seconds greater_than_equal",
        ),
        (
            json!({"type": "wait", "wait_config": {"duration_seconds": 1e12}}),
            "body.steps.s.wait_config.duration_seconds value_error",
        ),
        (
            json!({"type": "wait", "wait_config": {"duration_seconds": true}}),
            "body.steps.s.wait_config.duration_seconds float_type",
        ),
        (json!({"type": "wait", "wait_config": {"duration": "P1Y"}}), "body.steps.s.wait_config.duration value_error"),
        (json!({"type": "wait", "wait_config": {"until": "soon"}}), "body.steps.s.wait_config.until value_error"),
        (
            json!({"type": "callback", "callback_config": {"approval": {"role": " "}}}),
            "body.steps.s.callback_config.approval.role value_error",
        ),
        (
            json!({"type": "callback", "callback_config": {"approval": {"on_reject": "cry"}}}),
            "body.steps.s.callback_config.approval.on_reject value_error",
        ),
        (json!({"type": "callback", "timeout_seconds": 0}), "body.steps.s.timeout_seconds greater_than_equal"),
        (json!({"type": "sub_workflow"}), "body.steps.s value_error"),
        (json!({"type": "sub_workflow", "sub_workflow_config": {}}), "body.steps.s.sub_workflow_config value_error"),
        (
            json!({"type": "sub_workflow", "sub_workflow_config": {"workflow_id": "x"}}),
            "body.steps.s.sub_workflow_config.workflow_id value_error",
        ),
    ] {
        assert_eq!(refused(step.clone()).await, [expected], "{step}");
    }
    // What is allowed and cannot be meant.
    service.agent("a", "http://127.0.0.1:9/").await;
    let warnings = async |mapping: Value| {
        let steps = json!({
            "tell": {"id": "tell", "agent_name": "a", "next_step": "ask", "input_mapping": mapping},
            "ask": callback("ask", Some("both")),
            "both": {"id": "both", "type": "parallel", "parallel_steps": ["left", "right"]},
            "left": agent_step("left", &json!({"to": "${right.callback_url} ${ask.callback_url}"})),
            "right": callback("right", None)});
        let answer = service
            .post("/api/v1/workflows/validate", &json!({"name": "n", "start_step": "tell", "steps": steps}))
            .await
            .expect(200);
        assert_eq!((&answer["valid"], &answer["errors"]), (&json!(true), &json!([])));
        let kind = |warning: &Value| warning["type"].as_str().expect("text").to_owned();
        answer["warnings"].as_array().expect("a list").iter().map(kind).collect::<Vec<_>>()
    };
    assert_eq!(warnings(json!({"to": "${ask.callback_url}"})).await, Vec::<String>::new());
    assert_eq!(warnings(json!({"to": "${both.callback_url}"})).await, ["reference_never_resolves"]);
    assert_eq!(warnings(json!({"to": "${right.callback_url}"})).await, ["reference_never_resolves"]);
    let unknown =
        json!({"name": "n", "start_step": "t", "steps": {"t": agent_step("t", &json!({"u": "${no.callback_url}"}))}});
    assert_eq!(
        service.post("/api/v1/workflows", &unknown).await.field_errors(),
        ["body.steps.t.input_mapping.u unknown_step"]
    );
    // The graph knows them.
    let stored = json!({"name": "g", "start_step": "w", "steps": {
        "w": wait("w", Some("c"), &json!({"duration": "PT5M"})),
        "c": {"id": "c", "type": "callback", "next_step": "s", "callback_config": {"approval": {"role": "boss"}}},
        "s": {"id": "s", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "other"}}}});
    let stored = service.post("/api/v1/workflows", &stored).await.expect(201);
    let graph = service.get(&format!("/api/v1/workflows/{}/graph", stored["id"].as_str().expect("an id"))).await;
    for part in ["wait PT5M", "approval by boss", "workflow other"] {
        assert!(graph.text.contains(part), "{}", graph.text);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_goes_on_with_its_first_answer_and_harms_nobody_with_the_others(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({"ask": callback("ask", Some("after")),
        "after": agent_step("after", &json!({"said": "${ask.output.deep.said}", "all": "${ask.output}"}))});
    let run_id = world.begin("ask", &steps, &json!({"q": "why?"})).await;
    let service = &world.service;
    let open = callbacks(service, &run_id, 1).await;
    assert_eq!(open[0]["input_data"], json!({"question": "why?"}));
    assert_eq!(
        (&open[0]["step_id"], &open[0]["is_approval"], &open[0]["expires_at"]),
        (&json!("ask"), &json!(false), &json!(null))
    );
    parked(&pool, &run_id).await;
    assert_eq!(attempts(service, &run_id).await, ["ask PENDING"]);
    assert!(agent.calls().is_empty());

    // A storm of 50, each with another body: one counts, all are told the same.
    let path = path_of(&open[0]["url"]);
    let bodies: Vec<Value> = (0..50).map(|number| json!({"deep": {"said": format!("n{number}")}})).collect();
    let answers: Vec<Answer> = in_turn(bodies.iter().map(|body| service.post(&path, body))).await;
    let replayed = answers.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true")).count();
    assert_eq!(replayed, 49);
    let told: HashSet<String> = answers.into_iter().map(|answer| answer.expect(200).to_string()).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let run = ended(service, &run_id).await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    assert_eq!(agent.calls().len(), 1);
    let said = input_of(&agent.calls()[0]);
    assert_eq!(said["said"], said["all"]["deep"]["said"]);
    // Late repeats are told the same, whatever has become of the run.
    assert!(told.contains(&service.post(&path, &json!({"deep": 1})).await.expect(200).to_string()));
    assert_eq!(service.get(&format!("/api/v1/runs/{run_id}/callbacks")).await.expect(200), json!([]));
    assert_eq!(attempts(service, &run_id).await, ["ask COMPLETED", "after COMPLETED"]);
    // Addresses that nobody has given out.
    let wrong = format!("{path}x");
    for path in [wrong.as_str(), "/api/v1/callbacks/nonsense", "/api/v1/callbacks/%00"] {
        assert_eq!(service.post(path, &json!({})).await.error(404)["code"], "callback_not_found");
    }
    assert_eq!(service.get("/api/v1/runs/run-none/callbacks").await.error(404)["code"], "run_not_found");
    let log = service.get(&format!("/api/v1/runs/{run_id}/logs?page_size=100")).await.expect(200);
    let kinds: Vec<&str> =
        log["items"].as_array().expect("items").iter().map(|item| item["kind"].as_str().expect("text")).collect();
    assert!(kinds.contains(&"attempt.waiting") && kinds.contains(&"callback.answered"), "{kinds:?}");
    let token = path.rsplit('/').next().expect("a token");
    assert!(!log.to_string().contains(token));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_may_be_any_json_or_none_and_too_much_is_refused(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let steps = json!({"ask": callback("ask", None)});
    for (body, output) in [
        ("[1, 2.50, 123456789012345678901234567890]", "[1,2.50,123456789012345678901234567890]"),
        ("\"text\"", "\"text\""),
        ("", "{}"),
        ("{\"a\": null}", "{\"a\":null}"),
    ] {
        let run_id = world.begin("ask", &steps, &json!({})).await;
        let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
        assert_eq!(
            world.service.send("POST", &path, &[], Body::from("{")).await.error(422)["code"],
            "validation_error"
        );
        assert_eq!(world.service.send("POST", &path, &[], "{\"a\":\"\\u0000\"}").await.status, 422);
        world.service.send("POST", &path, &[], body).await.expect(200);
        let done = world.end(run_id).await;
        done.output();
        let text: String = sqlx::query_scalar("SELECT output_data::text FROM step_executions WHERE run_id = $1")
            .bind(&done.id)
            .fetch_one(&pool)
            .await
            .expect("an output");
        assert_eq!(text.replace(' ', ""), output);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_may_come_before_the_step_that_waits_for_it(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "tell": {"id": "tell", "agent_name": "a", "next_step": "ask",
            "input_mapping": {"link": "${ask.callback_url}", "text": "${workflow.input.none:-}"}},
        "ask": callback("ask", Some("after")),
        "after": agent_step("after", &json!({"said": "${ask.output.said}"}))});
    agent.hold();
    let run_id = world.begin("tell", &steps, &json!({})).await;
    eventually("the agent has the address", async || (!agent.calls().is_empty()).then_some(())).await;
    let link = input_of(&agent.calls()[0])["link"].clone();
    let open = world.service.get(&format!("/api/v1/runs/{run_id}/callbacks")).await.expect(200);
    assert_eq!((&open[0]["url"], &open[0]["step_execution_id"]), (&link, &json!(null)));
    world.service.post(&path_of(&link), &json!({"said": "early"})).await.expect(200);
    world.service.post(&path_of(&link), &json!({"said": "again"})).await.expect(200);
    agent.0.gate.add_permits(100);
    let done = world.end(run_id).await;
    assert_eq!(done.output()["said"], json!({"said": "early"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_is_answered_with_json_whatever_its_content_type_says(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let ask = json!({"ask": callback("ask", None)});
    for kind in ["text/plain; charset=UTF-8", "application/x-www-form-urlencoded", "application/octet-stream"] {
        let run_id = world.begin("ask", &ask, &json!({"q": "why?"})).await;
        let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
        let refused = world.service.send("POST", &path, &[("content-type", kind)], "because=so").await;
        assert!(refused.text.contains("the body should be JSON, and its Content-Type says"), "{}", refused.text);
        refused.error(422);
        let answer = r#"{"Type": "Notification"}"#;
        world.service.send("POST", &path, &[("content-type", kind)], answer).await.expect(200);
        assert_eq!(world.end(run_id).await.output(), &json!({"Type": "Notification"}));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_wait_until_takes_every_form_of_iso_8601_and_at_most_ten_years(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let steps = json!({"w": {"id": "w", "type": "wait", "wait_config": {"until": "${workflow.input.at}"}}});
    for at in ["2020-01-01T10:00Z", "2020-01-01T10:00:00+01", "20200101T100000Z", "2020-01-01T10:00:00,5Z"] {
        world.run("w", &steps, &json!({"at": at})).await.output();
    }
    let late = world.run("w", &steps, &json!({"at": "9999-12-31T23:59:59Z"})).await;
    assert_eq!(late.cause(), "Step 'w' failed: wait_config.until: it must be at most ten years away");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_expires_and_a_retry_asks_anew(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let mut ask = callback("ask", None);
    ask["timeout_seconds"] = json!(60);
    let run_id = world.begin("ask", &json!({"ask": ask}), &json!({})).await;
    let open = callbacks(&world.service, &run_id, 1).await;
    assert!(open[0]["expires_at"].is_string());
    let path = path_of(&open[0]["url"]);
    parked(&pool, &run_id).await;
    a_minute_passes(&world, &pool).await;
    let failed = world.end(run_id.clone()).await;
    assert_eq!(failed.cause(), "Step 'ask' failed: no answer within 60 s");
    assert_eq!(world.service.post(&path, &json!({})).await.error(410)["code"], "callback_expired");

    world.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let again = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
    assert_ne!(again, path);
    assert_eq!(world.service.post(&path, &json!({})).await.status, 410);
    world.service.post(&again, &json!({"said": 1})).await.expect(200);
    assert_eq!(world.end(run_id).await.output(), &json!({"said": 1}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_address_that_was_given_out_outlives_a_cancellation_and_its_retry(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "tell": {"id": "tell", "agent_name": "a", "next_step": "ask", "input_mapping": {"link": "${ask.callback_url}"}},
        "ask": callback("ask", None)});
    let run_id = world.begin("tell", &steps, &json!({})).await;
    parked(&pool, &run_id).await;
    let path = path_of(&input_of(&agent.calls()[0])["link"]);
    let cancelled = world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(cancelled["status"], "CANCELLED");
    assert_eq!(attempts(&world.service, &run_id).await, ["tell COMPLETED", "ask FAILED"]);
    assert_eq!(world.service.post(&path, &json!({})).await.error(410)["code"], "callback_expired");
    assert_eq!(world.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "CANCELLED");

    world.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let open = callbacks(&world.service, &run_id, 1).await;
    assert_eq!(path_of(&open[0]["url"]), path, "who has the address of before can still answer");
    world.service.post(&path, &json!({"ok": true})).await.expect(200);
    let done = world.end(run_id).await;
    assert_eq!(done.output(), &json!({"ok": true}));
    assert_eq!(agent.calls().len(), 1);
}

/// The read of what has come is held up by the database until the other branch has ended.
#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_that_is_being_read_while_the_last_branch_ends_is_not_lost(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    agent.hold();
    let steps = json!({
        "both": {"id": "both", "type": "parallel", "parallel_steps": ["ask", "slow"]},
        "ask": callback("ask", None), "slow": agent_step("slow", &json!({}))});
    for sql in [
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS
         $$BEGIN PERFORM pg_advisory_xact_lock(7); RETURN OLD; END$$",
        "CREATE TRIGGER hold_up BEFORE DELETE ON run_wakes FOR EACH ROW EXECUTE FUNCTION hold_up()",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT pg_advisory_xact_lock(7)").execute(&mut *holder).await.expect("done");
    let run_id = world.begin("both", &steps, &json!({})).await;
    let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
    eventually("the agent is called", async || (!agent.calls().is_empty()).then_some(())).await;
    world.service.post(&path, &json!({"said": 1})).await.expect(200);
    let is_there = async |sql: &str| {
        sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(sql)).fetch_one(&pool).await.expect("a row").then_some(())
    };
    let reading = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    eventually("the executor begins to read", async || is_there(reading).await).await;
    agent.0.gate.add_permits(1);
    let ended = "SELECT EXISTS (SELECT FROM step_executions WHERE step_id = 'slow' AND status = 'COMPLETED')";
    eventually("the other branch ends", async || is_there(ended).await).await;
    holder.commit().await.expect("done");
    assert_eq!(world.end(run_id).await.output()["ask"], json!({"said": 1}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_address_of_before_asks_for_the_role_that_is_wanted_now(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let run_id = world.begin("ask", &json!({"ask": callback("ask", None)}), &json!({})).await;
    let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
    let run = world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    let workflow = format!("/api/v1/workflows/{}", run["workflow_definition_id"].as_str().expect("an id"));
    let mut ask = callback("ask", None);
    ask["callback_config"] = json!({"approval": {"role": "finance"}});
    let content = json!({"start_step": "ask", "steps": {"ask": ask}});
    world.service.put(&workflow, &content).await.expect(200);
    world.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let open = callbacks(&world.service, &run_id, 1).await;
    assert_eq!((path_of(&open[0]["url"]), &open[0]["is_approval"]), (path.clone(), &json!(true)));
    let asked: Value = sqlx::query_scalar("SELECT approval FROM step_waits").fetch_one(&pool).await.expect("one");
    assert_eq!(asked["role"], "finance");
    assert_eq!(world.service.post(&path, &json!({})).await.field_errors(), ["body.approved missing"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_approval_is_a_decision_and_a_rejection_fails_unless_it_may_not(pool: PgPool) {
    let (_agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let gate = |approval: Value| {
        let mut ask = callback("ask", Some("after"));
        ask["callback_config"] = json!({"approval": approval});
        json!({"ask": ask, "after": agent_step("after", &json!({"approved": "${ask.output.approved}", "by": "${ask.output.decided_by}"}))})
    };
    let decide = async |approval: Value, body: Value| {
        let run_id = world.begin("ask", &gate(approval), &json!({})).await;
        let open = callbacks(&world.service, &run_id, 1).await;
        assert_eq!(open[0]["is_approval"], true);
        let path = path_of(&open[0]["url"]);
        for (bad, field) in [
            (json!({}), "body.approved missing"),
            (json!({"approved": "yes"}), "body.approved bool_type"),
            (json!({"approved": true, "comment": 7}), "body.comment string_type"),
            (json!([]), "body model_attributes_type"),
        ] {
            assert_eq!(world.service.post(&path, &bad).await.field_errors(), [field]);
        }
        let told = world.service.post(&path, &body).await.expect(200);
        assert_eq!(told["approved"], body["approved"]);
        let other = json!({"approved": !body["approved"].as_bool().expect("a decision")});
        assert_eq!(world.service.post(&path, &other).await.expect(200), told, "the first decision stays");
        world.end(run_id).await
    };
    let approved = decide(json!({}), json!({"approved": true, "comment": "fine", "decided_by": "me"})).await;
    assert_eq!(approved.output()["said"], json!({"approved": true, "by": "system"}));
    assert_eq!(
        approved.row("ask")["output_data"],
        json!({"approved": true, "comment": "fine", "decided_by": "system"})
    );
    let rejected = decide(json!({}), json!({"approved": false, "comment": "too dear"})).await;
    assert_eq!(rejected.cause(), "Step 'ask' failed: it was rejected by system: too dear");
    let goes_on = decide(json!({"on_reject": "continue"}), json!({"approved": false})).await;
    assert_eq!(goes_on.output()["said"]["approved"], false);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_address_is_the_only_permission_unless_a_role_is_wanted(pool: PgPool) {
    let secret = "a-secret-of-the-tests-that-is-long-enough";
    let world = World::start_with(&pool, &[], &[("JWT_SECRET", secret), ("AUTH_ENABLED", "false")]).await;
    let mut config = world.service.config.clone();
    config.auth.enabled = true;
    let guarded = Service::start_with(config);
    let token = |claims: Value| {
        let mut claims = claims;
        claims["exp"] = json!(Clock::default().now().timestamp() + 600);
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("a token");
        format!("Bearer {token}")
    };
    let plain = world.begin("ask", &json!({"ask": callback("ask", None)}), &json!({})).await;
    let path = path_of(&callbacks(&world.service, &plain, 1).await[0]["url"]);
    assert_eq!(guarded.get(&format!("/api/v1/runs/{plain}/callbacks")).await.status, 401);
    guarded.send("POST", &path, &[("authorization", "Bearer nonsense")], "{}").await.expect(200);
    world.end(plain).await.output();

    let mut ask = callback("ask", None);
    ask["callback_config"] = json!({"approval": {"role": "manager"}});
    let run_id = world.begin("ask", &json!({"ask": ask}), &json!({})).await;
    let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
    let decide = async |authorization: &str| {
        guarded.send("POST", &path, &[("authorization", authorization)], json!({"approved": true}).to_string()).await
    };
    for nobody in ["Bearer ", "Bearer nonsense", &format!("{}x", token(json!({"sub": "eve", "role": "manager"})))] {
        assert_eq!(decide(nobody).await.error(401)["code"], "unauthorized");
    }
    for other in [
        json!({"sub": "eve", "role": "operator"}),
        json!({"sub": "eve", "role": "viewer", "roles": ["man", {"a": 1}]}),
        json!({"sub": "eve", "role": "viewer", "roles": "manager"}),
    ] {
        assert_eq!(decide(&token(other)).await.error(403)["code"], "role_required");
    }
    // Who may only read does not decide, whatever the role is of which that is a part.
    let admin = token(json!({"sub": "root", "role": "admin"}));
    let headers = [("authorization", admin.as_str()), ("content-type", "application/json")];
    let key = json!({"name": "narrow", "role": "admin", "scopes": ["runs:read"]}).to_string();
    let key = guarded.send("POST", "/api/v1/api-keys", &headers, key).await.expect(201);
    let headers = [("x-api-key", key["key"].as_str().expect("a key")), ("content-type", "application/json")];
    let decision = guarded.send("POST", &path, &headers, json!({"approved": true}).to_string()).await;
    assert_eq!(decision.error(403)["code"], "role_required");
    decide(&token(json!({"sub": "ada", "role": "viewer", "roles": ["clerk", "manager"]}))).await.expect(200);
    assert_eq!(decide(&token(json!({"sub": "eve", "role": "viewer"}))).await.status, 403);
    assert_eq!(world.end(run_id).await.output(), &json!({"approved": true, "decided_by": "ada"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_finds_its_run_after_the_executor_has_died_or_stopped(pool: PgPool) {
    let (agent, url) = repeating().await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    // One is parked, one still has an agent to hear from.
    let steps = json!({
        "both": {"id": "both", "type": "parallel", "parallel_steps": ["ask", "slow"], "next_step": "after"},
        "ask": callback("ask", None),
        "slow": agent_step("slow", &json!({"n": "${workflow.input.n}"})),
        "after": agent_step("after", &json!({"said": "${ask.output.said}"}))});
    let parked_run = world.begin("both", &steps, &json!({"n": 1})).await;
    parked(&pool, &parked_run).await;
    agent.hold();
    let busy_run = world.begin("both", &steps, &json!({"n": 2})).await;
    eventually("the agent is called", async || (agent.calls().len() == 2).then_some(())).await;
    let paths = [
        path_of(&callbacks(&world.service, &parked_run, 1).await[0]["url"]),
        path_of(&callbacks(&world.service, &busy_run, 1).await[0]["url"]),
    ];
    world.kill_executor().await;
    for path in &paths {
        world.service.post(path, &json!({"said": "late"})).await.expect(200);
    }
    agent.0.gate.add_permits(100);
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    world.executor = Some(Executor::start(&world.service));
    for run_id in [parked_run, busy_run] {
        let done = world.end(run_id).await;
        assert_eq!(done.output()["said"], json!({"said": "late"}));
        let asked = done.rows.iter().filter(|row| row["step_id"] == "ask").count();
        assert_eq!(asked, 1, "the attempt that waited goes on");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn inside_of_blocks_others_go_on_and_nothing_is_repeated_after_a_wait(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let steps = json!({
        "each": {"id": "each", "type": "loop", "next_step": "end", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["before", "fork"], "execution_mode": "parallel"}},
        "before": agent_step("before", &json!({"item": "${loop.item}"})),
        "fork": {"id": "fork", "type": "fork_join", "fork_join_config": {"branches": {
            "x": {"steps": ["x1", "ask", "x2"]}, "y": {"steps": ["y1", "nap"]}, "z": {"steps": ["bad"]}},
            "join_policy": "n_of_m", "n_required": 2}},
        "x1": agent_step("x1", &json!({"item": "${loop.item}", "link": "${ask.callback_url}"})),
        "ask": callback("ask", None),
        "x2": agent_step("x2", &json!({"said": "${ask.output.said}"})),
        "y1": agent_step("y1", &json!({"item": "${loop.item}"})),
        "nap": wait("nap", None, &json!({"duration": "PT1M"})),
        "bad": agent_step("bad", &json!({"fail": true})),
        "end": agent_step("end", &json!({"all": "${each.output.iterations}"}))});
    let run_id = world.begin("each", &steps, &json!({"items": ["p", "q"]})).await;
    let open = callbacks(&world.service, &run_id, 2).await;
    parked(&pool, &run_id).await;
    let links: HashSet<String> =
        agent.calls().iter().map(input_of).filter_map(|input| input["link"].as_str().map(str::to_owned)).collect();
    assert_eq!(links, open.iter().map(|open| open["url"].as_str().expect("text").to_owned()).collect());
    for (number, open) in open.iter().enumerate() {
        world.service.post(&path_of(&open["url"]), &json!({"said": number})).await.expect(200);
        eventually("its branch has gone on", async || {
            let calls = agent.calls();
            calls.iter().any(|call| input_of(call)["said"] == json!(number)).then_some(())
        })
        .await;
    }
    parked(&pool, &run_id).await;
    a_minute_passes(&world, &pool).await;
    let done = world.end(run_id).await;
    done.output();
    let mut attempts = done.attempts();
    attempts.sort();
    let expected = [
        "ask COMPLETED",
        "ask COMPLETED",
        "bad FAILED",
        "bad FAILED",
        "before COMPLETED",
        "before COMPLETED",
        "each COMPLETED",
        "end COMPLETED",
        "fork COMPLETED",
        "fork COMPLETED",
        "nap COMPLETED",
        "nap COMPLETED",
        "x1 COMPLETED",
        "x1 COMPLETED",
        "x2 COMPLETED",
        "x2 COMPLETED",
        "y1 COMPLETED",
        "y1 COMPLETED",
    ];
    assert_eq!(attempts, expected, "each once, although the run was parked several times");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_type_of_step_has_a_time_limit_which_goes_on_while_the_run_is_parked(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    agent.hold();
    let child = world.define("nap", &json!({"nap": wait("nap", None, &json!({"duration": "PT1H"}))})).await;
    let nap = wait("nap", None, &json!({"duration": "PT1H"}));
    let other = wait("other", None, &json!({"duration": "PT1H"}));
    for (step, rows) in [
        (json!({"agent_name": "a", "input_mapping": {}}), 1),
        (json!({"type": "wait", "wait_config": {"duration": "PT1H"}}), 1),
        (json!({"type": "parallel", "parallel_steps": ["nap", "other"]}), 3),
        (
            json!({"type": "conditional", "condition": {"expression": "true"}, "if_true_step": "nap", "if_false_step": "other"}),
            2,
        ),
        (
            json!({"type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["nap", "other"]}}),
            2,
        ),
        (
            json!({"type": "fork_join", "fork_join_config": {"branches": {"x": {"steps": ["nap"]}, "y": {"steps": ["other"]}}}}),
            3,
        ),
        (json!({"type": "sub_workflow", "sub_workflow_config": {"workflow_id": child}}), 1),
    ] {
        let mut step = step;
        step["id"] = json!("s");
        step["timeout_seconds"] = json!(60);
        let mut steps = json!({"s": step.clone()});
        if rows > 1 {
            steps["nap"] = nap.clone();
            steps["other"] = other.clone();
        }
        let run_id = world.begin("s", &steps, &json!({"items": [1]})).await;
        if step["agent_name"].is_string() {
            eventually("the agent is called", async || (!agent.calls().is_empty()).then_some(())).await;
        } else {
            parked(&pool, &run_id).await;
        }
        a_minute_passes(&world, &pool).await;
        let failed = world.end(run_id).await;
        assert_eq!(failed.cause(), "Step 's' failed: it took longer than 60 s", "{step}");
        assert_eq!(failed.rows.len(), rows, "{step}");
        assert!(failed.rows.iter().all(|row| row["status"] == "FAILED"), "{step}");
    }
    // Branches of a fork, as before; the time that the run is parked counts.
    let steps = json!({
        "s": {"id": "s", "type": "fork_join", "fork_join_config": {"join_policy": "any", "branches": {
            "x": {"steps": ["nap"], "timeout_seconds": 60}, "y": {"steps": ["ask"]}}}},
        "nap": nap, "ask": callback("ask", None)});
    let run_id = world.begin("s", &steps, &json!({})).await;
    parked(&pool, &run_id).await;
    a_minute_passes(&world, &pool).await;
    eventually("the branch is over", async || {
        let rows = attempts(&world.service, &run_id).await;
        rows.contains(&"nap FAILED".to_owned()).then_some(())
    })
    .await;
    world.service.post(&path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]), &json!(1)).await.expect(200);
    assert_eq!(world.end(run_id).await.output(), &json!({"x": null, "y": 1}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sub_workflow_is_a_run_of_its_own_that_is_linked_both_ways(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let service = &world.service;
    let inner = json!({"name": "inner", "start_step": "work", "steps": {
        "work": agent_step("work", &json!({"n": "${workflow.input.n}", "fail": "${workflow.input.fail:-false}"}))},
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}});
    service.post("/api/v1/workflows", &inner).await.expect(201);
    let outer = |mapping: Value| {
        json!({
            "sub": {"id": "sub", "type": "sub_workflow", "next_step": "after", "input_mapping": mapping,
                "sub_workflow_config": {"workflow_name": "inner"}},
            "after": agent_step("after", &json!({"n": "${sub.output.said.n}"}))})
    };
    let done = world.run("sub", &outer(json!({"n": "${workflow.input.x}"})), &json!({"x": 7})).await;
    assert_eq!(done.output()["said"], json!({"n": 7}));
    let child_id = done.row("sub")["child_run_id"].as_str().expect("the sub-run").to_owned();
    let child = service.get(&format!("/api/v1/runs/{child_id}")).await.expect(200);
    assert_eq!((&child["parent_run_id"], &child["parent_step_id"]), (&json!(done.id), &json!("sub")));
    assert_eq!(
        (&child["status"], &child["input_data"], &child["workflow_name"]),
        (&json!("COMPLETED"), &json!({"n": 7}), &json!("inner"))
    );
    let listed = service.get(&format!("/api/v1/runs?parent_run_id={}", done.id)).await.expect(200);
    assert_eq!((&listed["total"], &listed["items"][0]["run_id"]), (&json!(1), &json!(child_id)));

    let refused = world.run("sub", &outer(json!({"n": "seven"})), &json!({})).await;
    assert!(refused.cause().starts_with("Step 'sub' failed: the input of workflow 'inner': "), "{}", refused.cause());
    let mut looks = vec![json!({"$ref": "#/$defs/a"}); 1500];
    looks.push(json!(true));
    let costly = json!({"name": "costly", "start_step": "nap", "steps": {
        "nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 0}}},
        "input_schema": {"properties": {"n": {"items": {"anyOf": looks}}}, "$defs": {"a": {"type": "string"}}}});
    service.post("/api/v1/workflows", &costly).await.expect(201);
    let mut calls_costly = outer(json!({"n": "${workflow.input.n}"}));
    calls_costly["sub"]["sub_workflow_config"] = json!({"workflow_name": "costly"});
    let refused = world.run("sub", &calls_costly, &json!({"n": vec![1; 21_000]})).await;
    assert!(refused.cause().contains("checking it takes too much work"), "{}", refused.cause());
    let failed = world.run("sub", &outer(json!({"n": 1, "fail": true})), &json!({})).await;
    let cause = failed.cause();
    assert!(cause.contains("ended FAILED: Step 'work' failed: agent 'a'"), "{cause}");
    assert_eq!(failed.attempts(), ["sub FAILED"]);
    let mut unknown = outer(json!({}));
    unknown["sub"]["sub_workflow_config"] = json!({"workflow_name": "nobody"});
    assert_eq!(
        world.run("sub", &unknown, &json!({})).await.cause(),
        "Step 'sub' failed: workflow 'nobody' does not exist"
    );
    // A retry begins another one.
    let again = world.retry(&failed.id).await;
    assert_eq!(again.attempts(), ["sub FAILED", "sub FAILED"]);
    assert_ne!(again.row("sub")["child_run_id"], failed.row("sub")["child_run_id"]);
    assert_eq!(agent.calls().len(), 4);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_workflow_that_runs_itself_ends(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let body = json!({"name": "self", "start_step": "again", "steps": {
        "again": {"id": "again", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "self"}}}});
    let workflow = world.service.post("/api/v1/workflows", &body).await.expect(201);
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let run = world.service.post(&path, &json!({"input_data": {}})).await.expect(202);
    let failed = world.end(run["run_id"].as_str().expect("an id").to_owned()).await;
    assert!(failed.cause().contains("workflows may be nested at most 16 deep"), "{}", failed.cause());
    let runs: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs WHERE status = 'FAILED'")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(runs, 17);
}

/// Places that get free one by one are for all in turn: one organisation's flood keeps nobody waiting.
#[sqlx::test(migrator = "MIGRATOR")]
async fn parked_runs_take_turns_also_when_there_is_one_place(pool: PgPool) {
    let mut connection = pool.acquire().await.expect("a connection");
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id, priority, wake_at, paused_at)
               SELECT organization_id || '-' || workflow_id || '-' || n, workflow_id, 'w', 'PENDING', organization_id, priority,
                   now() - interval '1 s' * (100 - n), paused_at
               FROM (VALUES ('acme', 'flood', 5, 80, NULL), ('acme', 'one', 5, 1, NULL), ('beta', 'few', 5, 2, NULL),
                   ('beta', 'urgent', 9, 1, NULL), ('beta', 'paused', 9, 5, now()), ('gamma', 'later', 0, 1, NULL))
                   AS of (organization_id, workflow_id, priority, count, paused_at), generate_series(1, count) AS n";
    sqlx::query(sql).execute(&mut *connection).await.expect("done");
    // Something has come for one that would wait for ever.
    sqlx::query("UPDATE workflow_runs SET wake_at = 'infinity' WHERE workflow_id = 'one'")
        .execute(&pool)
        .await
        .expect("done");
    sqlx::query("INSERT INTO run_wakes (run_id) VALUES ('acme-one-1')").execute(&pool).await.expect("done");
    let owner = uuid::Uuid::new_v4();
    let mut order = Vec::new();
    while let [taken] = &executions::wake(&mut connection, owner, 1, &Limits::none()).await.expect("done")[..] {
        order.push(taken.run_id.clone());
    }
    assert_eq!(order.len(), 85, "all but those that are paused");
    let nth = |run_id: &str| order.iter().position(|taken| taken == run_id).expect("it was taken");
    assert!(nth("beta-urgent-1") < nth("beta-few-1"), "by priority, within the organisation");
    for waiting in ["acme-one-1", "beta-few-1", "gamma-later-1"] {
        let nth = nth(waiting);
        assert!(nth < 80, "{waiting} was the {nth}th, of draws in which it has a sixth of the chances at least");
    }
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM run_wakes").fetch_one(&pool).await.expect("a count");
    assert_eq!(left, 0);
    // Whoever took them died before it went on with any.
    sqlx::query("UPDATE workflow_runs SET parked_at = now() WHERE workflow_id = 'few'")
        .execute(&pool)
        .await
        .expect("done");
    let taken = executions::take_over(&pool, uuid::Uuid::new_v4(), &[], 100, &Limits::none()).await.expect("done");
    let parked = taken.iter().filter(|taken| taken.is_parked).count();
    assert_eq!((taken.len(), parked), (85, 2), "nothing of those was begun, and nothing was interrupted");
}

/// As when a branch is given up while its statement is under way.
#[sqlx::test(migrator = "MIGRATOR")]
async fn what_has_begun_to_wait_after_all_was_given_up_ends_with_the_run(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    let run_id = world.begin("ask", &json!({"ask": callback("ask", None)}), &json!({})).await;
    let path = path_of(&callbacks(&world.service, &run_id, 1).await[0]["url"]);
    parked(&pool, &run_id).await;
    for sql in [
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, started_at, input_data)
         VALUES ('late', $1, 'sub', 'sub', '', 'PENDING', now() AT TIME ZONE 'UTC', '{}')",
        "INSERT INTO step_waits (run_id, place, step_id, attempt_id, child_run_id) VALUES ($1, 'sub', 'sub', 'late', 'child')",
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, parent_run_id)
         VALUES ('child', 'w', 'w', 'PENDING', $1)",
    ] {
        sqlx::query(sql).bind(&run_id).execute(&pool).await.expect(sql);
    }
    world.service.post(&path, &json!({})).await.expect(200);
    let done = world.end(run_id).await;
    assert_eq!((&done.run["status"], &done.row("sub")["status"]), (&json!("COMPLETED"), &json!("SKIPPED")));
    assert_eq!(ended(&world.service, "child").await["status"], "CANCELLED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_begins_no_more_others_than_it_may_and_a_retry_begins_anew(pool: PgPool) {
    let world = World::start_with(&pool, &[], &[("MAX_SUB_RUNS", "20")]).await;
    let body = json!({"name": "bomb", "start_step": "each", "steps": {
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}",
            "loop_body": ["again"], "execution_mode": "parallel", "on_error": "continue"}},
        "again": {"id": "again", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "bomb"},
            "input_mapping": {"items": "${workflow.input.items}"}}}});
    let workflow = world.service.post("/api/v1/workflows", &body).await.expect(201);
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let run = world.service.post(&path, &json!({"input_data": {"items": [1, 2, 3]}})).await.expect(202);
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    ended(&world.service, &run_id).await;
    let count = async |sql: &str| {
        sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(&pool).await.expect("a count")
    };
    assert_eq!(count("SELECT count(*) FROM workflow_runs WHERE parent_run_id IS NOT NULL").await, 20);
    let refused =
        "SELECT sum((output_data ->> 'failed_count')::bigint)::bigint FROM step_executions WHERE step_id = 'each'";
    assert_eq!(count(refused).await, 43, "of three tries of each run 20 were let");
    assert_eq!(count("SELECT count(*) FROM sub_run_counts").await, 1, "they count for the outermost one");

    let leaf = json!({"name": "leaf", "start_step": "nap", "steps": {"nap": wait("nap", None, &json!({"duration": "PT0.01S"}))}});
    world.service.post("/api/v1/workflows", &leaf).await.expect(201);
    let many = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["one"]}},
        "one": {"id": "one", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "leaf"}}});
    let items: Vec<u8> = (0..25).collect();
    let failed = world.run("each", &many, &json!({"items": items})).await;
    assert!(failed.cause().contains("a run may start at most 20 sub-workflow runs"), "{}", failed.cause());
    world.service.post(&format!("/api/v1/runs/{}/retry", failed.id), &json!({})).await.expect(202);
    assert_eq!(world.end(failed.id).await.run["status"], "COMPLETED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_sub_workflow_is_cancelled_with_the_run_around_it_and_with_what_is_inside(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    agent.hold();
    let innermost = world.define("work", &json!({"work": agent_step("work", &json!({}))})).await;
    let sub = |id: &str, workflow: &str| json!({"id": id, "type": "sub_workflow", "sub_workflow_config": {"workflow_id": workflow}});
    let inner = world.define("sub", &json!({"sub": sub("sub", &innermost)})).await;
    let nested = async |status: &str| -> i64 {
        let sql = "SELECT count(*) FROM workflow_runs WHERE parent_run_id IS NOT NULL AND status = $1";
        sqlx::query_scalar(sql).bind(status).fetch_one(&pool).await.expect("a count")
    };
    let run_id = world.begin("sub", &json!({"sub": sub("sub", &inner)}), &json!({})).await;
    eventually("the innermost is at work", async || (!agent.calls().is_empty()).then_some(())).await;
    parked(&pool, &run_id).await;
    world.service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    assert_eq!(nested("CANCELLED").await, 2, "with the answer all of them are");
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM step_executions WHERE status IN ('PENDING', 'RUNNING')")
        .fetch_one(&pool)
        .await
        .expect("a count");
    assert_eq!(open, 0);
    agent.0.gate.add_permits(1000);
    // Given up by a join that was decided without it, and by the failure of a sibling.
    agent.hold();
    let long = world.define("nap", &json!({"nap": wait("nap", None, &json!({"duration": "PT1H"}))})).await;
    let steps = json!({
        "fork": {"id": "fork", "type": "fork_join", "fork_join_config": {"join_policy": "any", "branches": {
            "x": {"steps": ["sub"]}, "y": {"steps": ["soon"]}}}},
        "sub": sub("sub", &long), "soon": wait("soon", None, &json!({"duration": "PT1M"}))});
    let run_id = world.begin("fork", &steps, &json!({})).await;
    parked(&pool, &run_id).await;
    let rows = path::steps(&world.service, &run_id).await;
    let child = rows.iter().find_map(|row| row["child_run_id"].as_str()).expect("a run").to_owned();
    parked(&pool, &child).await;
    a_minute_passes(&world, &pool).await;
    let done = world.end(run_id).await;
    done.output();
    assert_eq!(done.row("sub")["status"], "SKIPPED");
    assert_eq!(nested("CANCELLED").await, 3);
    let log = world.service.get(&format!("/api/v1/runs/{child}/logs?page_size=100")).await.expect(200);
    let kinds: Vec<&str> =
        log["items"].as_array().expect("items").iter().map(|item| item["kind"].as_str().expect("text")).collect();
    assert_eq!(kinds.last(), Some(&"attempt.failed"), "{kinds:?}");
    assert!(kinds.contains(&"run.cancelled"), "{kinds:?}");
    assert_eq!(attempts(&world.service, &child).await, ["nap FAILED"]);
}
