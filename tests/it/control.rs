//! What callers can ask of runs, and how runs share the executors: pause and resume, cancellation at any point,
//! retries with another input, priorities, fairness, limits.

use std::time::Duration;

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{db::migrations::MIGRATOR, kafka};

use crate::{
    path::{Agent, Executor, attempts, ended},
    service::{Service, eventually},
    steps::{World, agent_step, input_of, repeating, saying},
    waits::{callbacks, parked, path_of},
};

async fn act(service: &Service, run_id: &str, act: &str) -> Value {
    service.post(&format!("/api/v1/runs/{run_id}/{act}"), &json!({})).await.expect(200)
}

fn chain(ids: &[&str]) -> Value {
    let mut steps = json!({});
    for (index, id) in ids.iter().enumerate() {
        steps[id] = agent_step(id, &json!({"step": id}));
        steps[id]["next_step"] = json!(ids.get(index + 1));
    }
    steps
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_paused_run_ends_the_step_under_way_and_begins_no_other_until_it_is_resumed(pool: PgPool) {
    let (agent, url) = repeating().await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    agent.hold();
    let items: Vec<usize> = (0..500).collect();
    let steps = json!({
        "each": {"id": "each", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["one"]}},
        "one": agent_step("one", &json!({"n": "${loop.item}"}))});
    let run_id = world.begin("each", &steps, &json!({"items": items})).await;
    eventually("the first step is under way", async || (agent.calls().len() == 1).then_some(())).await;
    let paused = act(&world.service, &run_id, "pause").await;
    assert_eq!(paused["status"], "RUNNING");
    assert!(paused["paused_at"].is_string());
    let again = act(&world.service, &run_id, "pause").await;
    assert_eq!(again["paused_at"], paused["paused_at"]);
    // One after the other may end, until the executor has heard of it: that takes a second at most, and no step more.
    let sql = "SELECT executor_id IS NULL FROM workflow_runs WHERE run_id = $1";
    eventually("the run is parked", async || {
        agent.0.gate.add_permits(1);
        let is_parked: bool = sqlx::query_scalar(sql).bind(&run_id).fetch_one(&pool).await.expect("a run");
        is_parked.then_some(())
    })
    .await;
    let calls = agent.calls().len();
    assert!(calls < 500, "it was made to the end");
    let open = |rows: Vec<String>| rows.into_iter().filter(|row| !row.ends_with("COMPLETED")).collect::<Vec<_>>();
    assert_eq!(open(attempts(&world.service, &run_id).await), ["each RUNNING"]);
    agent.0.gate.add_permits(1000);
    // A restart does not make it go on; the look for parked runs comes by several times before the next one is done.
    world.kill_executor().await;
    world.executor = Some(Executor::start(&world.service));
    let nap = json!({"x": {"id": "x", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    world.run("x", &nap, &json!({})).await.output();
    assert_eq!(agent.calls().len(), calls);
    let resumed = act(&world.service, &run_id, "resume").await;
    assert_eq!((&resumed["paused_at"], &resumed["status"]), (&json!(null), &json!("RUNNING")));
    act(&world.service, &run_id, "resume").await;
    let done = world.end(run_id.clone()).await;
    assert_eq!(done.output()["total_count"], 500);
    assert_eq!((agent.calls().len(), done.rows.len()), (500, 501), "nothing is made twice");
    for wrong in ["pause", "resume"] {
        let refused = world.service.post(&format!("/api/v1/runs/{run_id}/{wrong}"), &json!({})).await.error(400);
        assert_eq!(refused["code"], "run_wrong_state");
        assert_eq!(world.service.post(&format!("/api/v1/runs/none/{wrong}"), &json!({})).await.status, 404);
    }
    let sql = "SELECT kind FROM run_events WHERE run_id = $1 AND kind LIKE 'run.%' ORDER BY id";
    let kinds: Vec<String> = sqlx::query_scalar(sql).bind(&run_id).fetch_all(&pool).await.expect("events");
    assert_eq!(kinds, ["run.dispatched", "run.started", "run.paused", "run.resumed", "run.completed"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_can_be_paused_before_it_begins_and_while_it_waits(pool: PgPool) {
    let (agent, url) = repeating().await;
    let mut world = World::start(&pool, &[("a", &url)]).await;
    world.executor.take().expect("an executor").stop().await;
    let pending = world.begin("one", &chain(&["one"]), &json!({})).await;
    act(&world.service, &pending, "pause").await;
    world.executor = Some(Executor::start(&world.service));
    let steps = json!({
        "ask": {"id": "ask", "type": "callback", "next_step": "after"}, "after": agent_step("after", &json!({}))});
    let waiting = world.begin("ask", &steps, &json!({})).await;
    let open = callbacks(&world.service, &waiting, 1).await;
    parked(&pool, &waiting).await;
    act(&world.service, &waiting, "pause").await;
    world.service.post(&path_of(&open[0]["url"]), &json!({"a": 1})).await.expect(200);
    // Another run comes and goes meanwhile, through Kafka and through a wait.
    let nap = json!({"x": {"id": "x", "type": "wait", "wait_config": {"duration_seconds": 1}}});
    world.run("x", &nap, &json!({})).await.output();
    assert_eq!(world.service.get(&format!("/api/v1/runs/{pending}")).await.expect(200)["status"], "PENDING");
    assert_eq!(attempts(&world.service, &waiting).await, ["ask PENDING"]);
    assert!(agent.calls().is_empty());
    for run_id in [&pending, &waiting] {
        act(&world.service, run_id, "resume").await;
        world.end(run_id.clone()).await.output();
    }
    // A paused run can be cancelled, and a retry of it is not paused.
    let run_id = world.begin("ask", &steps, &json!({})).await;
    parked(&pool, &run_id).await;
    act(&world.service, &run_id, "pause").await;
    assert_eq!(act(&world.service, &run_id, "cancel").await["status"], "CANCELLED");
    let again = world.service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    assert_eq!(again["paused_at"], json!(null));
    callbacks(&world.service, &run_id, 1).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cancellation_ends_a_run_wherever_it_is_and_nothing_changes_it_later(pool: PgPool) {
    let (agent, url) = repeating().await;
    let patient = json!({"name": "patient", "url": "http://127.0.0.1:1/",
        "retry_config": {"max_retries": 10, "initial_delay_ms": 60_000, "max_delay_ms": 60_000}});
    let world = World::start(&pool, &[("a", &url)]).await;
    world.service.post("/api/v1/agents", &patient).await.expect(201);
    agent.hold();
    let nap = json!({"id": "s", "type": "wait", "wait_config": {"duration": "PT1H"}});
    let ask = json!({"id": "ask", "type": "callback"});
    let both = json!({"id": "s", "type": "parallel", "parallel_steps": ["ask", "work"]});
    let calls = agent.calls().len();
    for (steps, open) in [
        (json!({"s": agent_step("s", &json!({}))}), 1),
        (json!({"s": {"id": "s", "agent_name": "patient", "input_mapping": {}}}), 0),
        (json!({"s": nap}), 1),
        (json!({"s": {"id": "s", "type": "callback"}}), 1),
        (json!({"s": both, "ask": ask, "work": agent_step("work", &json!({}))}), 3),
    ] {
        let run_id = world.begin("s", &steps, &json!({})).await;
        let sql = "SELECT count(*) FROM step_executions WHERE run_id = $1 AND status IN ('PENDING', 'RUNNING')";
        let count = async || -> i64 { sqlx::query_scalar(sql).bind(&run_id).fetch_one(&pool).await.expect("a count") };
        eventually("it is where it shall be", async || {
            let has_rows = !attempts(&world.service, &run_id).await.is_empty();
            (has_rows && count().await == open).then_some(())
        })
        .await;
        assert_eq!(act(&world.service, &run_id, "cancel").await["status"], "CANCELLED");
        assert_eq!(count().await, 0, "{steps}");
        let active = "SELECT count(*) FROM workflow_runs WHERE executor_id IS NOT NULL";
        let active: i64 = sqlx::query_scalar(active).fetch_one(&pool).await.expect("a count");
        assert_eq!(active, 0);
        let before = attempts(&world.service, &run_id).await;
        agent.0.gate.add_permits(10);
        // Another run through the same executor ends after whatever the first could still have written.
        world.run("x", &json!({"x": agent_step("x", &json!({}))}), &json!({})).await.output();
        assert_eq!(attempts(&world.service, &run_id).await, before);
        assert_eq!(world.service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "CANCELLED");
        while agent.0.gate.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok() {}
    }
    assert!(agent.calls().len() > calls);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_may_have_another_input_which_has_to_fit_the_schema(pool: PgPool) {
    let (agent, url) = repeating().await;
    let world = World::start(&pool, &[("a", &url)]).await;
    let mut steps = chain(&["one", "two"]);
    steps["one"]["input_mapping"] = json!({"n": "${workflow.input.n}"});
    steps["two"]["input_mapping"] = json!({"n": "${workflow.input.n}", "fail": "${workflow.input.fail}"});
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n", "fail"]});
    let body = json!({"name": "w", "start_step": "one", "steps": steps, "input_schema": schema});
    let workflow = world.service.post("/api/v1/workflows", &body).await.expect(201);
    let path = format!("/api/v1/workflows/{}/execute", workflow["id"].as_str().expect("an id"));
    let run = world.service.post(&path, &json!({"input_data": {"n": 1, "fail": true}})).await.expect(202);
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    assert_eq!(world.end(run_id.clone()).await.attempts(), ["one COMPLETED", "two FAILED"]);
    let retry = format!("/api/v1/runs/{run_id}/retry");
    for (bad, field) in [
        (json!({"input_data": {"n": "x", "fail": 1}}), "body.input_data.n schema_type"),
        (json!({"input_data": []}), "body.input_data dict_type"),
    ] {
        let errors = world.service.post(&retry, &bad).await.field_errors();
        assert_eq!(errors.len(), 1, "{bad}: {errors:?}");
        assert!(errors[0].starts_with(field.split(' ').next().expect("a field").trim_end_matches(".n")), "{errors:?}");
    }
    let again = world.service.post(&retry, &json!({"input_data": {"n": 2, "fail": false}})).await.expect(202);
    assert_eq!(again["input_data"], json!({"n": 2, "fail": false}));
    let done = world.end(run_id.clone()).await;
    assert_eq!(done.output()["said"], json!({"n": 2, "fail": false}));
    assert_eq!(done.run["input_data"], json!({"n": 2, "fail": false}));
    assert_eq!(done.attempts(), ["one COMPLETED", "two FAILED", "two COMPLETED"]);
    assert_eq!(input_of(&agent.calls()[0])["n"], 1);
}

/// An executor with so many places, and the order in which its agent is asked.
async fn narrow(pool: &PgPool, slots: &str) -> (World, Agent) {
    let (agent, url) = Agent::start(|_, call| saying(call, &input_of(call))).await;
    let settings = [("MAX_CONCURRENT_EXECUTIONS", slots), ("KAFKA_TOPIC_PARTITIONS", "1")];
    (World::start_with(pool, &[("a", &url)], &settings).await, agent)
}

async fn execute(world: &World, workflow_id: &str, body: Value) -> String {
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let run = world.service.post(&path, &body).await.expect(202);
    run["run_id"].as_str().expect("an id").to_owned()
}

/// Waits until all of these have reached Kafka, so that one after them is behind them there.
async fn sent(pool: &PgPool) {
    eventually("all requests are sent", async || {
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM outbox_messages").fetch_one(pool).await.expect("a count");
        (left == 0).then_some(())
    })
    .await;
}

/// Waits until the executor has read what was sent so far, although it has no place for it: a command that comes after
/// it in the only partition has its effect.
async fn read(world: &World, workflow_id: &str) {
    let victim = execute(world, workflow_id, json!({"input_data": {}, "priority": 0})).await;
    let kafka = &world.service.config.kafka;
    let producer: FutureProducer = kafka::client_config(kafka).create().expect("valid settings");
    let command =
        json!({"run_id": victim, "cancelled_by": "a test", "message_type": "cancellation_request"}).to_string();
    let record = FutureRecord::to(&kafka.execution_topic).key(&victim).payload(&command);
    producer.send(record, Duration::from_secs(30)).await.expect("it is sent");
    assert_eq!(ended(&world.service, &victim).await["status"], "CANCELLED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_burst_of_one_workflow_does_not_keep_the_run_of_another_waiting(pool: PgPool) {
    let (world, agent) = narrow(&pool, "2").await;
    let step = |name: &str| json!({"s": agent_step("s", &json!({"of": name}))});
    let burst = world.define("s", &step("burst")).await;
    let single = world.define("s", &step("single")).await;
    agent.hold();
    let mut last = String::new();
    for _ in 0..200 {
        last = execute(&world, &burst, json!({"input_data": {}})).await;
    }
    sent(&pool).await;
    eventually("both slots are taken", async || (agent.calls().len() == 2).then_some(())).await;
    let run_id = execute(&world, &single, json!({"input_data": {}})).await;
    sent(&pool).await;
    read(&world, &burst).await;
    // Lets the runs go one by one until it is the single one's turn.
    let mut let_go = 0;
    while !agent.calls().iter().any(|call| input_of(call)["of"] == "single") {
        let called = agent.calls().len();
        agent.0.gate.add_permits(1);
        let_go += 1;
        eventually("the next one is called", async || (agent.calls().len() > called).then_some(())).await;
    }
    // One of the two under way, and perhaps the next of the burst, whose turn it was; not 200.
    assert!(let_go <= 3, "{let_go} of the burst came first");
    agent.0.gate.add_permits(1000);
    assert_eq!(ended(&world.service, &run_id).await["status"], "COMPLETED");
    assert_eq!(ended(&world.service, &last).await["status"], "COMPLETED");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_of_a_higher_priority_are_first_among_those_that_wait(pool: PgPool) {
    let (world, agent) = narrow(&pool, "1").await;
    let step = json!({"s": agent_step("s", &json!({"n": "${workflow.input.n}"}))});
    let workflow_id = world.define("s", &step).await;
    for (bad, kind) in
        [(json!(10), "less_than_equal"), (json!(-1), "greater_than_equal"), (json!("high"), "int_parsing")]
    {
        let path = format!("/api/v1/workflows/{workflow_id}/execute");
        let errors = world.service.post(&path, &json!({"input_data": {}, "priority": bad})).await.field_errors();
        assert_eq!(errors, [format!("body.priority {kind}")]);
    }
    agent.hold();
    let first = execute(&world, &workflow_id, json!({"input_data": {"n": "first"}})).await;
    eventually("the slot is taken", async || (agent.calls().len() == 1).then_some(())).await;
    let mut runs = vec![first];
    for (n, priority) in [("low", json!(0)), ("default", json!(null)), ("high", json!(9)), ("middle", json!(6))] {
        runs.push(execute(&world, &workflow_id, json!({"input_data": {"n": n}, "priority": priority})).await);
    }
    sent(&pool).await;
    let run = world.service.get(&format!("/api/v1/runs/{}", runs[3])).await.expect(200);
    assert_eq!((&run["priority"], &run["status"]), (&json!(9), &json!("PENDING")));
    read(&world, &workflow_id).await;
    agent.0.gate.add_permits(100);
    for run_id in &runs {
        assert_eq!(ended(&world.service, run_id).await["status"], "COMPLETED");
    }
    let order: Vec<String> =
        agent.calls().iter().map(|call| input_of(call)["n"].as_str().expect("text").to_owned()).collect();
    assert_eq!(order, ["first", "high", "middle", "default", "low"]);
}
