//! `execute`: starting runs, against the same inserts by pgbench on plain tables.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use uuid::Uuid;

use crate::{
    checks,
    controls::{BareServer, PlainTables, Script},
    http::{Connection, Server},
    kafka,
    load::{self, Outcome, Requests},
    meter::{CpuTimes, Meter},
    report::{Aim, Report, Row},
    stack::{Bench, EXECUTE_BODY, Setup, Stack},
    statistics::Latencies,
};

/// Clients of the closed loop.
pub const CLIENTS: usize = 64;
/// Single requests whose dispatch is measured.
const DISPATCHES: usize = 200;
/// Length of the short measures.
const SHORT: Duration = Duration::from_secs(2);

/// Requests that execute a workflow.
pub fn requests(server: &Server, workflow: &str) -> Requests {
    let (server, path) = (server.clone(), Stack::execute_path(workflow));
    Arc::new(move |_| server.post(&path, EXECUTE_BODY))
}

/// Values of all rounds of one variant of the service.
#[derive(Default)]
struct Variant {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    p50_of_one: Vec<f64>,
    dispatch: Vec<f64>,
    health: Vec<f64>,
    memory: Vec<f64>,
    cpu: CpuTimes,
}

impl Variant {
    /// Starts the service on an empty database, and measures.
    async fn measure(&mut self, bench: &Bench, setup: &Setup, length: Duration, report: &mut Report) -> Result<()> {
        let stack = Stack::start(bench, setup).await?;
        let requests = requests(&stack.server, &stack.workflow);
        let address = stack.server.address;
        let mut all = load::closed(address, CLIENTS, Duration::from_secs(1), &requests).await?;
        let one = load::closed(address, 1, SHORT, &requests).await?;
        self.p50_of_one.push(one.latencies.percentiles().p50);
        all.merge(one);
        bench.checkpoint().await?;

        let meter = Meter::start(stack.watched());
        let outcome = load::closed(address, CLIENTS, length, &requests).await?;
        self.memory.push(stack.resident("API")?);
        // What follows the acknowledgement is work of the request too: Kafka, the outbox.
        if checks::wait_for_none(&stack.pool, checks::UNSENT).await?.is_err() {
            report.check("the relay keeps up", Err("rows are left in the outbox".to_owned()));
        }
        let mut cpu = meter.stop();
        cpu.push(("load generator", outcome.cpu));
        let per_request = |(name, seconds)| (name, 1000.0 * seconds / outcome.requests() as f64);
        self.cpu.add(cpu.into_iter().map(per_request));
        let percentiles = outcome.latencies.percentiles();
        self.rates.push(outcome.rate());
        self.p50.push(percentiles.p50);
        self.p99.push(percentiles.p99);
        self.p999.push(percentiles.p999);

        let (dispatched, run_ids) = dispatch(bench, &stack).await?;
        self.dispatch.push(dispatched.percentiles().p50);
        all.run_ids.extend(run_ids);
        let server = stack.server.clone();
        let health: Requests = Arc::new(move |_| server.get("/health"));
        let health = load::closed(address, CLIENTS, SHORT, &health).await?;
        report.must("GET /health", checks::all_accepted(&health));
        self.health.push(health.rate());
        all.merge(outcome);
        let name = if setup.authentication { "with an API key" } else { "without authentication" };
        let what = format!("execute {name}, round {}", self.rates.len());
        report.check(what, checks::after_load(&stack, &all, false).await?);
        stack.stop().await
    }
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64, rounds: usize) -> Result<Report> {
    let mut report = Report::new("execute");
    let length = Duration::from_secs(seconds);
    let tables = PlainTables::open(bench).await?;
    let (mut plain, mut keyed) = (Variant::default(), Variant::default());
    let (mut t, mut s, mut insert) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hello, mut messages, mut delivery) = (Vec::new(), Vec::new(), Vec::new());
    let mut control_cpu = CpuTimes::default();
    let topic = bench.unique_name("bare");
    for round in 0..rounds {
        eprintln!("execute: round {} of {rounds}", round + 1);
        // Another one begins each round.
        for kind in 0..4 {
            match (kind + round) % 4 {
                0 => plain.measure(bench, &Setup::default(), length, &mut report).await?,
                1 => {
                    let measured = tables.run(Script::Transaction, CLIENTS, length).await?;
                    t.push(measured.rate);
                    control_cpu.add(measured.cpu);
                }
                2 => {
                    let setup = Setup { authentication: true, ..Setup::default() };
                    keyed.measure(bench, &setup, length, &mut report).await?;
                }
                _ => s.push(tables.run(Script::Statement, CLIENTS, length).await?.rate),
            }
        }
        insert.push(tables.run(Script::Insert, 1, SHORT).await?.latencies.percentiles().p50);
        let bare = BareServer::start(bench).await?;
        bare.load(CLIENTS, Duration::from_millis(500)).await?;
        hello.push(bare.load(CLIENTS, SHORT).await?.rate());
        messages.push(kafka::bare_rate(&bench.brokers, &topic, SHORT).await.context("bare Kafka")?);
        let delivered = kafka::bare_latency(&bench.brokers, &bench.unique_name("bare"), DISPATCHES).await?;
        delivery.push(delivered.percentiles().p50);
    }
    tables.close().await?;

    let keyed_rates = keyed.rates.clone();
    report
        .row(Row::new("execute, 64 clients", "/s", plain.rates.clone()).against("T", t.clone()).aim(Aim::AtLeast(3.0)));
    report
        .row(Row::new("execute, 64 clients", "/s", plain.rates.clone()).against("S", s.clone()).aim(Aim::AtLeast(1.5)));
    report.row(Row::new("with an API key", "/s", keyed_rates.clone()).against("T", t).aim(Aim::AtLeast(3.0)));
    report.row(Row::new("with an API key", "/s", keyed_rates.clone()).against("S", s).aim(Aim::AtLeast(1.5)));
    let anonymous = plain.rates.clone();
    report.row(Row::new("with an API key", "/s", keyed_rates).against("without", anonymous).aim(Aim::AtLeast(0.98)));
    for (name, values) in [("p50", plain.p50), ("p99", plain.p99), ("p99.9", plain.p999)] {
        report.row(Row::new(format!("execute, 64 clients, {name}"), "ms", values));
    }
    report.row(
        Row::new("execute, 1 client, p50", "ms", plain.p50_of_one)
            .against("ms insert", insert.clone())
            .aim(Aim::AtMost(1.25)),
    );
    // What a commit and a message cost one after the other, without the service.
    let bare = insert.iter().zip(&delivery).map(|(insert, delivery)| insert + delivery).collect();
    report.row(
        Row::new("execute→consumer, 1 client, p50", "ms", plain.dispatch)
            .against("ms insert + delivery", bare)
            .aim(Aim::AtMost(1.2)),
    );
    report.row(plain.cpu.row("CPU per execute", "ms"));
    report.row(control_cpu.row("CPU per transaction of T", "ms"));
    report.row(Row::new("API, resident, after 64 clients", "MiB", plain.memory));
    report.row(Row::new("GET /health, 64 clients", "/s", plain.health).against("bare axum", hello));
    report.row(Row::new("bare produce→consume", "/s", messages));
    Ok(report)
}

