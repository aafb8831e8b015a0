//! kill -9 after each single statement of what must happen as a whole: the server has executed it, and the process
//! never learns that. Between any two deaths the next process goes on with what is left.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, extract::State, routing::post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use crate::{
    cutter::Cutter,
    kafka_triggers,
    program::{Environment, eventually, free_port},
};

/// Programs that die after a statement, beside a database that stays.
struct Scene {
    pool: PgPool,
    /// Without anything between.
    direct: Environment,
    cutter: Cutter,
    /// Port of the API that runs at this moment.
    port: AtomicU16,
}

impl Scene {
    async fn new(pool: &PgPool) -> Self {
        let (direct, cutter) = (Environment::new(pool), Cutter::start(pool).await);
        Self { pool: pool.clone(), direct, cutter, port: AtomicU16::default() }
    }

    /// The value of a query.
    async fn value<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.expect("a row")
    }

    async fn write(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect("written");
    }

    /// Runs a program until the statement of that number has been executed, of those that have a marker or follow one
    /// in their transaction; then kills it. Returns the statement; nothing if all was over before.
    async fn die_after(&self, command: &str, markers: &[&str], number: usize, is_over: &str) -> Option<String> {
        self.cutter.arm(markers, number);
        // Nobody waits for the members of a consumer group that have been killed.
        let port = free_port();
        self.port.store(port, Ordering::SeqCst);
        let environment = self.cutter.before(&self.direct).with("API_PORT", &port.to_string());
        let environment = environment.with("KAFKA_GROUP_ID", &uuid::Uuid::new_v4().to_string());
        let mut program = environment.start(&[command]);
        let cut = eventually("a statement is executed, or all is over", async || {
            if let Some(statement) = self.cutter.cut() {
                return Some(Some(statement));
            }
            let is_over: bool = self.value(is_over).await;
            (is_over && !self.cutter.has_reached()).then_some(None)
        })
        .await;
        program.kill().await;
        self.cutter.is_idle().await;
        cut
    }

    /// Kills API processes after each of these statements until all is over; `right` must hold after each death.
    /// Returns the statements.
    async fn die_after_each(&self, marker: &str, is_over: &str, right: &str, between: &str) -> Vec<String> {
        let (mut statements, mut number) = (Vec::new(), 1);
        while let Some(statement) = self.die_after("serve", &[marker], number, is_over).await {
            assert!(self.value::<bool>(right).await, "after statement {number} of {marker}: {statement}");
            // What was committed is not done again; what was not is done from its beginning.
            number = if statement == "COMMIT" { 1 } else { number + 1 };
            statements.push(statement);
            assert!(statements.len() < 60, "it does not go on: {statements:#?}");
            self.write(between).await;
        }
        assert!(self.value::<bool>(right).await, "at the end of {marker}");
        statements
    }
}

/// Whether processes have died after statements with each of these texts.
fn have_all(statements: &[String], texts: &[&str]) {
    for text in texts {
        let has = statements.iter().any(|statement| statement.contains(text));
        assert!(has, "no process has died after {text}: {statements:#?}");
    }
}

/// Receiver that answers at once.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<String>>>);

impl Receiver {
    async fn start() -> (Self, String) {
        let receiver = Self::default();
        let take = async |State(receiver): State<Self>, headers: HeaderMap| {
            let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).expect("an id").to_owned();
            receiver.0.lock().expect("no panic").push(id);
            StatusCode::NO_CONTENT
        };
        let url = listen(Router::new().fallback(post(take)).with_state(receiver.clone())).await;
        (receiver, url)
    }

    fn ids(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }
}

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

