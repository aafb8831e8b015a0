//! What one run may take, and that none ends one executor after the other.

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::db::{
    self,
    executions::{self, Limits},
    migrations::MIGRATOR,
    processes,
};

use crate::{
    path::{Agent, Executor, ended},
    service::{Service, config, eventually},
    steps::{World, agent_step, input_of, saying},
    waits::parked,
};

/// An agent that says so many characters.
async fn talking(size: usize) -> (Agent, String) {
    Agent::start(move |_, call| saying(call, &json!({"text": "x".repeat(size), "input": input_of(call)}))).await
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_takes_more_than_it_may_fails_whatever_its_loops_make_of_failures(pool: PgPool) {
    let (_agent, url) = talking(300_000).await;
    let each = |id: &str, body: &str| {
        json!({"id": id, "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": [body],
            "execution_mode": "parallel", "on_error": "continue"}})
    };
    let nested = json!({"outer": each("outer", "middle"), "middle": each("middle", "inner"), "inner": each("inner", "leaf"),
        "leaf": {"id": "leaf", "type": "loop", "loop_config": {"collection": "${workflow.input.none:-[]}", "loop_body": ["say"]}},
        "say": agent_step("say", &json!({}))});
    let mut talk = json!({"outer": each("outer", "say"), "say": agent_step("say", &json!({}))});
    // One after the other: the number of calls that begin side by side before the fourth answer depends on the machine.
    talk["outer"]["loop_config"]["execution_mode"] = json!("sequential");
    for (name, most, steps) in
        [("MAX_RUN_STEPS", "60", &nested), ("MAX_RUN_BRANCHES", "60", &nested), ("MAX_RUN_BYTES", "1048576", &talk)]
    {
        let world = World::start_with(&pool, &[], &[(name, most)]).await;
        sqlx::query("INSERT INTO agents (name, url) VALUES ('a', $1) ON CONFLICT DO NOTHING")
            .bind(&url)
            .execute(&pool)
            .await
            .expect("an agent");
        let failed = world.run("outer", steps, &json!({"items": vec![1; 100]})).await;
        assert!(failed.cause().contains(name) && failed.cause().contains(most), "{name}: {}", failed.cause());
        // The row of the outer loop, and one of each iteration that was begun.
        assert!(failed.rows.len() <= 61, "{name}: {} rows", failed.rows.len());
        assert!(failed.rows.iter().all(|row| row["status"] != "RUNNING"), "{name}");
        if name == "MAX_RUN_STEPS" {
            assert_eq!(failed.rows.len(), 60);
            // It counts all that was ever made: a retry makes no more.
            assert!(world.retry(&failed.id).await.cause().contains(name));
        }
        world.service.stop().await;
        sqlx::query("DELETE FROM workflow_definitions").execute(&pool).await.expect("done");
    }
}

