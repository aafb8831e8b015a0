//! `runs`: whole runs by API, executor, agent, PostgreSQL and Kafka on this machine.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    checks,
    controls::{PlainTables, Script},
    execute,
    load::{self, Pace, Requests},
    meter::{CpuTimes, Meter},
    process,
    report::{Aim, Report, Row},
    stack::{Bench, Setup, Stack},
    statistics::Latencies,
};

/// Clients that start runs in a closed loop.
const CLIENTS: usize = 16;
/// Runs that wait for a callback.
const PARKED: usize = 10_000;

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64, rounds: usize) -> Result<Report> {
    let mut report = Report::new("runs");
    let length = Duration::from_secs(seconds);
    let setup = Setup { executor: true, ..Setup::default() };
    throughput(bench, &setup, length, rounds, &mut report).await?;
    latency(bench, &setup, length * 2, &mut report).await?;
    let mut stack = Stack::start(bench, &setup).await?;
    loops(&mut stack, &mut report).await?;
    stack.stop().await?;
    parked(bench, &setup, &mut report).await?;
    Ok(report)
}

/// Starts one run and waits for its end: from then on the executor has its partitions.
pub async fn warm_up(stack: &Stack<'_>) -> Result<()> {
    let requests = execute::requests(&stack.server, &stack.workflow);
    load::closed(stack.server.address, CLIENTS, Duration::from_millis(500), &requests).await?;
    ensure!(checks::wait_for_none(&stack.pool, checks::OPEN_RUNS).await?.is_ok(), "the executor ends no runs");
    Ok(())
}

/// Runs per second from a closed loop until the last one has ended, against control T.
async fn throughput(bench: &Bench, setup: &Setup, length: Duration, rounds: usize, report: &mut Report) -> Result<()> {
    let tables = PlainTables::open(bench).await?;
    let (mut rates, mut controls, mut cpu) = (Vec::new(), Vec::new(), CpuTimes::default());
    let mut memory = Vec::new();
    for round in 0..rounds {
        eprintln!("runs: round {} of {rounds}", round + 1);
        let control_is_first = round % 2 == 1;
        if control_is_first {
            controls.push(tables.run(Script::Transaction, execute::CLIENTS, length).await?.rate);
        }
        let stack = Stack::start(bench, setup).await?;
        warm_up(&stack).await?;
        bench.checkpoint().await?;
        let requests = execute::requests(&stack.server, &stack.workflow);
        let meter = Meter::start(stack.watched());
        let started = Instant::now();
        let outcome = load::closed(stack.server.address, CLIENTS, length, &requests).await?;
        let ended = checks::wait_for_none(&stack.pool, checks::OPEN_RUNS).await?;
        let elapsed = started.elapsed().as_secs_f64();
        let mut times = meter.stop();
        times.push(("load generator", outcome.cpu));
        let runs = outcome.run_ids.len() as f64;
        cpu.add(times.into_iter().map(|(name, seconds)| (name, 1000.0 * seconds / runs)));
        rates.push(runs / elapsed);
        memory.push(stack.resident("executor")?);
        let what = format!("runs, round {}", round + 1);
        if let Err(open) = ended {
            report.check(&what, Err(format!("{open} runs have not ended")));
        }
        report.check(what, checks::after_load(&stack, &outcome, true).await?);
        stack.stop().await?;
        if !control_is_first {
            controls.push(tables.run(Script::Transaction, execute::CLIENTS, length).await?.rate);
        }
    }
    tables.close().await?;
    let per_core = rates.iter().map(|rate| rate / process::cores()).collect();
    report.row(Row::new("one-step runs", "/s", rates).against("T", controls).aim(Aim::AtLeast(1.0)));
    report.row(Row::new("one-step runs per core", "/s", per_core).aim(Aim::AtLeast(1000.0)));
    report.row(cpu.row("CPU per run", "ms"));
    report.row(Row::new("executor, resident, after the load", "MiB", memory));
    Ok(())
}

