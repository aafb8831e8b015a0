//! `Idempotency-Key` on what creates something: the first answer again, another body, a request under way, expiry.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::{idempotency, migrations::MIGRATOR};

use crate::service::{Answer, Service, config, own_pool};

const AGENT: &str = r#"{"name":"worker","url":"http://a"}"#;

async fn post(service: &Service, path: &str, key: &str, body: &str) -> Answer {
    service.send("POST", path, &[("idempotency-key", key), ("content-type", "application/json")], body.to_owned()).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.header("idempotency-replayed") == Some("true")
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeat_creates_nothing_and_answers_with_what_the_first_made(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow = r#"{"name":"w","start_step":"a","steps":{"a":{"id":"a","agent_name":"worker","input_mapping":{}}}}"#;
    let other_workflow = workflow.replace("\"w\"", "\"v\"");
    let other_agent = AGENT.replace("worker", "other");
    for (path, table, body, other) in [
        ("/api/v1/agents", "agents", AGENT, other_agent.as_str()),
        ("/api/v1/workflows", "workflow_definitions", workflow, other_workflow.as_str()),
    ] {
        let answers = join_all((0..8).map(|_| post(&service, path, "order-7", body))).await;
        assert_eq!(answers.iter().filter(|answer| !is_replayed(answer)).count(), 1, "{path}");
        let created: HashSet<String> = answers.into_iter().map(|answer| answer.expect(201)["id"].to_string()).collect();
        assert_eq!((created.len(), count(&pool, table).await), (1, 1), "{path}");
        let reused = post(&service, path, "order-7", other).await.error(422);
        assert_eq!(reused["code"], "idempotency_key_reused", "{path}");
        assert!(!is_replayed(&post(&service, path, "order-8", other).await), "{path}");
        assert_eq!(count(&pool, table).await, 2, "{path}");
    }
    // What is shown is the resource as it is now.
    let agent = post(&service, "/api/v1/agents", "order-7", AGENT).await.expect(201);
    let path = format!("/api/v1/agents/{}", agent["id"].as_str().expect("an id"));
    service.put(&path, &json!({"timeout_ms": 5000})).await.expect(200);
    assert_eq!(post(&service, "/api/v1/agents", "order-7", AGENT).await.expect(201)["timeout_ms"], 5000);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_request_that_fails_leaves_its_key_free(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    post(&service, "/api/v1/agents", "k", AGENT).await.error(400);
    let other = post(&service, "/api/v1/agents", "k", r#"{"name":"free","url":"http://a"}"#).await;
    assert!(!is_replayed(&other));
    other.expect(201);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_retry_is_not_repeated(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let run_id = service.execute(&workflow_id).await;
    let (cancel, retry) = (format!("/api/v1/runs/{run_id}/cancel"), format!("/api/v1/runs/{run_id}/retry"));
    service.post(&cancel, &json!({})).await.expect(200);
    let first = post(&service, &retry, "k", "").await;
    assert!(!is_replayed(&first));
    let first = first.expect(202);
    let second = post(&service, &retry, "k", "").await;
    assert!(is_replayed(&second));
    let second = second.expect(202);
    assert_eq!((&second["run_id"], &second["new_run_id"]), (&first["run_id"], &first["run_id"]));
    assert_eq!(post(&service, &retry, "k", "{}").await.error(422)["code"], "idempotency_key_reused");
    // Without the key, or with another one, the run is in the wrong state.
    post(&service, &retry, "k2", "").await.error(400);
    let audited: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_logs WHERE action = 'retry'")
        .fetch_one(&pool)
        .await
        .expect("audit rows");
    assert_eq!(audited, 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_request_under_way_is_409_until_it_is_done(pool: PgPool) {
    let service = Service::start(&pool);
    let mut elsewhere = pool.begin().await.expect("a transaction");
    let row =
        "INSERT INTO idempotency_keys (scope, key, fingerprint, run_id) VALUES ('create agent system', 'k', '', 'x')";
    sqlx::query(row).execute(&mut *elsewhere).await.expect("a row");
    let answer = post(&service, "/api/v1/agents", "k", AGENT).await;
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.error(409)["code"], "idempotency_key_in_use");
    elsewhere.rollback().await.expect("the rollback");
    post(&service, "/api/v1/agents", "k", AGENT).await.expect(201);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_start_under_way_is_409_and_holds_up_nobody_without_that_key(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let body = r#"{"input_data":{}}"#;
    let mut elsewhere = pool.begin().await.expect("a transaction");
    sqlx::query("INSERT INTO idempotency_keys (scope, key, fingerprint, run_id) VALUES ($1, 'k', '', 'x')")
        .bind(format!("execute {workflow_id} system"))
        .execute(&mut *elsewhere)
        .await
        .expect("a row");
    let others = join_all((0..20).map(|_| service.execute(&workflow_id)));
    let (answer, others) = futures_util::join!(post(&service, &path, "k", body), others);
    assert_eq!(others.into_iter().collect::<HashSet<_>>().len(), 20);
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.error(409)["code"], "idempotency_key_in_use");
    elsewhere.rollback().await.expect("the rollback");
    let first = post(&service, &path, "k", body).await.expect(202);
    // The repeat is answered as the first request was, whatever became of the run.
    sqlx::query("UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now(), updated_at = now()")
        .execute(&pool)
        .await
        .expect("an end");
    assert_eq!(post(&service, &path, "k", body).await.expect(202), first);
}

/// Large inputs take the database long; here it is a key that somebody else is about to use.
#[sqlx::test(migrator = "MIGRATOR")]
async fn large_inputs_that_take_long_hold_up_no_small_one(pool: PgPool) {
    let service = Service::start(&pool);
    let workflow_id = service.one_step_workflow().await;
    let path = format!("/api/v1/workflows/{workflow_id}/execute");
    let mut elsewhere = pool.begin().await.expect("a transaction");
    sqlx::query(
        "INSERT INTO idempotency_keys (scope, key, fingerprint, run_id)
         SELECT $1, 'k' || n, '', 'x' FROM generate_series(1, 3) n",
    )
    .bind(format!("execute {workflow_id} system"))
    .execute(&mut *elsewhere)
    .await
    .expect("the rows");
    let body = format!(r#"{{"input_data":{{"text":"{}"}}}}"#, "x".repeat(100_000));
    let mut large = std::pin::pin!(join_all(["k1", "k2", "k3"].map(|key| post(&service, &path, key, &body))));
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    loop {
        assert!(futures_util::poll!(&mut large).is_pending());
        let waiting: i64 = sqlx::query_scalar(waits).fetch_one(&pool).await.expect("a count");
        if waiting > 0 {
            break;
        }
    }
    for _ in 0..20 {
        service.execute(&workflow_id).await;
        assert!(futures_util::poll!(&mut large).is_pending());
    }
    elsewhere.rollback().await.expect("the rollback");
    for answer in large.await {
        answer.expect(202);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn keys_are_kept_as_long_as_the_setting_says(pool: PgPool) {
    let settings = config(&pool, &[("IDEMPOTENCY_KEY_TTL_HOURS", "2")]);
    assert_eq!(settings.idempotency_key_ttl_hours, 2);
    // All of them at once: they can be made faster than a batch of them at an interval would go.
    let old = "INSERT INTO idempotency_keys (scope, key, fingerprint, run_id, created_at)
               SELECT 's', n::text, '', 'x', now() - interval '3 hours' FROM generate_series(1, 25000) n";
    sqlx::query(old).execute(&pool).await.expect("the keys");
    assert_eq!(idempotency::expire(&own_pool(&pool), 2).await.expect("the sweep"), 25_000);
    assert_eq!(count(&pool, "idempotency_keys").await, 0);
    let service = Service::start_with(settings);
    for (key, hours) in [("young", 1), ("old", 3)] {
        let body: Value = json!({"name": key, "url": "http://a"});
        post(&service, "/api/v1/agents", key, &body.to_string()).await.expect(201);
        let sql = "UPDATE idempotency_keys SET created_at = created_at - make_interval(hours => $2) WHERE key = $1";
        sqlx::query(sql).bind(key).bind(hours).execute(&pool).await.expect("an older key");
    }
    // The service's own upkeep may have been faster.
    idempotency::expire(&own_pool(&pool), 2).await.expect("the sweep");
    let left: Vec<String> =
        sqlx::query_scalar("SELECT key FROM idempotency_keys").fetch_all(&pool).await.expect("keys");
    assert_eq!(left, ["young"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeat_finds_the_run_though_the_workflow_could_not_be_executed_any_more(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let path = format!("/api/v1/workflows/{}", first["id"].as_str().expect("an id"));
    let by_name = "/api/v1/workflow-names/w/execute".to_owned();
    let mut runs = HashSet::new();
    for execute in [&format!("{path}/execute"), &by_name] {
        runs.insert(post(&service, execute, "k", r#"{"input_data":{}}"#).await.expect(202)["run_id"].to_string());
    }
    // A key counts within its route.
    assert_eq!(runs.len(), 2);
    service.chain("w", &["worker", "worker"]).await;
    service.put(&path, &json!({"status": "inactive"})).await.expect(200);
    for execute in [&format!("{path}/execute"), &by_name] {
        let repeat = post(&service, execute, "k", r#"{"input_data":{}}"#).await;
        assert!(is_replayed(&repeat), "{execute}");
        assert!(runs.contains(&repeat.expect(202)["run_id"].to_string()), "{execute}");
    }
    post(&service, &format!("{path}/execute"), "k", r#"{"input_data":{"a":1}}"#).await.error(422);
    post(&service, &format!("{path}/execute"), "l", r#"{"input_data":{}}"#).await.error(400);
    assert_eq!(count(&pool, "workflow_runs").await, 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_roll_back_is_not_repeated(pool: PgPool) {
    let service = Service::start(&pool);
    service.agent("worker", "http://a").await;
    let first = service.chain("w", &["worker"]).await;
    let path = format!("/api/v1/workflows/{}", first["id"].as_str().expect("an id"));
    let steps = |text: &str| {
        let mapping = json!({"text": text});
        json!({"start_step": "s", "steps": {"s": {"id": "s", "agent_name": "worker", "input_mapping": mapping}}})
    };
    assert_eq!(service.put(&path, &steps("a")).await.expect(200)["version"], 2);
    let roll_back = format!("{path}/rollback");
    let rolled_back = post(&service, &roll_back, "k", r#"{"version":1}"#).await;
    assert!(!is_replayed(&rolled_back));
    assert_eq!(rolled_back.expect(200)["version"], 3);
    service.put(&path, &steps("b")).await.expect(200);
    let repeat = post(&service, &roll_back, "k", r#"{"version":1}"#).await;
    assert!(is_replayed(&repeat));
    assert_eq!(repeat.expect(200)["version"], 4);
    assert_eq!(post(&service, &roll_back, "k", r#"{"version":2}"#).await.error(422)["code"], "idempotency_key_reused");
}
