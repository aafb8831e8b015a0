//! The command line: arguments, and the settings of each command.

mod command;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use workflow_api::{
    access::{OrganizationId, Role, api_key::ApiKey},
    api, client,
    clock::Clock,
    config::{self, Config, Problems},
    db::migrations::{self, MigrationError, WaitLimit},
    demo_agent, telemetry,
    vault::Vault,
    visible,
};

/// Workflow Management API.
#[derive(Parser)]
#[command(
    name = "workflow-api",
    version,
    about,
    after_help = "Settings are environment variables; .env.api.example lists them."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the REST API (the default)
    Serve,
    /// Execute runs
    Executor,
    /// Start a run of a workflow on a running service
    Run(client::run::Options),
    /// Change or show the database schema
    Migrate {
        #[command(subcommand)]
        action: Migrate,
    },
    /// Check settings, connections, or the rows of the database
    Check {
        #[command(subcommand)]
        what: Check,
    },
    /// Give the Kafka topics `KAFKA_TOPIC_PARTITIONS` partitions, if they have fewer; the service may run meanwhile
    AddPartitions,
    /// Check the health of the API on this host; exit code 0 or 1
    Healthcheck {
        /// Check the readiness of the executor on this host, on `MANAGEMENT_PORT`
        #[arg(long)]
        executor: bool,
    },
    /// Print a bearer token signed with `JWT_SECRET`
    Token {
        /// Subject of the token; logs and audit entries contain it
        #[arg(long, value_name = "SUBJECT", default_value = "operator")]
        sub: String,
        /// viewer, operator, editor, admin or executor
        #[arg(long, default_value = "admin")]
        role: Role,
        /// Id of the organisation
        #[arg(long, default_value = OrganizationId::DEFAULT, value_parser = OrganizationId::parse)]
        organization: OrganizationId,
        /// The same as --sub
        #[arg(conflicts_with = "sub")]
        subject: Option<String>,
    },
    /// Create and print an API key, such as the first one; without --name only print a new key for `BOOTSTRAP_API_KEY`
    ApiKey {
        /// Store the key in the database under this name
        #[arg(long)]
        name: Option<String>,
        /// viewer, operator, editor, admin or executor
        #[arg(long, default_value = "admin", requires = "name")]
        role: Role,
        /// Id of the organisation
        #[arg(long, default_value = OrganizationId::DEFAULT, value_parser = OrganizationId::parse, requires = "name")]
        organization: OrganizationId,
        /// Days until it expires; without this option it is valid until it is revoked
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..), requires = "name")]
        days: Option<u16>,
    },
    /// Encrypt the credentials of all agents and the secrets of all webhooks and triggers with the first key of `ENCRYPTION_KEY`; the service may run meanwhile
    RotateKeys,
    /// Read runs that retention has archived
    Archive {
        #[command(subcommand)]
        action: command::archive::Action,
    },
    /// Print roles, permissions and routes as Markdown
    Access,
    /// Print the OpenAPI document
    Openapi,
    /// Run a demo agent
    DemoAgent(demo_agent::Options),
    /// Run the whole service on this host, with an embedded database and broker, and execute a first workflow
    #[cfg(feature = "embedded")]
    Dev(workflow_api::dev::Options),
}

/// Exit code of `migrate` if it gave up because of a lock: the same command may succeed later (`EX_TEMPFAIL`).
const LOCKED: u8 = 75;

/// Limit of the waits of `migrate`.
#[derive(clap::Args)]
struct MigrationWait {
    /// Longest wait for locks of other sessions, all waits together; then the exit code is 75
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    wait: u32,
}

impl MigrationWait {
    fn limit(&self) -> WaitLimit {
        WaitLimit::of(Duration::from_secs(self.wait.into()))
    }
}

#[derive(Subcommand)]
enum Migrate {
    /// Run all migrations that have not been run
    Up {
        #[command(flatten)]
        wait: MigrationWait,
    },
    /// Revert the newest migrations
    Down {
        /// Number of migrations
        count: usize,
        /// Confirm to revert more than one, or to delete all agents, workflows and runs
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: MigrationWait,
    },
    /// List all migrations with their states and checksums; exit code 0 if all have been run as they are here
    #[command(visible_alias = "validate")]
    Status,
    /// Print all migrations as SQL for psql, to be run by the owner of the database
    Sql {
        /// Only migrations behind this version
        #[arg(long, value_name = "VERSION", default_value_t = 0)]
        after: i64,
    },
}

#[derive(Subcommand)]
enum Check {
    /// Validate all settings and list all errors
    Config,
    /// Connect to the database
    Db,
    /// Connect to Kafka, and check the settings of the topics
    Kafka,
    /// Check the rows of the database against each other, while the service runs or not; exit code 0: all is well, 1:
    /// something is wrong, 2: something could not be checked
    Invariants(command::invariants::Options),
}

