//! The commands: each function runs one to its end.

pub mod archive;
pub mod invariants;
mod reload;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};
use tokio_util::sync::CancellationToken;
use workflow_api::{
    access::{Grant, OrganizationId, Role, api_key},
    actions::{
        api_keys::{self, NewApiKey},
        rotate_keys::{self, Rotation},
    },
    api::{self, gate::Gate, vocabulary::app::App},
    clock::Clock,
    config::{self, Config},
    db::{
        self,
        migrations::{self, WaitLimit},
        sealed::Column,
    },
    demo_agent, executor,
    kafka::{self, topics::Extended},
    lifecycle::{self, Lifecycle, Signals},
    management,
    readiness::{keep_migrated, wait_for_schema},
    server::{self, Bounds},
    telemetry::{Component, spans},
    timestamp::Timestamp,
    vault::Vault,
};

/// Time limit of `healthcheck`; that of the image's probe is 10 s.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Connection limits of a management port.
const MANAGEMENT_CONNECTIONS: Bounds = Bounds { regular: 64, spare: 16, keep_alive: server::KEEP_ALIVE };

/// Pause between two attempts to use the database at the start, while it is down or without its schema.
const BOOTSTRAP_EVERY: Duration = Duration::from_millis(500);

/// Tokio runtime with this number of worker threads.
pub fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    // The workers are the first threads that the runtime starts; later ones are for blocking calls, and more come and go.
    let started = AtomicUsize::new(0);
    let name = move || {
        let is_worker = started.fetch_add(1, Ordering::Relaxed) < threads;
        if is_worker { "api-worker".to_owned() } else { "api-blocking".to_owned() }
    };
    Ok(Builder::new_multi_thread().worker_threads(threads).thread_name_fn(name).enable_all().build()?)
}

/// Result of a command, on a runtime of its own. The future is boxed, because the runtime's loop is compiled for each type.
pub fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    runtime(1)?.block_on(Box::pin(command) as Pin<Box<dyn Future<Output = anyhow::Result<T>> + '_>>)
}

