//! Executors that freeze, come and go, and lose the database or the broker, while runs go on: each run ends once, no
//! completed step is repeated, no run is left behind.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State};
use http::Uri;
use rdkafka::mocking::MockCluster;
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::kafka;

use crate::{
    dependencies::through_a_line,
    empty_database::empty,
    program::{Environment, Program, eventually, free_port},
};

/// An agent that remembers its calls by path and holds back the answers of `/held` until it is let go.
#[derive(Clone, Default)]
struct Agent {
    calls: Arc<Mutex<Vec<String>>>,
    is_free: Arc<AtomicBool>,
}

impl Agent {
    async fn start() -> (Self, String) {
        let agent = Self::default();
        let handle = async |State(agent): State<Self>, uri: Uri, Json(call): Json<Value>| {
            agent.calls.lock().expect("no panic").push(uri.path().to_owned());
            let is_held = uri.path() == "/held";
            eventually("the agent may answer", async || {
                (!is_held || agent.is_free.load(Ordering::Relaxed)).then_some(())
            })
            .await;
            let result = json!({"kind": "task", "id": "t", "status": {"state": "completed"}});
            Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
        };
        let router = Router::new().fallback(axum::routing::post(handle)).with_state(agent.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (agent, url)
    }

    fn calls(&self, path: &str) -> usize {
        self.calls.lock().expect("no panic").iter().filter(|called| *called == path).count()
    }
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(pool).await.expect(sql)
}

/// Readiness of the executor with that management port: status and body, if it answers.
async fn readiness(management: &str) -> Option<(u16, Value)> {
    let answer = reqwest::get(format!("http://127.0.0.1:{management}/health/ready")).await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

/// All of these have completed, each step once, and nothing is open. `ends` are the run's ends in the logs.
async fn each_run_ended_once(pool: &PgPool, total: usize) {
    let total = i64::try_from(total).expect("few");
    eventually("all runs have ended", || async {
        let open = "SELECT count(*) FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING')";
        (count(pool, open).await == 0).then_some(())
    })
    .await;
    assert_eq!(count(pool, "SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'").await, total);
    assert_eq!(count(pool, "SELECT count(*) FROM step_executions WHERE status = 'RUNNING'").await, 0);
    let repeated = "SELECT count(*) FROM (SELECT 1 FROM step_executions WHERE status = 'COMPLETED'
                        GROUP BY run_id, step_id HAVING count(*) > 1) AS twice";
    assert_eq!(count(pool, repeated).await, 0);
    let ends = "SELECT count(*) FROM run_events WHERE kind IN ('run.completed', 'run.failed', 'run.cancelled')";
    assert_eq!(count(pool, ends).await, total, "each run ends once");
}

/// Longer than a process may be silent: others take its run, end it, and the sleeper changes nothing when it wakes up.
#[sqlx::test(migrations = false)]
async fn an_executor_that_was_frozen_changes_nothing_when_it_wakes_up(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let workflow_id =
        environment.chain("zombie", &["/first", "/held", "/last"].map(|path| format!("{url}{path}"))).await;
    let management = free_port().to_string();
    let zombie = environment.clone().with("MANAGEMENT_PORT", &management).start(&["executor"]);
    let run_id = environment.execute(&workflow_id).await.expect("accepted");
    eventually("the second step is under way", async || (agent.calls("/held") == 1).then_some(())).await;
    zombie.signal("STOP").await;
    agent.is_free.store(true, Ordering::Relaxed);
    let _other = environment.start(&["executor"]);
    let run = eventually("the run ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] != "RUNNING").then_some(run)
    })
    .await;
    assert_eq!(run["status"], "COMPLETED", "{run}");
    let rows = environment.get(&format!("/api/v1/runs/{run_id}/steps")).await;
    zombie.signal("CONT").await;
    eventually("it has released its run", async || {
        let (_, body) = readiness(&management).await?;
        (body["status"] == "ready" && body["runs"] == 0).then_some(())
    })
    .await;
    assert_eq!(environment.get(&format!("/api/v1/runs/{run_id}")).await, run);
    assert_eq!(environment.get(&format!("/api/v1/runs/{run_id}/steps")).await, rows);
    assert_eq!((agent.calls("/first"), agent.calls("/held"), agent.calls("/last")), (1, 2, 1));
    // It works again.
    let next = environment.execute(&workflow_id).await.expect("accepted");
    eventually("the next run ends", async || {
        (environment.get(&format!("/api/v1/runs/{next}")).await["status"] == "COMPLETED").then_some(())
    })
    .await;
    each_run_ended_once(&pool, 2).await;
}

