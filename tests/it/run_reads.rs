//! Reads of runs by id, many in one statement.

use std::sync::Arc;

use futures_util::{future::join_all, poll};
use sqlx::{PgConnection, PgPool, postgres::PgConnectOptions};
use tokio_util::sync::CancellationToken;
use workflow_api::{
    access::OrganizationId,
    config::ConnectOptions,
    db::{self, migrations::MIGRATOR, runs::ShownRun},
    lifecycle::Lifecycle,
    run_reader::RunReader,
};

use crate::{
    pool::{Line, line},
    service::{Service, config, eventually, own_pool},
};

/// A reader on its own pool.
struct Reading {
    reader: RunReader,
    lifecycle: Lifecycle,
}

type Found = Result<Option<Box<ShownRun>>, Arc<db::Error>>;

impl Reading {
    fn start(pool: &db::Pool) -> Self {
        let lifecycle = Lifecycle::new();
        let reader = RunReader::start(pool, &lifecycle, &CancellationToken::new());
        Self { reader, lifecycle }
    }

    async fn find(&self, organization: &str, run_id: &str) -> Found {
        self.reader.find(&OrganizationId::stored(organization), run_id).await
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.lifecycle.soft_stop().cancel();
    }
}

async fn insert_run(pool: &PgPool, organization: &str, run_id: &str, status: &str, input: &str) {
    let sql = "INSERT INTO workflow_runs (run_id, organization_id, workflow_id, workflow_name, status, input_data,
                   created_at, updated_at)
               VALUES ($1, $2, 'w', 'w', $3, $4::jsonb, now(), now())";
    let insert = sqlx::query(sql).bind(run_id).bind(organization).bind(status).bind(input);
    insert.execute(pool).await.expect("the row is valid");
}

async fn insert_step(pool: &PgPool, run_id: &str, output: &str) {
    let sql =
        "INSERT INTO step_executions (id, run_id, step_id, step_name, agent_name, status, input_data, output_data,
                   started_at, completed_at)
               VALUES ($1 || '-s-1', $1, 's', 's', 'a', 'COMPLETED', '{}', $2::jsonb, now(), now())";
    sqlx::query(sql).bind(run_id).bind(output).execute(pool).await.expect("the row is valid");
}

/// An object with a text of so many bytes, which cannot be compressed.
fn object(bytes: usize) -> String {
    let text: String = (0..bytes).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    format!("{{\"text\": \"{text}\"}}")
}

async fn other_organization(pool: &PgPool) {
    let sql = "INSERT INTO organizations (id, name, created_by, updated_by) VALUES ('other', 'Other', 'a', 'a')";
    sqlx::query(sql).execute(pool).await.expect("an organisation");
}

/// Returns when that many statements wait for a lock.
async fn waiting(connection: &mut PgConnection, count: i64) {
    let connection = tokio::sync::Mutex::new(connection);
    eventually("statements wait for the lock", || async {
        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database =
                       (SELECT oid FROM pg_database WHERE datname = current_database())";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&mut **connection.lock().await).await.expect("a count");
        (waiting == count).then_some(())
    })
    .await;
}

