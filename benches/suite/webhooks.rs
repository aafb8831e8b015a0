//! `webhooks`: deliveries to a receiver in this process, against the same requests sent without the service; the latency of an
//! endpoint beside one that does not answer; and the time in which retention drops a day of deliveries.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use axum::{Router, body::Bytes, extract::State, routing::post};
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use workflow_api::clock::Clock;

use crate::{
    meter::{CpuTimes, Meter},
    report::{Aim, Report, Row},
    stack::{Bench, Setup, Stack},
    statistics::Latencies,
};

/// Requests at a time: of an endpoint, and of the control.
const IN_FLIGHT: usize = 32;
/// Events a second beside an endpoint that does not answer.
const RATE: usize = 100;
/// Deliveries of a day that is dropped.
const OF_A_DAY: i32 = 1_000_000;
/// Days after which they are dropped.
const KEPT_DAYS: i32 = 14;
/// Time limit of a measurement.
const PATIENCE: Duration = Duration::from_mins(3);

/// Receiver: counts what arrives, and how long that took from the event on.
#[derive(Clone, Default)]
struct Receiver {
    count: Arc<AtomicUsize>,
    latencies: Arc<Mutex<Latencies>>,
    bytes: Arc<AtomicUsize>,
}

impl Receiver {
    async fn start(&self) -> Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let hang = async || {
            std::future::pending::<()>().await;
            StatusCode::OK
        };
        let router = Router::new().route("/hook", post(Self::take)).route("/hang", post(hang));
        let router = router.with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    #[expect(clippy::unused_async, reason = "handlers of axum are futures")]
    async fn take(State(this): State<Self>, body: Bytes) -> StatusCode {
        let envelope: Option<Value> = serde_json::from_slice(&body).ok();
        let at: Option<DateTime<Utc>> = envelope.and_then(|body| body["timestamp"].as_str()?.parse().ok());
        if let Some(took) = at.and_then(|at| (Clock::default().now() - at).to_std().ok()) {
            this.latencies.lock().expect("no panic").add(took);
        }
        this.bytes.store(body.len(), Ordering::Relaxed);
        this.count.fetch_add(1, Ordering::Relaxed);
        StatusCode::NO_CONTENT
    }