/// The answer comes in the moment in which the run ends.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_fails_if_its_last_answer_is_too_much(pool: PgPool) {
    let (_agent, url) = talking(1_100_000).await;
    let world = World::start_with(&pool, &[("a", &url)], &[("MAX_RUN_BYTES", "1048576")]).await;
    let failed = world.run("say", &json!({"say": agent_step("say", &json!({}))}), &json!({})).await;
    assert!(failed.cause().contains("MAX_RUN_BYTES"), "{}", failed.cause());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_definition_of_which_every_run_would_be_too_large_is_refused(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("MAX_RUN_STEPS", "1000")]));
    service.agent("a", "http://127.0.0.1:9/").await;
    let block = |id: &str, inner: &str, count: usize| json!({"id": id, "type": "parallel", "parallel_steps": vec![inner; count]});
    let body = |count: usize| {
        json!({"name": "n", "start_step": "x", "steps": {"x": block("x", "y", count), "y": block("y", "z", 10),
            "z": {"id": "z", "agent_name": "a", "input_mapping": {}}}})
    };
    service.post("/api/v1/workflows", &body(90)).await.expect(201);
    let refused = service.post("/api/v1/workflows", &body(91)).await;
    assert_eq!((refused.status.as_u16(), refused.field_errors()), (422, vec!["body.steps too_many_steps".to_owned()]));
    assert!(refused.text.contains("1002 steps, and the limit is 1000 (MAX_RUN_STEPS)"), "{}", refused.text);
    let checked = service.post("/api/v1/workflows/validate", &body(91)).await.expect(200);
    assert_eq!((&checked["valid"], &checked["errors"][0]["type"]), (&json!(false), &json!("too_many_steps")));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn outputs_that_no_later_step_refers_to_are_not_held(pool: PgPool) {
    let (_agent, url) = talking(400_000).await;
    let world = World::start_with(&pool, &[("a", &url)], &[("MAX_RUN_MEMORY_BYTES", "1048576")]).await;
    let chain = |of_last: &dyn Fn(usize) -> Value, before_last: &str| {
        let mut steps = json!({});
        for number in 0..8 {
            let mapping = match number {
                0 => json!({}),
                7 => of_last(number),
                _ => json!({"length": format!("${{s{}.output.said.input}}", number - 1)}),
            };
            let id = format!("s{number}");
            steps[&id] = agent_step(&id, &mapping);
            let next = if number == 6 { before_last.to_owned() } else { format!("s{}", number + 1) };
            steps[&id]["next_step"] = if number == 7 { Value::Null } else { json!(next) };
        }
        steps["pause"] =
            json!({"id": "pause", "type": "wait", "wait_config": {"duration_seconds": 1}, "next_step": "s7"});
        if before_last == "s7" {
            steps.as_object_mut().expect("steps").remove("pause");
        }
        steps
    };
    let one = |_| json!({"one": "${s2.output.said.input.length}"});
    let all = |_| {
        let mapping: serde_json::Map<String, Value> =
            (0..7).map(|number| (format!("m{number}"), json!(format!("${{s{number}.output.said.input}}")))).collect();
        Value::Object(mapping)
    };
    world.run("s0", &chain(&one, "s7"), &json!({})).await.output();
    // Taken up again it reads no more than that.
    let waited = world.run("s0", &chain(&one, "pause"), &json!({})).await;
    assert!(waited.output()["said"]["input"]["one"].is_object(), "{}", waited.output()["said"]["input"]);
    let failed = world.run("s0", &chain(&all, "s7"), &json!({})).await;
    assert!(failed.cause().contains("1048576 bytes (MAX_RUN_MEMORY_BYTES)"), "{}", failed.cause());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_whose_earlier_steps_cannot_be_read_in_time_fails_instead_of_being_tried_for_ever(pool: PgPool) {
    let world = World::start(&pool, &[]).await;
    for sql in [
        "CREATE FUNCTION take_too_long() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'; END $$",
        "CREATE TRIGGER takes_too_long BEFORE UPDATE ON workflow_runs FOR EACH ROW
            WHEN (OLD.parked_at IS NOT NULL AND NEW.parked_at IS NULL) EXECUTE FUNCTION take_too_long()",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let steps = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    let failed = world.run("nap", &steps, &json!({})).await;
    assert!(failed.cause().contains("longer than its statement time-out"), "{}", failed.cause());
    assert_eq!(failed.attempts(), ["nap FAILED"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_whose_outputs_cannot_be_written_in_time_fails_and_holds_nobody_up(pool: PgPool) {
    let (agent, url) = talking(400_000).await;
    let (_quick, quick_url) = talking(1).await;
    let world = World::start_with(&pool, &[("a", &url), ("b", &quick_url)], &[]).await;
    for sql in [
        "CREATE FUNCTION take_too_long() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014'; END $$",
        "CREATE TRIGGER takes_too_long BEFORE UPDATE ON step_executions FOR EACH ROW
            WHEN (length(NEW.output_data::text) > 300000) EXECUTE FUNCTION take_too_long()",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let steps = json!({"s": agent_step("s", &json!({}))});
    let workflow = world.define("s", &steps).await;
    let path = format!("/api/v1/workflows/{workflow}/execute");
    let mut large = Vec::new();
    for _ in 0..3 {
        let run = world.service.post(&path, &json!({"input_data": {}})).await.expect(202);
        large.push(run["run_id"].as_str().expect("an id").to_owned());
    }
    eventually("the agent is called by all", async || (agent.calls().len() == 3).then_some(())).await;
    let mut small = agent_step("q", &json!({}));
    small["agent_name"] = json!("b");
    world.run("q", &json!({"q": small}), &json!({})).await.output();
    for run_id in large {
        let failed = world.end(run_id).await;
        assert!(failed.cause().contains("longer than its statement time-out"), "{}", failed.cause());
        assert_eq!(failed.attempts(), ["s FAILED"]);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_output_of_a_block_has_a_limit_that_its_error_names(pool: PgPool) {
    let (_agent, url) = talking(3_000_000).await;
    let world = World::start_with(&pool, &[("a", &url)], &[]).await;
    let each = json!({"id": "each", "type": "loop",
        "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["say"]}});
    let failed = world
        .run("each", &json!({"each": each, "say": agent_step("say", &json!({}))}), &json!({"items": vec![1; 6]}))
        .await;
    let expected = "its output is larger than 16777216 bytes, which is the limit of a block's output";
    assert!(failed.cause().contains(expected), "{}", failed.cause());
}

/// A run whose executors die is taken by another id each time; nobody of that id has a heartbeat.
async fn take_over(pool: &PgPool) -> i16 {
    let taken = executions::take_over(pool, Uuid::new_v4(), &[], 10, &Limits::none()).await.expect("done");
    assert_eq!(taken.len(), 1);
    taken[0].takeovers
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_ends_its_executors_fails_and_one_that_gets_on_does_not(pool: PgPool) {
    let (agent, url) = talking(1).await;
    let mut world = World::start_with(&pool, &[("a", &url)], &[("MAX_RUN_TAKEOVERS", "2")]).await;
    agent.hold();
    let run_id = world.begin("s", &json!({"s": agent_step("s", &json!({}))}), &json!({})).await;
    eventually("the agent is called", async || (agent.calls().len() == 1).then_some(())).await;
    world.kill_executor().await;
    sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("the dead is buried");
    assert_eq!((take_over(&pool).await, take_over(&pool).await), (1, 2));
    let got_on =
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, completed_at)
                  VALUES ('earlier', $1, 'e', 'e', 'e', 'COMPLETED', '{}', now() AT TIME ZONE 'UTC')";
    sqlx::query(got_on).bind(&run_id).execute(&pool).await.expect("done");
    assert_eq!((take_over(&pool).await, take_over(&pool).await), (1, 2));
    // Handed over by an executor that stops, it is not taken from a dead one.
    let owner: Uuid =
        sqlx::query_scalar("SELECT executor_id FROM workflow_runs").fetch_one(&pool).await.expect("an executor");
    processes::deregister(&db::pool(&world.service.config.database), owner).await.expect("retired");
    assert_eq!(take_over(&pool).await, 2);
    world.executor = Some(Executor::start(&world.service));
    let failed = world.end(run_id).await;
    assert!(failed.cause().contains("MAX_RUN_TAKEOVERS"), "{}", failed.cause());
    assert_eq!((agent.calls().len(), failed.row("s")["status"].clone()), (1, json!("FAILED")));
    // A retry begins anew.
    agent.0.gate.add_permits(100);
    world.retry(&failed.id).await.output();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_that_is_parked_has_got_on(pool: PgPool) {
    let mut world = World::start_with(&pool, &[], &[("MAX_RUN_TAKEOVERS", "1")]).await;
    let nap = json!({"nap": {"id": "nap", "type": "wait", "wait_config": {"duration": "PT1H"}}});
    let run_id = world.begin("nap", &nap, &json!({})).await;
    parked(&pool, &run_id).await;
    world.kill_executor().await;
    for _ in 0..3 {
        // Somebody takes it up and dies.
        sqlx::query("UPDATE workflow_runs SET wake_at = now()").execute(&pool).await.expect("done");
        let mut connection = pool.acquire().await.expect("a connection");
        let woken = executions::wake(&mut connection, Uuid::new_v4(), 1, &Limits::none()).await.expect("done");
        assert_eq!((woken.len(), woken[0].takeovers), (1, 0));
        let executor = Executor::start(&world.service);
        parked(&pool, &run_id).await;
        executor.kill().await;
        sqlx::query("DELETE FROM processes WHERE role = 'executor'").execute(&pool).await.expect("done");
    }
    sqlx::query("UPDATE workflow_runs SET wake_at = now()").execute(&pool).await.expect("done");
    sqlx::query("UPDATE step_waits SET due_at = now()").execute(&pool).await.expect("done");
    let _executor = Executor::start(&world.service);
    assert_eq!(ended(&world.service, &run_id).await["status"], "COMPLETED");
}

/// The runs of one organisation take long and are urgent; those of the other still find a place.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_busy_organisation_leaves_a_place_to_the_others(pool: PgPool) {
    let sql = "INSERT INTO organizations (id, name, created_by, updated_by) VALUES ('acme', 'Acme', 'me', 'me')";
    sqlx::query(sql).execute(&pool).await.expect("an organisation");
    let (slow, slow_url) = talking(1).await;
    let (_quick, quick_url) = talking(1).await;
    let world = World::start_with(&pool, &[("a", &slow_url)], &[("MAX_CONCURRENT_EXECUTIONS", "4")]).await;
    slow.hold();
    let workflow_id = world.define("s", &json!({"s": agent_step("s", &json!({}))})).await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    for _ in 0..8 {
        world.service.post(&path, &json!({"input_data": {}, "priority": 9})).await.expect(202);
    }
    eventually("all but one slot are taken", async || (slow.calls().len() == 3).then_some(())).await;
    let agent = "INSERT INTO agents (name, url, organization_id) VALUES ('a', $1, 'acme')";
    sqlx::query(agent).bind(&quick_url).execute(&pool).await.expect("an agent");
    let run = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, workflow_plan, input_data, organization_id,
                   wake_at, priority)
               SELECT 'acme-' || n, 'w', 'w', 'PENDING', workflow_data, '{}', 'acme', now(), 0
               FROM workflow_definitions, generate_series(1, 3) AS n";
    sqlx::query(run).execute(&pool).await.expect("runs");
    let ended = "SELECT count(*) FROM workflow_runs WHERE organization_id = 'acme' AND status = 'COMPLETED'";
    eventually("the other organisation's runs have completed", async || {
        (sqlx::query_scalar::<_, i64>(ended).fetch_one(&pool).await.expect("a count") == 3).then_some(())
    })
    .await;
    assert_eq!(slow.calls().len(), 3, "the slot is kept free");
    slow.0.gate.add_permits(100);
    eventually("all of them are executed", async || (slow.calls().len() == 8).then_some(())).await;
}
