//! Development mode: starts everything on this machine, without any installation.
//!
//! `workflow-api dev` starts its own PostgreSQL and a broker inside its own process (unless `DATABASE_URL` or
//! `KAFKA_BROKERS` name others), then API, executor and demo agent as separate processes of the same binary. It runs a
//! first workflow and stays as their supervisor: they end with it, and it ends when one of them ends. Accepted data
//! survives in the database. The broker loses its records at the end, and the service dispatches them again.

mod broker;
mod child_process;
mod first_run;
mod folder;
mod postgres;
mod user;

use std::{
    env,
    fmt::Display,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
};

use self::{broker::Broker, child_process::ChildProcesses, folder::Folder};
use crate::{
    access::{OrganizationId, Role},
    api::vocabulary::token,
    clock::Clock,
    config::{self, Config},
    server, visible,
};

/// Interval of polling for a change.
const POLL: Duration = Duration::from_millis(50);
/// A second signal within this time counts as the same: `timeout` and terminals signal a group and its leader.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// Number of ports tried after the first choice.
const PORTS_TRIED: u16 = 100;
/// First port tried for the demo agent.
const DEMO_AGENT_PORT: u16 = 9010;

/// Options of `dev`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Folder for database, logs and pid file
    #[arg(long, default_value = ".dev")]
    pub data_dir: PathBuf,
}

/// Starts everything, shows a first run and supervises until a signal (`true`) or the end of a child process (an
/// error).
pub async fn run(options: Options) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    let Some(folder) = Folder::open(&options.data_dir)? else {
        say(format!("workflow-api dev is running already in {}", options.data_dir.display()));
        say(folder::summary(&options.data_dir).trim_end());
        return Ok(true);
    };
    // The broker outlives the child processes: an executor that stops leaves its consumer group.
    let mut broker = None;
    let mut parts = ChildProcesses::new(&folder);
    let outcome = tokio::select! {
        outcome = supervise(&folder, &mut parts, &mut broker) => outcome,
        () = signals.stop() => Ok(()),
    };
    // The error is shown before the child processes are stopped, which can take a while.
    if let Err(error) = &outcome {
        say(format!("failed: {error:#}"));
    }
    say("Stopping");
    parts.stop(&mut signals).await;
    folder.close();
    say(format!("Stopped; the data stays in {}", options.data_dir.display()));
    // The error has been shown already.
    Ok(outcome.is_ok())
}

/// Starts and supervises the child processes; returns only an error.
async fn supervise(folder: &Folder, parts: &mut ChildProcesses<'_>, broker: &mut Option<Broker>) -> anyhow::Result<()> {
    let config = settings()?;
    let api_port = api_port(&config)?;
    let agent_port = free_port(Ipv4Addr::LOCALHOST.into(), DEMO_AGENT_PORT).context("the demo agent's port")?;

    // `None`: the environment names it already, directly or by a file.
    let database_url = if given("DATABASE_URL").or_else(|| given("DATABASE_URL_FILE")).is_some() {
        say("PostgreSQL    the one that DATABASE_URL names");
        None
    } else {
        Some(postgres::start(folder, parts).await.context("PostgreSQL")?)
    };
    let brokers = if let Some(brokers) = given("KAFKA_BROKERS") {
        say("Kafka         the one that KAFKA_BROKERS names");
        brokers
    } else {
        let address = broker.insert(Broker::start(&config.kafka).context("the broker in this process")?).address();
        say(format!("Kafka         {address}, in this process; it forgets when it ends"));
        address
    };

    let has_own_broker = broker.is_some();
    let program = env::current_exe().context("the path of this program is not known")?;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .envs(database_url.iter().map(|url| ("DATABASE_URL", url)))
            .env("KAFKA_BROKERS", &brokers)
            .env("API_HOST", config.api.host.to_string())
            .env("API_PORT", api_port.to_string())
            .env("SHUTDOWN_NOTICE_SECS", "0")
            // The broker in this process does not know the request.
            .envs(has_own_broker.then_some(("KAFKA_TRIGGER_DELETE_GROUPS", "false")))
            .envs(given("EGRESS_ALLOW").is_none().then_some(("EGRESS_ALLOW", EGRESS_ALLOW)));
        command
    };
    parts.start("demo-agent", command(&["demo-agent", "--port", &agent_port.to_string()]))?;
    parts.start("serve", command(&["serve"]))?;
    parts.start("executor", command(&["executor"]))?;
    say(format!("Demo agent    http://127.0.0.1:{agent_port}"));
    say(format!("Webhooks      http://127.0.0.1:{agent_port}/hooks takes deliveries, and shows them"));

    let token = if config.auth.enabled {
        Some(token::issue(&config.auth, "dev", Role::Admin, &OrganizationId::default(), Clock::default().now())?)
    } else {
        None
    };
    let host = if config.api.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { config.api.host };
    let tour = first_run::FirstRun {
        root: format!("http://{}", SocketAddr::new(host, api_port)),
        prefix: config.api.prefix.clone(),
        console: config.api.console,
        token,
        agent_port,
        program: &program,
        folder,
    };
    let shown = async {
        let summary = tour.show().await?;
        say(format!("\n{}", summary.trim_end()));
        folder.write_ready(&summary)
    };
    tokio::select! {
        result = shown => result?,
        ended = parts.first_end() => return Err(ended),
    }
    Err(parts.first_end().await)
}