fn input(found: &Found) -> Option<&str> {
    let shown = found.as_ref().expect("an answer").as_ref()?;
    assert!(shown.output.is_none());
    shown.run.input_data.as_ref().map(|input| input.0.get())
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_request_of_a_statement_gets_its_own_run_or_none(pool: PgPool) {
    other_organization(&pool).await;
    for n in 0..40 {
        let organization = if n % 2 == 0 { "default" } else { "other" };
        insert_run(&pool, organization, &format!("run-{n}"), "RUNNING", &format!("{{\"n\": {n}}}")).await;
    }
    let reading = Arc::new(Reading::start(&own_pool(&pool)));
    // While both readers wait for a lock, requests collect.
    let mut lock = pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE workflow_runs").execute(&mut *lock).await.expect("a lock");
    let mut busy = Vec::new();
    for count in 1..=2 {
        let reading = Arc::clone(&reading);
        busy.push(tokio::spawn(async move { reading.find("default", "run-0").await }));
        waiting(&mut lock, count).await;
    }
    let wanted: Vec<_> = (0..3).flat_map(|_| (0..42).flat_map(|n| [("default", n), ("other", n)])).collect();
    let mut requests: Vec<_> = wanted
        .iter()
        .map(|(organization, n)| {
            let (reading, run_id) = (Arc::clone(&reading), format!("run-{n}"));
            Box::pin(async move { reading.find(organization, &run_id).await })
        })
        .collect();
    for request in &mut requests {
        assert!(poll!(request).is_pending());
    }
    lock.rollback().await.expect("unlocked");
    for ((organization, n), found) in wanted.iter().zip(join_all(requests).await) {
        let owner = if n % 2 == 0 { "default" } else { "other" };
        let expected = (*n < 40 && *organization == owner).then(|| format!("{{\"n\": {n}}}"));
        assert_eq!(input(&found), expected.as_deref(), "run-{n} for {organization}");
    }
    for request in busy {
        assert_eq!(input(&request.await.expect("no panic")), Some("{\"n\": 0}"));
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_answer_shows_all_that_was_committed_before_its_request(pool: PgPool) {
    insert_run(&pool, "default", "run-1", "RUNNING", "0").await;
    let reading = Arc::new(Reading::start(&own_pool(&pool)));
    let others: Vec<_> = (0..4)
        .map(|_| {
            let reading = Arc::clone(&reading);
            tokio::spawn(async move {
                loop {
                    reading.find("default", "run-1").await.expect("an answer");
                }
            })
        })
        .collect();
    for n in 0..200 {
        let update = sqlx::query("UPDATE workflow_runs SET input_data = to_jsonb($1::int)").bind(n);
        update.execute(&pool).await.expect("committed");
        assert_eq!(input(&reading.find("default", "run-1").await), Some(n.to_string().as_str()));
    }
    others.iter().for_each(tokio::task::JoinHandle::abort);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_large_input_or_output_is_complete(pool: PgPool) {
    let service = Service::start(&pool);
    let (large, small) = (object(100_000), object(10));
    for (run_id, status, input, output) in [
        ("small", "COMPLETED", &small, Some(&small)),
        ("large-input", "COMPLETED", &large, Some(&small)),
        ("large-output", "COMPLETED", &small, Some(&large)),
        ("large", "COMPLETED", &large, Some(&large)),
        ("no-output", "COMPLETED", &small, None),
        ("open", "RUNNING", &large, None),
        ("failed", "FAILED", &small, None),
    ] {
        insert_run(&pool, "default", run_id, status, input).await;
        if let Some(output) = output {
            insert_step(&pool, run_id, output).await;
        }
        let run = service.get(&format!("/api/v1/runs/{run_id}")).await.expect(200);
        let json = |text: &String| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(run["input_data"], json(input), "{run_id}");
        assert_eq!(run["output_data"], output.map_or(serde_json::Value::Null, json), "{run_id}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_row_that_cannot_be_read_fails_only_its_own_request(pool: PgPool) {
    for run_id in ["a", "b", "c"] {
        insert_run(&pool, "default", run_id, "RUNNING", "{}").await;
    }
    sqlx::query("UPDATE workflow_runs SET updated_at = 'infinity' WHERE run_id = 'b'")
        .execute(&pool)
        .await
        .expect("PostgreSQL stores it");
    let reading = Reading::start(&own_pool(&pool));
    for _ in 0..3 {
        let found = join_all(["a", "b", "c", "b", "d"].map(|run_id| reading.find("default", run_id))).await;
        let found: Vec<_> =
            found.iter().map(|found| found.as_ref().map(Option::is_some).map_err(|error| &**error)).collect();
        assert!(
            matches!(found[..], [Ok(true), Err(db::Error::Bug(_)), Ok(true), Err(db::Error::Bug(_)), Ok(false)]),
            "{found:?}"
        );
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_lost_connection_is_replaced_and_a_lost_database_is_503_until_it_is_back(pool: PgPool) {
    insert_run(&pool, "default", "run-1", "RUNNING", "{}").await;
    let (state, address) = line(&pool.connect_options()).await;
    let options: PgConnectOptions = (*pool.connect_options()).clone().host("127.0.0.1").port(address.port());
    let mut config = config(&pool, &[]);
    config.database.connect = ConnectOptions::from(options.application_name("read"));
    let service = Service::start_with(config);
    let path = "/api/v1/runs/run-1";
    for _ in 0..3 {
        service.get(path).await.expect(200);
        // Used a moment ago, so that the pool has no reason to check it. This returns when the server processes have ended.
        let sql = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
                   WHERE application_name = 'read' AND datname = current_database()";
        sqlx::query(sql).execute(&pool).await.expect("ended");
        service.get(path).await.expect(200);
    }
    state.send(Line::Cut).expect("the line");
    let lost = join_all((0..20).map(|_| service.get(path))).await;
    for answer in lost {
        assert_eq!(answer.header("retry-after"), Some("2"));
        assert_eq!(answer.error(503)["code"], "database_unavailable");
    }
    state.send(Line::Carry).expect("the line");
    eventually("the database is back", || async { (service.get(path).await.status == 200).then_some(()) }).await;
}
