//! `overload`: three times the capacity, organisations beside each other, and a backlog.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    checks, execute,
    http::Server,
    kafka,
    load::{self, Outcome, Pace, Requests},
    meter::Meter,
    process,
    report::{Aim, Report, Row},
    stack::{Bench, EXECUTE_BODY, Setup, Stack},
};

/// Overload in parts of the capacity.
const FACTOR: f64 = 3.0;
/// Connections of the load generator: more than the requests that are admitted at a time.
const CONNECTIONS: usize = 8000;
/// Rate of the requests that must not suffer.
const SMALL_RATE: f64 = 50.0;

/// Runs the benchmark.
pub async fn run(bench: &Bench, seconds: u64, backlog: i64) -> Result<Report> {
    let mut report = Report::new("overload");
    let length = Duration::from_secs(seconds);
    let peak = goodput(bench, length, &mut report).await?;
    fairness(bench, length, peak, &mut report).await?;
    drain(bench, backlog, &mut report).await?;
    Ok(report)
}

/// Pace of a small load.
fn small(length: Duration) -> Pace {
    Pace { rate: SMALL_RATE, length, connections: 256 }
}

/// Goodput at three times the capacity, and the answers to the rest. Returns the capacity.
async fn goodput(bench: &Bench, length: Duration, report: &mut Report) -> Result<f64> {
    eprintln!("overload: goodput");
    let stack = Stack::start(bench, &Setup::default()).await?;
    execute::peak(&stack, Duration::from_secs(1)).await?;
    let meter = Meter::start(stack.watched());
    let peak = execute::peak(&stack, length).await?;
    let peak_cpu = meter.stop();
    report.check("closed loop", checks::all_accepted(&peak));
    ensure!(checks::wait_for_none(&stack.pool, checks::UNSENT).await?.is_ok(), "the outbox does not become empty");
    bench.checkpoint().await?;

    let requests = execute::requests(&stack.server, &stack.workflow);
    let pace = Pace { rate: FACTOR * peak.rate(), length, connections: CONNECTIONS };
    let server = stack.server.clone();
    let health: Requests = Arc::new(move |_| server.get("/health"));
    let meter = Meter::start(stack.watched());
    let (flood, health) = tokio::join!(
        load::open(stack.server.address, pace, &requests),
        load::open(stack.server.address, small(length), &health)
    );
    let (flood, health, cpu) = (flood?, health?, meter.stop());
    let memory = stack.resident("API")?;
    report.row(Row::new("capacity: closed loop, 64 clients", "/s", vec![peak.rate()]));
    let offered = flood.sent_in_time as f64 / flood.seconds;
    report.row(Row::new("offered", "/s", vec![offered]).against("due", vec![pace.rate]));
    report.row(
        Row::new("goodput at 3 × the capacity", "/s", vec![flood.rate()])
            .against("capacity", vec![peak.rate()])
            .aim(Aim::AtLeast(0.9)),
    );
    // The generator works on the same processors: what it takes at this rate, the service does not have.
    let left = |outcome: &Outcome| process::cores() - outcome.cpu / outcome.seconds;
    report.row(
        Row::new("the same, per core that the generator left", "/s", vec![flood.rate() / left(&flood)])
            .against("capacity", vec![peak.rate() / left(&peak)]),
    );
    let (good, bad) = (flood.latencies.percentiles(), flood.refusals.percentiles());
    report.row(Row::new("accepted, p50", "ms", vec![good.p50]));
    report.row(Row::new("accepted, p99", "ms", vec![good.p99]));
    if flood.refusals.len() > 0 {
        report.row(Row::new("refused, p50", "ms", vec![bad.p50]));
        report.row(Row::new("refused, p99", "ms", vec![bad.p99]));
    }
    let health_p99 = health.latencies.percentiles().p99;
    report.row(Row::new("GET /health meanwhile, p99", "ms", vec![health_p99]).aim(Aim::AtMost(100.0)));
    report.row(Row::new("API, resident", "MiB", vec![memory]));
    report.row(Row::new("load generator, cores", "", vec![flood.cpu / flood.seconds]));
    report.note("cpu_seconds", json!({"capacity": to_map(&peak_cpu), "overload": to_map(&cpu)}));
    report.note("statuses", json!(flood.statuses));
    report.check("the rest is refused", refusals(&flood));
    report.check("GET /health", checks::all_accepted(&health));
    let acknowledged = [peak.run_ids.as_slice(), flood.run_ids.as_slice()].concat();
    report.check("overload", checks::nothing_is_missing(&stack, &acknowledged, false).await?);
    stack.stop().await?;
    Ok(peak.rate())
}

