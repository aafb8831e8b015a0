//! `latency`: executes at fixed rates up to beyond the capacity, from the time at which each was due.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::{
    checks, execute,
    load::{self, Pace},
    plot::{Line, Plot},
    report::{Report, Row, number},
    stack::{Bench, Setup, Stack},
};

/// Rates in parts of the capacity.
const SHARES: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.25];
/// Up to this share no request may be refused.
const SAFE_SHARE: f64 = 0.7;
/// Connections of the load generator: more than the requests that the service has under way.
const CONNECTIONS: usize = 2000;

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64) -> Result<Report> {
    let mut report = Report::new("latency");
    let length = Duration::from_secs(seconds);
    let stack = Stack::start(bench, &Setup::default()).await?;
    let peak = execute::peak(&stack, length).await?;
    report.check("closed loop", checks::all_accepted(&peak));
    report.row(Row::new("capacity: closed loop, 64 clients", "/s", vec![peak.rate()]));
    let mut acknowledged = peak.run_ids.clone();
    let requests = execute::requests(&stack.server, &stack.workflow);
    let mut lines = ["p50", "p99", "p99.9"].map(|name| Line { name, points: Vec::new() });
    let mut points = Vec::new();
    for share in SHARES {
        eprintln!("latency: {:.0} % of the capacity", 100.0 * share);
        if checks::wait_for_none(&stack.pool, checks::UNSENT).await?.is_err() {
            report.check("the relay keeps up", Err("rows are left in the outbox".to_owned()));
        }
        bench.checkpoint().await?;
        let rate = share * peak.rate();
        let pace = Pace { rate, length, connections: CONNECTIONS };
        let outcome = load::open(stack.server.address, pace, &requests).await?;
        let percentiles = outcome.latencies.percentiles();
        let name = format!("{:.0} % of the capacity ({}/s)", 100.0 * share, number(rate));
        if share <= SAFE_SHARE {
            report.must(&name, checks::all_accepted(&outcome));
        }
        let values = [("p50", percentiles.p50), ("p99", percentiles.p99), ("p99.9", percentiles.p999)];
        for ((_, value), line) in values.iter().zip(&mut lines) {
            line.points.push((rate, *value));
        }
        let parts = values.into_iter().chain([("succeeded/s", outcome.rate())]);
        let parts = parts.map(|(name, value)| (name, vec![value])).collect();
        report.row(Row::new(name, "ms p99", vec![percentiles.p99]).parts(parts));
        points.push(json!({
            "offered": rate, "succeeded": outcome.rate(), "statuses": outcome.statuses, "without_answer": outcome.failed,
            "p50_ms": percentiles.p50, "p99_ms": percentiles.p99, "p99_9_ms": percentiles.p999,
        }));
        acknowledged.extend(outcome.run_ids);
    }
    report.note("points", points.into());
    report.plot(Plot {
        title: format!("execute: latency against load (capacity {}/s)", number(peak.rate())),
        x: "requests per second",
        y: "latency from the intended time, ms",
        lines: lines.into(),
    });
    // Those of the warm-up are in the table too.
    report.check("latency", checks::nothing_is_missing(&stack, &acknowledged, false).await?);
    stack.stop().await?;
    Ok(report)
}
