//! The service under test with its database and topics, and where the suite finds PostgreSQL and Kafka.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use url::Url;

use crate::{
    http::{Connection, Server},
    kafka,
    process::{self, Watched},
    report::{self, Row},
};

/// Partitions of all topics, the service's default.
pub const PARTITIONS: i32 = 6;
/// Body of a request to execute.
pub const EXECUTE_BODY: &str = r#"{"input_data":{"text":"hello"}}"#;
/// Time limit for the service to become ready or to end.
const PATIENCE: Duration = Duration::from_mins(1);

/// What all benchmarks share.
pub struct Bench {
    /// Program under test.
    pub program: PathBuf,
    /// Brokers.
    pub brokers: String,
    /// PostgreSQL, with the rights of its owner.
    pub admin: PgPool,
    /// PostgreSQL's processes.
    pub postgres: Watched,
    /// Kafka's process.
    pub kafka: Watched,
    database_url: Url,
    /// Migrated database that is copied for each measurement.
    template: String,
    /// Settings that the user wants to be different.
    overrides: Vec<(String, String)>,
    names: AtomicUsize,
}

impl Bench {
    /// Connects, and migrates the template.
    pub async fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let database_url = Url::parse(&variable("DATABASE_URL")?).context("DATABASE_URL")?;
        let brokers = variable("KAFKA_BROKERS")?;
        let program = match std::env::var_os("PROGRAM") {
            Some(program) => PathBuf::from(program),
            None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("release").join("workflow-api"),
        };
        ensure!(program.is_file(), "{}: no such program; set PROGRAM", program.display());
        let overrides = std::env::var("BENCH_SETTINGS").unwrap_or_default();
        let overrides = overrides.split_whitespace().filter_map(|setting| setting.split_once('='));
        let overrides = overrides.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let kafka_port = brokers.split(',').next().and_then(|broker| broker.rsplit_once(':')?.1.parse().ok());
        let admin = PgPoolOptions::new().max_connections(2).connect(database_url.as_str()).await?;
        let bench = Self {
            postgres: Watched::Postmaster(process::listener(database_url.port().unwrap_or(5432))?),
            kafka: Watched::Process(process::listener(kafka_port.context("KAFKA_BROKERS has no port")?)?),
            template: format!("{}template", prefix()),
            program,
            brokers,
            admin,
            database_url,
            overrides,
            names: AtomicUsize::new(0),
        };
        bench.create_database(&bench.template, "template1").await?;
        let environment = [("DATABASE_URL", bench.url_of(&bench.template)), ("KAFKA_BROKERS", bench.brokers.clone())];
        let migrated = bench.command(&["migrate", "up"]).envs(environment).stdout(Stdio::null()).status()?;
        ensure!(migrated.success(), "the migrations have failed");
        Ok(bench)
    }

    /// Removes everything that the measurements have left, also after a failure.
    pub async fn close(self) -> Result<()> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE starts_with(datname, $1)")
                .bind(prefix())
                .fetch_all(&self.admin)
                .await?;
        for name in names {
            self.drop_database(&name).await?;
        }
        kafka::delete_topics(&self.brokers, prefix()).await
    }

    /// A name for a database or topics that no other measurement has.
    pub fn unique_name(&self, what: &str) -> String {
        format!("{}{what}_{}", prefix(), self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// Address of a database.
    pub fn url_of(&self, database: &str) -> String {
        let mut url = self.database_url.clone();
        url.set_path(database);
        url.into()
    }

    /// Creates a database as a copy of another one.
    pub async fn create_database(&self, name: &str, template: &str) -> Result<()> {
        let statement = format!("CREATE DATABASE {name} TEMPLATE {template}");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.admin).await?;
        Ok(())
    }

    /// Creates a migrated database.
    pub async fn create_migrated(&self, name: &str) -> Result<()> {
        self.create_database(name, &self.template).await
    }

    /// Removes a database.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&self.admin).await?;
        Ok(())
    }

    /// Writes all dirty pages to disk, so that a measurement does not pay for the one before.
    pub async fn checkpoint(&self) -> Result<()> {
        sqlx::raw_sql("CHECKPOINT").execute(&self.admin).await?;
        Ok(())
    }

    /// Command of the program under test, without the suite's environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().stdin(Stdio::null());
        command
    }

    /// Output of a command of the program, such as a new API key.
    pub fn output(&self, arguments: &[&str], environment: &BTreeMap<String, String>) -> Result<String> {
        let output = self.command(arguments).envs(environment).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{arguments:?} has failed");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Machine, servers and program, for the report.
    pub async fn describe(&self) -> Result<Value> {
        let settings: Vec<(String, String)> = sqlx::query_as(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name IN ('server_version', 'fsync',
                 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size', 'max_connections')",
        )
        .fetch_all(&self.admin)
        .await?;
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
        };
        let version = self.output(&["--version"], &BTreeMap::new())?;
        Ok(json!({
            "program": self.program, "version": version,
            "processor": line(&read("/proc/cpuinfo"), "model name"), "cores": process::cores(),
            "memory": line(&read("/proc/meminfo"), "MemTotal"), "kernel": read("/proc/version").trim(),
            "postgresql": settings.into_iter().collect::<BTreeMap<_, _>>(),
            "settings": Setup::default().settings(self),
        }))
    }
}

