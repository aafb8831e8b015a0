//! `soak`: a constant load of whole runs. Memory, latency and dead tuples have to stay flat, also while an old snapshot
//! is open.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;

use crate::{
    checks, execute,
    load::{self, Pace},
    plot::{Line, Plot},
    report::{Report, Row, number},
    runs,
    stack::{Bench, Setup, Stack},
    statistics::{Latencies, median, slope},
};

/// Growth over the whole time, in parts of the median, up to which memory counts as flat.
const FLAT_MEMORY: f64 = 0.15;
/// The same of the median latency.
const FLAT_LATENCY: f64 = 0.5;
/// Part of the live tuples, besides [`DEAD_BASE`], that may be dead at the end.
const DEAD_SHARE: f64 = 0.2;
/// Number of dead tuples that are fine in each table.
const DEAD_BASE: f64 = 20_000.0;

/// Values of one minute.
#[derive(Default)]
struct Minutes {
    memory: BTreeMap<&'static str, Vec<f64>>,
    accepted_p50: Vec<f64>,
    accepted_p99: Vec<f64>,
    ended_p50: Vec<f64>,
    ended_p99: Vec<f64>,
    dead: Vec<BTreeMap<String, (i64, i64)>>,
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, minutes: u64) -> Result<Report> {
    let mut report = Report::new("soak");
    let stack = Stack::start(bench, &Setup { executor: true, ..Setup::default() }).await?;
    runs::warm_up(&stack).await?;
    let rate = capacity(&stack).await? / 2.0;
    eprintln!("soak: {rate:.0} runs a second for {minutes} minutes");
    let requests = execute::requests(&stack.server, &stack.workflow);
    let mut acknowledged = Vec::new();
    let mut values = Minutes::default();
    let mut reader = None;
    for minute in 0..minutes {
        if minute == minutes / 3 {
            let pool = PgPoolOptions::new().max_connections(1).connect(&bench.url_of(&stack.database)).await?;
            sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM workflow_runs")
                .execute(&pool)
                .await?;
            reader = Some(pool);
        }
        if minute == minutes - minutes / 3
            && let Some(pool) = reader.take()
        {
            sqlx::raw_sql("COMMIT").execute(&pool).await?;
            pool.close().await;
        }
        let begin: chrono::NaiveDateTime =
            sqlx::query_scalar("SELECT now() AT TIME ZONE 'UTC'").fetch_one(&stack.pool).await?;
        let pace = Pace { rate, length: Duration::from_mins(1), connections: 256 };
        let outcome = load::open(stack.server.address, pace, &requests).await?;
        report.must(format!("minute {}", minute + 1), checks::all_accepted(&outcome));
        let accepted = outcome.latencies.percentiles();
        values.accepted_p50.push(accepted.p50);
        values.accepted_p99.push(accepted.p99);
        acknowledged.extend(outcome.run_ids);
        let times: Vec<f64> = sqlx::query_scalar(
            "SELECT 1000 * extract(epoch FROM completed_at - created_at)::float8 FROM workflow_runs
             WHERE created_at >= $1 AND completed_at IS NOT NULL",
        )
        .bind(begin)
        .fetch_all(&stack.pool)
        .await?;
        let mut ended = Latencies::default();
        for time in times {
            ended.add_ms(time);
        }
        values.ended_p50.push(ended.percentiles().p50);
        values.ended_p99.push(ended.percentiles().p99);
        for (name, watched) in stack.watched() {
            values.memory.entry(name).or_default().push(watched.resident_mib());
        }
        let dead: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT relname::text, n_dead_tup, n_live_tup FROM pg_stat_user_tables WHERE n_dead_tup + n_live_tup > 0",
        )
        .fetch_all(&stack.pool)
        .await?;
        values.dead.push(dead.into_iter().map(|(table, dead, live)| (table, (dead, live))).collect());
        eprintln!(
            "soak: minute {}: accepted p99 {} ms, ended p99 {} ms",
            minute + 1,
            number(accepted.p99),
            number(ended.percentiles().p99)
        );
    }
    report.check("soak", checks::nothing_is_missing(&stack, &acknowledged, true).await?);
    stack.stop().await?;
    verdicts(&mut report, &values, rate);
    Ok(report)
}

