//! Controls: pgbench on plain tables, and a bare HTTP server.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::{Json, Router, routing::get, serve::ListenerExt as _};
use serde_json::json;
use sqlx::{PgPool, postgres::PgPoolOptions};

use crate::{
    http::{Connection, Server},
    load::{self, Outcome},
    meter::Meter,
    process,
    report::folder,
    stack::{Bench, Setup},
    statistics::Latencies,
};

/// Plain tables: what an execute writes, without the service's triggers and other indexes.
const TABLES: &str = "
    CREATE TABLE runs (
        run_id text PRIMARY KEY, definition_id uuid NOT NULL, workflow_id text NOT NULL, workflow_name text NOT NULL,
        status text NOT NULL, triggered_by text NOT NULL, input_data jsonb NOT NULL, created_at timestamp NOT NULL,
        updated_at timestamp NOT NULL
    );
    CREATE INDEX runs_by_status ON runs (status, created_at);
    CREATE INDEX runs_by_workflow ON runs (workflow_id, created_at);
    CREATE INDEX runs_by_creation ON runs (created_at);
    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, topic text NOT NULL, key text NOT NULL, payload jsonb NOT NULL
    );
    CREATE TABLE audit (
        id uuid PRIMARY KEY, entity_type text NOT NULL, entity_id uuid NOT NULL, action text NOT NULL, user_id text NOT NULL
    )";

/// Values of the insert into `runs`; the input has 48 bytes.
const RUN: &str =
    "INSERT INTO runs (run_id, definition_id, workflow_id, workflow_name, status, triggered_by, input_data,
    created_at, updated_at)
VALUES ('run-' || gen_random_uuid(), '7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa', '7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa',
    'bench', 'PENDING', 'system', '{\"text\": \"hello hello hello hello hello hello!\"}', now(), now())";
/// The payload has 130 bytes.
const OUTBOX: &str = "INSERT INTO outbox (topic, key, payload)
VALUES ('workflow.execution.requests', 'run-' || gen_random_uuid(),
    '{\"run_id\": \"run-01a223b8-15bb-772c-aa40-d9ec46a0a67a\", \"input_data\": {\"text\": \"hell\"}, \"message_type\": \"execution\", \"priority\": 5}')";
const AUDIT: &str = "INSERT INTO audit (id, entity_type, entity_id, action, user_id)
VALUES (gen_random_uuid(), 'run', gen_random_uuid(), 'execute', 'system')";

/// Script of pgbench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// T: the three inserts in one transaction.
    Transaction,
    /// S: the three inserts in one statement.
    Statement,
    /// The insert of the run alone.
    Insert,
}

impl Script {
    fn text(self) -> String {
        match self {
            Self::Transaction => format!("BEGIN;\n{RUN};\n{OUTBOX};\n{AUDIT};\nCOMMIT;\n"),
            Self::Statement => format!("WITH run AS (\n{RUN}\n), message AS (\n{OUTBOX}\n)\n{AUDIT};\n"),
            Self::Insert => format!("{RUN};\n"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Transaction => "T",
            Self::Statement => "S",
            Self::Insert => "insert",
        }
    }
}

/// Database of the plain tables.
pub struct PlainTables<'b> {
    bench: &'b Bench,
    pool: PgPool,
    name: String,
    scripts: PathBuf,
}

/// Result of pgbench.
#[derive(Debug)]
pub struct Measured {
    /// Transactions per second.
    pub rate: f64,
    /// Latency of each transaction.
    pub latencies: Latencies,
    /// CPU milliseconds per transaction by process.
    pub cpu: Vec<(&'static str, f64)>,
}

impl<'b> PlainTables<'b> {
    /// Creates the database.
    pub async fn open(bench: &'b Bench) -> Result<Self> {
        let name = bench.unique_name("control");
        bench.create_database(&name, "template1").await?;
        let pool = PgPoolOptions::new().max_connections(1).connect(&bench.url_of(&name)).await?;
        sqlx::raw_sql(TABLES).execute(&pool).await?;
        let scripts = folder()?.join(&name);
        fs::create_dir_all(&scripts)?;
        for script in [Script::Transaction, Script::Statement, Script::Insert] {
            fs::write(scripts.join(script.name()), script.text())?;
        }
        Ok(Self { bench, pool, name, scripts })
    }