/// What a measurement needs of the service.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// With an executor and an agent.
    pub executor: bool,
    /// With authentication by API key.
    pub authentication: bool,
    /// Existing database, which is kept.
    pub database: Option<String>,
    /// Further settings.
    pub settings: Vec<(&'static str, String)>,
}

impl Setup {
    /// Settings that differ from the service's defaults, besides addresses and names. The defaults have no rate limits,
    /// and admit 4096 requests at a time, which a closed loop does not reach.
    pub fn settings(&self, bench: &Bench) -> BTreeMap<String, String> {
        let fixed = [
            ("API_WORKERS", "2"),
            ("LOG_LEVEL", "WARNING"),
            ("EGRESS_ALLOW", "127.0.0.0/8"),
            ("SHUTDOWN_NOTICE_SECS", "0"),
            // As in the image.
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ];
        let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let further = self.settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        fixed.into_iter().chain(further).chain(bench.overrides.iter().cloned()).collect()
    }
}

/// The running service.
pub struct Stack<'b> {
    bench: &'b Bench,
    /// API, with the administrator's key if authentication is on.
    pub server: Server,
    /// Connections to its database.
    pub pool: PgPool,
    /// Id of a workflow with one step.
    pub workflow: String,
    /// Variables of its processes.
    pub environment: BTreeMap<String, String>,
    /// Name of its database.
    pub database: String,
    keeps_database: bool,
    processes: Vec<Process>,
}

struct Process {
    name: &'static str,
    child: Child,
}

