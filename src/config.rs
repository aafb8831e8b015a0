//! Configuration: settings are read once at start. All invalid values are reported together, by variable, before any
//! port or connection is opened.
//! Blanks around a value are removed, and an empty variable is treated as absent (compose files and Kubernetes
//! manifests produce empty variables). `NAME_FILE` names a file to read `NAME` from, and `vault://PATH#KEY` a value in
//! Vault, for the variables that hold secrets or keys.
//! `.env.api.example` documents all variables; a test compares it with [`NAMES`].
//!
//! Each section reads, checks and documents its own variables. This module has only what concerns several sections.

mod agents;
mod auth;
mod database;
mod database_url;
mod executor;
mod files;
mod http;
mod kafka;
mod limits;
mod live;
mod log_levels;
mod names;
mod placeholder;
mod reader;
mod retention;
mod telemetry;
mod traces;
mod vault_client;
mod webhooks;

use std::{sync::Arc, time::Duration};

use self::reader::{Reader, Section};
pub use self::{
    auth::{Auth, JwksSource, TokenKeys},
    database::{ConnectOptions, Database, PoolTimes, UsableHosts},
    executor::{Executor, RunBudget},
    files::SecretFiles,
    http::{AllowList, Api, Cors, Pages},
    kafka::{Clients, DeadLetters, Kafka, KafkaTriggers, Oauth},
    limits::{Limits, TrustedProxies},
    live::Live,
    log_levels::LogLevels,
    names::unknown_names,
    reader::{NAMES, Problems, load},
    retention::{Archive, Retention, S3},
    telemetry::{Log, LogFile, Metrics, MetricsAccess},
    traces::{Sampler, TraceExport, Traces},
    webhooks::Webhooks,
};
use crate::{access::Quotas, agent::Defaults, breaker::Rules, egress::Allow, vault::Vault};

/// All settings of a server or an executor.
#[derive(Clone, Debug)]
pub struct Config {
    /// `PRODUCTION`: development-only settings are refused.
    pub production: bool,
    /// Settings of the HTTP API.
    pub api: Api,
    /// Database settings.
    pub database: Database,
    /// Kafka settings.
    pub kafka: Kafka,
    /// Authentication settings.
    pub auth: Auth,
    /// Browser origins that may call the API.
    pub cors: Cors,
    /// Rate limits, memory and trusted proxies.
    pub limits: Limits,
    /// `ENCRYPTION_KEY`: encrypts the credentials of agents.
    pub vault: Arc<Vault>,
    /// Log level and format.
    pub log: Log,
    /// Page sizes of lists.
    pub pages: Pages,
    /// `IDEMPOTENCY_KEY_TTL_HOURS`: how long a repeated request with the same key receives the first answer.
    pub idempotency_key_ttl_hours: i32,
    /// Settings of the metrics and of the port that serves them.
    pub metrics: Metrics,
    /// `OTEL_*`: export of traces.
    pub traces: Traces,
    /// `ENABLE_AUDIT_LOGGING`: write audit rows.
    pub audit: bool,
    /// `SHUTDOWN_NOTICE_SECS`: time after SIGTERM in which readiness reports the shutdown and requests are still
    /// answered.
    pub shutdown_notice: Duration,
    /// `READINESS_REQUIRES_KAFKA`: without Kafka the service is not ready instead of degraded.
    pub readiness_requires_kafka: bool,
    /// `AUDIT_RETENTION_DAYS`: minimum time for which audit entries are kept.
    pub audit_retention_days: i32,
    /// `RUN_RETENTION_DAYS` and `RUN_ARCHIVE*`: retention of ended runs, and their archive.
    pub retention: Retention,
    /// `QUOTA_*`: quotas of an organisation that has none of its own.
    pub quotas: Quotas,
    /// `DEAD_LETTER_RETENTION_DAYS` and `MAX_DEAD_LETTERS`: retention of records that cannot be processed.
    pub dead_letters: DeadLetters,
    /// `WEBHOOK_*`: events and webhooks.
    pub webhooks: Webhooks,
    /// Limits of an executor and of its runs.
    pub executor: Executor,
    /// `VAULT_REFRESH_SECS`: interval at which values in Vault are read again. `None`: there are none.
    pub vault_refresh: Option<Duration>,
    /// `EGRESS_ALLOW`: destinations that may be called besides public addresses.
    pub egress: Arc<Allow>,
    /// `DEFAULT_AGENT_*`: for agents that are registered without these members.
    pub agent_defaults: Defaults,
    /// `CIRCUIT_BREAKER_*`: defaults for agents without rules of their own.
    pub circuit_breaker: Rules,
}

