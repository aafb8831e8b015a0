//! `start`: time to readiness, memory, size of the binary.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    checks, execute, load, process,
    report::{Aim, Report, Row},
    stack::{Bench, Setup, Stack},
};

/// Time after which a process counts as idle.
const IDLE: Duration = Duration::from_secs(3);
/// Clients of the memory measure.
const MANY_CLIENTS: usize = 256;

/// Runs the benchmark.
pub async fn run(bench: &Bench, rounds: usize) -> Result<Report> {
    let mut report = Report::new("start");
    let mut stack = Stack::start(bench, &Setup::default()).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        stack.end("API").await?;
        let started = Instant::now();
        stack.start_api().await?;
        times.push(1000.0 * started.elapsed().as_secs_f64());
    }
    report.row(Row::new("start to ready, migrated database", "ms", times).aim(Aim::AtMost(150.0)));
    tokio::time::sleep(IDLE).await;
    report.row(stack.resident_row("API", "API, resident, idle")?.aim(Aim::AtMost(12.0)));
    let requests = execute::requests(&stack.server, &stack.workflow);
    let mut all = load::Outcome::default();
    for clients in [execute::CLIENTS, MANY_CLIENTS] {
        let outcome = load::closed(stack.server.address, clients, Duration::from_secs(3), &requests).await?;
        let row = stack.resident_row("API", format!("API, resident, after {clients} clients"))?;
        report.row(if clients == MANY_CLIENTS { row.aim(Aim::AtMost(32.0)) } else { row });
        all.merge(outcome);
    }
    report.check("start", checks::after_load(&stack, &all, false).await?);
    stack.stop().await?;
    report.row(Row::new("binary", "MiB", vec![process::file_mib(&bench.program)?]).aim(Aim::AtMost(15.0)));
    Ok(report)
}