/// Runs a process to its end, whatever calls still block a thread: a Kafka client may never return from closing its
/// connections to a broker that has vanished.
pub fn run(threads: usize, process: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let runtime = runtime(threads)?;
    let result = runtime.block_on(Box::pin(process) as Pin<Box<dyn Future<Output = anyhow::Result<bool>> + '_>>);
    runtime.shutdown_timeout(lifecycle::CLOSE);
    result
}

/// `serve`.
pub async fn serve(config: Config) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    let address = SocketAddr::new(config.api.host, config.api.port);
    let listener = server::bind(address).with_context(|| format!("API_HOST, API_PORT: cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let management = bind_management(&config).transpose()?;
    warn_about(&config);

    start_traces(&config, Component::Api)?;
    let (lifecycle, clock) = (Lifecycle::new(), Clock::default());
    let drained = CancellationToken::new();
    let pool = db::pool(&config.database);
    if config.database.migrate_on_start {
        tokio::spawn(keep_migrated(pool.clone(), lifecycle.clone()));
    }
    if config.auth.enabled {
        tokio::spawn(bootstrap_when_possible(config.clone(), pool.clone(), lifecycle.clone()));
    }
    tokio::spawn(look_for_keys_when_possible(Arc::clone(&config.vault), pool.clone(), lifecycle.clone()));
    let (notice, keep_alive) = (config.shutdown_notice, config.api.keep_alive);
    let app = App::start(config.clone(), pool.clone(), &lifecycle, &drained, clock.clone())?;
    let reads = app.reads.clone();
    lifecycle.spawn("secrets", reload::keep_current(config, pool.clone(), Some(reads.clone()), lifecycle.clone()));
    let gate = Gate::start(app.clone(), &lifecycle)?;

    if let Some(listener) = management {
        let router = api::resources::system::management(&app);
        let serving = server::serve(listener, router, lifecycle.clone(), MANAGEMENT_CONNECTIONS, clock.clone(), None);
        lifecycle.spawn("management", serving);
    }
    let router = api::router(&gate);
    let bounds = Bounds { keep_alive, ..Bounds::within(server::raise_limit(), pool.max()) };
    let serving_until = lifecycle.clone();
    let serving = server::on_own_thread(listener, move |listener, requests| {
        server::serve(listener, router, serving_until, bounds, clock, Some(requests))
    });
    lifecycle.spawn("server", async move {
        if let Err(error) = serving.await {
            tracing::error!("the server has ended: {error:#}");
        }
        // There are no more requests: the run writer and the relay finish their work and end.
        drained.cancel();
    });
    tracing::info!(%address, "workflow-api {} listens on {address}", env!("CARGO_PKG_VERSION"));
    let ended_well = lifecycle.run_until_stopped(signals, notice).await;
    reads.close().await;
    db::close(&pool).await;
    spans::flush().await;
    tracing::info!("stopped");
    Ok(ended_well)
}

/// Starts the export of spans, if it has a destination.
fn start_traces(config: &Config, component: Component) -> anyhow::Result<()> {
    match &config.traces.export {
        Some(export) => {
            spans::start(export, component).context("OTEL_EXPORTER_OTLP_ENDPOINT: spans cannot be exported")
        }
        None => Ok(()),
    }
}

/// Logs warnings about risky settings.
fn warn_about(config: &Config) {
    if !config.auth.enabled {
        tracing::warn!("authentication is off: every client has all rights; set JWT_SECRET");
    }
    if config.auth.enabled && config.vault.key_ids().is_empty() {
        tracing::warn!("ENCRYPTION_KEY is not set: the credentials of agents are stored unencrypted");
    }
    let auth = &config.auth;
    let is_bound = auth.issuer.is_some() && auth.audience.is_some();
    if auth.enabled && (auth.keys.current().has_public_key || auth.jwks.is_some()) && !is_bound {
        tracing::warn!(
            "JWT_ISSUER and JWT_AUDIENCE are not both set: all tokens signed with the key of JWT_PUBLIC_KEY or JWT_JWKS are \
             accepted, including those for other services"
        );
    }
    if config.retention.days > 0 {
        let days = config.retention.days;
        tracing::info!(days, "runs are deleted {days} days after their end; RUN_RETENTION_DAYS=0 keeps them for ever");
    }
    warn_about_both(config);
    if config.api.reload {
        tracing::warn!("API_RELOAD has no effect on a compiled service");
    }
}

/// Settings of a production system whose connections to a database may be without TLS.
pub fn exposed_databases(config: &Config) -> impl Iterator<Item = &'static str> {
    let (primary, replica) = (Some(&config.database.connect), config.database.replica.as_ref());
    let is_exposed = |connect: Option<&config::ConnectOptions>| {
        config.production && connect.is_some_and(config::ConnectOptions::is_exposed)
    };
    [("DATABASE_URL", is_exposed(primary)), ("DATABASE_REPLICA_URL", is_exposed(replica))]
        .into_iter()
        .filter_map(|(name, exposed)| exposed.then_some(name))
}

/// Logs warnings about settings of API and executor.
fn warn_about_both(config: &Config) {
    for line in config::unknown_names(config::environment()) {
        tracing::warn!("{line}");
    }
    for name in exposed_databases(config) {
        tracing::warn!(
            "{name}: the connection to the database may be without TLS; add sslmode=verify-full and sslrootcert, or \
             sslmode=require"
        );
    }
    if !config.api.has_public_url {
        tracing::warn!(
            "PUBLIC_URL is not set: the URLs of callbacks begin with {}, which is reachable on this host only",
            config.api.public_url
        );
    }
}

/// Stores `BOOTSTRAP_API_KEY`, or warns if there is no admin key, as soon as the database and its schema are there.
async fn bootstrap_when_possible(config: Config, pool: db::Pool, lifecycle: Lifecycle) {
    loop {
        let outcome = match &config.auth.bootstrap_api_key {
            Some(key) => api_keys::store_given(&pool, key, config.audit).await.map(|is_new| {
                if is_new {
                    tracing::info!("BOOTSTRAP_API_KEY was stored as an admin key");
                }
            }),
            None if config.auth.verifies_tokens() => return,
            None => api_keys::has_admin_key(&pool).await.map(|has_way_in| {
                if !has_way_in {
                    tracing::warn!(
                        "there is no valid admin API key; create the first one with: workflow-api api-key --name admin"
                    );
                }
            }),
        };
        match outcome {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "API keys cannot be read yet: {error}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(BOOTSTRAP_EVERY) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}

/// `api-key --name`: creates an API key; prints the key, and nothing else, on stdout.
pub async fn make_api_key(
    config: &Config,
    name: String,
    role: Role,
    organization: OrganizationId,
    days: Option<u16>,
) -> anyhow::Result<bool> {
    anyhow::ensure!(api_key::is_name(&name), "--name: 1 to 100 ASCII characters are expected");
    let expires_at = days.map(|days| Timestamp::from(Clock::default().now() + chrono::TimeDelta::days(days.into())));
    let new = NewApiKey { name, organization, grant: Grant::of(role), expires_at, parent_id: None };
    let pool = db::pool(&config.database);
    let made = api_keys::create_as_operator(&pool, &config.auth.api_key_environment, new, config.audit).await;
    db::close(&pool).await;
    let (key, _) = made.context("no API key was created (before the first start: workflow-api migrate up)")?;
    println!("{}", key.expose());
    Ok(true)
}

/// Listener on `MANAGEMENT_PORT`, if it is set.
fn bind_management(config: &Config) -> Option<anyhow::Result<TcpListener>> {
    let address = SocketAddr::new(config.api.host, config.metrics.management_port?);
    Some(server::bind(address).with_context(|| format!("MANAGEMENT_PORT: cannot listen on {address}")))
}

/// `executor`.
pub async fn execute(config: Config) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    warn_about_both(&config);
    start_traces(&config, Component::Executor)?;
    let lifecycle = Lifecycle::new();
    let pool = db::pool(&config.database);
    tokio::spawn(look_for_keys_when_possible(Arc::clone(&config.vault), pool.clone(), lifecycle.clone()));
    lifecycle.spawn("secrets", reload::keep_current(config.clone(), pool.clone(), None, lifecycle.clone()));
    let management = bind_management(&config).transpose()?;
    // Each call of an agent has a connection.
    let _ = server::raise_limit();
    let status = Arc::new(OnceLock::new());
    if let Some(listener) = management {
        let router = management::router(Arc::clone(&status), config.metrics.enabled);
        let serving =
            server::serve(listener, router, lifecycle.clone(), MANAGEMENT_CONNECTIONS, Clock::default(), None);
        lifecycle.spawn("management", serving);
    }
    lifecycle.spawn("executor", {
        let (pool, lifecycle) = (pool.clone(), lifecycle.clone());
        async move {
            wait_for_schema(&pool, &lifecycle).await;
            match executor::start(&config, pool, &lifecycle, Clock::default()) {
                Ok(started) => drop(status.set(started)),
                // The end of this task ends the process.
                Err(error) => return tracing::error!("the executor cannot start: {error:#}"),
            }
            lifecycle.soft_stop().cancelled().await;
        }
    });
    tracing::info!("workflow-api {} executes runs", env!("CARGO_PKG_VERSION"));
    let ended_well = lifecycle.run_until_stopped(signals, Duration::ZERO).await;
    db::close(&pool).await;
    spans::flush().await;
    tracing::info!("stopped");
    Ok(ended_well)
}

/// `demo-agent`.
pub async fn demo_agent(options: &demo_agent::Options) -> anyhow::Result<bool> {
    let signals = Signals::listen()?;
    let lifecycle = Lifecycle::new();
    demo_agent::start(options, &lifecycle)?;
    Ok(lifecycle.run_until_stopped(signals, Duration::ZERO).await)
}

/// `migrate up`.
pub async fn migrate_up(settings: &config::Database, wait: WaitLimit) -> anyhow::Result<bool> {
    match migrations::up(settings, &wait).await? {
        0 => println!("the schema is current"),
        count => println!("{count} migrations were run"),
    }
    Ok(true)
}

/// `migrate down N`; a failure without `--yes` where it is needed.
pub async fn migrate_down(
    settings: &config::Database,
    count: usize,
    is_confirmed: bool,
    wait: WaitLimit,
) -> anyhow::Result<bool> {
    let Some(migrations::RevertPlan { names, loses_data }) = migrations::plan_down(settings, count).await? else {
        eprintln!("workflow-api: fewer than {count} migrations are applied; see: workflow-api migrate status");
        return Ok(false);
    };
    if (count > 1 || loses_data) && !is_confirmed {
        eprintln!(
            "workflow-api: these migrations would be reverted, and the data in their tables and columns deleted:"
        );
        for name in names {
            eprintln!("  {name}");
        }
        if loses_data {
            eprintln!("ALL agents, workflows and runs would be deleted.");
        }
        eprintln!("Make a backup, then confirm with --yes.");
        return Ok(false);
    }
    let undone = migrations::down(settings, count, &wait).await?;
    println!("{undone} migrations were reverted");
    Ok(true)
}

/// `migrate status`; a failure if a migration is missing or altered, or its index is invalid.
pub async fn migration_status(settings: &config::Database) -> anyhow::Result<bool> {
    let states = migrations::status(settings).await?;
    for state in &states {
        let status = match (state.applied, state.altered, state.has_invalid_index) {
            (false, ..) => "missing",
            (true, true, _) => "altered",
            (true, false, true) => "invalid",
            (true, false, false) => "applied",
        };
        println!("{status:8} {} {:.12} {}", state.version, state.checksum, state.description);
    }
    if states.iter().any(|state| state.applied && state.has_invalid_index) {
        println!("the creation of an index was interrupted; `workflow-api migrate up` builds it again");
    }
    Ok(states.iter().all(|state| state.applied && !state.altered && !state.has_invalid_index))
}

/// Ids of encryption keys that stored secrets need and the vault does not have.
fn missing_keys(vault: &Vault, used: BTreeSet<String>) -> Vec<String> {
    let known = vault.key_ids();
    used.into_iter().filter(|used| !known.contains(used)).collect()
}

/// Ids of the encryption keys of all stored secrets.
async fn used_keys(pool: &db::Pool) -> Result<BTreeSet<String>, db::Error> {
    let mut used = BTreeSet::new();
    for column in Column::ALL {
        used.extend(column.key_ids(pool).await?);
    }
    Ok(used)
}

/// Logs the missing encryption keys, as soon as the database is there.
async fn look_for_keys_when_possible(vault: Arc<Vault>, pool: db::Pool, lifecycle: Lifecycle) {
    loop {
        match used_keys(&pool).await {
            Ok(used) => {
                for key_id in missing_keys(&vault, used) {
                    tracing::error!(
                        key_id,
                        "secrets are encrypted with the key {key_id}, which ENCRYPTION_KEY does not contain"
                    );
                }
                return;
            }
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "encryption keys cannot be checked yet: {error}"
                );
            }
        }
        tokio::select! {
            () = tokio::time::sleep(BOOTSTRAP_EVERY) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}

/// `rotate-keys`; a failure if there are credentials that cannot be decrypted.
pub async fn rotate_keys(settings: &config::Database, vault: &Vault) -> anyhow::Result<bool> {
    anyhow::ensure!(!vault.key_ids().is_empty(), "ENCRYPTION_KEY is not set; it is required to encrypt credentials");
    let pool = db::pool(settings);
    let rotation = rotate_keys::rotate_keys(&pool, vault).await;
    db::close(&pool).await;
    let Rotation { changed, current, failed, failed_webhooks, failed_triggers, failed_pushes } = rotation?;
    for (id, sealed) in &failed {
        eprintln!("{id}: its credentials are {sealed}");
    }
    for (id, sealed) in &failed_webhooks {
        eprintln!("webhook {id}: its secret is {sealed}");
    }
    for (id, sealed) in &failed_triggers {
        eprintln!("trigger {id}: its secrets are {sealed}");
    }
    for (id, sealed) in &failed_pushes {
        eprintln!("push notification {id}: its secrets are {sealed}");
    }
    let failures = failed.len() + failed_webhooks.len() + failed_triggers.len() + failed_pushes.len();
    println!("{changed} encrypted, {current} unchanged, {failures} failed");
    Ok(failures == 0)
}

/// `check db`; a failure if keys are missing.
pub async fn check_db(settings: &config::Database, vault: &Vault) -> anyhow::Result<bool> {
    let mut connection = db::connect(settings).await.context("DATABASE_URL")?;
    let (version, has_tls) = db::server(&mut connection).await?;
    println!("connected to PostgreSQL {version} {}", with_tls(has_tls));
    if let Some(replica) = db::connect_to_replica(settings).await {
        let (version, has_tls) = db::server(&mut replica.context("DATABASE_REPLICA_URL")?).await?;
        println!("connected to a replica, PostgreSQL {version} {}", with_tls(has_tls));
    }
    let mut used = BTreeSet::new();
    for column in Column::ALL {
        // Before its migration there is no table, so no key is needed.
        used.extend(column.key_ids(&mut connection).await.unwrap_or_default());
    }
    let missing = missing_keys(vault, used);
    for key_id in &missing {
        println!("ENCRYPTION_KEY: the key {key_id} is missing; secrets are encrypted with it");
    }
    Ok(missing.is_empty())
}

fn with_tls(has_tls: bool) -> &'static str {
    if has_tls { "with TLS" } else { "without TLS" }
}

/// `check kafka`; a failure if a topic is missing or its settings lose or refuse messages.
pub async fn check_kafka(settings: &config::Kafka) -> anyhow::Result<bool> {
    let asked = settings.clone();
    let brokers = tokio::task::spawn_blocking(move || kafka::ping(&asked)).await?;
    let brokers = brokers.with_context(|| format!("KAFKA_BROKERS: {} cannot be used", settings.brokers))?;
    println!("connected to Kafka with {brokers} brokers");
    let findings = kafka::topics::check(settings).await.context("the topics cannot be checked")?;
    for finding in &findings {
        println!("{}: {}", if finding.is_error { "error" } else { "warning" }, finding.text);
    }
    let is_well = findings.iter().all(|finding| !finding.is_error);
    if is_well {
        println!("the topics can be used");
    }
    Ok(is_well)
}

/// `add-partitions`; a failure if a topic does not exist.
pub async fn add_partitions(settings: &config::Kafka) -> anyhow::Result<bool> {
    let topics = kafka::topics::add_partitions(settings).await?;
    for Extended { topic, before, after } in &topics {
        match (before, after) {
            (0, _) => println!("{topic}: does not exist; the API creates it when it starts"),
            (before, after) if before == after => println!("{topic}: {before} partitions, as before"),
            (before, after) => println!("{topic}: {after} partitions, {before} before"),
        }
    }
    Ok(topics.iter().all(|topic| topic.before > 0))
}

/// `healthcheck`: whether the API on this host answers `/health` with 200.
pub async fn healthcheck(settings: &config::Api) -> anyhow::Result<bool> {
    ask(settings.host, settings.port, "/health").await
}

/// `healthcheck --executor`: whether the executor on this host is ready.
pub async fn healthcheck_executor(api: &config::Api, metrics: config::Metrics) -> anyhow::Result<bool> {
    let port =
        metrics.management_port.context("MANAGEMENT_PORT is not set; the health of an executor is served there")?;
    ask(api.host, port, "/health/ready").await
}

/// Whether a GET of the path is answered with 200.
async fn ask(host: IpAddr, port: u16, path: &str) -> anyhow::Result<bool> {
    let host = match host {
        host if !host.is_unspecified() => host,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let url = format!("http://{}{path}", SocketAddr::new(host, port));
    let client = reqwest::Client::builder().timeout(HEALTHCHECK_TIMEOUT).no_proxy().build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    println!("{url} answered {}", response.status());
    Ok(response.status() == http::StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_blocks_for_ever_does_not_keep_a_process() {
        let process = async {
            let (begun, has_begun) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(|| {
                begun.send(()).ok();
                loop {
                    std::thread::park();
                }
            });
            has_begun.await?;
            Ok(true)
        };
        assert!(run(1, process).is_ok_and(|is_well| is_well));
    }
}