impl Drop for Process {
    /// After a failure of the suite.
    fn drop(&mut self) {
        // Fails if it has ended, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'b> Stack<'b> {
    /// Starts the service, waits until it is ready, and stores the workflow.
    pub async fn start(bench: &'b Bench, setup: &Setup) -> Result<Self> {
        let unique = bench.unique_name("run");
        let keeps_database = setup.database.is_some();
        let database = setup.database.clone().unwrap_or_else(|| unique.clone());
        if !keeps_database {
            bench.create_migrated(&database).await?;
        }
        let (address, agent) = (process::free_address()?, process::free_address()?);
        let mut environment = setup.settings(bench);
        let own = [
            ("DATABASE_URL", bench.url_of(&database)),
            ("KAFKA_BROKERS", bench.brokers.clone()),
            ("KAFKA_EXECUTION_TOPIC", format!("{unique}.execution")),
            ("KAFKA_CANCELLATION_TOPIC", format!("{unique}.cancellation")),
            ("KAFKA_MONITORING_TOPIC", format!("{unique}.monitoring")),
            ("KAFKA_DEAD_LETTER_TOPIC", format!("{unique}.dead")),
            ("KAFKA_GROUP_ID", unique),
            ("API_HOST", address.ip().to_string()),
            ("API_PORT", address.port().to_string()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        let mut server = Server::new(address)?;
        if setup.authentication {
            let key = bench.output(&["api-key"], &BTreeMap::new())?;
            server = server.with_key(&key)?;
            environment.insert("BOOTSTRAP_API_KEY".to_owned(), key);
        }
        let pool = PgPoolOptions::new().max_connections(4).connect(&bench.url_of(&database)).await?;
        let mut stack = Self {
            bench,
            server,
            pool,
            workflow: String::new(),
            environment,
            database,
            keeps_database,
            processes: Vec::new(),
        };
        stack.spawn("API", &["serve"])?;
        stack.wait_until_ready().await?;
        if setup.executor {
            stack.spawn("agent", &["demo-agent", "--port", &agent.port().to_string()])?;
            stack.spawn("executor", &["executor"])?;
        }
        stack.store_agent(agent).await?;
        let step =
            json!({"a": {"id": "a", "agent_name": "bench", "input_mapping": {"text": "${workflow.input.text}"}}});
        stack.workflow = stack.store_workflow("bench", step).await?;
        Ok(stack)
    }

    fn spawn(&mut self, name: &'static str, arguments: &[&str]) -> Result<()> {
        let log = report::folder()?.join(format!("{name}.log"));
        let log = File::options().append(true).create(true).open(log)?;
        let mut command = self.bench.command(arguments);
        command.envs(&self.environment).stdout(log.try_clone()?).stderr(log);
        self.processes.push(Process { name, child: command.spawn()? });
        Ok(())
    }

    /// Starts the executor with its agent's address unchanged, after [`end`](Self::end) for example.
    pub fn start_executor(&mut self) -> Result<()> {
        self.spawn("executor", &["executor"])
    }

    /// Starts the API again.
    pub async fn start_api(&mut self) -> Result<()> {
        self.spawn("API", &["serve"])?;
        self.wait_until_ready().await
    }

    /// Waits until the API is ready.
    pub async fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !self.is_ready().await {
            for Process { name, child } in &mut self.processes {
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "{name} has ended ({status}); see {}",
                        report::folder()?.join(format!("{name}.log")).display()
                    );
                }
            }
            ensure!(started.elapsed() < PATIENCE, "the API is not ready after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Whether the API is ready, and knows the administrator's key: it stores that some milliseconds later.
    async fn is_ready(&self) -> bool {
        let mut paths = vec!["/health/ready"];
        if self.environment.contains_key("BOOTSTRAP_API_KEY") {
            paths.push("/api/v1/agents");
        }
        for path in paths {
            let answer = async { Connection::open(self.server.address).await?.fetch(self.server.get(path)).await };
            if !answer.await.is_ok_and(|(status, _)| status.is_success()) {
                return false;
            }
        }
        true
    }

    async fn store_agent(&self, agent: SocketAddr) -> Result<()> {
        let body = json!({"name": "bench", "url": format!("http://{agent}/upper")}).to_string();
        self.server.json(self.server.post("/api/v1/agents", body)).await?;
        Ok(())
    }

    /// Stores a workflow and returns its id.
    pub async fn store_workflow(&self, name: &str, steps: Value) -> Result<String> {
        let body = json!({"name": name, "start_step": "a", "steps": steps}).to_string();
        let stored = self.server.json(self.server.post("/api/v1/workflows", body)).await?;
        Ok(stored["id"].as_str().context("the workflow has no id")?.to_owned())
    }

    /// Path that executes a workflow.
    pub fn execute_path(workflow: &str) -> String {
        format!("/api/v1/workflows/{workflow}/execute")
    }

    /// Processes with PostgreSQL and Kafka.
    pub fn watched(&self) -> Vec<(&'static str, Watched)> {
        let own = self.processes.iter().map(|process| (process.name, Watched::Process(process.child.id())));
        own.chain([("PostgreSQL", self.bench.postgres), ("Kafka", self.bench.kafka)]).collect()
    }

    fn pid(&self, name: &str) -> Result<u32> {
        let found = self.processes.iter().find(|process| process.name == name);
        Ok(found.with_context(|| format!("no {name} is running"))?.child.id())
    }

    /// Resident memory of one of the service's own processes, in MiB.
    pub fn resident(&self, name: &str) -> Result<f64> {
        Ok(Watched::Process(self.pid(name)?).resident_mib())
    }

    /// Row with the same.
    pub fn resident_row(&self, name: &str, measure: impl Into<String>) -> Result<Row> {
        let parts = process::memory_parts(self.pid(name)?).map(|(part, value)| (part, vec![value]));
        Ok(Row::new(measure, "MiB", vec![self.resident(name)?]).parts(parts.into()))
    }

    /// Ends one of the processes in order.
    pub async fn end(&mut self, name: &str) -> Result<()> {
        let Some(index) = self.processes.iter().position(|process| process.name == name) else { return Ok(()) };
        let mut process = self.processes.remove(index);
        kill_process(Pid::from_child(&process.child), Signal::TERM)?;
        let started = Instant::now();
        while process.child.try_wait()?.is_none() {
            ensure!(started.elapsed() < PATIENCE, "{name} has not ended within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends all processes, and removes the database. The topics go at the end of all measurements.
    pub async fn stop(mut self) -> Result<()> {
        for name in ["executor", "agent", "API"] {
            self.end(name).await?;
        }
        self.pool.close().await;
        if !self.keeps_database {
            self.bench.drop_database(&self.database).await?;
        }
        Ok(())
    }
}

/// Beginning of all names that this process gives.
fn prefix() -> String {
    format!("suite_{}_", std::process::id())
}
