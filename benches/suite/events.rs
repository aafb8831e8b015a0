//! `events`: what the recording of events costs a run. The same whole runs take turns on three databases: as migrated
//! and without anybody who wants events; without the triggers that record them; and with an endpoint that wants all of
//! them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::{
    checks, execute, load,
    meter::{CpuTimes, Meter},
    report::{Aim, Report, Row},
    runs,
    stack::{Bench, Setup, Stack},
};

/// Clients that start runs in a closed loop.
const CLIENTS: usize = 16;

/// What is done with the events of a database.
#[derive(Clone, Copy, PartialEq)]
enum Events {
    /// Nobody wants them.
    Unwanted,
    /// The triggers that record them are gone: the control.
    Impossible,
    /// They are recorded, and a disabled endpoint keeps them.
    Recorded,
}

/// Rates and times of the rounds.
#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    cpu: CpuTimes,
    /// CPU time of the database for a run, in milliseconds.
    database: Vec<f64>,
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64, rounds: usize) -> Result<Report> {
    let mut report = Report::new("events");
    let length = Duration::from_secs(seconds);
    let [mut unwanted, mut impossible, mut recorded] = [(); 3].map(|()| Measured::default());
    for round in 0..rounds {
        eprintln!("events: round {} of {rounds}", round + 1);
        let mut order = [Events::Unwanted, Events::Impossible, Events::Recorded];
        // Whoever comes first or last in a round has no advantage over all rounds.
        order.rotate_left(round % 3);
        if round / 3 % 2 == 1 {
            order.reverse();
        }
        for events in order {
            let into = match events {
                Events::Unwanted => &mut unwanted,
                Events::Impossible => &mut impossible,
                Events::Recorded => &mut recorded,
            };
            measure(bench, events, length, round, into, &mut report).await?;
        }
    }
    let control = "without the triggers";
    let rate = Row::new("one-step runs, nobody wants events", "/s", unwanted.rates);
    report.row(rate.against(control, impossible.rates.clone()).aim(Aim::AtLeast(0.98)));
    let database = Row::new("CPU of PostgreSQL for a run, nobody wants events", "ms", unwanted.database);
    report.row(database.against(control, impossible.database.clone()).aim(Aim::AtMost(1.02)));
    let rate = Row::new("one-step runs, an endpoint wants all events", "/s", recorded.rates);
    report.row(rate.against(control, impossible.rates));
    let database = Row::new("CPU of PostgreSQL for a run, an endpoint wants all events", "ms", recorded.database);
    report.row(database.against(control, impossible.database));
    report.row(unwanted.cpu.row("CPU per run, nobody wants events", "ms"));
    report.row(impossible.cpu.row("CPU per run, without the triggers", "ms"));
    Ok(report)
}

async fn measure(
    bench: &Bench,
    events: Events,
    length: Duration,
    round: usize,
    into: &mut Measured,
    report: &mut Report,
) -> Result<()> {
    let stack = Stack::start(bench, &Setup { executor: true, ..Setup::default() }).await?;
    match events {
        Events::Unwanted => {}
        Events::Impossible => {
            let sql = "SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger
                       WHERE tgname LIKE '%\\_is\\_told'";
            let drops: Vec<String> = sqlx::query_scalar(sql).fetch_all(&stack.pool).await?;
            ensure!(!drops.is_empty(), "there are no triggers that record events");
            for drop in drops {
                sqlx::raw_sql(AssertSqlSafe(drop)).execute(&stack.pool).await?;
            }
        }
        Events::Recorded => {
            let api = format!("http://{}/api/v1/webhooks", stack.server.address);
            let body = json!({"name": "bench", "url": "http://127.0.0.1:9/", "event_types": ["*"], "enabled": false});
            let answer = reqwest::Client::new().post(api).json(&body).send().await?;
            ensure!(answer.status() == http::StatusCode::CREATED, "{}", answer.text().await?);
        }
    }
    runs::warm_up(&stack).await?;
    bench.checkpoint().await?;
    let requests = execute::requests(&stack.server, &stack.workflow);
    let meter = Meter::start(stack.watched());
    let started = Instant::now();
    let outcome = load::closed(stack.server.address, CLIENTS, length, &requests).await?;
    let ended = checks::wait_for_none(&stack.pool, checks::OPEN_RUNS).await?;
    let elapsed = started.elapsed().as_secs_f64();
    let times = meter.stop();
    let runs = outcome.run_ids.len() as f64;
    let millis = |seconds: f64| 1000.0 * seconds / runs;
    into.rates.push(runs / elapsed);
    let database = times.iter().filter(|(name, _)| *name == "PostgreSQL").map(|(_, seconds)| millis(*seconds)).sum();
    into.database.push(database);
    into.cpu.add(times.into_iter().map(|(name, seconds)| (name, millis(seconds))));
    if let Err(open) = ended {
        report.check(format!("runs, round {}", round + 1), Err(format!("{open} runs have not ended")));
    }
    let sql = "SELECT count(*) FROM webhook_events WHERE event_type = 'run.completed'";
    let told: i64 = sqlx::query_scalar(sql).fetch_one(&stack.pool).await?;
    let sql = "SELECT count(*) FROM workflow_runs WHERE status = 'COMPLETED'";
    let completed: i64 = sqlx::query_scalar(sql).fetch_one(&stack.pool).await?;
    let expected = if events == Events::Recorded { completed } else { 0 };
    let outcome = if told == expected { Ok(format!("{told} events")) } else { Err(format!("{told} of {expected}")) };
    report.must(format!("events of completed runs, round {}", round + 1), outcome);
    stack.stop().await
}