/// Fan-out, the recording of an attempt, and a recovery.
#[sqlx::test(migrations = false)]
async fn a_webhook_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    let mut api = scene.direct.serve().await;
    let (receiver, url) = Receiver::start().await;
    let body = json!({"name": "w", "url": url, "event_types": ["*"], "enabled": false});
    assert_eq!(scene.direct.post("/api/v1/webhooks", &body).await.expect("an answer").status(), 201);
    api.kill().await;

    // Held deliveries, so that nothing is sent yet.
    scene.write("SELECT record_event('default', 'run.failed', NULL, '{}') FROM generate_series(1, 3)").await;
    let statements = scene
        .die_after_each(
            "FROM take_events(",
            "SELECT NOT EXISTS (SELECT FROM webhook_events WHERE to_fan_out)",
            "SELECT bool_and((SELECT count(*) FROM webhook_deliveries d WHERE d.event_id = e.id)
                 = CASE WHEN to_fan_out THEN 0 ELSE 1 END) FROM webhook_events e",
            "",
        )
        .await;
    have_all(&statements, &["FROM take_events(", "FROM webhooks", "INSERT INTO webhook_deliveries", "COMMIT"]);

    // One of them is sent. An attempt whose outcome is not known is made again when its lease is over.
    scene
        .write(
            "UPDATE webhooks SET enabled = true;
             UPDATE webhook_deliveries SET state = 'pending', due_at = now()
             WHERE id = (SELECT id FROM webhook_deliveries ORDER BY id LIMIT 1)",
        )
        .await;
    let statements = scene
        .die_after_each(
            "ORDER BY webhook_id FOR NO KEY UPDATE",
            "SELECT NOT EXISTS (SELECT FROM webhook_deliveries WHERE state = 'pending')",
            "SELECT bool_and(d.attempts = (d.state = 'delivered')::int AND d.attempts = (
                     SELECT count(*) FROM webhook_attempts a WHERE a.delivery_id = d.id))
                 AND bool_or(d.state = 'delivered') = (
                     SELECT last_success_at IS NOT NULL FROM webhook_states) FROM webhook_deliveries d",
            "UPDATE webhook_deliveries SET due_at = now(), leased_until = now() WHERE state = 'pending'",
        )
        .await;
    let parts = ["UPDATE webhook_states", "UPDATE webhook_deliveries", "INSERT INTO webhook_attempts", "COMMIT"];
    have_all(&statements, &parts);
    let ids = receiver.ids();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (statements.len(), 1), "{ids:?}");

    // More than a page of failures. A little of it is sent meanwhile.
    scene
        .write(
            "DELETE FROM webhook_deliveries;
             INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state,
                 attempts, ended_at)
             SELECT gen_random_uuid(), w.id, 'default', gen_random_uuid(), 'run.failed', now(), '{}', 'failed', 10, now()
             FROM webhooks w, generate_series(1, 600) n;
             UPDATE webhooks SET max_in_flight = 1, rate_per_second = 1;
             INSERT INTO webhook_replays (id, webhook_id, which, since, until, phase, created_by, created_at)
             SELECT gen_random_uuid(), id, 'failed', now() - interval '1 hour', now() + interval '1 hour', 'deliveries',
                 'a test', clock_timestamp() FROM webhooks",
        )
        .await;
    let statements = scene
        .die_after_each(
            "FROM webhook_replays WHERE ended_at IS NULL ORDER BY created_at",
            "SELECT ended_at IS NOT NULL FROM webhook_replays",
            "SELECT replayed = (SELECT count(*) FROM webhook_deliveries WHERE state <> 'failed') FROM webhook_replays",
            "",
        )
        .await;
    have_all(
        &statements,
        &["FROM webhook_deliveries", "UPDATE webhook_deliveries", "UPDATE webhook_replays", "COMMIT"],
    );
    assert_eq!(scene.value::<i64>("SELECT replayed FROM webhook_replays").await, 600);
    assert!(statements.iter().filter(|statement| *statement == "COMMIT").count() > 1, "{statements:#?}");
}

