//! The reference deployment's programs beside ours: its executor under our API, our executor under its API, and both
//! taking turns with one run. Statements and messages are those that contract/database.md §3–4 and executor.md tell of.

use rdkafka::message::OwnedHeaders;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::{self, MIGRATOR, WaitLimit};

use crate::{
    empty_database::empty,
    path::{Agent, Executor, attempts, completed, ended, shouting},
    service::{Service, config, eventually, records, send},
};

/// The reference executor with one run: it commits after each statement, and asks nobody whether it may.
struct TheirExecutor<'a> {
    pool: &'a PgPool,
    run_id: String,
}

impl TheirExecutor<'_> {
    /// Takes over what has completed, and says that it begins. A row that is missing is made.
    async fn begin(&self, plan: &Value) -> Vec<String> {
        let sql = "SELECT id, run_id, step_id, step_name, agent_name, status, input_data, output_data, started_at,
                       completed_at, error_message, parent_step_id, branch_name, join_policy
                   FROM step_executions WHERE run_id = $1 ORDER BY started_at";
        sqlx::query(sql).bind(&self.run_id).fetch_all(self.pool).await.expect("every mapped column is there");
        let sql = "SELECT step_id FROM step_executions WHERE run_id = $1 AND status = 'COMPLETED' ORDER BY started_at";
        let done = sqlx::query_scalar(sql).bind(&self.run_id).fetch_all(self.pool).await.expect("rows");
        let sql = "SELECT run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data, triggered_by,
                       created_at, updated_at, completed_at, cancelled_at, cancelled_by, error_message
                   FROM workflow_runs WHERE run_id = $1";
        if sqlx::query(sql).bind(&self.run_id).fetch_optional(self.pool).await.expect("every mapped column").is_none() {
            let sql = "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status,
                           input_data, triggered_by, created_at, updated_at, completed_at, cancelled_at, cancelled_by,
                           error_message)
                       VALUES ($1, $2, $3, NULL, 'RUNNING', NULL, NULL, now(), now(), NULL, NULL, NULL, NULL)";
            let text = |name: &str| plan[name].as_str().expect("text").to_owned();
            let insert = sqlx::query(sql).bind(&self.run_id).bind(text("workflow_id")).bind(text("name"));
            insert.execute(self.pool).await.expect("a run is inserted");
            return done;
        }
        assert_eq!(self.set_status("RUNNING", None).await, 1);
        done
    }

    /// Its client library raises an error unless exactly one row is counted.
    async fn set_status(&self, status: &str, error: Option<&str>) -> u64 {
        let sql = "UPDATE workflow_runs SET status = $2, updated_at = now(),
                       completed_at = CASE WHEN $2 IN ('COMPLETED', 'FAILED') THEN now() ELSE completed_at END,
                       error_message = coalesce($3, error_message)
                   WHERE run_id = $1";
        let update = sqlx::query(sql).bind(&self.run_id).bind(status).bind(error);
        update.execute(self.pool).await.expect("an update").rows_affected()
    }

    async fn attempt(&self, step_id: &str, agent: &str, output: Result<&Value, &str>) {
        let suffix = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let id = format!("{}-{step_id}-{suffix}", self.run_id);
        let sql = "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data,
                       output_data, started_at, completed_at, error_message, parent_step_id, branch_name, join_policy)
                   VALUES ($1, $2, $3, $4, $4, 'RUNNING', '{}', NULL, now(), NULL, NULL, NULL, NULL, NULL)";
        let insert = sqlx::query(sql).bind(&id).bind(&self.run_id).bind(step_id).bind(agent);
        insert.execute(self.pool).await.expect("a step is inserted");
        let (status, output, error) = match output {
            Ok(output) => ("COMPLETED", Some(output), None),
            Err(error) => ("FAILED", None, Some(error)),
        };
        let sql = "UPDATE step_executions SET status = $2, completed_at = now(), output_data = $3, error_message = $4
                   WHERE id = $1";
        let update = sqlx::query(sql).bind(&id).bind(status).bind(output).bind(error);
        assert_eq!(update.execute(self.pool).await.expect("an update").rows_affected(), 1);
    }
}