/// Times from single requests to the arrival of their messages at a consumer, and the runs.
async fn dispatch(bench: &Bench, stack: &Stack<'_>) -> Result<(Latencies, Vec<Uuid>)> {
    let arrivals = kafka::Arrivals::watch(&bench.brokers, &stack.environment["KAFKA_EXECUTION_TOPIC"]).await?;
    let path = Stack::execute_path(&stack.workflow);
    let mut connection = Connection::open(stack.server.address).await?;
    let mut sent = Vec::new();
    for _ in 0..DISPATCHES {
        let now = Instant::now();
        let answer = connection.send(stack.server.post(&path, EXECUTE_BODY)).await?;
        sent.push((load::run_id(&answer).context("no run was started")?, now));
    }
    ensure!(checks::wait_for_none(&stack.pool, checks::UNSENT).await?.is_ok(), "the outbox does not become empty");
    // The acknowledgement can be earlier than the delivery.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let arrivals = arrivals.end()?;
    let mut latencies = Latencies::default();
    for (run_id, sent) in &sent {
        latencies.add(*arrivals.get(run_id).context("a message has not arrived")? - *sent);
    }
    Ok((latencies, sent.into_iter().map(|(run_id, _)| run_id).collect()))
}

/// Peak of the service by a closed loop, for loads relative to it.
pub async fn peak(stack: &Stack<'_>, length: Duration) -> Result<Outcome> {
    let requests = requests(&stack.server, &stack.workflow);
    load::closed(stack.server.address, CLIENTS, Duration::from_secs(1), &requests).await?;
    load::closed(stack.server.address, CLIENTS, length, &requests).await
}