/// Times from the acceptance to COMPLETED at 100 runs a second, by the times in the rows.
async fn latency(bench: &Bench, setup: &Setup, length: Duration, report: &mut Report) -> Result<()> {
    eprintln!("runs: latency");
    let stack = Stack::start(bench, setup).await?;
    warm_up(&stack).await?;
    let first = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM workflow_runs").fetch_one(&stack.pool).await?;
    let pace = Pace { rate: 100.0, length, connections: 64 };
    let outcome = load::open(stack.server.address, pace, &execute::requests(&stack.server, &stack.workflow)).await?;
    report.check("runs at 100/s", checks::after_load(&stack, &outcome, true).await?);
    let times: Vec<f64> = sqlx::query_scalar(
        "SELECT 1000 * extract(epoch FROM completed_at - created_at)::float8 FROM workflow_runs
         ORDER BY created_at, run_id OFFSET $1",
    )
    .bind(first)
    .fetch_all(&stack.pool)
    .await?;
    let mut latencies = Latencies::default();
    for time in times {
        latencies.add_ms(time);
    }
    let (whole, accepted) = (latencies.percentiles(), outcome.latencies.percentiles());
    report.row(Row::new("execute→COMPLETED at 100/s, p50", "ms", vec![whole.p50]).aim(Aim::AtMost(5.0)));
    report.row(Row::new("execute→COMPLETED at 100/s, p99", "ms", vec![whole.p99]).aim(Aim::AtMost(25.0)));
    report.row(Row::new("execute→COMPLETED at 100/s, p99.9", "ms", vec![whole.p999]));
    report.row(Row::new("execute→202 at 100/s, p50", "ms", vec![accepted.p50]));
    report.row(Row::new("execute→202 at 100/s, p99", "ms", vec![accepted.p99]));
    stack.stop().await
}

/// Loops of a thousand and of ten thousand iterations: time and transactions of each, memory of the executor.
async fn loops(stack: &mut Stack<'_>, report: &mut Report) -> Result<()> {
    eprintln!("runs: loops");
    let steps = json!({
        "a": {"id": "a", "type": "loop", "loop_config": {"collection": "${workflow.input.items}", "loop_body": ["b"]}},
        "b": {"id": "b", "agent_name": "bench", "input_mapping": {"text": "${loop.item}"}},
    });
    let workflow = stack.store_workflow("loop", steps).await?;
    for count in [1000_u32, 10_000] {
        stack.end("executor").await?;
        stack.start_executor()?;
        warm_up(stack).await?;
        // The server counts transactions with a delay.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = transactions(stack).await?;
        let items: Vec<String> = (0..count).map(|item| item.to_string()).collect();
        let body = json!({"input_data": {"items": items}}).to_string();
        let started = Instant::now();
        stack.server.json(stack.server.post(&Stack::execute_path(&workflow), body)).await?;
        let ended = checks::wait_for_none(&stack.pool, checks::OPEN_RUNS).await?;
        let elapsed = started.elapsed().as_secs_f64();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let transactions = transactions(stack).await? - before;
        let name = format!("loop of {count}");
        report.check(&name, ended.map(|()| "ended".to_owned()).map_err(|_| "has not ended".to_owned()));
        let count = f64::from(count);
        report.row(Row::new(format!("{name}: time of an iteration"), "ms", vec![1000.0 * elapsed / count]));
        report.row(Row::new(format!("{name}: transactions of an iteration"), "", vec![transactions / count]));
        report.row(stack.resident_row("executor", format!("{name}: executor, resident"))?);
    }
    Ok(())
}

async fn transactions(stack: &Stack<'_>) -> Result<f64> {
    let count: i64 = sqlx::query_scalar("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(&stack.pool)
        .await?;
    Ok(count as f64)
}

/// Runs that wait for callbacks.
async fn parked(bench: &Bench, setup: &Setup, report: &mut Report) -> Result<()> {
    const NOT_PARKED: &str = "SELECT count(*) FROM workflow_runs
        WHERE status = 'PENDING' OR status = 'RUNNING' AND NOT (executor_id IS NULL AND wake_at IS NOT NULL)";
    eprintln!("runs: parked");
    let stack = Stack::start(bench, setup).await?;
    warm_up(&stack).await?;
    let workflow = stack.store_workflow("callback", json!({"a": {"id": "a", "type": "callback"}})).await?;
    let requests: Requests = execute::requests(&stack.server, &workflow);
    let started = Instant::now();
    let mut runs = 0;
    while runs < PARKED {
        let outcome = load::closed(stack.server.address, CLIENTS, Duration::from_millis(250), &requests).await?;
        report.must("parked", checks::all_accepted(&outcome));
        runs += outcome.run_ids.len();
    }
    let ended = checks::wait_for_none(&stack.pool, NOT_PARKED).await?;
    let elapsed = started.elapsed().as_secs_f64();
    report.check("parked", ended.map(|()| format!("{runs} runs")).map_err(|rest| format!("{rest} are not parked")));
    report.row(Row::new("runs that park", "/s", vec![runs as f64 / elapsed]));
    report.row(stack.resident_row("executor", format!("executor, resident, {runs} runs parked"))?);
    stack.stop().await
}