/// Default destinations of agents, unless the environment sets others.
const EGRESS_ALLOW: &str = "127.0.0.0/8,::1";

/// Prints a line. The supervisor continues if stdout is closed.
fn say(line: impl Display) {
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{}", visible::escaped_lines(&line.to_string())).and_then(|()| output.flush());
}

/// Settings of the child processes, checked before anything starts.
fn settings() -> anyhow::Result<Config> {
    // Values that are generated later have placeholders here for the checks.
    let made = [
        ("DATABASE_URL", "postgresql://localhost/to_be_started"),
        ("KAFKA_BROKERS", "localhost:9092"),
        // Without authentication every client has all rights, so by default only this machine can connect.
        ("API_HOST", "127.0.0.1"),
        // The demo agent, and local agents of the user.
        ("EGRESS_ALLOW", EGRESS_ALLOW),
    ];
    let made = made.into_iter().filter(|(name, _)| given(name).or_else(|| given(&format!("{name}_FILE"))).is_none());
    let made = made.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = config::environment().filter(|(_, value)| !value.trim().is_empty());
    Ok(Config::load(environment.chain(made))?)
}

/// Variable of the environment, if it is not empty.
fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Requested port, or the first free one from 8000.
fn api_port(config: &Config) -> anyhow::Result<u16> {
    let wanted = config.api.port;
    if given("API_PORT").is_some() {
        let address = SocketAddr::new(config.api.host, wanted);
        drop(server::bind(address).with_context(|| format!("API_PORT: cannot listen on {address}"))?);
        return Ok(wanted);
    }
    let port = free_port(config.api.host, wanted).context("API_PORT")?;
    if port != wanted {
        say(format!("Port {wanted} is taken, so the API gets {port}; API_PORT chooses another"));
    }
    Ok(port)
}

/// First free port from that one on.
fn free_port(host: IpAddr, first: u16) -> anyhow::Result<u16> {
    let free =
        (first..first.saturating_add(PORTS_TRIED)).find(|port| server::bind(SocketAddr::new(host, *port)).is_ok());
    let Some(port) = free else { bail!("none of the {PORTS_TRIED} ports from {first} on can be listened on") };
    Ok(port)
}

/// Signals that end everything.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that is not a duplicate of the previous one.
    async fn again(&mut self) {
        let since = Instant::now();
        self.stop().await;
        while since.elapsed() < SAME_SIGNAL {
            self.stop().await;
        }
    }

    /// Waits for one of the signals.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