/// A definition of two steps, and a run of it.
async fn accepted(service: &Service, agents: &[&str]) -> String {
    let workflow = service.chain("swapped", agents).await;
    service.execute(workflow["id"].as_str().expect("an id")).await
}

/// `kind step` of each entry of the run's log.
async fn log(service: &Service, run_id: &str) -> Vec<String> {
    let page = service.get(&format!("/api/v1/runs/{run_id}/logs")).await.expect(200);
    let entries = page["items"].as_array().or_else(|| page.as_array()).cloned().expect("entries");
    entries
        .iter()
        .map(|entry| entry["kind"].as_str().or_else(|| entry["event"].as_str()).unwrap_or("?").to_owned())
        .collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_reference_executor_works_under_our_api(pool: PgPool) {
    let service = Service::start(&pool);
    for name in ["first", "second"] {
        service.agent(name, "http://127.0.0.1:9/").await;
    }
    let run_id = accepted(&service, &["first", "second"]).await;
    let [request] = &records(&service.config, &service.config.kafka.execution_topic, 1).await[..] else {
        panic!("one")
    };
    assert_eq!((request.key.as_str(), &request.value["run_id"]), (run_id.as_str(), &json!(run_id)));
    assert_eq!(request.value["message_type"], "execution_request");
    assert!(request.value["workflow_plan"]["version"].is_string() && request.value["input_data"].is_object());
    let plan = request.value["workflow_plan"].clone();

    // It runs and fails.
    let theirs = TheirExecutor { pool: &pool, run_id: run_id.clone() };
    assert!(theirs.begin(&plan).await.is_empty());
    assert_eq!(service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "RUNNING");
    theirs.attempt("s0", "first", Ok(&json!({"text": "one"}))).await;
    theirs.attempt("s1", "second", Err("HTTP 503: overloaded")).await;
    assert_eq!(theirs.set_status("FAILED", Some("Step 's1' failed: HTTP 503: overloaded")).await, 1);
    let run = service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
    assert_eq!((&run["status"], &run["completed_at"].is_string()), (&json!("FAILED"), &true));
    assert_eq!(attempts(&service, &run_id).await, ["s0 COMPLETED", "s1 FAILED"]);
    assert!(!log(&service, &run_id).await.is_empty(), "what another program writes is in the log");

    // It is retried, and takes over what has completed.
    let again = service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    assert_eq!((&again["status"], &again["error_message"]), (&json!("PENDING"), &Value::Null));
    let requests = records(&service.config, &service.config.kafka.execution_topic, 2).await;
    assert_eq!(requests[1].value["run_id"], json!(run_id));
    assert_eq!(theirs.begin(&plan).await, ["s0"]);
    theirs.attempt("s1", "second", Ok(&json!({"text": "two"}))).await;
    assert_eq!(theirs.set_status("COMPLETED", None).await, 1);
    let run = service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
    assert_eq!((&run["status"], &run["error_message"]), (&json!("COMPLETED"), &Value::Null));
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.error(400);

    // It is cancelled while it runs, of which it learns too late; its writes still count one row each.
    let workflow = service.chain("late", &["first"]).await;
    let late = service.execute(workflow["id"].as_str().expect("an id")).await;
    let theirs = TheirExecutor { pool: &pool, run_id: late.clone() };
    theirs.begin(&plan).await;
    service.post(&format!("/api/v1/runs/{late}/cancel"), &json!({"reason": "wrong"})).await.expect(200);
    let [request] = &records(&service.config, &service.config.kafka.cancellation_topic, 1).await[..] else { panic!() };
    assert_eq!((&request.value["run_id"], &request.value["reason"]), (&json!(late), &json!("wrong")));
    assert_eq!(request.value["message_type"], "cancellation_request");
    theirs.attempt("s0", "first", Ok(&json!({"text": "late"}))).await;
    assert_eq!((theirs.set_status("RUNNING", None).await, theirs.set_status("COMPLETED", None).await), (1, 1));
    let run = service.get(&format!("/api/v1/runs/{late}")).await.expect(200);
    assert_eq!((&run["status"], &run["error_message"]), (&json!("CANCELLED"), &json!("Cancelled: wrong")));

    // A run that it makes itself, of a message of somebody else.
    let theirs = TheirExecutor { pool: &pool, run_id: "ext-1".to_owned() };
    theirs.begin(&plan).await;
    theirs.attempt("s0", "first", Ok(&json!({"text": "one"}))).await;
    theirs.set_status("COMPLETED", None).await;
    let run = service.get("/api/v1/runs/ext-1").await.expect(200);
    assert_eq!(
        (&run["status"], &run["workflow_name"], &run["triggered_by"]),
        (&json!("COMPLETED"), &json!("swapped"), &Value::Null)
    );
}

/// On the reference deployment's database and rows, with only the columns that its API sets.
#[sqlx::test(migrations = false)]
async fn our_executor_works_under_the_reference_api(pool: PgPool) {
    empty(&pool).await;
    sqlx::raw_sql(include_str!("reference_schema.sql")).execute(&pool).await.expect("the reference schema");
    migrations::up(&config(&pool, &[]).database, &WaitLimit::none()).await.expect("up");
    let (_, url) = Agent::start(|_, call| completed(call, "fine")).await;
    let sql = "INSERT INTO agents (id, name, url, auth_type, auth_config, timeout_ms, retry_config, status, created_at, updated_at)
               VALUES (gen_random_uuid(), 'worker', $1, 'none', 'null', 5000,
                   '{\"max_retries\": 1, \"initial_delay_ms\": 100, \"max_delay_ms\": 1000, \"backoff_multiplier\": 2.0}',
                   'active', now(), now())";
    sqlx::query(sql).bind(&url).execute(&pool).await.expect("an agent");
    let plan = json!({"workflow_id": "wf-theirs-1", "name": "theirs", "version": "1", "start_step": "a", "steps": {
        "a": {"id": "a", "type": "agent", "agent_name": "worker", "next_step": "b",
            "input_mapping": {"text": "${workflow.input.t}"}, "parallel_steps": null, "max_parallelism": null,
            "condition": null, "if_true_step": null, "if_false_step": null, "loop_config": null},
        "b": {"id": "b", "type": "agent", "agent_name": "worker", "next_step": null,
            "input_mapping": {"text": "${a.output.text}"}, "parallel_steps": null, "max_parallelism": null,
            "condition": null, "if_true_step": null, "if_false_step": null, "loop_config": null}}});
    let sql =
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                   triggered_by, created_at, updated_at)
               VALUES ('run-theirs', gen_random_uuid()::text, 'theirs', NULL, 'PENDING', $1, 'system',
                   now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC')";
    sqlx::query(sql).bind(json!({"t": "from the row"})).execute(&pool).await.expect("a run");
    let service = Service::start(&pool);
    let request = json!({"run_id": "run-theirs", "workflow_plan": plan, "input_data": {"t": "hi"},
        "timestamp": "2026-02-03T09:05:00.011000", "message_type": "execution_request"});
    let topic = &service.config.kafka.execution_topic;
    send(&service.config, topic, Some(b"run-theirs"), Some(request.to_string().as_bytes()), OwnedHeaders::new()).await;
    let _executor = Executor::start(&service);
    assert_eq!(ended(&service, "run-theirs").await["status"], "COMPLETED");

    let sql = "SELECT to_jsonb(r) FROM workflow_runs r WHERE run_id = 'run-theirs'";
    let run: Value = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a row");
    assert_eq!(
        (&run["error_message"], &run["cancelled_at"], &run["cancelled_by"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert!(run["completed_at"].is_string() && run["updated_at"].as_str() >= run["created_at"].as_str());
    let sql = "SELECT to_jsonb(s) FROM step_executions s WHERE run_id = 'run-theirs' ORDER BY started_at";
    let rows: Vec<Value> = sqlx::query_scalar(sql).fetch_all(&pool).await.expect("rows");
    assert_eq!(rows.len(), 2, "one row a step");
    for (row, step_id) in rows.iter().zip(["a", "b"]) {
        let id = row["id"].as_str().expect("an id");
        let suffix = id.strip_prefix(&format!("run-theirs-{step_id}-")).unwrap_or_else(|| panic!("{id}"));
        assert!(suffix.len() == 8 && suffix.chars().all(|digit| digit.is_ascii_hexdigit()), "{id}");
        assert_eq!(
            (&row["step_id"], &row["step_name"], &row["agent_name"]),
            (&json!(step_id), &json!("worker"), &json!("worker"))
        );
        assert_eq!((&row["status"], &row["error_message"]), (&json!("COMPLETED"), &Value::Null));
        assert!(["parent_step_id", "branch_name", "join_policy"].iter().all(|name| row[name].is_null()), "{row}");
        assert!(row["completed_at"].as_str() >= row["started_at"].as_str());
    }
    assert_eq!(rows[0]["input_data"], json!({"text": "hi"}), "the message's input, not the row's");
    assert_eq!(rows[1]["input_data"], json!({"text": "fine"}));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn executors_of_both_kinds_go_on_with_each_others_runs(pool: PgPool) {
    let service = Service::start(&pool);
    let (first, first_url) = Agent::start(shouting).await;
    let (second, second_url) = Agent::start(shouting).await;
    service.agent("first", &first_url).await;
    service.agent("second", &second_url).await;
    let run_id = accepted(&service, &["first", "second"]).await;
    let theirs = TheirExecutor { pool: &pool, run_id: run_id.clone() };
    theirs.begin(&json!({})).await;
    theirs.attempt("s0", "first", Ok(&json!({"text": "theirs"}))).await;
    theirs.attempt("s1", "second", Err("no result within 300 s")).await;
    theirs.set_status("FAILED", Some("Step 's1' failed: no result within 300 s")).await;

    // Ours goes on behind what theirs has completed.
    let executor = Executor::start(&service);
    service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    assert_eq!(ended(&service, &run_id).await["status"], "COMPLETED");
    assert_eq!((first.calls().len(), second.calls().len()), (0, 1));
    assert_eq!(second.calls()[0].text(), "theirs");
    assert_eq!(attempts(&service, &run_id).await, ["s0 COMPLETED", "s1 FAILED", "s1 COMPLETED"]);

    // The other way round: what ours leaves is what theirs looks for.
    executor.stop().await;
    let other = service.chain("back", &["first", "second"]).await;
    let run_id = service.execute(other["id"].as_str().expect("an id")).await;
    second.hold();
    let executor = Executor::start(&service);
    eventually("the second step is called", || async { (second.calls().len() == 2).then_some(()) }).await;
    service.post(&format!("/api/v1/runs/{run_id}/cancel"), &json!({})).await.expect(200);
    executor.stop().await;
    service.post(&format!("/api/v1/runs/{run_id}/retry"), &json!({})).await.expect(202);
    let theirs = TheirExecutor { pool: &pool, run_id: run_id.clone() };
    assert_eq!(theirs.begin(&json!({})).await, ["s0"]);
    theirs.attempt("s1", "second", Ok(&json!({"text": "done"}))).await;
    theirs.set_status("COMPLETED", None).await;
    assert_eq!(service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200)["status"], "COMPLETED");
}