/// Members join and leave the group, some in good order and some by kill -9, while 200 runs go on.
#[sqlx::test(migrations = false)]
async fn each_of_two_hundred_runs_ends_once_while_executors_join_and_leave(pool: PgPool) {
    let environment = Environment::new(&pool).with("KAFKA_TOPIC_PARTITIONS", "6");
    let _api = environment.serve().await;
    let (_agent, url) = Agent::start().await;
    let workflow_id = environment.chain("rebalance", &["/a", "/b", "/c"].map(|path| format!("{url}{path}"))).await;
    let mut executors: Vec<Program> = vec![environment.start(&["executor"])];
    let mut accepted = HashSet::new();
    for round in 0..8 {
        for _ in 0..25 {
            accepted.insert(environment.execute(&workflow_id).await.expect("accepted"));
        }
        executors.push(environment.start(&["executor"]));
        if round % 2 == 1 {
            let mut leaver = executors.remove(0);
            if round % 4 == 1 {
                leaver.terminate().await;
                assert_eq!(leaver.exit_code().await, 0, "{}", leaver.log());
            } else {
                leaver.kill().await;
            }
        }
    }
    assert_eq!(accepted.len(), 200);
    each_run_ended_once(&pool, 200).await;
}

/// The executor's way to the database is cut while a call is under way, and comes back.
#[sqlx::test(migrations = false)]
async fn runs_go_on_when_the_database_is_back(pool: PgPool) {
    let (line, cut_off) = through_a_line(&pool).await;
    line.connect(true);
    let environment = Environment { variables: cut_off.variables.clone(), ..cut_off.clone() }
        .with("DATABASE_URL", &Environment::new(&pool).variables["DATABASE_URL"]);
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let workflow_id =
        environment.chain("outage", &["/first", "/held", "/last"].map(|path| format!("{url}{path}"))).await;
    let management = free_port().to_string();
    let _executor = cut_off.with("MANAGEMENT_PORT", &management).start(&["executor"]);
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(environment.execute(&workflow_id).await.expect("accepted"));
    }
    eventually("all are held", async || (agent.calls("/held") == 20).then_some(())).await;
    line.connect(false);
    agent.is_free.store(true, Ordering::Relaxed);
    let ready = async || readiness(&management).await.map(|(status, _)| status);
    // More than it may be silent: its runs are lost to it, and it has to find that out by itself.
    eventually("it is not ready", async || (ready().await == Some(503)).then_some(())).await;
    for _ in 0..5 {
        accepted.push(environment.execute(&workflow_id).await.expect("accepted"));
    }
    line.connect(true);
    eventually("it is ready", async || (ready().await == Some(200)).then_some(())).await;
    each_run_ended_once(&pool, accepted.len()).await;
    assert_eq!(agent.calls("/first"), accepted.len());
}

