//! `reads`: a run by its id and the first page of the list, against the bare server.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use rand::seq::SliceRandom as _;
use sqlx::PgPool;

use crate::{
    checks,
    controls::BareServer,
    load::{self, Requests},
    meter::{CpuTimes, Meter},
    report::{Aim, Report, Row},
    stack::{Bench, Setup, Stack},
};

/// Runs in the table.
const RUNS: i64 = 100_000;
/// Numbers of clients.
const CLIENTS: [usize; 2] = [16, 64];

const BY_ID: &str = "GET /runs/{id}";
const KEYED: &str = "GET /runs/{id}, with an API key";
const HEALTH: &str = "GET /health";

/// Values of one read with one number of clients.
struct Read<'s> {
    name: &'static str,
    stack: &'s Stack<'s>,
    clients: usize,
    aim: Option<Aim>,
    requests: Requests,
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: CpuTimes,
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64, rounds: usize) -> Result<Report> {
    let mut report = Report::new("reads");
    let length = Duration::from_secs(seconds);
    let stack = Stack::start(bench, &Setup::default()).await?;
    let keyed = Stack::start(bench, &Setup { authentication: true, ..Setup::default() }).await?;
    let (by_id, by_id_keyed) = (by_id(&stack).await?, by_id(&keyed).await?);
    let fixed = |path: &'static str| -> Requests {
        let server = stack.server.clone();
        Arc::new(move |_| server.get(path))
    };
    let kinds = [
        (BY_ID, &stack, by_id, Some(Aim::AtLeast(0.43))),
        ("GET /runs?page_size=20", &stack, fixed("/api/v1/runs?page_size=20"), Some(Aim::AtLeast(0.35))),
        (HEALTH, &stack, fixed("/health"), None),
        (KEYED, &keyed, by_id_keyed, Some(Aim::AtLeast(0.98))),
    ];
    let mut reads: Vec<Read> = Vec::new();
    for (name, stack, requests, aim) in kinds {
        for clients in CLIENTS {
            let requests = Arc::clone(&requests);
            let (rates, p50, p99, cpu) = Default::default();
            reads.push(Read { name, stack, clients, aim, requests, rates, p50, p99, cpu });
        }
    }
    let bare = BareServer::start(bench).await?;
    let mut hello = CLIENTS.map(|clients| (clients, Vec::new()));
    // The first answers fill caches.
    for read in &reads {
        load::closed(read.stack.server.address, read.clients, Duration::from_millis(500), &read.requests).await?;
    }
    bare.load(CLIENTS[1], Duration::from_millis(500)).await?;
    for round in 0..rounds {
        eprintln!("reads: round {} of {rounds}", round + 1);
        for (clients, rates) in &mut hello {
            rates.push(bare.load(*clients, length).await?.rate());
        }
        let first = round % reads.len();
        reads.rotate_left(first);
        for read in &mut reads {
            let meter = Meter::start(read.stack.watched());
            let outcome = load::closed(read.stack.server.address, read.clients, length, &read.requests).await?;
            let mut cpu = meter.stop();
            cpu.push(("load generator", outcome.cpu));
            let per_request = |(name, seconds)| (name, 1e6 * seconds / outcome.requests() as f64);
            read.cpu.add(cpu.into_iter().filter(|(name, _)| *name != "Kafka").map(per_request));
            report.must(format!("{}, {} clients", read.name, read.clients), checks::all_accepted(&outcome));
            let percentiles = outcome.latencies.percentiles();
            read.rates.push(outcome.rate());
            read.p50.push(percentiles.p50);
            read.p99.push(percentiles.p99);
        }
        reads.rotate_right(first);
    }
    // Each measure is compared with the bare server, and with what is nearest to it.
    let rates: Vec<_> = reads.iter().map(|read| (read.name, read.clients, read.rates.clone())).collect();
    let of = |name: &str, clients: usize| {
        let found = rates.iter().find(|(known, count, _)| *known == name && *count == clients);
        found.map(|(_, _, rates)| rates.clone()).unwrap_or_default()
    };
    for read in reads {
        let name = format!("{}, {} clients", read.name, read.clients);
        let row = |control, rates| Row::new(&name, "/s", read.rates.clone()).against(control, rates);
        let bare = hello.iter().find(|(clients, _)| *clients == read.clients);
        let bare = row("bare axum", bare.map(|(_, rates)| rates.clone()).unwrap_or_default());
        let rows = match (read.name, read.aim) {
            (KEYED, Some(aim)) => vec![row("without", of(BY_ID, read.clients)).aim(aim)],
            (_, Some(aim)) => vec![bare.aim(aim), row("/health", of(HEALTH, read.clients))],
            (_, None) => vec![bare],
        };
        for row in rows {
            report.row(row);
        }
        report.row(Row::new(format!("{name}, p50"), "ms", read.p50));
        report.row(Row::new(format!("{name}, p99"), "ms", read.p99));
        report.row(read.cpu.row(format!("{name}, CPU"), "µs"));
    }
    keyed.stop().await?;
    stack.stop().await?;
    Ok(report)
}

/// Fills the table, and returns requests for its runs in random order.
async fn by_id(stack: &Stack<'_>) -> Result<Requests> {
    insert_runs(&stack.pool, &stack.workflow).await?;
    let mut ids: Vec<String> = sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&stack.pool).await?;
    ids.shuffle(&mut rand::rng());
    let server = stack.server.clone();
    Ok(Arc::new(move |number| server.get(&format!("/api/v1/runs/{}", ids[number % ids.len()]))))
}

/// Inserts ended runs of a workflow.
async fn insert_runs(pool: &PgPool, workflow: &str) -> Result<()> {
    let inserted = sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
             triggered_by, created_at, updated_at, completed_at, workflow_version, correlation_id)
         SELECT 'run-' || gen_random_uuid(), $1, 'bench', $1, 'COMPLETED', '{\"text\": \"hello\"}', 'system', at,
             at + interval '50 ms', at + interval '50 ms', 1, gen_random_uuid()::text
         FROM generate_series(1, $2) AS n,
             LATERAL (SELECT (now() AT TIME ZONE 'UTC') - n * interval '1 second' AS at) AS time",
    )
    .bind(workflow)
    .bind(RUNS)
    .execute(pool)
    .await?;
    ensure!(inserted.rows_affected() == RUNS.unsigned_abs(), "not all runs were inserted");
    // The visibility map of a table that autovacuum has visited.
    sqlx::raw_sql("VACUUM (ANALYZE) workflow_runs").execute(pool).await?;
    Ok(())
}
