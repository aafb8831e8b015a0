//! What each command does.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use sqlx::PgPool;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use workflow_api::{
    actions::api_keys::{self, Bootstrap},
    api::{self, App},
    config::{self, Config},
    db::{self, migrations},
    demo_agent, executor, kafka,
    lifecycle::{Lifecycle, Signals},
    readiness::migrate_when_possible,
    server, telemetry,
};

/// How long `healthcheck` waits for an answer; the image's probe gives up after 10 s.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two attempts to store the first API key, while the database or its schema is not there.
const BOOTSTRAP_EVERY: Duration = Duration::from_millis(500);

/// A runtime with so many threads.
pub fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(threads).thread_name("api-worker").enable_all().build()?)
}

/// `serve`.
pub async fn serve(config: Config) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    telemetry::metrics();
    let address = SocketAddr::new(config.api.host, config.api.port);
    let listener = server::bind(address).with_context(|| format!("API_HOST, API_PORT: cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    warn_about(&config);

    let lifecycle = Lifecycle::new();
    let drained = CancellationToken::new();
    let pool = db::pool(&config.database);
    if config.database.migrate_on_start {
        tokio::spawn(migrate_when_possible(config.database.clone(), lifecycle.clone()));
    }
    if config.auth.enabled {
        tokio::spawn(bootstrap_when_possible(config.clone(), pool.clone(), lifecycle.clone()));
    }
    let app = App::start(config, pool.clone(), &lifecycle, &drained)?;

    let router = api::router(&app);
    let serving = server::serve(listener, router, lifecycle.clone());
    lifecycle.spawn("server", async move {
        serving.await;
        // Nobody can start or cancel anything any more: writers and relay finish what they have, then end.
        drained.cancel();
    });
    tracing::info!(%address, "workflow-api {} listens on {address}", env!("CARGO_PKG_VERSION"));
    let ended_well = lifecycle.run_until_stopped(signals).await;
    db::close(&pool).await;
    tracing::info!("stopped");
    Ok(ended_well)
}

/// What an operator should know about the settings.
fn warn_about(config: &Config) {
    if !config.auth.enabled {
        tracing::warn!("authentication is off: everyone who reaches this port may do everything; set JWT_SECRET");
    }
    if config.api.reload {
        tracing::warn!("API_RELOAD has no effect on a compiled service; `cargo run -- serve` builds and starts anew");
    }
}

/// Sees to it that somebody can get in, as soon as the database and its schema are there.
async fn bootstrap_when_possible(config: Config, pool: PgPool, lifecycle: Lifecycle) {
    loop {
        let auth = &config.auth;
        let key = auth.bootstrap_api_key.as_ref();
        match api_keys::bootstrap(&pool, key, &auth.api_key_environment, config.audit).await {
            Ok(Bootstrap::Present) => return,
            Ok(Bootstrap::Stored) => {
                tracing::info!("BOOTSTRAP_API_KEY was stored as an admin's key");
                return;
            }
            Ok(Bootstrap::Made(key)) => {
                tracing::warn!("the first start with authentication: an admin's API key was made, see stderr");
                // Not by the log, which is kept and read by many.
                eprintln!("workflow-api: API key of the first admin, shown only here: {}", key.expose());
                return;
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no first API key yet: {error}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(BOOTSTRAP_EVERY) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}

/// `executor`.
pub async fn execute(config: Config) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    telemetry::metrics();
    let lifecycle = Lifecycle::new();
    let pool = db::pool(&config.database);
    executor::start(&config, pool.clone(), &lifecycle)?;
    tracing::info!("workflow-api {} executes runs", env!("CARGO_PKG_VERSION"));
    let ended_well = lifecycle.run_until_stopped(signals).await;
    db::close(&pool).await;
    tracing::info!("stopped");
    Ok(ended_well)
}

/// `demo-agent`.
pub async fn demo_agent(options: &demo_agent::Options) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    let lifecycle = Lifecycle::new();
    demo_agent::start(options, &lifecycle)?;
    Ok(lifecycle.run_until_stopped(signals).await)
}

/// `migrate up`.
pub async fn migrate_up(settings: &config::Database) -> anyhow::Result<bool> {
    match migrations::up(settings).await? {
        0 => println!("the schema is current"),
        count => println!("{count} migrations were run"),
    }
    Ok(true)
}

/// `migrate down N`.
pub async fn migrate_down(settings: &config::Database, count: usize) -> anyhow::Result<bool> {
    let undone = migrations::down(settings, count).await?;
    println!("{undone} migrations were undone");
    Ok(true)
}

/// `migrate status`; a failure if a migration is missing or altered.
pub async fn migration_status(settings: &config::Database) -> anyhow::Result<bool> {
    let states = migrations::status(settings).await?;
    for state in &states {
        let status = match (state.applied, state.altered) {
            (false, _) => "missing",
            (true, false) => "applied",
            (true, true) => "altered",
        };
        println!("{status:8} {} {}", state.version, state.description);
    }
    Ok(states.iter().all(|state| state.applied && !state.altered))
}

/// `check db`.
pub async fn check_db(settings: &config::Database) -> anyhow::Result<bool> {
    let mut connection = db::connect(settings).await.context("DATABASE_URL")?;
    let (version, has_tls) = db::server(&mut connection).await?;
    println!("connected to PostgreSQL {version} {}", if has_tls { "with TLS" } else { "without TLS" });
    Ok(true)
}

/// `check kafka`.
pub fn check_kafka(settings: &config::Kafka) -> anyhow::Result<bool> {
    let brokers = kafka::ping(settings).context("KAFKA_BROKERS: no broker answers")?;
    println!("connected to Kafka with {brokers} brokers");
    Ok(true)
}

/// `healthcheck`: whether the API on this host answers `/health` with 200.
pub async fn healthcheck(settings: &config::Api) -> anyhow::Result<bool> {
    let host = match settings.host {
        host if !host.is_unspecified() => host,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let url = format!("http://{}/health", SocketAddr::new(host, settings.port));
    let client = reqwest::Client::builder().timeout(HEALTHCHECK_TIMEOUT).no_proxy().build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    println!("{url} answered {}", response.status());
    Ok(response.status() == http::StatusCode::OK)
}