/// Environment of this process, for the `load` functions. A value that is not UTF-8 contains replacement characters,
/// which no setting accepts.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// Names of the settings whose values are in Vault, each with the SHA-256 of its value, or `None` if it cannot be read.
/// Blocks the thread.
pub fn vault_digests(environment: impl Iterator<Item = (String, String)>) -> Vec<(&'static str, Option<[u8; 32]>)> {
    Reader::new(environment).vault_digests()
}

impl Config {
    /// All settings for `serve` and `executor`.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        load(environment)
    }

    /// Replaces the values that can change while the process runs by those of newer settings. `changed`: names of settings.
    pub fn adopt(&self, fresh: &Self, changed: &[&str]) {
        if changed.iter().any(|name| name.starts_with("kafka_")) {
            self.kafka.clients.replace(fresh.kafka.clients.current());
        }
        if changed.iter().any(|name| name.starts_with("jwt_")) {
            self.auth.keys.replace(fresh.auth.keys.current());
        }
        if changed.contains(&"encryption_key") {
            self.vault.replace(&fresh.vault);
        }
    }
}

impl Section for Config {
    fn read(reader: &mut Reader) -> Option<Self> {
        let api = Api::read(reader);
        let database = Database::read(reader);
        let kafka = Kafka::read(reader);
        let auth = Auth::read(reader);
        let cors = Cors::read(reader);
        let limits = Limits::read(reader);
        let vault = Vault::read(reader);
        let log = Log::read(reader);
        let pages = Pages::read(reader);
        let idempotency_key_ttl_hours = reader.number("idempotency_key_ttl_hours", 24, 1..=8760);
        let metrics = Metrics::read(reader);
        let traces = Traces::read(reader);
        let audit = reader.boolean("enable_audit_logging", true);
        let readiness_requires_kafka = reader.boolean("readiness_requires_kafka", false);
        // Of the 20 s until everything is dropped, the rest is for the requests in flight.
        let shutdown_notice_secs = reader.number("shutdown_notice_secs", 5, 0..=15);
        let audit_retention_days = reader.number("audit_retention_days", 90, 1..=36_500);
        let retention = Retention::read(reader);
        let quotas = Quotas::read(reader);
        let dead_letters = DeadLetters::read(reader);
        let executor = Executor::read(reader);
        let egress = Allow::read(reader);
        let agent_defaults = Defaults::read(reader);
        let circuit_breaker = Rules::read(reader);
        let webhooks = Webhooks::read(reader);
        let vault_refresh_secs = reader.number("vault_refresh_secs", 60, 1..=86_400);
        let uses_vault = reader.uses_vault();
        let needs_credentials = metrics.is_some_and(|metrics| metrics.access == MetricsAccess::Credentials);
        if needs_credentials && auth.as_ref().is_some_and(|auth| !auth.enabled) {
            reader.problem::<()>("metrics_access", "credentials needs authentication, which is off");
        }
        let production = reader.boolean("production", false);
        if production == Some(true) {
            refuse_development(reader, api.as_ref(), auth.as_ref(), cors.as_ref());
        }
        // This comes after all sections were read, so that every problem is found.
        Some(Self {
            production: production?,
            api: api?,
            database: database?,
            kafka: kafka?,
            auth: auth?,
            cors: cors?,
            limits: limits?,
            vault: Arc::new(vault?),
            log: log?,
            pages: pages?,
            idempotency_key_ttl_hours: idempotency_key_ttl_hours?,
            metrics: metrics?,
            traces: traces?,
            audit: audit?,
            readiness_requires_kafka: readiness_requires_kafka?,
            shutdown_notice: Duration::from_secs(shutdown_notice_secs?),
            audit_retention_days: audit_retention_days?,
            retention: retention?,
            quotas: quotas?,
            dead_letters: dead_letters?,
            executor: executor?,
            vault_refresh: vault_refresh_secs.map(Duration::from_secs).filter(|_| uses_vault),
            egress: Arc::new(egress?),
            agent_defaults: agent_defaults?,
            circuit_breaker: circuit_breaker?,
            webhooks: webhooks?,
        })
    }
}

