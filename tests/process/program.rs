//! The program under test, and what stands around it.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    process::{Output, Stdio},
};

use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, Consumer as _},
};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, PgPool};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};
use uuid::Uuid;
use workflow_api::{config, kafka};

pub use crate::eventually::eventually;
use crate::eventually::{MAX_POLLS, POLL};

/// The environment of the programs of one test: its own database, topics and port.
#[derive(Clone)]
pub struct Environment {
    pub variables: HashMap<String, String>,
    /// Where an API with this environment listens.
    pub url: String,
}

impl Environment {
    pub fn new(pool: &PgPool) -> Self {
        let unique = Uuid::new_v4().simple().to_string();
        let port = free_port();
        let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker");
        let variables = [
            ("DATABASE_URL", pool.connect_options().to_url_lossy().to_string()),
            ("KAFKA_BROKERS", brokers),
            ("KAFKA_EXECUTION_TOPIC", format!("execution-{unique}")),
            ("KAFKA_CANCELLATION_TOPIC", format!("cancellation-{unique}")),
            ("KAFKA_GROUP_ID", format!("group-{unique}")),
            ("KAFKA_TOPIC_PARTITIONS", "2".to_owned()),
            ("EGRESS_ALLOW", "127.0.0.0/8".to_owned()),
            ("SHUTDOWN_NOTICE_SECS", "0".to_owned()),
            ("API_HOST", "127.0.0.1".to_owned()),
            ("API_PORT", port.to_string()),
            ("API_WORKERS", "2".to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        Self { variables, url: format!("http://127.0.0.1:{port}") }
    }

    /// With another value.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// What the programs are told about Kafka.
    pub fn kafka(&self) -> config::Kafka {
        config::load::<config::Kafka>(self.variables.clone().into_iter()).expect("valid settings")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // `PROGRAM` names another build of the program, for measurements by hand.
        let built = || env!("CARGO_BIN_EXE_workflow-api").to_owned();
        let mut command = Command::new(std::env::var("PROGRAM").unwrap_or_else(|_| built()));
        command.args(arguments).env_clear().envs(&self.variables).stdin(Stdio::null()).kill_on_drop(true);
        // Two processes on one host cannot have one port; it is the executor's.
        if arguments.first() == Some(&"serve") && !self.variables.contains_key("METRICS_ACCESS") {
            command.env_remove("MANAGEMENT_PORT");
        }
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("the program starts")
    }

    /// Runs a command to its end with this input.
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).await.expect("the input is taken");
        drop(stdin);
        child.wait_with_output().await.expect("the program ends")
    }

    /// Starts a command that goes on.
    pub fn start(&self, arguments: &[&str]) -> Program {
        let log = std::env::temp_dir().join(format!("workflow-api-test-{}.log", Uuid::new_v4()));
        let file = std::fs::File::create(&log).expect("a log file");
        let errors = file.try_clone().expect("a second handle");
        let child = self.command(arguments).stdout(file).stderr(errors).spawn().expect("the program starts");
        Program { child, log }
    }

    /// Starts an API and waits until it is ready.
    pub async fn serve(&self) -> Program {
        let program = self.start(&["serve"]);
        eventually("the API is ready", || self.is_ready()).await;
        program
    }

    pub async fn is_ready(&self) -> Option<()> {
        let answer = reqwest::get(format!("{}/health/ready", self.url)).await.ok()?;
        answer.status().is_success().then_some(())
    }

    pub async fn get(&self, path: &str) -> Value {
        let answer = reqwest::get(format!("{}{path}", self.url)).await.expect("an answer");
        answer.json().await.expect("JSON")
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        reqwest::Client::new().post(format!("{}{path}", self.url)).json(body).send().await
    }

    /// Stores a workflow of one agent step after the other, all calling agents at `url`; returns its id.
    pub async fn chain(&self, name: &str, urls: &[String]) -> String {
        let mut steps = serde_json::Map::new();
        for (index, url) in urls.iter().enumerate() {
            let agent = json!({"name": format!("{name}-{index}"), "url": url,
                "retry_config": {"max_retries": 1, "initial_delay_ms": 100, "max_delay_ms": 1000}});
            let answer = self.post("/api/v1/agents", &agent).await.expect("an answer");
            assert_eq!(answer.status(), 201);
            let next = (index + 1 < urls.len()).then(|| format!("s{}", index + 1));
            let step = json!({"id": format!("s{index}"), "agent_name": format!("{name}-{index}"), "next_step": next,
                "input_mapping": {"text": "${workflow.input.text}"}});
            steps.insert(format!("s{index}"), step);
        }
        let workflow = json!({"name": name, "start_step": "s0", "steps": steps});
        let answer = self.post("/api/v1/workflows", &workflow).await.expect("an answer");
        assert_eq!(answer.status(), 201);
        let workflow: Value = answer.json().await.expect("JSON");
        workflow["id"].as_str().expect("an id").to_owned()
    }

    /// Asks for a run; its id, if it was acknowledged.
    pub async fn execute(&self, workflow_id: &str) -> Option<String> {
        let path = format!("/api/v1/workflows/{workflow_id}/execute");
        let answer = self.post(&path, &json!({"input_data": {"text": "hello"}})).await.ok()?;
        if answer.status() != 202 {
            return None;
        }
        let run: Value = answer.json().await.ok()?;
        run["run_id"].as_str().map(str::to_owned)
    }

    /// The keys of an execution topic's records, read until all of these are among them.
    pub async fn wait_for_messages(&self, expected: HashSet<String>) {
        let kafka = self.kafka();
        let read = move || {
            let consumer: BaseConsumer = kafka::client_config(&kafka)
                .set("group.id", format!("reader-{}", Uuid::new_v4()))
                .set("auto.offset.reset", "earliest")
                .create()
                .expect("valid settings");
            consumer.subscribe(&[&kafka.execution_topic]).expect("a topic name");
            let (mut missing, mut polls) = (expected, 0..MAX_POLLS);
            while !missing.is_empty() {
                if let Some(Ok(message)) = consumer.poll(POLL) {
                    missing.remove(&String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned());
                } else {
                    assert!(polls.next().is_some(), "{} messages did not arrive", missing.len());
                }
            }
        };
        tokio::task::spawn_blocking(read).await.expect("the reader does not panic");
    }
}

/// A running program. Killed when it goes out of scope.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Of the process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Asks it to stop, as `docker stop` and Kubernetes do.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    /// Sends it a signal of that name.
    pub async fn signal(&self, name: &str) {
        signal(self.id(), name).await;
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a status").is_some()
    }

    /// Waits for its end; the exit code.
    pub async fn exit_code(&mut self) -> i32 {
        let ended = || {
            let status = self.child.try_wait().expect("a status");
            async move { status }
        };
        eventually("the program ends", ended).await.code().expect("an exit code, not a signal")
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log file")
    }

    /// What it has printed so far, a JSON object a line.
    pub fn log_lines(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("not a JSON line: {line}"));
        self.log().lines().map(parse).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the log of a program under test:\n{}", self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Sends a signal of that name to a process that has not been waited for.
pub async fn signal(id: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().await.expect("kill runs");
    assert!(status.success());
}

/// A port that is free at the moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