/// Stores a trigger of a workflow, and leaves no process behind.
async fn trigger(scene: &Scene, kind: &str, config: Value) -> Value {
    let mut api = scene.direct.serve().await;
    scene.direct.chain("each", &["http://127.0.0.1:9/".to_owned()]).await;
    let trigger = json!({"name": "t", "kind": kind, "workflow_name": "each", "input": {"text": "x"}, "config": config});
    let answer = scene.direct.post("/api/v1/triggers", &trigger).await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.expect("text"));
    assert_eq!(status, 201, "{text}");
    api.kill().await;
    serde_json::from_str(&text).expect("JSON")
}

#[sqlx::test(migrations = false)]
async fn a_schedule_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    let start = "2030-01-01T00:00:00Z";
    trigger(&scene, "schedule", json!({"every": "PT1S", "overlap": "allow", "catch_up": "all", "start_at": start}))
        .await;
    // Thirty firings at once: nobody has run for a while.
    scene
        .write(
            "UPDATE triggers SET config = config || jsonb_build_object(
                 'start_at', to_char(date_trunc('second', now()) - interval '29 seconds', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                 'end_at', to_char(date_trunc('second', now()), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'));
             UPDATE trigger_schedules SET due_at = now(), processed_until = now() - interval '1 day'",
        )
        .await;
    let statements = scene
        .die_after_each(
            "AND due_at <= $2 FOR UPDATE SKIP LOCKED",
            "SELECT due_at IS NULL FROM trigger_schedules",
            "SELECT coalesce((counters ->> 'fired')::bigint, 0) = (SELECT count(*) FROM workflow_runs)
                 AND (SELECT count(*) = count(DISTINCT trigger_at) FROM workflow_runs) FROM triggers",
            "",
        )
        .await;
    have_all(&statements, &["INSERT INTO workflow_runs", "INSERT INTO trigger_schedules", "COMMIT"]);
    assert_eq!(scene.value::<i64>("SELECT count(*) FROM workflow_runs").await, 30);
}

#[sqlx::test(migrations = false)]
async fn a_backfill_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    // It fires by itself only if the test runs at the right second of a month.
    let start = "2010-01-01T00:00:00Z";
    trigger(&scene, "schedule", json!({"every": "PT720H", "anchor": start, "overlap": "allow", "start_at": start}))
        .await;
    // 130 firings: two turns.
    scene
        .write(
            "INSERT INTO trigger_backfills (id, trigger_id, state, from_at, to_at, overlap, force, total, processed_until,
                 created_by, created_at)
             SELECT gen_random_uuid(), id, 'running', start, start + interval '93600 hours', 'allow', false, 130,
                 start - interval '1 microsecond', 'a test', now() FROM triggers, (VALUES (timestamptz '2010-01-01Z')) v (start)",
        )
        .await;
    let statements = scene
        .die_after_each(
            "FROM trigger_backfills WHERE id = $1 AND state = 'running'",
            "SELECT state = 'completed' FROM trigger_backfills",
            "SELECT present = 0 AND failed = 0 AND started = (SELECT count(DISTINCT trigger_at) FROM workflow_runs)
                 AND started = (SELECT count(*) FROM workflow_runs) FROM trigger_backfills",
            "",
        )
        .await;
    have_all(&statements, &["INSERT INTO workflow_runs", "UPDATE trigger_backfills", "COMMIT"]);
    assert_eq!(scene.value::<i64>("SELECT count(*) FROM workflow_runs").await, 130);
    assert!(statements.iter().filter(|statement| *statement == "COMMIT").count() > 1, "{statements:#?}");
}

/// Stores a workflow of one step with that flow control, starts so many runs of it, and leaves no process behind.
async fn held_runs(scene: &Scene, flow: &Value, count: usize) {
    let mut api = scene.direct.serve().await;
    let workflow_id = scene.direct.chain("held", &["http://127.0.0.1:9/".to_owned()]).await;
    let path = format!("{}/api/v1/workflows/{workflow_id}", scene.direct.url);
    let answer = reqwest::Client::new().put(path).json(flow).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    for _ in 0..count {
        scene.direct.execute(&workflow_id).await.expect("accepted");
    }
    api.kill().await;
}

