//! Executing: what is written, what is repeated, and what survives a client that hangs up.

use std::{collections::HashSet, task::Poll};

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Service, eventually, records};

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_execute_writes_run_and_audit_and_sends_one_message(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let answer = service
        .send(
            "POST",
            &format!("/api/v1/workflows/{workflow_id}/execute"),
            &[("x-correlation-id", "req-abc123")],
            r#"{"input_data":{"text":"hello","big":12345678901234567890123}}"#,
        )
        .await;
    assert_eq!(answer.header("x-correlation-id"), Some("req-abc123"));
    let location = answer.header("location").expect("a Location").to_owned();
    let run = answer.expect(202);
    assert_eq!(location, format!("/api/v1/runs/{}", run["run_id"].as_str().expect("an id")));
    assert_eq!(run["status"], "PENDING");
    assert_eq!((&run["workflow_id"], &run["workflow_definition_id"]), (&json!(workflow_id), &json!(workflow_id)));
    assert_eq!(service.get(&location).await.expect(200), run);

    let sent = records(&service.config, &service.config.kafka.execution_topic, 1).await;
    assert_eq!(json!(sent[0].key), run["run_id"]);
    let message = &sent[0].value;
    assert_eq!(message["run_id"], run["run_id"]);
    assert_eq!(message["message_type"], "execution_request");
    assert_eq!(message["correlation_id"], "req-abc123");
    assert_eq!(message["input_data"], run["input_data"]);
    assert_eq!(message["workflow_plan"]["start_step"], "s0");

    let audit: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit_logs WHERE entity_type = 'run' AND action = 'execute'")
            .fetch_one(&pool)
            .await
            .expect("the audit rows");
    assert_eq!(audit, 1);
    eventually("the outbox is empty", || outbox_is_empty(&pool)).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_first_executes_of_a_definition_read_it_once(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    // Counts the statements that read a definition to start runs of it.
    let sql = "CREATE SEQUENCE reads; ALTER TABLE workflow_definitions RENAME TO kept_definitions;
        CREATE VIEW workflow_definitions AS SELECT *, xmin FROM kept_definitions
        WHERE (SELECT CASE WHEN current_query() LIKE '%xmin::text AS stamp%' THEN nextval('reads') ELSE 1 END) > 0";
    sqlx::raw_sql(sql).execute(&pool).await.expect("a view");
    let runs: HashSet<String> = join_all((0..100).map(|_| service.execute(&workflow_id))).await.into_iter().collect();
    assert_eq!(runs.len(), 100);
    let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM reads";
    let reads: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a number");
    assert_eq!(reads, 1);
}

pub async fn outbox_is_empty(pool: &PgPool) -> Option<()> {
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox_messages").fetch_one(pool).await.expect("the outbox");
    (left == 0).then_some(())
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeat_with_the_same_key_answers_with_the_first_run(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let headers = [("idempotency-key", "order-7"), ("content-type", "application/json")];
    let body = r#"{"input_data":{"n":1}}"#;

    let attempts = join_all((0..20).map(|_| service.send("POST", &path, &headers, body))).await;
    let replayed = attempts.iter().filter(|answer| answer.header("idempotency-replayed") == Some("true")).count();
    let runs: HashSet<String> = attempts.into_iter().map(|answer| answer.expect(202)["run_id"].to_string()).collect();
    assert_eq!((runs.len(), replayed), (1, 19));
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.expect("runs");
    assert_eq!(rows, 1);

    let other = service.send("POST", &path, &headers, r#"{"input_data":{"n":2}}"#).await.expect(422);
    assert_eq!(other["code"], "idempotency_key_reused");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_starts_of_a_workflow_that_is_not_active_or_not_there(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    service.execute(&workflow_id).await;
    let path = format!("/api/v1/workflows/{workflow_id}");
    service.put(&path, &json!({"status": "inactive"})).await.expect(200);
    let body = json!({"input_data": {}});
    // The definition is cached by now, and refused all the same.
    assert_eq!(service.post(&format!("{path}/execute"), &body).await.expect(400)["code"], "workflow_not_active");
    service.put(&path, &json!({"status": "active"})).await.expect(200);
    service.post(&format!("{path}/execute"), &body).await.expect(202);
    service.delete(&path).await.expect(200);
    service.post(&format!("{path}/execute"), &body).await.expect(400);
    let unknown = "/api/v1/workflows/00000000-0000-0000-0000-000000000000/execute";
    service.post(unknown, &body).await.expect(404);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_run_is_started_with_the_content_that_is_current_when_it_is_written(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    service.execute(&workflow_id).await;
    service.agent("other", "http://127.0.0.1:9/other").await;
    let steps = json!({"s0": {"id": "s0", "agent_name": "other", "input_mapping": {}}});
    service.put(&format!("/api/v1/workflows/{workflow_id}"), &json!({"steps": steps})).await.expect(200);
    let second = service.execute(&workflow_id).await;
    let sent = records(&service.config, &service.config.kafka.execution_topic, 2).await;
    let message = sent.iter().find(|record| record.key == second).expect("the second run's message");
    assert_eq!(message.value["workflow_plan"]["steps"]["s0"]["agent_name"], "other");
    assert_eq!(message.value["workflow_plan"]["version"], "2");
}

/// The future's result, if it is there after so many polls; otherwise the future is dropped.
async fn polled_at_most<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            result => result.map(Some),
        }
    })
    .await
}

/// Requests whose client has gone end on their own within moments. A connection that a torn one has left inside an open
/// transaction would stay there until the server ends the session, after 10 s.
async fn nothing_is_left_in_a_transaction(pool: &PgPool) {
    let left_open = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    eventually("no transaction is left open", async || {
        (sqlx::query_scalar::<_, i64>(left_open).fetch_one(pool).await.expect("a count") == 0).then_some(())
    })
    .await;
    let ended_by_server = "SELECT sessions_fatal FROM pg_stat_database WHERE datname = current_database()";
    let ended_by_server: i64 = sqlx::query_scalar(ended_by_server).fetch_one(pool).await.expect("a count");
    assert_eq!(ended_by_server, 0, "a request was torn inside its transaction");
}

/// A client that hangs up in the middle must not tear a write, nor make a later one vanish.
#[sqlx::test(migrator = "MIGRATOR")]
async fn every_acknowledged_write_is_there_after_a_storm_of_clients_that_hang_up(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let body = json!({"input_data": {"text": "x"}});
    let mut acknowledged = HashSet::new();
    // A client that hangs up is a future that is dropped where it waits. Every place where a request can wait is met:
    // dropped after the first poll, the second, and so on, while other requests use the same connections.
    for round in 0..30 {
        let executes = (0..6).map(|index| polled_at_most(round + index, service.post(&path, &body)));
        let agents: Vec<Value> =
            (0..6).map(|index| json!({"name": format!("agent-{round}-{index}"), "url": "http://a/"})).collect();
        let agents = agents.iter().enumerate().map(|(index, agent)| {
            // One of them is patient.
            let polls = if index == 0 { usize::MAX } else { round + index };
            polled_at_most(polls, service.post("/api/v1/agents", agent))
        });
        let (executes, agents) = futures_util::join!(join_all(executes), join_all(agents));
        for answer in executes.into_iter().flatten() {
            acknowledged.insert(answer.expect(202)["run_id"].as_str().expect("an id").to_owned());
        }
        for answer in agents.into_iter().flatten() {
            acknowledged.insert(answer.expect(201)["name"].as_str().expect("a name").to_owned());
        }
        nothing_is_left_in_a_transaction(&pool).await;
    }
    assert!(acknowledged.len() > 30, "only {} requests were answered", acknowledged.len());
    service.stop().await;
    let stored: Vec<String> =
        sqlx::query_scalar("SELECT run_id::text FROM workflow_runs UNION SELECT name::text FROM agents")
            .fetch_all(&pool)
            .await
            .expect("runs and agents");
    let stored: HashSet<String> = stored.into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let torn: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM workflow_runs r WHERE NOT EXISTS
             (SELECT 1 FROM audit_logs a WHERE a.action = 'execute' AND 'run-' || a.entity_id = r.run_id)",
    )
    .fetch_one(&pool)
    .await
    .expect("runs without their audit row");
    assert_eq!(torn, 0);
}
