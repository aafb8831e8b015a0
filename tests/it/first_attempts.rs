//! First attempts, which begin in the statement that claims their run.

use std::sync::Arc;

use chrono::DateTime;
use serde_json::{Value, json, value::RawValue};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    access::OrganizationId,
    db::{
        executions::{self, Change, ClaimBatch, Claimed, ObservedRun, StepBegin},
        migrations::MIGRATOR,
        monitoring::Outgoing,
    },
};

use crate::{
    path::{Agent, Executor, ended, shouting, steps},
    service::{Service, eventually, own_pool},
};

/// `kind step_id` of the log's entries.
async fn log(service: &Service, run_id: &str) -> Vec<String> {
    let log = service.get(&format!("/api/v1/runs/{run_id}/logs")).await.expect(200);
    let entries = log["items"].as_array().expect("entries");
    entries.iter().map(|entry| format!("{} {}", entry["kind"], entry["step_id"])).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_first_attempt_of_a_known_workflow_is_committed_with_the_claim(pool: PgPool) {
    let service = Service::start(&pool);
    let _executor = Executor::start(&service);
    let (agent, url) = Agent::start(shouting).await;
    service.agent("one", &url).await;
    let workflow = service.chain("known", &["one", "one"]).await;
    let workflow_id = workflow["id"].as_str().expect("an id");
    let before = service.execute(workflow_id).await;
    let expected = ended(&service, &before).await;

    agent.hold();
    let run_id = service.execute(workflow_id).await;
    eventually("the agent is called", || async { (agent.calls().len() > 2).then_some(()) }).await;
    let sql = "SELECT r.xmin = s.xmin AND r.claimed_at = s.started_at
               FROM workflow_runs r JOIN step_executions s USING (run_id) WHERE run_id = $1";
    let is_one_commit: bool = sqlx::query_scalar(sql).bind(&run_id).fetch_one(&pool).await.expect("one row");
    assert!(is_one_commit);
    let shown = service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
    assert_eq!(
        (&shown["status"], &steps(&service, &run_id).await[0]["status"]),
        (&json!("RUNNING"), &json!("RUNNING"))
    );

    agent.0.gate.add_permits(100);
    let run = ended(&service, &run_id).await;
    assert_eq!(run["status"], expected["status"]);
    assert_eq!(log(&service, &run_id).await, log(&service, &before).await);
    let contents = |rows: Vec<Value>| -> Vec<Value> {
        let of = |row: &Value| {
            json!([row["step_id"], row["step_name"], row["agent_name"], row["input_data"], row["output_data"]["text"]])
        };
        rows.iter().map(of).collect()
    };
    assert_eq!(contents(steps(&service, &run_id).await), contents(steps(&service, &before).await));
    let attempt_id = steps(&service, &run_id).await[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(agent.calls()[2].headers["idempotency-key"], attempt_id.as_str());
}

/// A run that waits to be claimed, and its claim with this name of its workflow.
async fn pending(pool: &PgPool, batch: &mut ClaimBatch, run_id: &str, seen_name: &str) {
    let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, workflow_version)
               VALUES ($1, 'w', 'w', 'PENDING', 1)";
    sqlx::query(sql).bind(run_id).execute(pool).await.expect("a run");
    let of = ObservedRun {
        workflow_id: "w".to_owned(),
        workflow_name: seen_name.to_owned(),
        organization: OrganizationId::default(),
        traceparent: String::new(),
    };
    let begun = StepBegin {
        id: format!("{run_id}-a"),
        step_id: "a".to_owned(),
        step_name: "x".to_owned(),
        agent_name: "x".to_owned(),
        task_id: None,
        input: RawValue::from_string("{}".to_owned()).expect("JSON"),
        nested: None,
    };
    let lease_token = Uuid::new_v4();
    let first = Change {
        run_id: run_id.to_owned(),
        lease_token,
        of: Arc::new(of),
        ended: None,
        begun: Some(begun),
        finished: None,
    };
    batch.run_id.push(run_id.to_owned());
    batch.lease_token.push(lease_token);
    batch.event_id.push(None);
    batch.workflow_id.push("p".to_owned());
    batch.workflow_name.push("p".to_owned());
    batch.plans = vec!["{}".to_owned()];
    batch.plan.push(1);
    batch.input.push(Some("{}".to_owned()));
    batch.correlation_id.push(None);
    batch.traceparent.push(None);
    batch.sent_at.push(Some(DateTime::UNIX_EPOCH));
    batch.first.push(Some(first));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_claim_begins_an_attempt_once_and_only_of_a_new_run_that_is_as_expected(pool: PgPool) {
    let own = own_pool(&pool);
    let mut batch = ClaimBatch::default();
    pending(&pool, &mut batch, "new", "w").await;
    pending(&pool, &mut batch, "other", "another name").await;
    pending(&pool, &mut batch, "paused", "w").await;
    pending(&pool, &mut batch, "retried", "w").await;
    let first = batch.first.clone();
    for sql in [
        "UPDATE workflow_runs SET paused_at = now() WHERE run_id = 'paused'",
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data)
         VALUES ('s', 'retried', 'a', 'x', 'x', 'FAILED', '{}')",
    ] {
        sqlx::query(sql).execute(&pool).await.expect(sql);
    }
    let claimed = async |batch: &ClaimBatch| {
        let updates = batch.run_id.iter().map(|run_id| Some(format!("[\"{run_id}\"]"))).collect();
        let outgoing = Outgoing { id: Uuid::now_v7(), owner: None, updates };
        let mut connection = own.acquire().await.expect("a connection");
        let claimed = executions::claim(&mut connection, Uuid::nil(), batch, Some(&outgoing)).await.expect("claimed");
        let shown = |run: &Claimed| format!("{} steps {} begun {}", run.run_id, run.has_steps, run.has_begun);
        let mut shown: Vec<String> = claimed.iter().map(shown).collect();
        shown.sort();
        shown
    };
    let count = async |sql: &'static str| -> i64 { sqlx::query_scalar(sql).fetch_one(&pool).await.expect(sql) };
    let expected = ["new steps false begun true", "other steps false begun false", "retried steps true begun false"];
    assert_eq!(claimed(&batch).await, expected);
    let told: Vec<Vec<String>> =
        sqlx::query_scalar("SELECT updates FROM monitoring_outbox").fetch_all(&pool).await.expect("rows");
    assert_eq!(told, [["[\"new\"]"]]);
    let rows = "SELECT count(*) FROM step_executions WHERE status = 'RUNNING' AND id = 'new-a'";
    let events = "SELECT count(*) FROM run_events WHERE run_id = 'new'";
    assert_eq!((count(rows).await, count(events).await), (1, 3));

    // The answer was lost.
    assert_eq!(claimed(&batch).await, expected);
    assert_eq!((count(rows).await, count(events).await), (1, 3));
    assert_eq!(count("SELECT count(*) FROM step_executions").await, 2);

    // The answer was lost, and the repeat has no first attempts: the run continues with the attempt that has begun.
    batch.first.fill_with(|| None);
    let resumed = ["new steps true begun false", "other steps false begun false", "retried steps true begun false"];
    assert_eq!(claimed(&batch).await, resumed);
    // The same if a workflow has got another name meanwhile.
    let renamed = "UPDATE workflow_runs SET workflow_name = 'z' WHERE run_id = 'new'";
    sqlx::query(renamed).execute(&pool).await.expect(renamed);
    batch.first = first;
    assert_eq!(claimed(&batch).await, resumed);
}