#[sqlx::test(migrations = false)]
async fn slots_of_runs_outlive_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    held_runs(&scene, &json!({"concurrency": {"limit": 2}}), 6).await;
    let end = "UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now() AT TIME ZONE 'UTC'
               WHERE flow_state = 'admitted' AND status = 'PENDING'";
    scene.write(end).await;
    let statements = scene
        .die_after_each(
            "DELETE FROM flow_wakes",
            "SELECT NOT EXISTS (SELECT FROM workflow_runs WHERE status = 'PENDING')",
            "SELECT count(*) FILTER (WHERE flow_state = 'admitted' AND status = 'PENDING') <= 2
                 AND bool_and(flow_state = 'admitted' OR NOT EXISTS (
                     SELECT FROM outbox o WHERE o.run_id = r.run_id)) FROM workflow_runs r",
            end,
        )
        .await;
    have_all(&statements, &["DELETE FROM flow_wakes", "INSERT INTO outbox", "COMMIT"]);
    assert_eq!(scene.value::<i64>("SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'").await, 6);
}

#[sqlx::test(migrations = false)]
async fn a_debounced_run_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    held_runs(&scene, &json!({"debounce": {"period_seconds": 3600}, "concurrency": {"limit": 1}}), 4).await;
    let due = "UPDATE workflow_runs SET flow_due = now() WHERE flow_due IS NOT NULL;
               UPDATE flow_wakes SET due_at = now()";
    scene.write(due).await;
    let statements = scene
        .die_after_each(
            "DELETE FROM flow_wakes",
            "SELECT count(*) = 1 FROM workflow_runs WHERE flow_state = 'admitted'",
            "SELECT count(*) FILTER (WHERE status = 'PENDING') >= 1 AND count(*) FILTER (WHERE flow_state = 'admitted') <= 1
                 AND bool_and((flow_state = 'replaced') = (status = 'CANCELLED')) FROM workflow_runs",
            due,
        )
        .await;
    have_all(&statements, &["DELETE FROM flow_wakes", "INSERT INTO outbox", "COMMIT"]);
    assert_eq!(scene.value::<i64>("SELECT count(*) FROM workflow_runs WHERE flow_state = 'replaced'").await, 3);
}

#[sqlx::test(migrations = false)]
async fn a_throttled_run_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    held_runs(&scene, &json!({"throttle": {"limit": 1, "period_seconds": 3600}}), 3).await;
    scene.write("CREATE TABLE hour (admitted bigint); INSERT INTO hour VALUES (0)").await;
    let an_hour_later = "
        UPDATE hour SET admitted = (SELECT count(*) FROM workflow_runs WHERE flow_state = 'admitted');
        UPDATE flow_throttles SET busy_until = now();
        UPDATE flow_wakes SET due_at = now()";
    scene.write(an_hour_later).await;
    let statements = scene
        .die_after_each(
            "DELETE FROM flow_wakes",
            "SELECT count(*) = 3 FROM workflow_runs WHERE flow_state = 'admitted'",
            "SELECT count(*) FILTER (WHERE flow_state = 'admitted') - (SELECT admitted FROM hour)
                     = (SELECT count(*) FROM flow_throttles WHERE busy_until > now())
                 AND bool_and(flow_state = 'admitted' OR NOT EXISTS (
                     SELECT FROM outbox o WHERE o.run_id = r.run_id)) FROM workflow_runs r",
            an_hour_later,
        )
        .await;
    have_all(&statements, &["DELETE FROM flow_wakes", "UPDATE flow_throttles", "INSERT INTO outbox", "COMMIT"]);
}