/// Adds a problem for each setting that is for development only.
fn refuse_development(reader: &mut Reader, api: Option<&Api>, auth: Option<&Auth>, cors: Option<&Cors>) {
    let is_open = auth.is_some_and(|auth| !auth.enabled) && !reader.has("auth_enabled");
    let is_for_any_origin = cors.is_some_and(|cors| matches!(cors.origins, AllowList::Any));
    let is_reloading = api.is_some_and(|api| api.reload);
    let refused = [
        (
            is_open,
            "jwt_secret",
            "is required with PRODUCTION=true; or AUTH_ENABLED=true for API keys alone, or \
          AUTH_ENABLED=false if every client is to have all rights",
        ),
        (is_for_any_origin, "cors_origins", "must list the origins with PRODUCTION=true, not *"),
        (is_reloading, "api_reload", "must be false with PRODUCTION=true"),
    ];
    for (_, name, problem) in refused.into_iter().filter(|(is_refused, ..)| *is_refused) {
        reader.problem::<()>(name, problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../.env.api.example");

    /// Parses a line `NAME=value` or `# NAME=value`: the name, the value, and whether it is active.
    fn setting(line: &str) -> Option<(&str, &str, bool)> {
        let (text, is_on) = line.strip_prefix("# ").map_or((line, true), |text| (text, false));
        let (name, value) = text.split_once('=')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        is_name.then(|| (name, value.trim_matches('"'), is_on))
    }

    #[test]
    fn the_example_file_has_every_variable_once_and_nothing_else() {
        let unknown: Vec<&str> = EXAMPLE
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#') && setting(line).is_none())
            .collect();
        assert_eq!(unknown, [""; 0]);
        let mut listed: Vec<String> =
            EXAMPLE.lines().filter_map(setting).map(|(name, ..)| name.to_ascii_lowercase()).collect();
        let mut expected = NAMES.to_vec();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
    }

    #[test]
    fn the_example_file_loads_and_shows_the_defaults() {
        let on = EXAMPLE.lines().filter_map(setting).filter(|(.., is_on)| *is_on);
        let pairs: Vec<(String, String)> = on.map(|(name, value, _)| (name.to_owned(), value.to_owned())).collect();
        let from_file = Config::load(pairs.clone().into_iter()).expect("the example file is valid");
        // The file is for trying out the service, with agents on the same host or network.
        let given = ["DATABASE_URL", "KAFKA_BROKERS", "EGRESS_ALLOW"];
        let required = pairs.into_iter().filter(|(name, _)| given.contains(&name.as_str()));
        let from_defaults = Config::load(required).expect("two variables are enough");
        assert_eq!(format!("{from_file:?}"), format!("{from_defaults:?}"));
    }

    /// Names of the variables that are rejected, with these values in addition to the two required ones.
    fn refused(values: &[(&str, &str)]) -> Vec<String> {
        let required = [("DATABASE_URL", "postgresql://host/db"), ("KAFKA_BROKERS", "host:9092")];
        let required = required.iter().filter(|(name, _)| values.iter().all(|(given, _)| given != name));
        let pairs = required.chain(values).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let problems =
            Config::load(pairs.collect::<Vec<_>>().into_iter()).map_or_else(|problems| problems.0, |_| Vec::new());
        let mut names: Vec<String> =
            problems.iter().map(|line| line.trim_start().split(':').next().unwrap_or_default().to_owned()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_variable_that_is_wrong_is_named_once() {
        let wrong: Vec<(&str, &str)> = vec![
            ("API_KEY_ENVIRONMENT", "Live"),
            ("API_KEY_HEADER", "a b"),
            ("API_PORT", "x"),
            ("API_PREFIX", "/a/../b"),
            ("AUTH_ENABLED", "perhaps"),
            ("BOOTSTRAP_API_KEY", "wf_live_short"),
            ("CIRCUIT_BREAKER_FAILURE_RATE_THRESHOLD", "0"),
            ("CIRCUIT_BREAKER_TIMEOUT_SECONDS", "0"),
            ("CORS_ORIGINS", "localhost:3000"),
            ("DATABASE_ACQUIRE_TIMEOUT_MS", "8001"),
            ("DATABASE_CONNECT_TIMEOUT_MS", "99"),
            ("DATABASE_HELD_WARNING_SECS", "-1"),
            ("DATABASE_MAX_CONNECTION_AGE_SECS", "0"),
            ("DATABASE_URL", "mysql://x"),
            ("DATABASE_VALIDATE_IDLE_MS", "x"),
            ("DEFAULT_AGENT_BACKOFF_MULTIPLIER", "0.9"),
            ("DEFAULT_AGENT_INITIAL_DELAY_MS", "99"),
            ("DEFAULT_AGENT_MAX_RETRIES", "11"),
            ("DEFAULT_AGENT_TIMEOUT_MS", "999"),
            ("DEFAULT_PAGE_SIZE", "x"),
            ("EGRESS_ALLOW", "10.0.0.0/8, 10.0.0.1/8"),
            ("ENABLE_METRICS", "perhaps"),
            ("ENCRYPTION_KEY", "0123"),
            ("HSTS_MAX_AGE_SECS", "-1"),
            ("JWT_ALGORITHM", "none"),
            ("JWT_EXPIRATION_MINUTES", "0"),
            ("KAFKA_BROKERS", "a:1;b:2"),
            ("KAFKA_TOPIC_PARTITIONS", "q"),
            ("KAFKA_TOPIC_REPLICATION", "0"),
            ("LOG_FORMAT", "xml"),
            ("MAX_BACKLOG", "0"),
            ("MAX_CONCURRENT_REQUESTS", "0"),
            ("MAX_PAGE_SIZE", "x"),
            ("RATE_LIMIT_BURST", "x"),
            ("RATE_LIMIT_FAILED_AUTH", "-1"),
            ("RATE_LIMIT_PER_ADDRESS", "1e3"),
            ("RATE_LIMIT_PER_PRINCIPAL", "60000001"),
            ("RUN_ARCHIVE", "archive"),
            ("RUN_RETENTION_DAYS", "-1"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("WEBHOOK_DISABLE_AFTER_HOURS", "0"),
            ("WEBHOOK_RETENTION_DAYS", "0"),
            ("WEBHOOK_RETRY_SECONDS", "5,,300"),
        ];
        let names: Vec<&str> = wrong.iter().map(|(name, _)| *name).collect();
        assert_eq!(refused(&wrong), names);
        assert_eq!(
            refused(&[("KAFKA_EXECUTION_TOPIC", "x"), ("KAFKA_CANCELLATION_TOPIC", "x")]),
            ["KAFKA_CANCELLATION_TOPIC"]
        );
        assert_eq!(
            refused(&[("KAFKA_DEAD_LETTER_TOPIC", "x"), ("KAFKA_MONITORING_TOPIC", "x"), ("MANAGEMENT_PORT", "0")]),
            ["KAFKA_MONITORING_TOPIC", "MANAGEMENT_PORT"]
        );
        assert_eq!(refused(&[("DEFAULT_AGENT_INITIAL_DELAY_MS", "30001")]), ["DEFAULT_AGENT_MAX_DELAY_MS"]);
        assert_eq!(refused(&[("DATABASE_POOL_SIZE", "1"), ("DATABASE_MAX_OVERFLOW", "0")]), ["DATABASE_POOL_SIZE"]);
        assert_eq!(
            refused(&[
                ("RUN_ARCHIVE", "/archive"),
                ("RUN_ARCHIVE_ENDPOINT", "http://a"),
                ("RUN_ARCHIVE_SECRET_KEY", "s")
            ]),
            ["RUN_ARCHIVE_ENDPOINT", "RUN_ARCHIVE_SECRET_KEY"]
        );
        let keys = [("RUN_ARCHIVE_ACCESS_KEY", "a"), ("RUN_ARCHIVE_SECRET_KEY", "s")];
        assert_eq!(refused(&[&[("RUN_ARCHIVE", "s3://runs/of/us")], &keys[..]].concat()), [""; 0]);
        for wrong in
            ["s3://", "s3://a", "s3://Bucket", "s3://bucket/a/../b", "s3://bucket/a b", "gs://bucket", "C:\\runs"]
        {
            let problems = refused(&[&[("RUN_ARCHIVE", wrong)], &keys[..]].concat());
            assert!(problems.iter().any(|name| name == "RUN_ARCHIVE"), "{wrong}: {problems:?}");
        }
        assert_eq!(
            refused(&[
                ("RUN_ARCHIVE", "s3://bucket"),
                ("RUN_ARCHIVE_ENDPOINT", "http://user:password@host"),
                ("RUN_ARCHIVE_REGION", "a b"),
            ]),
            ["RUN_ARCHIVE_ACCESS_KEY", "RUN_ARCHIVE_ENDPOINT", "RUN_ARCHIVE_REGION", "RUN_ARCHIVE_SECRET_KEY"]
        );
        for access in ["everybody", "management", "credentials"] {
            assert_eq!(refused(&[("METRICS_ACCESS", access)]), ["METRICS_ACCESS"]);
        }
        assert_eq!(refused(&[("JWT_SECRET", "\u{fffd}\u{fffd}345678901234567890123456789012345")]), ["JWT_SECRET"]);
    }

    #[test]
    fn production_refuses_what_is_for_development_only() {
        let secret = ("JWT_SECRET", "9f86d081884c7d659a2feaa0c55ad0159f86d081884c7d659a2feaa0c55ad016");
        let production = ("PRODUCTION", "true");
        assert_eq!(refused(&[production]), ["JWT_SECRET"]);
        assert_eq!(refused(&[production, secret]), [""; 0]);
        assert_eq!(refused(&[production, ("AUTH_ENABLED", "false")]), [""; 0]);
        assert_eq!(
            refused(&[production, secret, ("CORS_ORIGINS", "*"), ("API_RELOAD", "true")]),
            ["API_RELOAD", "CORS_ORIGINS"]
        );
        assert_eq!(refused(&[("CORS_ORIGINS", "*"), ("API_RELOAD", "true")]), [""; 0]);
    }

    #[test]
    fn a_secrets_file_that_cannot_be_read_is_named_with_the_reason() {
        let folder = std::env::temp_dir();
        for (path, reason) in
            [("/nowhere/secret", "there is no such file"), (folder.to_str().expect("UTF-8"), "directory")]
        {
            let pairs =
                [("DATABASE_URL", "postgresql://host/db"), ("KAFKA_BROKERS", "host:9092"), ("JWT_SECRET_FILE", path)];
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            let problems = Config::load(pairs.into_iter()).expect_err("there is no secret").0;
            assert!(problems[0].contains("JWT_SECRET_FILE") && problems[0].contains(reason), "{problems:?}");
            assert!(problems[0].contains(path), "{problems:?}");
        }
    }

    #[test]
    fn a_wildcard_in_a_list_is_a_wildcard() {
        for origins in ["*", "*,http://a", " http://a , * "] {
            assert_eq!(refused(&[("CORS_ORIGINS", origins)]), [""; 0]);
        }
        assert_eq!(refused(&[("CORS_ORIGINS", "http://localhost:3000/,https://a.example")]), [""; 0]);
    }
}