fn main() -> ExitCode {
    // The library requires one choice for the process before its first use. This is the only one, so it cannot fail.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    let is_service = matches!(command, Command::Serve | Command::Executor);
    if is_service {
        telemetry::log::log_panics();
    }
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            if is_service {
                log(&error);
            } else {
                // The text may contain what a server has sent.
                eprintln!("workflow-api: {}", visible::escaped_lines(&visible::with_causes(error.as_ref())));
            }
            match error.downcast_ref() {
                Some(MigrationError::Locked { .. }) => ExitCode::from(LOCKED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Writes the error of a service to its log. Each problem of the settings is a line.
fn log(error: &anyhow::Error) {
    telemetry::log::init(&config::Log::load_or_default(config::environment()));
    if let Some(Problems(problems)) = error.downcast_ref::<Problems>() {
        for problem in problems {
            tracing::error!("{}", problem.trim());
        }
    } else {
        tracing::error!("{}", visible::with_causes(error.as_ref()));
    }
}

/// Runs a command to its end. An error has not been reported yet.
fn run(command: Command) -> anyhow::Result<ExitCode> {
    let environment = config::environment;
    let is_success = match command {
        Command::Run(options) => {
            let api = config::load::<config::Api>(environment())?;
            let outcome = command::block_on(client::run::run(&options, &api, &Clock::default()))?;
            return Ok(outcome.exit_code().into());
        }
        Command::Serve => {
            let config = service_config()?;
            command::run(config.api.workers, command::serve(config))
        }
        Command::Executor => {
            let config = service_config()?;
            command::run(config.api.workers, command::execute(config))
        }
        Command::Migrate { action } => migrate(action),
        Command::Check { what } => return check(what),
        Command::AddPartitions => {
            let settings = config::load::<config::Kafka>(environment())?;
            command::block_on(command::add_partitions(&settings))
        }
        Command::Healthcheck { executor: true } => {
            let api = config::load::<config::Api>(environment())?;
            let metrics = config::load::<config::Metrics>(environment())?;
            command::block_on(command::healthcheck_executor(&api, metrics))
        }
        Command::Healthcheck { executor: false } => {
            let settings = config::load::<config::Api>(environment())?;
            command::block_on(command::healthcheck(&settings))
        }
        Command::Token { sub, role, organization, subject } => {
            let subject = subject.unwrap_or(sub);
            println!(
                "{}",
                api::vocabulary::token::issue(
                    &config::load::<config::Auth>(environment())?,
                    &subject,
                    role,
                    &organization,
                    Clock::default().now(),
                )?
            );
            Ok(true)
        }
        Command::RotateKeys => {
            let settings = config::load::<config::Database>(environment())?;
            let vault = config::load::<Vault>(environment())?;
            telemetry::log::init(&config::Log::load_or_default(environment()));
            command::block_on(command::rotate_keys(&settings, &vault))
        }
        Command::Archive { action } => {
            let config = Config::load(environment())?;
            telemetry::log::init(&config::Log::load_or_default(environment()));
            command::block_on(command::archive::run(&config, action))
        }
        Command::Access => {
            print!("{}", api::gate::access::markdown());
            Ok(true)
        }
        Command::ApiKey { name: None, .. } => {
            println!(
                "{}",
                ApiKey::generate(&config::load::<config::Auth>(environment())?.api_key_environment).expose()
            );
            Ok(true)
        }
        Command::ApiKey { name: Some(name), role, organization, days } => {
            let config = Config::load(environment())?;
            command::block_on(command::make_api_key(&config, name, role, organization, days))
        }
        Command::Openapi => {
            let (api, auth) =
                (config::load::<config::Api>(environment())?, config::load::<config::Auth>(environment())?);
            let document = api::whole_document(&api, &auth.api_key_header_text);
            println!("{}", serde_json::to_string_pretty(&document)?);
            Ok(true)
        }
        Command::DemoAgent(options) => {
            telemetry::log::init(&config::Log::load_or_default(environment()));
            command::block_on(command::demo_agent(&options))
        }
        #[cfg(feature = "embedded")]
        Command::Dev(options) => command::runtime(2)?.block_on(workflow_api::dev::run(options)),
    }?;
    Ok(if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Settings of a service, whose log is set up.
fn service_config() -> anyhow::Result<Config> {
    let config = Config::load(config::environment())?;
    telemetry::log::init_service(&config.log)?;
    Ok(config)
}

/// `migrate`.
fn migrate(action: Migrate) -> anyhow::Result<bool> {
    let settings = || {
        let settings = config::load::<config::Database>(config::environment())?;
        telemetry::log::init(&config::Log::load_or_default(config::environment()));
        anyhow::Ok(settings)
    };
    match action {
        Migrate::Up { wait } => command::block_on(command::migrate_up(&settings()?, wait.limit())),
        Migrate::Down { count, yes, wait } => {
            command::block_on(command::migrate_down(&settings()?, count, yes, wait.limit()))
        }
        Migrate::Status => command::block_on(command::migration_status(&settings()?)),
        Migrate::Sql { after } => {
            print!("{}", migrations::sql(after));
            Ok(true)
        }
    }
}

/// `check`.
fn check(what: Check) -> anyhow::Result<ExitCode> {
    let environment = config::environment;
    let is_success = match what {
        Check::Config => {
            let config = Config::load(environment())?;
            for line in config::unknown_names(environment()) {
                println!("warning: {line}");
            }
            for name in command::exposed_databases(&config) {
                println!(
                    "warning: {name}: the database may be reached without TLS; add sslmode=verify-full or require"
                );
            }
            println!("the configuration is valid");
            true
        }
        Check::Db => {
            let settings = config::load::<config::Database>(environment())?;
            let vault = config::load::<Vault>(environment())?;
            command::block_on(command::check_db(&settings, &vault))?
        }
        Check::Kafka => {
            let settings = config::load::<config::Kafka>(environment())?;
            command::block_on(command::check_kafka(&settings))?
        }
        Check::Invariants(options) => {
            // Wrong settings have an exit code of their own.
            let settings = config::load::<config::Database>(environment()).map_err(anyhow::Error::from);
            return command::block_on(async { Ok(command::invariants::run(settings, &options).await) });
        }
    };
    Ok(if is_success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
