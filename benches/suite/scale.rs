//! `scale`: every list at ten million runs against the same list at ten thousand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sqlx::PgPool;

use crate::{
    fill::{self, Workflows},
    http::{Connection, Server},
    report::{Aim, Report, Row},
    stack::{Bench, Setup, Stack},
    statistics::Latencies,
};

/// Runs of the small database.
const SMALL: i64 = 10_000;
/// Requests of each list to each database.
const REQUESTS: usize = 300;
/// The same if they are slow.
const TIME_PER_LIST: Duration = Duration::from_secs(20);
/// Pages that are read before the one by cursor.
const PAGES_BEFORE: usize = 20;

/// Database with an API on it.
struct Side<'b> {
    stack: Stack<'b>,
    workflows: Workflows,
}

impl<'b> Side<'b> {
    async fn open(bench: &'b Bench, runs: i64) -> Result<Self> {
        let mut stack = Stack::start(bench, &Setup::default()).await?;
        let step = || serde_json::json!({"a": {"id": "a", "agent_name": "bench", "input_mapping": {}}});
        let workflows = Workflows {
            half: stack.store_workflow("scale-half", step()).await?,
            rare: stack.store_workflow("scale-rare", step()).await?,
        };
        stack.end("API").await?;
        let started = Instant::now();
        fill::fill(&stack.pool, runs, &workflows).await?;
        bench.checkpoint().await?;
        eprintln!("scale: {runs} runs in {:.0} s, {}", started.elapsed().as_secs_f64(), size(&stack.pool).await?);
        stack.start_api().await?;
        Ok(Self { stack, workflows })
    }

    /// Path of a list on this side: its own ids, and its own cursor.
    async fn path(&self, list: &List) -> Result<String> {
        let query = list.query.replace("HALF", &self.workflows.half).replace("RARE", &self.workflows.rare);
        let mut path = format!("/api/v1/{}?{query}", list.resource);
        if list.by_cursor {
            let server = &self.stack.server;
            let first = path.clone();
            for _ in 0..PAGES_BEFORE {
                let page: Value = server.json(server.get(&path)).await?;
                let cursor = page["next_cursor"].as_str().with_context(|| format!("{path} has no next page"))?;
                path = format!("{first}&cursor={cursor}");
            }
        }
        Ok(path)
    }
}

async fn size(pool: &PgPool) -> Result<String> {
    Ok(sqlx::query_scalar("SELECT pg_size_pretty(pg_database_size(current_database()))").fetch_one(pool).await?)
}

/// List with its query. HALF and RARE stand for the ids of the two workflows.
struct List {
    resource: &'static str,
    query: &'static str,
    by_cursor: bool,
}

/// All lists. Filters that find few runs have small pages, so that both sides fill them.
fn lists() -> Vec<List> {
    let runs = [
        "page_size=20",
        "page_size=100",
        "page_size=20&sort_order=asc",
        "page_size=20&page=500",
        "status=FAILED",
        "status=FAILED,CANCELLED",
        "status=RUNNING",
        "workflow_id=HALF",
        "workflow_id=HALF&status=FAILED",
        "workflow_id=HALF&sort_by=updated_at",
        "workflow_id=HALF&sort_by=completed_at",
        "workflow_id=RARE&page_size=5",
        "workflow_id=00000000-0000-4000-8000-ffffffffffff",
        "name=scale-half",
        "name=scale-rare&page_size=5",
        "name=none",
        "name_prefix=scale-7",
        "name_prefix=scale-",
        "name_prefix=none",
        "triggered_by=user-7",
        "triggered_by=none",
        "parent_run_id=none",
        "sort_by=updated_at",
        "sort_by=updated_at&sort_order=asc",
        "sort_by=completed_at",
        "sort_by=completed_at&sort_order=asc",
        "sort_by=status",
        "status=FAILED&sort_by=updated_at",
        "status=COMPLETED&sort_by=completed_at&page=500",
    ];
    let by_cursor = ["page_size=20", "status=FAILED", "workflow_id=HALF", "sort_by=updated_at", "sort_by=completed_at"];
    let others = ["workflows", "agents", "audit-logs"];
    let list = |resource, by_cursor| move |query| List { resource, query, by_cursor };
    let runs = runs.into_iter().map(list("runs", false)).chain(by_cursor.into_iter().map(list("runs", true)));
    runs.chain(others.map(|resource| List { resource, query: "page_size=20", by_cursor: false })).collect()
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, runs: i64) -> Result<Report> {
    ensure!(runs >= SMALL, "at least {SMALL} runs");
    let mut report = Report::new("scale");
    let small = Side::open(bench, SMALL).await?;
    let started = Instant::now();
    let large = Side::open(bench, runs).await?;
    report.row(Row::new(format!("filling {runs} runs"), "s", vec![started.elapsed().as_secs_f64()]));
    let bytes: i64 =
        sqlx::query_scalar("SELECT pg_database_size(current_database())").fetch_one(&large.stack.pool).await?;
    report.row(Row::new(
        "disk of a million runs, with audit entries",
        "MiB",
        vec![bytes as f64 / 1_048_576.0 / (runs as f64 / 1e6)],
    ));
    for list in lists() {
        let cursor = if list.by_cursor { format!(", page {} by cursor", PAGES_BEFORE + 1) } else { String::new() };
        let name = format!("{}?{}{cursor}", list.resource, list.query);
        eprintln!("scale: {name}");
        match compare(&small, &large, &list).await {
            Ok((at_small, at_large)) => {
                let (at_small, at_large) = (at_small.percentiles(), at_large.percentiles());
                report.row(
                    Row::new(format!("{name}, p50"), "ms", vec![at_large.p50])
                        .against("ms at 10 k", vec![at_small.p50])
                        .aim(Aim::AtMost(1.05)),
                );
                report.row(Row::new(format!("{name}, p99"), "ms", vec![at_large.p99]).aim(Aim::AtMost(50.0)));
            }
            Err(error) => report.check(name, Err(format!("{error:#}"))),
        }
    }
    large.stack.stop().await?;
    small.stack.stop().await?;
    Ok(report)
}

/// Latencies of a list on both sides, whose requests take turns.
async fn compare(small: &Side<'_>, large: &Side<'_>, list: &List) -> Result<(Latencies, Latencies)> {
    let mut sides = Vec::new();
    for side in [small, large] {
        let server = &side.stack.server;
        sides.push((server, side.path(list).await?, Connection::open(server.address).await?, Latencies::default()));
    }
    let started = Instant::now();
    // Both sides are back in their places after an even number of turns.
    for number in 0..REQUESTS + REQUESTS / 10 {
        // Another side begins each time.
        sides.swap(0, 1);
        for (server, path, connection, latencies) in &mut sides {
            let time = request(server, path, connection).await?;
            // The first tenth is the warm-up: plans, caches, pages of the tables.
            if number >= REQUESTS / 10 || started.elapsed() > TIME_PER_LIST / 2 {
                latencies.add(time);
            }
        }
        if number % 2 == 1 && started.elapsed() > TIME_PER_LIST {
            break;
        }
    }
    let mut latencies = sides.into_iter().map(|(_, _, _, latencies)| latencies);
    Ok((latencies.next().context("the small side")?, latencies.next().context("the large side")?))
}

async fn request(server: &Server, path: &str, connection: &mut Connection) -> Result<Duration> {
    let started = Instant::now();
    let answer = connection.send(server.get(path)).await?;
    let time = started.elapsed();
    ensure!(answer.status.is_success(), "{path}: {}", answer.status);
    Ok(time)
}