/// One statement finds it, records the event, and remembers that.
#[sqlx::test(migrations = false)]
async fn silence_is_told_once_however_often_a_process_dies_after_it_was_found(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    held_runs(&scene, &json!({"silence_hours": 1}), 0).await;
    scene.write("INSERT INTO event_topics (topic) VALUES ('events')").await;
    scene.write("UPDATE workflow_silences SET watched_since = now() - interval '2 hours', due_at = now()").await;
    for death in 0..3 {
        let found = scene.die_after("serve", &["'workflow.silent', NULL"], 1, "SELECT false").await;
        assert!(found.is_some(), "death {death}");
        let told = "SELECT (SELECT count(*) FROM webhook_events WHERE event_type = 'workflow.silent') = 1
                        AND silent_since = watched_since AND due_at > now() FROM workflow_silences";
        assert!(scene.value::<bool>(told).await, "death {death}");
        scene.write("UPDATE workflow_silences SET due_at = now()").await;
    }
}

#[sqlx::test(migrations = false)]
async fn a_missed_deadline_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    held_runs(&scene, &json!({"deadline_seconds": 3600, "deadline_action": "cancel"}), 1).await;
    scene.write("INSERT INTO event_topics (topic) VALUES ('events')").await;
    let due = "UPDATE workflow_runs SET deadline_due_at = now() WHERE deadline_due_at IS NOT NULL";
    scene.write(due).await;
    let statements = scene
        .die_after_each(
            "'run.deadline_missed', run_id",
            "SELECT status = 'CANCELLED' FROM workflow_runs",
            "SELECT (SELECT count(*) FROM webhook_events WHERE event_type = 'run.deadline_missed')
                 = (deadline_missed_at IS NOT NULL)::int
                 AND (SELECT count(*) FROM webhook_events WHERE event_type = 'run.cancelled')
                 = (status = 'CANCELLED')::int FROM workflow_runs",
            due,
        )
        .await;
    have_all(&statements, &["record_event", "COMMIT"]);
    assert!(scene.value::<bool>("SELECT status = 'CANCELLED' FROM workflow_runs").await);
}

/// Whoever sends a delivery repeats it until it is acknowledged.
#[sqlx::test(migrations = false)]
async fn a_delivery_outlives_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    let created = trigger(&scene, "webhook", json!({"preset": "none", "dedupe_header": "x-id"})).await;
    let token = created["token"].as_str().expect("a token");
    scene.write("CREATE TABLE acknowledged ()").await;
    let sending = async {
        eventually("it is acknowledged", async || {
            let url = format!("http://127.0.0.1:{}/api/v1/hooks/{token}", scene.port.load(Ordering::SeqCst));
            let request = reqwest::Client::new().post(url).header("x-id", "d-1").json(&json!({}));
            request.send().await.ok()?.status().is_success().then_some(())
        })
        .await;
        scene.write("INSERT INTO acknowledged DEFAULT VALUES").await;
    };
    let dying = scene.die_after_each(
        "FROM triggers WHERE id = $1 AND organization_id = $2 FOR KEY SHARE",
        "SELECT EXISTS (SELECT FROM acknowledged)",
        "SELECT coalesce((counters ->> 'fired')::bigint, 0) = (SELECT count(*) FROM workflow_runs)
             AND (SELECT count(*) FROM workflow_runs) = (SELECT count(*) FROM webhook_trigger_deliveries) FROM triggers",
        "",
    );
    let (statements, ()) = tokio::join!(dying, sending);
    let parts = ["INSERT INTO webhook_trigger_deliveries", "INSERT INTO workflow_runs", "UPDATE triggers", "COMMIT"];
    have_all(&statements, &parts);
    assert_eq!(scene.value::<i64>("SELECT count(*) FROM workflow_runs").await, 1);
}