    /// Runs a script with so many clients, after a second of warm-up, on empty tables.
    pub async fn run(&self, script: Script, clients: usize, length: Duration) -> Result<Measured> {
        sqlx::raw_sql("TRUNCATE runs, outbox, audit").execute(&self.pool).await?;
        self.pgbench(script, clients, Duration::from_secs(1)).await?;
        self.bench.checkpoint().await?;
        let meter = Meter::start(vec![("PostgreSQL", self.bench.postgres)]);
        let load = process::cpu_of_ended_children();
        let (rate, latencies) = self.pgbench(script, clients, length).await?;
        ensure!(rate > 0.0, "pgbench has made no transaction");
        let mut cpu = meter.stop();
        cpu.push(("pgbench", process::cpu_of_ended_children() - load));
        let transactions = rate * length.as_secs_f64();
        let cpu = cpu.into_iter().map(|(name, seconds)| (name, 1000.0 * seconds / transactions)).collect();
        Ok(Measured { rate, latencies, cpu })
    }

    async fn pgbench(&self, script: Script, clients: usize, length: Duration) -> Result<(f64, Latencies)> {
        let mut command = Command::new("pgbench");
        command.args(["-n", "-M", "prepared", "-j", "1", "-c", &clients.to_string()]);
        command.args(["-T", &length.as_secs().max(1).to_string(), "-f", script.name()]);
        // The log of one client is short. That of 64 would cost pgbench more than a tenth of its time.
        if clients == 1 {
            command.args(["-l", "--log-prefix=latencies"]);
        }
        command.arg(self.bench.url_of(&self.name)).current_dir(&self.scripts).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.context("pgbench, which is part of PostgreSQL, must be on the PATH")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
        let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
        let mut latencies = Latencies::default();
        for entry in fs::read_dir(&self.scripts)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("latencies")) {
                for line in fs::read_to_string(&path)?.lines() {
                    let micros = line.split_whitespace().nth(2).and_then(|micros| micros.parse().ok());
                    latencies.add(Duration::from_micros(micros.context("pgbench's log has another form")?));
                }
                fs::remove_file(path)?;
            }
        }
        // Without a transaction it prints no rate.
        Ok((rate.unwrap_or_default(), latencies))
    }

    /// Removes the database.
    pub async fn close(self) -> Result<()> {
        self.pool.close().await;
        fs::remove_dir_all(&self.scripts)?;
        self.bench.drop_database(&self.name).await
    }
}

/// Argument with which the suite starts itself as the bare server.
pub const BARE_SERVER: &str = "bare-server";

/// Bare axum server in a process of its own, with as many threads as the API.
pub struct BareServer {
    child: Child,
    server: Server,
}

impl BareServer {
    /// Starts it.
    pub async fn start(bench: &Bench) -> Result<Self> {
        let address = process::free_address()?;
        let workers = Setup::default().settings(bench).remove("API_WORKERS").unwrap_or_default();
        let child = Command::new(std::env::current_exe()?)
            .args([BARE_SERVER, &address.port().to_string(), &workers])
            .stdin(Stdio::null())
            .spawn()?;
        let bare = Self { child, server: Server::new(address)? };
        while Connection::open(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(bare)
    }

    /// Closed loop of requests for its one answer.
    pub async fn load(&self, clients: usize, length: Duration) -> Result<Outcome> {
        let server = self.server.clone();
        let requests: load::Requests = Arc::new(move |_| server.get("/"));
        let outcome = load::closed(self.server.address, clients, length, &requests).await?;
        ensure!(outcome.fault().is_none(), "bare server: {:?}", outcome.fault());
        Ok(outcome)
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bare server itself.
pub fn serve_bare(port: u16, workers: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    runtime.block_on(async {
        let router = Router::new().route("/", get(|| async { Json(json!({"message": "hello"})) }));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        let listener = listener.tap_io(|stream| {
            // It only fails on a connection that is closed already.
            let _ = stream.set_nodelay(true);
        });
        Ok(axum::serve(listener, router).await?)
    })
}
