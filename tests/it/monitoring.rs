//! What observers are told, on the topic of monitoring updates.

use axum::response::IntoResponse as _;
use http::StatusCode;
use rdkafka::message::Message as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{config::Config, db::migrations::MIGRATOR};

use crate::{
    path::{Agent, Executor, completed, ended, shouting},
    service::{Service, config, eventually, raw_records},
};

/// The first `count` updates about a run.
async fn updates(config: &Config, run_id: &str, count: usize) -> Vec<Value> {
    let topic = config.kafka.monitoring_topic.clone().expect("a topic");
    let key = run_id.to_owned();
    let records = raw_records(config, &topic, count, move |record| record.key() == Some(key.as_bytes())).await;
    records.iter().map(|record| serde_json::from_slice(record.payload().expect("a value")).expect("JSON")).collect()
}

fn own_topic(pool: &PgPool) -> Config {
    config(pool, &[("KAFKA_MONITORING_TOPIC", &format!("monitoring-{}", uuid::Uuid::new_v4().simple()))])
}

/// `step status`.
fn told(updates: &[Value]) -> Vec<String> {
    let text = |update: &Value, name: &str| update[name].as_str().expect("text").to_owned();
    updates.iter().map(|update| format!("{} {}", text(update, "step_id"), text(update, "status"))).collect()
}

async fn nothing_is_left(pool: &PgPool) {
    eventually("the outbox is empty", || async {
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM monitoring_outbox").fetch_one(pool).await.expect("it");
        (rows == 0).then_some(())
    })
    .await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_attempt_and_the_end_of_the_run_are_told_as_the_contract_says(pool: PgPool) {
    let service = Service::start_with(own_topic(&pool));
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(|_, call| completed(call, "fine")).await;
    let (_, broken_url) = Agent::start(|_, _| (StatusCode::SERVICE_UNAVAILABLE, "overloaded").into_response()).await;
    service.agent("good", &url).await;
    let bad = json!({"name": "bad", "url": broken_url, "retry_config": {"max_retries": 2, "initial_delay_ms": 100}});
    service.post("/api/v1/agents", &bad).await.expect(201);
    let steps = json!({
        "both": {"id": "both", "type": "parallel", "parallel_steps": ["one", "other"], "max_parallelism": 1, "next_step": "two"},
        "one": {"id": "one", "agent_name": "good", "input_mapping": {"text": "hi"}},
        "other": {"id": "other", "agent_name": "good", "input_mapping": {"text": "hi"}},
        "two": {"id": "two", "agent_name": "bad", "input_mapping": {"text": "hi"}}});
    let workflow = service.post("/api/v1/workflows", &json!({"name": "w", "start_step": "both", "steps": steps})).await;
    let run_id = service.execute(workflow.expect(201)["id"].as_str().expect("an id")).await;
    let run = ended(&service, &run_id).await;
    assert_eq!(run["status"], "FAILED");
    let updates_of_run = updates(&service.config, &run_id, 9).await;
    assert_eq!(
        told(&updates_of_run),
        [
            "one RUNNING",
            "one COMPLETED",
            "other RUNNING",
            "other COMPLETED",
            "two RUNNING",
            "two FAILED",
            "two RUNNING",
            "two FAILED",
            "workflow FAILED"
        ]
    );
    let rows = crate::path::steps(&service, &run_id).await;
    let row =
        |step: &str, nth: usize| rows.iter().filter(|row| row["step_id"] == step).nth(nth).expect("a row").clone();
    for (update, row) in
        [(0, row("one", 0)), (1, row("one", 0)), (4, row("two", 0)), (5, row("two", 0)), (7, row("two", 1))]
    {
        let update = &updates_of_run[update];
        assert_eq!(update["metadata"]["step_execution_id"], row["id"]);
        assert_eq!((&update["step_name"], &update["run_id"]), (&row["agent_name"], &json!(run_id)));
        assert!(update["timestamp"].is_string());
    }
    assert_eq!(updates_of_run[0]["metadata"]["task_id"], agent.calls()[0].body["id"]);
    assert_eq!(updates_of_run[1]["metadata"]["task_id"], agent.calls()[0].body["id"]);
    assert_eq!(updates_of_run[5]["metadata"]["error"], row("two", 0)["error_message"]);
    let members: Vec<&String> = updates_of_run[0].as_object().expect("an object").keys().collect();
    let of_the_contract = ["metadata", "run_id", "status", "step_id", "step_name", "timestamp"];
    let ours = ["organization_id", "workflow_id", "workflow_name"];
    assert_eq!(members.len(), of_the_contract.len() + ours.len());
    assert!(of_the_contract.iter().chain(&ours).all(|name| updates_of_run[0].get(name).is_some()), "{members:?}");
    let last = &updates_of_run[8];
    let cause = row("two", 1)["error_message"].clone();
    assert_eq!(last["step_name"], "w");
    assert_eq!(last["metadata"], json!({"failed_step": "two", "error": cause, "error_message": cause}));

    let workflow = service.chain("well", &["good"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    let updates_of_run = updates(&service.config, &run_id, 3).await;
    assert_eq!(told(&updates_of_run), ["s0 RUNNING", "s0 COMPLETED", "workflow COMPLETED"]);
    assert_eq!(updates_of_run[2]["step_name"], "well");

    // Without a row, since its input cannot be made.
    let steps = json!({"s": {"id": "s", "agent_name": "good", "input_mapping": {"text": "${workflow.input.missing}"}}});
    let workflow = service.post("/api/v1/workflows", &json!({"name": "m", "start_step": "s", "steps": steps})).await;
    let run_id = service.execute(workflow.expect(201)["id"].as_str().expect("an id")).await;
    let updates_of_run = updates(&service.config, &run_id, 2).await;
    assert_eq!(told(&updates_of_run), ["s FAILED", "workflow FAILED"]);
    assert!(updates_of_run[0]["metadata"]["error"].as_str().expect("text").contains("missing"));
    assert!(crate::path::steps(&service, &run_id).await.is_empty());
    nothing_is_left(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_updates_of_an_executor_that_died_are_sent_by_another(pool: PgPool) {
    let service = Service::start_with(own_topic(&pool));
    let update = |run_id: &str| json!([{"run_id": run_id, "step_id": "workflow", "status": "COMPLETED"}]).to_string();
    let sql = "INSERT INTO monitoring_outbox (id, owner, updates)
               VALUES (gen_random_uuid(), gen_random_uuid(), ARRAY[$1]), (gen_random_uuid(), NULL, ARRAY[$2])";
    sqlx::query(sql).bind(update("orphan")).bind(update("free")).execute(&pool).await.expect("done");
    let _executor = Executor::start(&service);
    for run_id in ["orphan", "free"] {
        assert_eq!(told(&updates(&service.config, run_id, 1).await), ["workflow COMPLETED"]);
    }
    nothing_is_left(&pool).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nobody_is_told_when_it_is_switched_off(pool: PgPool) {
    let service = Service::start_with(config(&pool, &[("ENABLE_MONITORING_UPDATES", "false")]));
    // Whatever was left there would stay.
    let sql = "INSERT INTO monitoring_outbox (id, updates) VALUES (gen_random_uuid(), '{}')";
    sqlx::query(sql).execute(&pool).await.expect("done");
    let _executor = Executor::start(&service);
    let (_, url) = Agent::start(shouting).await;
    service.agent("worker", &url).await;
    let workflow = service.chain("quiet", &["worker"]).await;
    let run_id = service.execute(workflow["id"].as_str().expect("an id")).await;
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM monitoring_outbox").fetch_one(&pool).await.expect("it");
    assert_eq!(rows, 1);
}