/// Whole runs per second, by a short closed loop.
async fn capacity(stack: &Stack<'_>) -> Result<f64> {
    let requests = execute::requests(&stack.server, &stack.workflow);
    let started = Instant::now();
    let outcome = load::closed(stack.server.address, 16, Duration::from_secs(6), &requests).await?;
    ensure!(checks::wait_for_none(&stack.pool, checks::OPEN_RUNS).await?.is_ok(), "the runs do not end");
    Ok(outcome.run_ids.len() as f64 / started.elapsed().as_secs_f64())
}

/// Growth from the second minute to the last, in parts of the median; the first minute is the warm-up.
fn growth(values: &[f64]) -> f64 {
    let values = values.get(1..).unwrap_or_default();
    if values.len() < 2 { 0.0 } else { slope(values) * (values.len() - 1) as f64 / median(values) }
}

/// Says whether vacuuming keeps up with a table. In a queue nearly all tuples are dead, because its rows are soon deleted:
/// there it keeps up if the last third of the time has a minute with no more of them than the first third had.
fn is_under_control(dead: &[f64], live: f64) -> bool {
    let third = dead.len().div_ceil(3);
    let (first, last) = (&dead[..third], &dead[dead.len() - third..]);
    let least_at_end = last.iter().copied().fold(f64::INFINITY, f64::min);
    let most_at_begin = first.iter().copied().fold(0.0, f64::max);
    dead.last().is_none_or(|last| *last <= DEAD_BASE + DEAD_SHARE * live) || least_at_end <= most_at_begin
}

fn verdicts(report: &mut Report, values: &Minutes, rate: f64) {
    let verdict = |growth: f64, limit: f64| if growth <= limit { "flat" } else { "NOT flat" };
    report.row(Row::new("load: whole runs", "/s", vec![rate]));
    for (name, memory) in &values.memory {
        // PostgreSQL's memory grows until its buffers are full.
        let judged = if *name == "PostgreSQL" { "" } else { verdict(growth(memory), FLAT_MEMORY) };
        report.row(Row::new(format!("resident: {name} {judged}"), "MiB", memory.clone()));
    }
    let latencies = [
        ("execute→202, p50", &values.accepted_p50, true),
        ("execute→202, p99", &values.accepted_p99, false),
        ("execute→COMPLETED, p50", &values.ended_p50, true),
        ("execute→COMPLETED, p99", &values.ended_p99, false),
    ];
    for (name, times, is_judged) in latencies {
        let judged = if is_judged { verdict(growth(times), FLAT_LATENCY) } else { "" };
        report.row(Row::new(format!("{name} {judged}"), "ms", times.clone()));
    }
    let mut most: Vec<(&String, i64)> = Vec::new();
    for (table, (dead, _)) in values.dead.iter().flatten() {
        match most.iter_mut().find(|(known, _)| *known == table) {
            Some((_, count)) => *count = (*count).max(*dead),
            None => most.push((table, *dead)),
        }
    }
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (table, _) in most.iter().take(6) {
        let of = |minute: &BTreeMap<String, (i64, i64)>| minute.get(*table).copied().unwrap_or_default();
        let dead: Vec<f64> = values.dead.iter().map(|minute| of(minute).0 as f64).collect();
        let live = values.dead.last().map(of).unwrap_or_default().1;
        let judged = if is_under_control(&dead, live as f64) { "under control" } else { "NOT under control" };
        report.row(Row::new(format!("dead tuples: {table} {judged}"), "", dead));
    }
    let points = |values: &[f64]| (1_u32..).map(f64::from).zip(values.iter().copied()).collect();
    report.plot(Plot {
        title: format!("soak: latency at {} runs a second", number(rate)),
        x: "minute",
        y: "ms",
        lines: vec![
            Line { name: "202 p50", points: points(&values.accepted_p50) },
            Line { name: "202 p99", points: points(&values.accepted_p99) },
            Line { name: "ended p50", points: points(&values.ended_p50) },
            Line { name: "ended p99", points: points(&values.ended_p99) },
        ],
    });
    report.note("dead_and_live_tuples", json!(values.dead));
}