fn to_map(cpu: &[(&'static str, f64)]) -> serde_json::Map<String, serde_json::Value> {
    cpu.iter().map(|(name, seconds)| ((*name).to_owned(), json!(seconds))).collect()
}

/// Checks that everything that was not accepted got 503 or 429, with `Retry-After`.
fn refusals(outcome: &Outcome) -> checks::Verdict {
    let refused = outcome.answers(|status| status == 503 || status == 429);
    let other = outcome.answers(|status| !(200..300).contains(&status) && status != 503 && status != 429);
    if other + outcome.failed + outcome.without_retry_after > 0 {
        return Err(format!(
            "statuses {:?}, {} without Retry-After, {} without an answer: {}",
            outcome.statuses,
            outcome.without_retry_after,
            outcome.failed,
            outcome.errors.join("; ")
        ));
    }
    Ok(format!("{refused} of {} with Retry-After", outcome.requests()))
}

/// Two organisations: one sends three times the capacity, the other one a little.
async fn fairness(bench: &Bench, length: Duration, peak: f64, report: &mut Report) -> Result<()> {
    eprintln!("overload: fairness");
    let stack = Stack::start(bench, &Setup { authentication: true, ..Setup::default() }).await?;
    let flooding = organization(bench, &stack, "flooding").await?;
    let other = organization(bench, &stack, "other").await?;
    let alone = load::open(stack.server.address, small(length), &other).await?;
    let pace = Pace { rate: FACTOR * peak, length, connections: CONNECTIONS };
    let (flood, beside) = tokio::join!(
        load::open(stack.server.address, pace, &flooding),
        load::open(stack.server.address, small(length), &other)
    );
    let (flood, beside) = (flood?, beside?);
    let succeeded = beside.answers(|status| (200..300).contains(&status)) as f64 / beside.requests() as f64;
    report.row(Row::new("small organisation beside a flood: accepted", "", vec![succeeded]).aim(Aim::AtLeast(0.99)));
    let (alone, p99) = (alone.latencies.percentiles().p99, beside.latencies.percentiles().p99);
    report.row(Row::new("small organisation beside a flood: p99", "ms", vec![p99]).against("ms alone", vec![alone]));
    report.row(Row::new("flooding organisation: goodput", "/s", vec![flood.rate()]));
    report.check("the flood is refused", refusals(&flood));
    report.check("the small organisation", refusals(&beside));
    stack.stop().await
}

/// Creates an organisation with a caller, an agent and a workflow; returns requests that execute it.
async fn organization(bench: &Bench, stack: &Stack<'_>, id: &str) -> Result<Requests> {
    let admin = &stack.server;
    admin.json(admin.post("/api/v1/organizations", json!({"id": id, "name": id}).to_string())).await?;
    let key = ["api-key", "--name", id, "--role", "admin", "--organization", id];
    let caller: Server = admin.with_key(&bench.output(&key, &stack.environment)?)?;
    let agent = json!({"name": format!("agent-of-{id}"), "url": "http://127.0.0.1:9/"});
    caller.json(caller.post("/api/v1/agents", agent.to_string())).await?;
    let step = json!({"a": {"id": "a", "agent_name": format!("agent-of-{id}"), "input_mapping": {}}});
    let workflow = json!({"name": format!("workflow-of-{id}"), "start_step": "a", "steps": step}).to_string();
    let workflow = caller.json(caller.post("/api/v1/workflows", workflow)).await?;
    let path = Stack::execute_path(workflow["id"].as_str().context("the workflow has no id")?);
    Ok(Arc::new(move |_| caller.post(&path, EXECUTE_BODY)))
}

/// A backlog of messages that Kafka does not have yet, as after an outage, and new requests beside it.
async fn drain(bench: &Bench, backlog: i64, report: &mut Report) -> Result<()> {
    eprintln!("overload: backlog of {backlog}");
    let topic = bench.unique_name("bare");
    let bare = kafka::bare_producer(&bench.brokers, &topic, usize::try_from(backlog)?).await?;

    // As an operator sets it who wants to accept as many.
    let settings = vec![("MAX_BACKLOG", (2 * backlog).max(100_000).to_string())];
    let mut stack = Stack::start(bench, &Setup { settings, ..Setup::default() }).await?;
    let requests = execute::requests(&stack.server, &stack.workflow);
    let alone = load::open(stack.server.address, small(Duration::from_secs(4)), &requests).await?;
    stack.end("API").await?;
    let inserted = sqlx::query(
        "WITH run AS (
             INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                 triggered_by, created_at, updated_at, workflow_version, correlation_id, execution_event_id)
             SELECT 'run-' || gen_random_uuid(), d.id::text, d.name, d.id::text, 'PENDING', '{\"text\": \"hello\"}', 'system',
                 now() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', d.version, gen_random_uuid()::text, gen_random_uuid()
             FROM workflow_definitions d, generate_series(1, $2) AS n WHERE d.id::text = $1
             RETURNING run_id, execution_event_id
         ), entry AS (
             INSERT INTO audit_logs (entity_type, entity_id, entity_name, action, user_id)
             SELECT 'run', gen_random_uuid(), run_id, 'execute', 'system' FROM run
         )
         INSERT INTO outbox (run_id, event_id, kind) SELECT run_id, execution_event_id, 'execution' FROM run",
    )
    .bind(&stack.workflow)
    .bind(backlog)
    .execute(&stack.pool)
    .await?;
    ensure!(inserted.rows_affected() == backlog.unsigned_abs(), "not all rows were inserted");
    sqlx::raw_sql("ANALYZE").execute(&stack.pool).await?;
    bench.checkpoint().await?;

    stack.start_api().await?;
    let started = Instant::now();
    let drained = async {
        // The rows of the new requests come and go. Looking for one row, not often, takes little from what is measured.
        const LEFT: &str = "SELECT EXISTS (SELECT FROM outbox WHERE created_at < $1)";
        let limit: chrono::DateTime<chrono::Utc> =
            sqlx::query_scalar("SELECT max(created_at) + interval '1 millisecond' FROM outbox")
                .fetch_one(&stack.pool)
                .await?;
        loop {
            let left: bool = sqlx::query_scalar(LEFT).bind(limit).fetch_one(&stack.pool).await?;
            if !left {
                return anyhow::Ok(started.elapsed());
            }
            ensure!(started.elapsed() < Duration::from_mins(15), "the backlog is not gone after 15 minutes");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    // New requests come until the backlog is gone.
    let beside = async {
        let mut outcome = Outcome::default();
        tokio::pin!(drained);
        loop {
            let load = load::open(stack.server.address, small(Duration::from_secs(2)), &requests);
            tokio::pin!(load);
            tokio::select! {
                biased;
                time = &mut drained => {
                    outcome.merge(load.await?);
                    return anyhow::Ok((time?, outcome));
                }
                part = &mut load => outcome.merge(part?),
            }
        }
    };
    let (time, beside) = beside.await?;
    let rate = backlog as f64 / time.as_secs_f64();
    report.row(
        Row::new(format!("backlog of {backlog}: drained"), "/s", vec![rate])
            .against("bare producer", vec![bare])
            .aim(Aim::AtLeast(0.5)),
    );
    let accepted = beside.answers(|status| (200..300).contains(&status)) as f64 / beside.requests() as f64;
    report.row(Row::new("new requests beside the backlog: accepted", "", vec![accepted]));
    let (p99, alone) = (beside.latencies.percentiles().p99, alone.latencies.percentiles().p99);
    report.row(Row::new("new requests beside the backlog: p99", "ms", vec![p99]).against("ms alone", vec![alone]));
    report.check("beside the backlog", refusals(&beside));
    report.check("backlog", checks::nothing_is_missing(&stack, &beside.run_ids, false).await?);
    stack.stop().await
}
