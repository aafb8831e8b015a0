//! The command line. Reads the environment once, puts the parts together and passes them down.

mod command;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workflow_api::{
    access::{OrganizationId, Role, api_key::ApiKey},
    api,
    config::{self, Config, Problems},
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
    after_help = "Settings come from the environment; see .env.api.example."
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
    /// Change or show the database schema
    Migrate {
        #[command(subcommand)]
        action: Migrate,
    },
    /// Check settings or connections, without changing anything
    Check {
        #[command(subcommand)]
        what: Check,
    },
    /// Ask a running API on this host for its health; exit code 0 or 1
    Healthcheck {
        /// Ask an executor instead, on `MANAGEMENT_PORT`, whether it can take runs
        #[arg(long)]
        executor: bool,
    },
    /// Print a bearer token signed with `JWT_SECRET`
    Token {
        /// The subject, which appears in logs and audit entries
        #[arg(long, value_name = "SUBJECT", default_value = "operator")]
        sub: String,
        /// viewer, operator, editor, admin or executor
        #[arg(long, default_value = "admin")]
        role: Role,
        /// The id of the organisation
        #[arg(long, default_value = OrganizationId::DEFAULT, value_parser = OrganizationId::parse)]
        organization: OrganizationId,
        /// The same as --sub
        #[arg(conflicts_with = "sub")]
        subject: Option<String>,
    },
    /// Make an API key that no other key has made, such as the first one, and print it; without a name print one for
    /// `BOOTSTRAP_API_KEY`, which nobody knows until a start with it
    ApiKey {
        /// Store the key in the database under this name
        #[arg(long)]
        name: Option<String>,
        /// viewer, operator, editor, admin or executor
        #[arg(long, default_value = "admin", requires = "name")]
        role: Role,
        /// The id of the organisation
        #[arg(long, default_value = OrganizationId::DEFAULT, value_parser = OrganizationId::parse, requires = "name")]
        organization: OrganizationId,
        /// For how many days it counts; otherwise until it is revoked
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..), requires = "name")]
        days: Option<u16>,
    },
    /// Encrypt the credentials of all agents with the first key of `ENCRYPTION_KEY`; the service may run meanwhile
    RotateKeys,
    /// Print who may do what, as Markdown
    Access,
    /// Print the OpenAPI document
    Openapi,
    /// Run a small agent to try workflows with
    DemoAgent(demo_agent::Options),
    /// Run everything on this machine, with an embedded database and broker, and execute a first workflow
    #[cfg(feature = "embedded")]
    Dev(workflow_api::dev::Options),
}

#[derive(Subcommand)]
enum Migrate {
    /// Run all migrations that have not been run
    Up,
    /// Undo the newest migrations
    Down {
        /// How many
        count: usize,
        /// Undo more than one, or delete all agents, workflows and runs, without a question
        #[arg(long)]
        yes: bool,
    },
    /// Show each migration and whether it was run
    Status,
}

#[derive(Subcommand)]
enum Check {
    /// Read all settings and list everything that is wrong with them
    Config,
    /// Connect to the database
    Db,
    /// Connect to Kafka
    Kafka,
}

fn main() -> ExitCode {
    // The library wants a process-wide choice before its first use; nobody else makes one, so this cannot fail.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    let is_service = matches!(command, Command::Serve | Command::Executor);
    match run(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            if is_service {
                log(&error);
            } else {
                // A server that is not what was expected may have said anything.
                eprintln!("workflow-api: {}", visible::escaped_lines(&format!("{error:#}")));
            }
            ExitCode::FAILURE
        }
    }
}

/// Why the service does not start or has ended, as lines of its log. Each problem of the settings has one.
fn log(error: &anyhow::Error) {
    telemetry::init(&config::Log::load_or_default(config::environment()));
    if let Some(Problems(problems)) = error.downcast_ref::<Problems>() {
        for problem in problems {
            tracing::error!("{}", problem.trim());
        }
    } else {
        tracing::error!("{error:#}");
    }
}

/// Runs a command to its end; `false` is a failure that was reported already.
fn run(command: Command) -> anyhow::Result<bool> {
    let environment = config::environment;
    match command {
        Command::Serve => {
            let config = Config::load(environment())?;
            telemetry::init(&config.log);
            command::run(config.api.workers, command::serve(config))
        }
        Command::Executor => {
            let config = Config::load(environment())?;
            telemetry::init(&config.log);
            command::run(config.api.workers, command::execute(config))
        }
        Command::Migrate { action } => {
            let settings = config::load::<config::Database>(environment())?;
            telemetry::init(&config::Log::load_or_default(environment()));
            command::runtime(1)?.block_on(async {
                match action {
                    Migrate::Up => command::migrate_up(&settings).await,
                    Migrate::Down { count, yes } => command::migrate_down(&settings, count, yes).await,
                    Migrate::Status => command::migration_status(&settings).await,
                }
            })
        }
        Command::Check { what } => match what {
            Check::Config => {
                Config::load(environment())?;
                for line in config::unknown_names(environment()) {
                    println!("warning: {line}");
                }
                println!("the configuration is valid");
                Ok(true)
            }
            Check::Db => {
                let settings = config::load::<config::Database>(environment())?;
                let vault = config::load::<Vault>(environment())?;
                command::runtime(1)?.block_on(command::check_db(&settings, &vault))
            }
            Check::Kafka => command::check_kafka(&config::load::<config::Kafka>(environment())?),
        },
        Command::Healthcheck { executor: true } => {
            let config = Config::load(environment())?;
            command::runtime(1)?.block_on(command::healthcheck_executor(&config))
        }
        Command::Healthcheck { executor: false } => {
            let settings = config::load::<config::Api>(environment())?;
            command::runtime(1)?.block_on(command::healthcheck(&settings))
        }
        Command::Token { sub, role, organization, subject } => {
            let subject = subject.unwrap_or(sub);
            println!(
                "{}",
                api::vocabulary::token::issue(
                    &config::load::<config::Auth>(environment())?,
                    &subject,
                    role,
                    &organization
                )?
            );
            Ok(true)
        }
        Command::RotateKeys => {
            let settings = config::load::<config::Database>(environment())?;
            let vault = config::load::<Vault>(environment())?;
            telemetry::init(&config::Log::load_or_default(environment()));
            command::runtime(1)?.block_on(command::rotate_keys(&settings, &vault))
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
            command::runtime(1)?.block_on(command::make_api_key(&config, name, role, organization, days))
        }
        Command::Openapi => {
            let (api, auth) =
                (config::load::<config::Api>(environment())?, config::load::<config::Auth>(environment())?);
            let (_, document) = api::routes(&api, &auth.api_key_header_text).split_for_parts();
            println!("{}", serde_json::to_string_pretty(&document)?);
            Ok(true)
        }
        Command::DemoAgent(options) => {
            telemetry::init(&config::Log::load_or_default(environment()));
            command::runtime(1)?.block_on(command::demo_agent(&options))
        }
        #[cfg(feature = "embedded")]
        Command::Dev(options) => command::runtime(2)?.block_on(workflow_api::dev::run(options)),
    }
}
