//! Schedules with several processes that are killed at any moment: each firing starts its run once.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::program::{Environment, Program, eventually, free_port};

/// Schedules, each with this many firings that are due: ten thousand together.
const SCHEDULES: i64 = 20;
const FIRINGS: i64 = 500;

async fn count(pool: &PgPool) -> i64 {
    let sql = "SELECT count(*) FROM workflow_runs WHERE trigger_id IS NOT NULL";
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("a count")
}

/// Fires ten thousand times with so many processes. One after the other is killed and replaced meanwhile.
async fn fire_with(pool: &PgPool, processes: usize) {
    let environment = Environment::new(pool);
    let mut all = vec![environment.serve().await];
    environment.chain("each", &["http://127.0.0.1:9/".to_owned()]).await;
    for n in 0..SCHEDULES {
        let config =
            json!({"every": "PT1S", "overlap": "allow", "catch_up": "all", "start_at": "2030-01-01T00:00:00Z"});
        let body = json!({"name": format!("s{n}"), "kind": "schedule", "workflow_name": "each",
            "input": {"text": "${trigger.scheduled_at}"}, "config": config});
        let answer = environment.post("/api/v1/triggers", &body).await.expect("an answer");
        assert_eq!(answer.status(), 201);
    }
    let elsewhere = || environment.clone().with("API_PORT", &free_port().to_string());
    while all.len() < processes {
        all.push(elsewhere().serve_elsewhere().await);
    }
    // All at once: nobody has run for a while.
    let sql = "UPDATE triggers SET config = config || jsonb_build_object(
                   'start_at', to_char(date_trunc('second', now()) - make_interval(secs => $1 - 1), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
                   'end_at', to_char(date_trunc('second', now()), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))";
    sqlx::query(sql).bind(FIRINGS as f64).execute(pool).await.expect("changed");
    let sql = "UPDATE trigger_schedules SET due_at = now(), processed_until = now() - interval '1 day'";
    sqlx::query(sql).execute(pool).await.expect("changed");
    let (mut killed, mut seen) = (0, 0);
    while seen < SCHEDULES * FIRINGS {
        seen = eventually("more runs", async || {
            let now = count(pool).await;
            (now > seen).then_some(now)
        })
        .await;
        // The place of the next victim and the moment follow from what was committed, which differs each time.
        let victim = usize::try_from(seen).expect("a count") / 100 % all.len();
        if killed < 12 {
            all[victim].kill().await;
            all[victim] = elsewhere().start(&["serve"]);
            killed += 1;
        }
    }
    assert!(killed > 2, "{killed} were killed");
    let sql = "SELECT count(*), count(DISTINCT (trigger_id, trigger_at)), count(DISTINCT run_id) FROM workflow_runs
               WHERE trigger_id IS NOT NULL";
    let counts: (i64, i64, i64) = sqlx::query_as(sql).fetch_one(pool).await.expect("counts");
    let total = SCHEDULES * FIRINGS;
    assert_eq!(counts, (total, total, total));
    let sql = "SELECT min((counters ->> 'fired')::bigint), max((counters ->> 'fired')::bigint) FROM triggers";
    let fired: (i64, i64) = sqlx::query_as(sql).fetch_one(pool).await.expect("counters");
    assert_eq!(fired, (FIRINGS, FIRINGS));
    let sql = "SELECT bool_and(due_at IS NULL) FROM trigger_schedules";
    eventually("the schedules have ended", async || {
        sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await.expect("rows").then_some(())
    })
    .await;
    assert_eq!(count(pool).await, total);
}

impl Environment {
    /// Starts another API with this environment, and waits until it is ready at its own port.
    async fn serve_elsewhere(mut self) -> Program {
        self.url = format!("http://127.0.0.1:{}", self.variables["API_PORT"]);
        self.serve().await
    }
}

#[sqlx::test(migrations = false)]
async fn two_processes_that_are_killed_at_any_moment_start_each_run_once(pool: PgPool) {
    fire_with(&pool, 2).await;
}

#[sqlx::test(migrations = false)]
async fn five_processes_that_are_killed_at_any_moment_start_each_run_once(pool: PgPool) {
    fire_with(&pool, 5).await;
}

#[sqlx::test(migrations = false)]
async fn a_process_fires_by_the_clock_of_the_database_and_the_run_is_dispatched(pool: PgPool) {
    let environment = Environment::new(&pool);
    let _api = environment.serve().await;
    environment.chain("each", &["http://127.0.0.1:9/".to_owned()]).await;
    let body = json!({"name": "s", "kind": "schedule", "workflow_name": "each", "config": {"every": "PT1S", "overlap": "allow"}});
    let answer = environment.post("/api/v1/triggers", &body).await.expect("an answer");
    let trigger: Value = answer.json().await.expect("JSON");
    let path = format!("/api/v1/runs?trigger_id={}", trigger["id"].as_str().expect("an id"));
    let run_ids = eventually("two firings", async || {
        let list = environment.get(&path).await;
        let items = list["items"].as_array().expect("a list").clone();
        let ids = items.iter().map(|run| run["run_id"].as_str().expect("an id").to_owned());
        (items.len() >= 2).then(|| ids.collect())
    })
    .await;
    environment.wait_for_messages(run_ids).await;
}