#[sqlx::test(migrations = false)]
async fn records_outlive_a_death_after_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    let topic = kafka_triggers::topic(&scene.direct, 1).await;
    trigger(&scene, "kafka", json!({"topic": topic, "start": "earliest"})).await;
    kafka_triggers::send(&scene.direct, &topic, &["1", "no JSON", "2"], 1).await;
    // No offset has been committed, and another group does not wait for the member that was killed.
    let anew =
        "UPDATE triggers SET config = config || jsonb_build_object('group_id', 'wf-trigger-' || gen_random_uuid())";
    scene.write(anew).await;
    let statements = scene
        .die_after_each(
            "FROM triggers WHERE id = $1 AND organization_id = $2 FOR UPDATE",
            "SELECT count(*) = 2 FROM workflow_runs",
            "SELECT coalesce((counters ->> 'fired')::bigint, 0) = (SELECT count(*) FROM workflow_runs)
                 AND coalesce((counters ->> 'dead_letters')::bigint, 0) = (SELECT count(*) FROM dead_letters)
             FROM triggers",
            anew,
        )
        .await;
    have_all(&statements, &["INSERT INTO workflow_runs", "INSERT INTO dead_letters", "UPDATE triggers", "COMMIT"]);
    let found = scene.value::<i64>("SELECT count(*) FROM dead_letters").await;
    assert_eq!((found, scene.value::<i64>("SELECT count(*) FROM workflow_runs").await), (1, 2));
}

/// An event exists if and only if the state of its run has changed.
#[sqlx::test(migrations = false)]
async fn the_events_of_a_run_are_those_of_its_states_after_the_death_of_an_executor_at_any_statement(pool: PgPool) {
    let scene = Scene::new(&pool).await;
    let _api = scene.direct.serve().await;
    let calls: Arc<AtomicUsize> = Arc::default();
    let answer = async |State(calls): State<Arc<AtomicUsize>>, Json(call): Json<Value>| {
        calls.fetch_add(1, Ordering::SeqCst);
        let task = json!({"kind": "task", "id": "t", "status": {"state": "completed"},
            "artifacts": [{"artifactId": "a", "parts": [{"kind": "text", "text": "done"}]}]});
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": task}))
    };
    let url = listen(Router::new().fallback(post(answer)).with_state(Arc::clone(&calls))).await;
    let workflow_id = scene.direct.chain("told", &[url]).await;
    let body = json!({"name": "w", "url": "http://127.0.0.1:9/", "event_types": ["*"], "enabled": false});
    assert_eq!(scene.direct.post("/api/v1/webhooks", &body).await.expect("an answer").status(), 201);
    let mut statements = Vec::new();
    // The claim, which begins the first attempt, and the write, which ends attempt and run.
    for marker in ["request AS MATERIALIZED", "change AS MATERIALIZED"] {
        let mut number = 1;
        while let Some(statement) = run_and_die(&scene, &workflow_id, marker, number).await {
            statements.push(statement);
            number += 1;
            assert!(number < 20, "no run ends: {statements:#?}");
        }
    }
    have_all(&statements, &["request AS MATERIALIZED", "change AS MATERIALIZED"]);
    assert!(calls.load(Ordering::SeqCst) > 1, "some have died after the call");
}

/// Executes a run with an executor that dies after that statement. Returns the statement; nothing if the run ended before.
async fn run_and_die(scene: &Scene, workflow_id: &str, marker: &str, number: usize) -> Option<String> {
    let run_id = scene.direct.execute(workflow_id).await.expect("accepted");
    let of_run = format!("FROM workflow_runs r WHERE run_id = '{run_id}'");
    let is_over = format!("SELECT status = 'COMPLETED' {of_run}");
    let cut = scene.die_after("executor", &[marker], number, &is_over).await;
    let events = |event_type: &str| {
        format!("(SELECT count(*) FROM webhook_events e WHERE e.run_id = r.run_id AND event_type = '{event_type}')")
    };
    let (started, completed) = (events("run.started"), events("run.completed"));
    let right =
        format!("SELECT {started} = (status <> 'PENDING')::int AND {completed} = (status = 'COMPLETED')::int {of_run}");
    assert!(scene.value::<bool>(&right).await, "after statement {number} of {marker}: {cut:?}");
    if cut.is_none() {
        assert!(scene.value::<bool>(&is_over).await);
    }
    // The next executor has nothing to do but the next run.
    scene
        .write(
            "UPDATE workflow_runs SET status = 'CANCELLED', cancelled_at = now()
             WHERE status IN ('PENDING', 'RUNNING')",
        )
        .await;
    cut
}