/// The broker goes away and comes back, twice, while runs go on: a broker of the test's own, since others use the real one.
#[sqlx::test(migrations = false)]
async fn runs_go_on_when_the_broker_is_back(pool: PgPool) {
    let broker = MockCluster::new(1).expect("a broker");
    let environment = Environment::new(&pool).with("KAFKA_BROKERS", &broker.bootstrap_servers());
    let kafka = environment.kafka();
    let topics = [kafka.execution_topic, kafka.cancellation_topic, kafka.dead_letter_topic];
    for topic in topics.iter().chain(&kafka.monitoring_topic) {
        broker.create_topic(topic, 2, 1).expect("a topic");
    }
    let _api = environment.serve().await;
    let (agent, url) = Agent::start().await;
    let workflow_id =
        environment.chain("broker", &["/first", "/held", "/last"].map(|path| format!("{url}{path}"))).await;
    let _executors = [environment.start(&["executor"]), environment.start(&["executor"])];
    let mut accepted: i32 = 0;
    for held in [10, 25] {
        for _ in 0..10 {
            environment.execute(&workflow_id).await.expect("accepted");
            accepted += 1;
        }
        eventually("they are under way", async || (agent.calls("/held") >= held).then_some(())).await;
        broker.broker_down(1).expect("it goes down");
        for _ in 0..5 {
            environment.execute(&workflow_id).await.expect("accepted without a broker");
            accepted += 1;
        }
        // What is under way needs no broker to end.
        agent.is_free.store(true, Ordering::Relaxed);
        eventually("those under way end", || async {
            let completed = count(&pool, "SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'").await;
            (completed >= i64::from(accepted - 5)).then_some(())
        })
        .await;
        broker.broker_up(1).expect("it comes up");
    }
    each_run_ended_once(&pool, usize::try_from(accepted).expect("few")).await;
    assert_eq!(agent.calls("/first"), usize::try_from(accepted).expect("few"));
    eventually("observers were told of everything", || async {
        (count(&pool, "SELECT count(*) FROM monitoring_outbox").await == 0).then_some(())
    })
    .await;
}

/// Poison records while the database is away: nothing of them is lost.
#[sqlx::test(migrations = false)]
async fn dead_letters_wait_for_the_database(pool: PgPool) {
    let (line, environment) = through_a_line(&pool).await;
    line.connect(true);
    let _api = environment.serve().await;
    let management = free_port().to_string();
    let _executor = environment.clone().with("MANAGEMENT_PORT", &management).start(&["executor"]);
    let workflow_id = environment.chain("first", &["http://127.0.0.1:1/".to_owned()]).await;
    environment.execute(&workflow_id).await.expect("accepted");
    eventually("it reads", async || {
        (count(&pool, "SELECT count(*) FROM workflow_runs WHERE status = 'FAILED'").await == 1).then_some(())
    })
    .await;
    line.connect(false);
    let settings = environment.kafka();
    let producer: rdkafka::producer::FutureProducer = kafka::client_config(&settings).create().expect("valid settings");
    for number in 0..10 {
        let (key, value) = (format!("k{number}"), format!("poison {number}"));
        let record = rdkafka::producer::FutureRecord::to(&settings.execution_topic).key(&key).payload(&value);
        producer.send(record, Duration::from_secs(30)).await.expect("sent");
    }
    eventually("it has noticed that the database is down", async || {
        readiness(&management).await.filter(|(status, _)| *status == 503)
    })
    .await;
    line.connect(true);
    eventually("they are kept", || async {
        (count(&pool, "SELECT count(*) FROM dead_letters").await == 10).then_some(())
    })
    .await;
    eventually("they are copied", || async {
        (count(&pool, "SELECT count(*) FROM dead_letters WHERE copy_at IS NOT NULL").await == 0).then_some(())
    })
    .await;
}