    async fn got(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        while self.count.load(Ordering::Relaxed) < count {
            ensure!(began.elapsed() < PATIENCE, "{} of {count} arrived", self.count.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// Runs the benchmark.
pub async fn run(bench: &Bench, events: usize, rounds: usize) -> Result<Report> {
    let mut report = Report::new("webhooks");
    throughput(bench, events, rounds, &mut report).await?;
    isolation(bench, &mut report).await?;
    retention(bench, rounds, &mut report).await?;
    Ok(report)
}

async fn create(stack: &Stack<'_>, url: &str) -> Result<()> {
    let api = format!("http://{}/api/v1/webhooks", stack.server.address);
    let body = json!({"name": "bench", "url": url, "event_types": ["*"], "max_in_flight": IN_FLIGHT});
    let answer = reqwest::Client::new().post(api).json(&body).send().await?;
    ensure!(answer.status() == StatusCode::CREATED, "{}", answer.text().await?);
    Ok(())
}

async fn record(stack: &Stack<'_>, count: usize) -> Result<()> {
    let data = json!({"run_id": "run-01a223b8-15bb-772c-aa40-d9ec46a0a67a", "status": "COMPLETED", "attempt": 1,
        "workflow": {"id": "01a223b8-15bb-772c-aa40-d9ec46a0a67a", "name": "bench", "version": 1},
        "started_at": "2026-11-28T10:00:00.123456Z", "ended_at": "2026-11-28T10:00:00.123456Z"});
    let sql = "SELECT count(record_event('default', 'run.completed', NULL, $2)) FROM generate_series(1, $1)";
    sqlx::query(sql).bind(i32::try_from(count)?).bind(data).execute(&stack.pool).await?;
    Ok(())
}

/// Time until all events have arrived, against the time in which as many requests of that size are answered.
async fn throughput(bench: &Bench, events: usize, rounds: usize, report: &mut Report) -> Result<()> {
    let (mut rates, mut controls, mut cpu) = (Vec::new(), Vec::new(), CpuTimes::default());
    for round in 0..rounds {
        eprintln!("webhooks: round {} of {rounds}", round + 1);
        let stack = Stack::start(bench, &Setup::default()).await?;
        let receiver = Receiver::default();
        let address = receiver.start().await?;
        create(&stack, &format!("http://{address}/hook")).await?;
        bench.checkpoint().await?;
        let meter = Meter::start(stack.watched());
        let began = Instant::now();
        record(&stack, events).await?;
        receiver.got(events).await?;
        rates.push(60.0 * events as f64 / began.elapsed().as_secs_f64());
        cpu.add(meter.stop().into_iter().map(|(name, seconds)| (name, 1000.0 * seconds / events as f64)));
        let sql = "SELECT count(*) FROM webhook_deliveries WHERE state = 'delivered' AND attempts = 1";
        let began = Instant::now();
        loop {
            let delivered: i64 = sqlx::query_scalar(sql).fetch_one(&stack.pool).await?;
            if usize::try_from(delivered)? == events {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{delivered} of {events} were recorded");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let got = receiver.count.load(Ordering::Relaxed);
        let once = if got == events { Ok(format!("{got} deliveries")) } else { Err(format!("{got} of {events}")) };
        report.check(format!("each event arrives once, round {}", round + 1), once);
        controls.push(control(address, events, receiver.bytes.load(Ordering::Relaxed)).await?);
        stack.stop().await?;
    }
    let rate = Row::new("deliveries to one endpoint, signed and recorded", "/min", rates);
    report.row(rate.aim(Aim::AtLeast(10_000.0)));
    report.row(Row::new("control: the same requests without the service", "/min", controls));
    report.row(cpu.row("CPU of a delivery", "ms"));
    Ok(())
}

/// Requests a minute that the receiver answers, without the service.
async fn control(address: SocketAddr, requests: usize, bytes: usize) -> Result<f64> {
    let client = reqwest::Client::new();
    let (next, body) = (Arc::new(AtomicUsize::new(0)), Bytes::from(vec![b'x'; bytes]));
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, next, body) = (client.clone(), Arc::clone(&next), body.clone());
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                let request = client.post(format!("http://{address}/hook")).body(body.clone());
                request.send().await.context("the receiver answers")?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(60.0 * requests as f64 / began.elapsed().as_secs_f64())
}

/// Latency from an event to its receiver at a fixed rate, alone and beside an endpoint that does not answer.
async fn isolation(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut found = BTreeMap::new();
    for (name, hangs) in [("alone", false), ("beside one that hangs", true)] {
        let stack = Stack::start(bench, &Setup::default()).await?;
        let receiver = Receiver::default();
        let address = receiver.start().await?;
        create(&stack, &format!("http://{address}/hook")).await?;
        if hangs {
            create(&stack, &format!("http://{address}/hang")).await?;
        }
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..200 {
            ticks.tick().await;
            record(&stack, RATE / 10).await?;
        }
        receiver.got(200 * RATE / 10).await?;
        let percentiles = receiver.latencies.lock().expect("no panic").percentiles();
        found.insert(name, percentiles);
        stack.stop().await?;
    }
    for (name, percentiles) in found {
        report.row(Row::new(format!("event to receiver, {RATE} a second, {name}: p50"), "ms", vec![percentiles.p50]));
        let p99 = Row::new(format!("event to receiver, {RATE} a second, {name}: p99"), "ms", vec![percentiles.p99]);
        report.row(p99.aim(Aim::AtMost(1000.0)));
    }
    Ok(())
}

/// What retention takes to drop the partitions of a day, and how long other statements wait meanwhile.
async fn retention(bench: &Bench, rounds: usize, report: &mut Report) -> Result<()> {
    let (mut drops, mut waits, mut controls) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        eprintln!("webhooks: a day to drop, {} of {rounds}", round + 1);
        let stack = Stack::start(bench, &Setup::default()).await?;
        // In one transaction, so that the service finds it with all its rows.
        let sql = format!(
            "BEGIN;
             DO $$ DECLARE day date := (now() AT TIME ZONE 'UTC')::date - {KEPT_DAYS} - 6; parent text; BEGIN
                 FOREACH parent IN ARRAY ARRAY['webhook_deliveries', 'webhook_attempts'] LOOP
                     EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                         parent || to_char(day, '_YYYYMMDD'), parent, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
                 END LOOP;
                 INSERT INTO webhook_deliveries (id, created_at, webhook_id, organization_id, event_id, event_type, event_at,
                     run_id, body, state, attempts, status_code, ended_at)
                 SELECT gen_random_uuid(), day + interval '1 hour', gen_random_uuid(), 'default', gen_random_uuid(),
                     'run.completed', now(), 'run-' || gen_random_uuid(), repeat('x', 400), 'delivered', 1, 200, now()
                 FROM generate_series(1, {OF_A_DAY});
                 INSERT INTO webhook_attempts (id, delivery_id, created_at, number, started_at, duration_ms, outcome,
                     status_code, is_internal)
                 SELECT gen_random_uuid(), gen_random_uuid(), day + interval '1 hour', 1, now(), 5, 'success', 200, false
                 FROM generate_series(1, {OF_A_DAY});
             END $$;
             COMMIT"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&stack.pool).await?;
        bench.checkpoint().await?;
        let (dropped, took, wait) = drop_a_day(&stack).await?;
        report.check(format!("a day is dropped, round {}", round + 1), dropped.ok_or_else(|| "none".to_owned()));
        drops.push(took);
        waits.push(wait);
        // The call finds nothing any more, and takes a moment: the others are watched for as long as before.
        let began = Instant::now();
        let mut longest: f64 = 0.0;
        while 1000.0 * began.elapsed().as_secs_f64() < took {
            longest = longest.max(drop_a_day(&stack).await?.2);
        }
        controls.push(longest);
        stack.stop().await?;
    }
    let what = "dropping a day of a million deliveries and their attempts";
    report.row(Row::new(what, "ms", drops));
    report.row(Row::new(format!("{what}: the longest other statement"), "ms", waits).aim(Aim::AtMost(100.0)));
    report.row(Row::new("control: the longest statement beside calls that find nothing", "ms", controls));
    Ok(())
}

/// The partition that was dropped, the time of the call, and the longest time of inserts and searches of deliveries
/// meanwhile, in ms.
async fn drop_a_day(stack: &Stack<'_>) -> Result<(Option<String>, f64, f64)> {
    let ms = |began: Instant| 1000.0 * began.elapsed().as_secs_f64();
    let (done, is_done) = tokio::sync::oneshot::channel();
    let drop = async {
        let began = Instant::now();
        let sql = "SELECT keep_webhook_partitions($1)";
        let dropped: Option<String> = sqlx::query_scalar(sql).bind(KEPT_DAYS).fetch_one(&stack.pool).await?;
        let took = ms(began);
        let _ = done.send(());
        anyhow::Ok((dropped, took))
    };
    let others = async {
        let (mut is_done, mut longest) = (is_done, 0.0_f64);
        while is_done.try_recv().is_err() {
            let began = Instant::now();
            let sql = "WITH due AS (
                    SELECT count(*) FROM webhook_deliveries WHERE webhook_id = $1 AND state = 'pending' AND due_at <= now())
                INSERT INTO webhook_deliveries (id, webhook_id, organization_id, event_id, event_type, event_at, body, state)
                SELECT gen_random_uuid(), $1, 'default', gen_random_uuid(), 'run.failed', now(), '{}', 'held' FROM due";
            sqlx::query(sql).bind(uuid::Uuid::new_v4()).execute(&stack.pool).await?;
            longest = longest.max(ms(began));
        }
        anyhow::Ok(longest)
    };
    let ((dropped, took), longest) = tokio::try_join!(drop, others)?;
    Ok((dropped, took, longest))
}