/// The executor's endpoint, and the check that compose makes with it.
#[sqlx::test(migrations = false)]
async fn an_executor_says_how_it_is(pool: PgPool) {
    let management = free_port().to_string();
    let environment = Environment::new(&pool).with("MANAGEMENT_PORT", &management);
    let before = environment.run(&["healthcheck", "--executor"]).await;
    assert!(!before.status.success(), "nobody is there");
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    eventually("the check passes", async || {
        environment.run(&["healthcheck", "--executor"]).await.status.success().then_some(())
    })
    .await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("http://127.0.0.1:{management}{path}")).await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    assert_eq!(get("/health").await.0, 200);
    let (status, text) = get("/health/ready").await;
    let body: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &body["status"], &body["checks"]["database"]), (200, &json!("ready"), &json!("connected")));
    assert_eq!(get("/health/live").await.0, 200);
    let (status, text) = get("/health/detailed").await;
    let body: Value = serde_json::from_str(&text).expect("JSON");
    let database = &body["components"]["database"];
    assert_eq!((status, &body["status"], &database["status"]), (200, &json!("ready"), &json!("connected")));
    assert!(database["response_ms"].is_f64() && database["pool"]["max"].is_u64(), "{body}");
    assert_eq!(body["components"]["process"], json!({"status": "running", "active": 0}));
    eventually("the lag is known", async || {
        let body: Value = serde_json::from_str(&get("/health/detailed").await.1).expect("JSON");
        (body["components"]["kafka"]["consumer_lag"] == 0).then_some(())
    })
    .await;
    let (_, url) = Agent::start().await;
    let workflow_id = environment.chain("counted", &[format!("{url}/a")]).await;
    environment.execute(&workflow_id).await.expect("accepted");
    let metrics = eventually("the run is counted", async || {
        let metrics = get("/metrics").await.1;
        metrics.contains("executor_runs_total{status=\"COMPLETED\"} 1").then_some(metrics)
    })
    .await;
    for line in [
        format!("workflow_executions_total{{status=\"COMPLETED\",workflow_id=\"{workflow_id}\"}} 1"),
        format!("workflow_duration_seconds_count{{status=\"COMPLETED\",workflow_id=\"{workflow_id}\"}} 1"),
        format!("executor_step_duration_seconds_count{{status=\"COMPLETED\",workflow_id=\"{workflow_id}\"}} 1"),
        "executor_agent_requests_total{outcome=\"success\",agent=\"counted-0\"} 1".to_owned(),
        "executor_agent_call_seconds_count{agent=\"counted-0\"} 1".to_owned(),
        "workflow_state_transition_total{from_state=\"PENDING\",to_state=\"RUNNING\"} 1".to_owned(),
        "workflow_state_transition_total{from_state=\"RUNNING\",to_state=\"COMPLETED\"} 1".to_owned(),
        "workflow_error_total{error_code=\"timeout\"} 0".to_owned(),
        "executor_dead_letters_total{reason=\"invalid_plan\"} 0".to_owned(),
        "service_ready 1".to_owned(),
        "service_check{check=\"kafka\"} 1".to_owned(),
        "executor_max_runs 256".to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert!(metrics.contains("db_pool_max ") && metrics.contains("db_pool_acquired_total "), "{metrics}");
}

#[sqlx::test(migrations = false)]
async fn an_executor_waits_for_the_schema_and_says_so_once(pool: PgPool) {
    empty(&pool).await;
    let management = free_port().to_string();
    let environment = Environment::new(&pool).with("MANAGEMENT_PORT", &management);
    let executor = environment.start(&["executor"]);
    let waiting = eventually("it waits", async || readiness(&management).await).await;
    assert_eq!((waiting.0, &waiting.1["checks"]), (503, &json!({"schema": "outdated"})));
    assert!(environment.run(&["migrate", "up"]).await.status.success());
    eventually("it has started", async || readiness(&management).await.filter(|(status, _)| *status == 200)).await;
    // The test checks the log line that operators read.
    let log = executor.log();
    assert_eq!(log.matches("waiting for the schema").count(), 1, "{log}");
    assert!(!log.contains("the database is unavailable"), "{log}");
}

#[sqlx::test(migrations = false)]
async fn an_api_that_does_not_migrate_says_once_that_the_schema_is_old(pool: PgPool) {
    empty(&pool).await;
    let environment = Environment::new(&pool)
        .with("MIGRATE_ON_START", "false")
        .with("PRODUCTION", "true")
        .with("AUTH_ENABLED", "false");
    let api = environment.start(&["serve"]);
    eventually("it says so", async || api.log().contains("waiting for the schema").then_some(())).await;
    assert!(environment.run(&["migrate", "up"]).await.status.success());
    eventually("it is ready", async || environment.is_ready().await).await;
    eventually("it says so", async || api.log().contains("the schema is current").then_some(())).await;
    assert_eq!(api.log().matches("waiting for the schema").count(), 1, "{}", api.log());
    // The tests' database is on this host.
    assert!(!api.log().contains("may be without TLS"), "{}", api.log());
}
