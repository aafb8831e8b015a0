//! Settings, read once at start. Everything that is wrong is reported at once, by variable, before anything opens.
//!
//! Blanks around a value do not count, and an empty variable is an absent one (compose files and Kubernetes
//! manifests make those). `NAME_FILE` names a file to read `NAME` from, for the variables that hold secrets or keys.
//! `.env.api.example` is the manual of all variables; a test holds it to [`NAMES`].

mod budget;
mod database_url;
mod limits;
mod names;
mod placeholder;

use std::{collections::HashMap, io::ErrorKind, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;

pub use self::{
    budget::RunBudget,
    limits::{Limits, TrustedProxies},
    names::unknown_names,
};
use crate::{
    access::{
        Quotas, Role,
        api_key::{self, ApiKey},
        verifying_key::VerifyingKey,
    },
    breaker::{self, Rules},
    egress::{Allow, BadEntry},
    vault::Vault,
};

/// Declares the variables: as text, all optional, exactly the names that the program reads.
macro_rules! variables {
    ($($name:ident),+ $(,)?) => {
        /// The environment as `envy` reads it. Nothing is parsed here, so that parsing can report all problems.
        #[derive(Deserialize, Default)]
        struct Variables { $($name: Option<String>),+ }

        impl Variables {
            fn into_pairs(self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }

        /// The names of all variables, in lower case.
        pub const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}

variables! {
    production, database_url, database_pool_size, database_max_overflow, database_echo, migrate_on_start,
    shutdown_notice_secs,
    kafka_brokers, kafka_execution_topic, kafka_cancellation_topic, kafka_topic_partitions, kafka_group_id,
    kafka_dead_letter_topic, dead_letter_retention_days, max_dead_letters, kafka_monitoring_topic, enable_monitoring_updates,
    api_title, api_version, api_description, api_prefix, api_host, api_port, api_reload, api_workers, public_url,
    auth_enabled, jwt_secret, jwt_algorithm, jwt_expiration_minutes, api_key_header,
    jwt_public_key, jwt_jwks, jwt_issuer, jwt_audience, jwt_default_role, api_key_environment, bootstrap_api_key,
    cors_origins, cors_allow_credentials, cors_allow_methods, cors_allow_headers,
    encryption_key, trusted_proxies, hsts_max_age_secs, rate_limit_per_principal, rate_limit_per_address, rate_limit_burst,
    rate_limit_failed_auth, max_concurrent_requests,
    max_request_memory_mb, max_response_memory_mb,
    log_level, log_format, default_page_size, max_page_size, idempotency_key_ttl_hours,
    quota_agents, quota_workflows, quota_api_keys, quota_queued_runs,
    enable_docs, enable_metrics, metrics_access, enable_audit_logging, audit_retention_days, readiness_requires_kafka,
    max_concurrent_executions, max_workflow_duration_ms, max_sub_runs, max_run_steps, max_run_branches, max_run_bytes,
    max_run_memory_bytes, max_run_takeovers, management_port,
    egress_allow, circuit_breaker_enabled, circuit_breaker_failure_threshold, circuit_breaker_failure_rate_threshold,
    circuit_breaker_timeout_seconds, circuit_breaker_half_open_max_calls, circuit_breaker_window_size_seconds,
}

/// Variables that may come from a file.
const SECRETS: [&str; 5] = ["database_url", "jwt_secret", "jwt_public_key", "bootstrap_api_key", "encryption_key"];

/// More than a request to a broker may take (15 s), so that what librdkafka mends by itself is left to it.
const RENEW_KAFKA_CLIENTS_AFTER: Duration = Duration::from_secs(20);

/// HMAC keys shorter than this are refused: 256 bits, the output of the weakest algorithm.
const MIN_JWT_SECRET_BYTES: usize = 32;

/// All settings of a server or an executor.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the API presents itself and where it listens.
    pub api: Api,
    /// PostgreSQL.
    pub database: Database,
    /// Kafka.
    pub kafka: Kafka,
    /// Who may call.
    pub auth: Auth,
    /// Which browser origins may call.
    pub cors: Cors,
    /// What is believed of whom, and how much one may ask for.
    pub limits: Limits,
    /// `ENCRYPTION_KEY`: for the credentials of agents.
    pub vault: Arc<Vault>,
    /// What is logged and how.
    pub log: Log,
    /// Sizes of list pages.
    pub pages: Pages,
    /// `IDEMPOTENCY_KEY_TTL_HOURS`: how long a repeat with the same key gets the first answer.
    pub idempotency_key_ttl_hours: i32,
    /// `ENABLE_METRICS`: serve `/metrics`.
    pub metrics: bool,
    /// `METRICS_ACCESS`: who gets `/metrics` of the API.
    pub metrics_access: MetricsAccess,
    /// `ENABLE_AUDIT_LOGGING`: write audit rows.
    pub audit: bool,
    /// `SHUTDOWN_NOTICE_SECS`: from SIGTERM to the end of the readiness's notice, requests being answered meanwhile.
    pub shutdown_notice: Duration,
    /// `READINESS_REQUIRES_KAFKA`: without Kafka the service is not ready, not just degraded.
    pub readiness_requires_kafka: bool,
    /// `AUDIT_RETENTION_DAYS`: how long audit entries are kept at least.
    pub audit_retention_days: i32,
    /// `QUOTA_*`: how much an organisation may have that has no quota of its own.
    pub quotas: Quotas,
    /// `DEAD_LETTER_RETENTION_DAYS` and `MAX_DEAD_LETTERS`: how long and how many records are kept that cannot be used.
    pub dead_letters: DeadLetters,
    /// `MANAGEMENT_PORT`: where an executor, and the API if `METRICS_ACCESS` says so, serves its health and its metrics;
    /// `None`: nowhere.
    pub management_port: Option<u16>,
    /// `MAX_CONCURRENT_EXECUTIONS`: runs that one executor drives at a time.
    pub max_concurrent_executions: usize,
    /// `MAX_WORKFLOW_DURATION_MS`: of a run, from its first claim to its end.
    pub max_workflow_duration: Duration,
    /// `MAX_RUN_*` and `MAX_SUB_RUNS`: what one run may take.
    pub run_budget: RunBudget,
    /// `EGRESS_ALLOW`: what may be called besides public addresses.
    pub egress: Arc<Allow>,
    /// `CIRCUIT_BREAKER_*`: of agents that say nothing else.
    pub circuit_breaker: Rules,
}

/// Who gets `/metrics` of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Everybody who reaches the API's port.
    Open,
    /// Whoever has credentials and may see the runs of the default organisation.
    Credentials,
    /// Everybody who reaches `MANAGEMENT_PORT`, and nobody at the API's port.
    Management,
}

/// `API_*`.
#[derive(Clone, Debug)]
pub struct Api {
    /// `API_TITLE`.
    pub title: String,
    /// `API_VERSION`.
    pub version: String,
    /// `API_DESCRIPTION`.
    pub description: String,
    /// `API_PREFIX`, empty or with a leading and without a trailing slash.
    pub prefix: String,
    /// `API_HOST`.
    pub host: IpAddr,
    /// `API_PORT`.
    pub port: u16,
    /// `API_WORKERS`: threads of the runtime.
    pub workers: usize,
    /// `PUBLIC_URL`: what callers reach the API by, without a trailing slash.
    pub public_url: String,
    /// Whether `PUBLIC_URL` is set, not assumed.
    pub has_public_url: bool,
    /// `ENABLE_DOCS`: serve the OpenAPI document and its browsers.
    pub docs: bool,
    /// `API_RELOAD`: accepted and without effect, since the service is compiled.
    pub reload: bool,
}

/// `DATABASE_*`.
#[derive(Clone, Debug)]
pub struct Database {
    /// `DATABASE_URL`, parsed; its `Debug` would show the password.
    pub connect: ConnectOptions,
    /// `DATABASE_POOL_SIZE`: connections kept.
    pub pool_size: u32,
    /// `DATABASE_MAX_OVERFLOW`: connections opened above that under load and closed when idle.
    pub max_overflow: u32,
    /// `DATABASE_ECHO`: log each statement's text and duration.
    pub echo: bool,
    /// `MIGRATE_ON_START`.
    pub migrate_on_start: bool,
}

/// Connect options whose `Debug` shows no password.
#[derive(Clone)]
pub struct ConnectOptions(pub PgConnectOptions);

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "postgresql://{}:{}", self.0.get_host(), self.0.get_port())
    }
}

/// `KAFKA_*`.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `KAFKA_BROKERS`, as librdkafka wants them.
    pub brokers: String,
    /// `KAFKA_EXECUTION_TOPIC`.
    pub execution_topic: String,
    /// `KAFKA_CANCELLATION_TOPIC`.
    pub cancellation_topic: String,
    /// `KAFKA_DEAD_LETTER_TOPIC`: for records of the first two that cannot be used.
    pub dead_letter_topic: String,
    /// `KAFKA_MONITORING_TOPIC`, unless `ENABLE_MONITORING_UPDATES` is off.
    pub monitoring_topic: Option<String>,
    /// `KAFKA_TOPIC_PARTITIONS`: of the topics, where they have to be made.
    pub partitions: i32,
    /// `KAFKA_GROUP_ID`: the executors' consumer group.
    pub group_id: String,
    /// No setting: how long a client may hear no broker, while others do, before it is made anew.
    pub renew_after: Duration,
}

/// What is kept of records that cannot be used.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetters {
    /// `DEAD_LETTER_RETENTION_DAYS`.
    pub days: i32,
    /// `MAX_DEAD_LETTERS`.
    pub most: i64,
}

/// `JWT_*`, `AUTH_ENABLED`, `API_KEY_HEADER`.
#[derive(Clone, Debug)]
pub struct Auth {
    /// `AUTH_ENABLED`, or whether there is a key to verify tokens with, or a first API key.
    pub enabled: bool,
    /// `JWT_SECRET`.
    pub jwt_secret: Option<SecretString>,
    /// `JWT_ALGORITHM`, one of the HMAC family.
    pub algorithm: jsonwebtoken::Algorithm,
    /// `JWT_EXPIRATION_MINUTES`: how long tokens made here are valid.
    pub token_lifetime: Duration,
    /// `API_KEY_HEADER`.
    pub api_key_header: http::HeaderName,
    /// `API_KEY_HEADER` as it is written.
    pub api_key_header_text: String,
    /// `API_KEY_ENVIRONMENT`: in the API keys that are made here.
    pub api_key_environment: String,
    /// `BOOTSTRAP_API_KEY`: lets the first caller in.
    pub bootstrap_api_key: Option<ApiKey>,
    /// `JWT_PUBLIC_KEY`: of somebody else who signs tokens.
    pub public_key: Option<VerifyingKey>,
    /// `JWT_JWKS`: the keys of somebody else who signs tokens.
    pub jwks: Option<JwksSource>,
    /// `JWT_ISSUER`: the `iss` that tokens need, and have that are made here.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: the `aud` that tokens need, and have that are made here.
    pub audience: Option<String>,
    /// `JWT_DEFAULT_ROLE`: of a token that names none; `None` refuses such tokens.
    pub default_role: Option<Role>,
}

/// Where a key set is.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// At an address, `http` or `https`.
    Url(url::Url),
    /// In a file.
    File(PathBuf),
}

/// `CORS_*`.
#[derive(Clone, Debug)]
pub struct Cors {
    /// `CORS_ORIGINS`.
    pub origins: Listed<http::HeaderValue>,
    /// `CORS_ALLOW_CREDENTIALS`.
    pub credentials: bool,
    /// `CORS_ALLOW_METHODS`.
    pub methods: Listed<http::Method>,
    /// `CORS_ALLOW_HEADERS`.
    pub headers: Listed<http::HeaderName>,
}

/// A list setting that may be `*`.
#[derive(Clone, Debug)]
pub enum Listed<T> {
    /// `*`.
    Any,
    /// Just these.
    These(Vec<T>),
}

/// `LOG_*`.
#[derive(Clone, Debug)]
pub struct Log {
    /// `LOG_LEVEL`.
    pub level: tracing::Level,
    /// `LOG_FORMAT` is `json`, not `text`.
    pub json: bool,
}

/// `DEFAULT_PAGE_SIZE`, `MAX_PAGE_SIZE`.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Where a caller names no size.
    pub default_size: i64,
    /// Larger ones are cut to this.
    pub max_size: i64,
}

/// Everything that is wrong with the environment, a line a variable. Never shows a value that could be a secret.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s):\n{}", .0.len(), .0.join("\n"))]
pub struct Problems(pub Vec<String>);

/// The environment of this process, for the `load` functions. A value that is not UTF-8 is shown by replacement
/// characters, which no setting may have.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

impl Config {
    /// All settings for `serve` and `executor`.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(environment);
        let api = reader.api();
        let database = reader.database();
        let kafka = reader.kafka();
        let auth = reader.auth();
        let cors = reader.cors();
        let limits = reader.limits();
        let vault = reader.vault();
        let log = reader.log();
        let pages = reader.pages();
        let idempotency_key_ttl_hours = reader.number("idempotency_key_ttl_hours", 24, 1..=8760);
        let metrics = reader.boolean("enable_metrics", true);
        let metrics_access = reader.parsed("metrics_access", MetricsAccess::Open, |value| match value {
            "open" => Ok(MetricsAccess::Open),
            "credentials" => Ok(MetricsAccess::Credentials),
            "management" => Ok(MetricsAccess::Management),
            _ => Err(format!("must be open, credentials or management, not {value:?}")),
        });
        let audit = reader.boolean("enable_audit_logging", true);
        let readiness_requires_kafka = reader.boolean("readiness_requires_kafka", false);
        // The rest of the 25 s until everything is dropped is for the requests under way.
        let shutdown_notice_secs = reader.number("shutdown_notice_secs", 5, 0..=15);
        let audit_retention_days = reader.number("audit_retention_days", 90, 1..=36_500);
        let quotas = reader.quotas();
        let dead_letter_days = reader.number("dead_letter_retention_days", 30, 1..=36_500);
        let max_dead_letters = reader.number("max_dead_letters", 10_000, 1..=10_000_000);
        let management_port = reader.parsed("management_port", None, |value| match value.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(format!("must be a port from 1 to 65535, not {value:?}")),
        });
        if metrics_access == Some(MetricsAccess::Management) && management_port == Some(None) {
            reader.problem::<()>("metrics_access", "management needs MANAGEMENT_PORT");
        }
        if metrics_access == Some(MetricsAccess::Credentials) && auth.as_ref().is_some_and(|auth| !auth.enabled) {
            reader.problem::<()>("metrics_access", "credentials needs authentication, which is off");
        }
        let max_concurrent_executions = reader.number("max_concurrent_executions", 256, 1..=100_000);
        // A day; at most a year.
        let max_workflow_duration_ms = reader.number("max_workflow_duration_ms", 86_400_000, 1000..=31_536_000_000);
        let run_budget = reader.run_budget();
        let egress = reader.parsed("egress_allow", Allow::default(), |value| {
            value.parse().map_err(|error: BadEntry| error.to_string())
        });
        let circuit_breaker = reader.circuit_breaker();
        if reader.boolean("production", false) == Some(true) {
            reader.refuse_development(api.as_ref(), auth.as_ref(), cors.as_ref());
        }
        // Only after all have been read, so that every problem is found.
        let config = (|| {
            Some(Self {
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
                metrics_access: metrics_access?,
                audit: audit?,
                readiness_requires_kafka: readiness_requires_kafka?,
                shutdown_notice: Duration::from_secs(shutdown_notice_secs?),
                audit_retention_days: audit_retention_days?,
                quotas: quotas?,
                dead_letters: DeadLetters { days: dead_letter_days?, most: max_dead_letters? },
                management_port: management_port?,
                max_concurrent_executions: max_concurrent_executions?,
                max_workflow_duration: Duration::from_millis(max_workflow_duration_ms?),
                run_budget: run_budget?,
                egress: Arc::new(egress?),
                circuit_breaker: circuit_breaker?,
            })
        })();
        reader.finish(config)
    }
}

impl Database {
    /// The database's settings alone, for the commands that need nothing else.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(environment);
        let database = reader.database();
        reader.finish(database)
    }
}

impl Kafka {
    /// Kafka's settings alone.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(environment);
        let kafka = reader.kafka();
        reader.finish(kafka)
    }
}

impl Auth {
    /// Whether tokens let somebody in, beside API keys.
    #[must_use]
    pub fn verifies_tokens(&self) -> bool {
        self.jwt_secret.is_some() || self.public_key.is_some() || self.jwks.is_some()
    }

    /// The settings of authentication alone.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(environment);
        let auth = reader.auth();
        reader.finish(auth)
    }
}

/// The keys of `ENCRYPTION_KEY` alone.
pub fn load_vault(environment: impl Iterator<Item = (String, String)>) -> Result<Vault, Problems> {
    let mut reader = Reader::new(environment);
    let vault = reader.vault();
    reader.finish(vault)
}

impl Api {
    /// What the addresses of callbacks begin with.
    #[must_use]
    pub fn callbacks_url(&self) -> String {
        format!("{}{}/callbacks/", self.public_url, self.prefix)
    }

    /// The API's settings alone.
    pub fn load(environment: impl Iterator<Item = (String, String)>) -> Result<Self, Problems> {
        let mut reader = Reader::new(environment);
        let api = reader.api();
        reader.finish(api)
    }
}

impl Log {
    /// The settings of logging alone; with problems the defaults, since the problems are about to be logged.
    #[must_use]
    pub fn load_or_default(environment: impl Iterator<Item = (String, String)>) -> Self {
        Reader::new(environment).log().unwrap_or(Self { level: tracing::Level::INFO, json: true })
    }
}

/// The variables as text, and the problems found so far. A method returns `None` where it has added a problem.
struct Reader {
    values: HashMap<&'static str, String>,
    problems: Vec<String>,
}

impl Reader {
    fn new(environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut problems = Vec::new();
        let environment: Vec<_> = environment.collect();
        let files: HashMap<String, String> = environment
            .iter()
            .filter_map(|(name, path)| {
                let name = name.to_ascii_lowercase().strip_suffix("_file")?.to_owned();
                (SECRETS.contains(&name.as_str()) && !path.trim().is_empty()).then(|| (name, path.trim().to_owned()))
            })
            .collect();
        let variables: Variables = envy::from_iter(environment).unwrap_or_else(|error| {
            problems.push(format!("  environment: {error}"));
            Variables::default()
        });
        let mut values = HashMap::new();
        for (name, value) in variables.into_pairs() {
            let value = value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
            match (value, files.get(name)) {
                (Some(value), _) if value.contains(char::REPLACEMENT_CHARACTER) => {
                    problems.push(format!("  {}: is not valid UTF-8", name.to_ascii_uppercase()));
                }
                (Some(_), Some(_)) => {
                    problems.push(format!("  {}: set both directly and by {0}_FILE", name.to_ascii_uppercase()));
                }
                (Some(value), None) => drop(values.insert(name, value)),
                (None, Some(path)) => match std::fs::read_to_string(path) {
                    Ok(text) if !text.trim().is_empty() => drop(values.insert(name, text.trim().to_owned())),
                    Ok(_) => problems.push(format!("  {}_FILE: the file is empty", name.to_ascii_uppercase())),
                    Err(error) => {
                        let why = match error.kind() {
                            ErrorKind::NotFound => "there is no such file".to_owned(),
                            ErrorKind::PermissionDenied => "this user may not read the file".to_owned(),
                            ErrorKind::IsADirectory => "this is a directory, not a file".to_owned(),
                            ErrorKind::InvalidData => "the file is not UTF-8 text".to_owned(),
                            other => format!("the file cannot be read ({other})"),
                        };
                        problems.push(format!("  {}_FILE: {why}: {path}", name.to_ascii_uppercase()));
                    }
                },
                (None, None) => {}
            }
        }
        Self { values, problems }
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems(self.problems)),
        }
    }

    fn problem<T>(&mut self, name: &str, problem: impl std::fmt::Display) -> Option<T> {
        self.problems.push(format!("  {}: {problem}", name.to_ascii_uppercase()));
        None
    }

    /// Whether something is wrong with the variable already, so that it is not there to be read.
    fn has_problem(&self, name: &str) -> bool {
        let name = name.to_ascii_uppercase();
        self.problems.iter().any(|problem| {
            let named = problem.trim_start().split(':').next().unwrap_or_default();
            named == name || named.strip_suffix("_FILE") == Some(name.as_str())
        })
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.values.get(name).cloned().unwrap_or_else(|| default.to_owned())
    }

    fn required(&mut self, name: &str) -> Option<String> {
        match self.values.get(name) {
            Some(value) => Some(value.clone()),
            None if self.has_problem(name) => None,
            None => self.problem(name, "is required and not set"),
        }
    }

    fn parsed<T>(&mut self, name: &str, default: T, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match self.values.get(name).map(|value| parse(value)) {
            None => Some(default),
            Some(Ok(value)) => Some(value),
            Some(Err(problem)) => self.problem(name, problem),
        }
    }

    fn number<T>(&mut self, name: &str, default: T, range: std::ops::RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        self.parsed(name, default, |value| match value.parse::<T>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {} to {}, not {value:?}", range.start(), range.end())),
        })
    }

    fn boolean(&mut self, name: &str, default: bool) -> Option<bool> {
        self.parsed(name, default, |value| match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err(format!("must be true or false, not {value:?}")),
        })
    }

    fn listed<T>(&mut self, name: &str, default: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Listed<T>> {
        let text = self.text(name, default);
        if text.split(',').any(|item| item.trim() == "*") {
            return Some(Listed::Any);
        }
        let mut items = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match parse(item) {
                Some(item) => items.push(item),
                None => return self.problem(name, format!("has an entry that cannot be used: {item:?}")),
            }
        }
        Some(Listed::These(items))
    }

    fn quotas(&mut self) -> Option<Quotas> {
        let mut quota = |name| {
            self.parsed(name, None, |value| match value.parse() {
                Ok(number @ 0..) => Ok(Some(number)),
                _ => Err(format!("must be a whole number from 0 to {}, not {value:?}", i32::MAX)),
            })
        };
        let (agents, workflows) = (quota("quota_agents"), quota("quota_workflows"));
        let (api_keys, queued_runs) = (quota("quota_api_keys"), quota("quota_queued_runs"));
        Some(Quotas { agents: agents?, workflows: workflows?, api_keys: api_keys?, queued_runs: queued_runs? })
    }

    fn api(&mut self) -> Option<Api> {
        let host = self.parsed("api_host", IpAddr::from([0, 0, 0, 0]), |value| {
            let bare = value.trim_start_matches('[').trim_end_matches(']');
            if bare.eq_ignore_ascii_case("localhost") {
                return Ok(IpAddr::from([127, 0, 0, 1]));
            }
            bare.parse().map_err(|_| format!("must be an IP address, not {value:?}"))
        });
        let prefix = self.parsed("api_prefix", "/api/v1".to_owned(), |value| {
            let path = value.trim_matches('/');
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
            let is_step = |segment: &str| segment == "." || segment == "..";
            if !path.chars().all(plain) || path.contains("//") || path.split('/').any(is_step) {
                return Err(format!("must be a plain URL path, not {value:?}"));
            }
            // What lies below these two needs no token.
            if matches!(path.split('/').next(), Some("docs" | "redoc")) {
                return Err(format!("must not lie below the documentation, as {value:?} does"));
            }
            Ok(if path.is_empty() { String::new() } else { format!("/{path}") })
        });
        let port = self.number("api_port", 8000, 1..=u16::MAX);
        let public_url = self.parsed("public_url", format!("http://localhost:{}", port.unwrap_or(8000)), |value| {
            let url = url::Url::parse(value).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
            let is_plain =
                |url: &url::Url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
            match url.filter(is_plain) {
                Some(url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
                None => Err("must be an http or https URL without user, query and fragment".to_owned()),
            }
        });
        let workers = self.number("api_workers", 1, 1..=1024);
        let docs = self.boolean("enable_docs", true);
        let reload = self.boolean("api_reload", false);
        Some(Api {
            title: self.text("api_title", "Workflow Management API"),
            version: self.text("api_version", "1.0.0"),
            description: self.text("api_description", "REST API for managing workflow orchestration"),
            prefix: prefix?,
            host: host?,
            port: port?,
            workers: workers?,
            public_url: public_url?,
            has_public_url: self.values.contains_key("public_url"),
            docs: docs?,
            reload: reload?,
        })
    }

    fn database(&mut self) -> Option<Database> {
        let connect = self.required("database_url").and_then(|url| match database_url::parse(&url) {
            Ok(options) => Some(ConnectOptions(options)),
            Err(problem) => self.problem("database_url", problem),
        });
        let pool_size = self.number("database_pool_size", 10, 1..=10_000);
        let max_overflow = self.number("database_max_overflow", 20, 0..=10_000);
        if pool_size.zip(max_overflow) == Some((1, 0)) {
            self.problem::<()>(
                "database_pool_size",
                "one connection is not enough: starting runs keeps one for itself",
            );
        }
        let echo = self.boolean("database_echo", false);
        let migrate_on_start = self.boolean("migrate_on_start", true);
        Some(Database {
            connect: connect?,
            pool_size: pool_size?,
            max_overflow: max_overflow?,
            echo: echo?,
            migrate_on_start: migrate_on_start?,
        })
    }

    fn kafka(&mut self) -> Option<Kafka> {
        let brokers = self.required("kafka_brokers").and_then(|value| {
            let brokers: Vec<&str> = value.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
            match brokers.iter().find(|broker| !is_host_and_port(broker)) {
                Some(wrong) => self.problem("kafka_brokers", format!("has an entry that is not host:port: {wrong:?}")),
                None if brokers.is_empty() => self.problem("kafka_brokers", "names no broker"),
                None => Some(brokers.join(",")),
            }
        });
        let execution_topic = self.topic("kafka_execution_topic", "workflow.execution.requests");
        let cancellation_topic = self.topic("kafka_cancellation_topic", "workflow.cancellation.requests");
        let dead_letter_topic = self.topic("kafka_dead_letter_topic", "workflow.dead-letters");
        let monitoring_topic = self.topic("kafka_monitoring_topic", "workflow.monitoring.updates");
        let is_monitored = self.boolean("enable_monitoring_updates", true);
        let topics = [
            ("kafka_execution_topic", &execution_topic),
            ("kafka_cancellation_topic", &cancellation_topic),
            ("kafka_dead_letter_topic", &dead_letter_topic),
            ("kafka_monitoring_topic", &monitoring_topic),
        ];
        for (index, (name, topic)) in topics.iter().enumerate() {
            if let Some((other, _)) = topics[..index].iter().find(|(_, other)| topic.is_some() && other == topic) {
                self.problem::<()>(name, format!("must differ from {}", other.to_ascii_uppercase()));
            }
        }
        let partitions = self.number("kafka_topic_partitions", 6, 1..=1000);
        Some(Kafka {
            brokers: brokers?,
            execution_topic: execution_topic?,
            cancellation_topic: cancellation_topic?,
            dead_letter_topic: dead_letter_topic?,
            monitoring_topic: Some(monitoring_topic?).filter(|_| is_monitored == Some(true)),
            partitions: partitions?,
            group_id: self.text("kafka_group_id", "execution-consumer-group"),
            renew_after: RENEW_KAFKA_CLIENTS_AFTER,
        })
    }

    fn topic(&mut self, name: &str, default: &str) -> Option<String> {
        self.parsed(name, default.to_owned(), |value| {
            let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if value.len() <= 249 && value.chars().all(legal) && value != "." && value != ".." {
                Ok(value.to_owned())
            } else {
                Err(format!("is not a legal topic name: {value:?}"))
            }
        })
    }

    fn auth(&mut self) -> Option<Auth> {
        let jwt_secret = self.values.get("jwt_secret").cloned();
        let secret_is_usable = match &jwt_secret {
            Some(secret) if secret.len() < MIN_JWT_SECRET_BYTES => self.problem(
                "jwt_secret",
                format!("must have at least {MIN_JWT_SECRET_BYTES} bytes; make one with: openssl rand -hex 32"),
            ),
            Some(secret) => match placeholder::reason(secret) {
                Some(reason) => self.problem("jwt_secret", format!("{reason}; make one with: openssl rand -hex 32")),
                None => Some(()),
            },
            None => Some(()),
        };
        let keys = ["jwt_secret", "jwt_public_key", "jwt_jwks", "bootstrap_api_key"];
        // Without any of them there are still API keys: the first one is made at the start.
        let enabled = self.boolean("auth_enabled", keys.iter().any(|name| self.values.contains_key(name)));
        let public_key = self.parsed("jwt_public_key", None, |pem| Ok(Some(VerifyingKey::from_pem(pem)?)));
        let api_key_environment = self.parsed("api_key_environment", "live".to_owned(), |value| {
            let fits = api_key::is_environment(value);
            if fits { Ok(value.to_owned()) } else { Err("must have 1 to 16 small letters and digits".to_owned()) }
        });
        let bootstrap_api_key = self.parsed("bootstrap_api_key", None, |value| {
            let key = ApiKey::parse(value).ok_or("is not an API key; make one with: workflow-api api-key")?;
            Ok(Some(key))
        });
        let jwks = self.parsed("jwt_jwks", None, |value| parse_jwks_source(value).map(Some));
        let default_role = self.parsed("jwt_default_role", Some(Role::Viewer), |value| match value {
            "none" => Ok(None),
            name => name.parse().map(Some).map_err(|error| format!("{error}, or none; not {name:?}")),
        });
        let algorithm = self.parsed("jwt_algorithm", jsonwebtoken::Algorithm::HS256, |value| match value {
            "HS256" => Ok(jsonwebtoken::Algorithm::HS256),
            "HS384" => Ok(jsonwebtoken::Algorithm::HS384),
            "HS512" => Ok(jsonwebtoken::Algorithm::HS512),
            _ => Err(format!("must be HS256, HS384 or HS512, not {value:?}")),
        });
        let minutes: Option<u64> = self.number("jwt_expiration_minutes", 60, 1..=525_600);
        let api_key_header = self.parsed("api_key_header", http::HeaderName::from_static("x-api-key"), |value| {
            value.parse().map_err(|_| format!("is not a legal header name: {value:?}"))
        });
        secret_is_usable?;
        Some(Auth {
            enabled: enabled?,
            jwt_secret: jwt_secret.map(SecretString::from),
            algorithm: algorithm?,
            token_lifetime: Duration::from_secs(minutes? * 60),
            api_key_header: api_key_header?,
            api_key_header_text: self.text("api_key_header", "X-API-Key"),
            api_key_environment: api_key_environment?,
            bootstrap_api_key: bootstrap_api_key?,
            public_key: public_key?,
            jwks: jwks?,
            issuer: self.values.get("jwt_issuer").cloned(),
            audience: self.values.get("jwt_audience").cloned(),
            default_role: default_role?,
        })
    }

    fn cors(&mut self) -> Option<Cors> {
        let origins = self.listed("cors_origins", "http://localhost:3000", parse_origin);
        let credentials = self.boolean("cors_allow_credentials", true);
        let methods = self.listed("cors_allow_methods", "*", |method| method.parse().ok());
        let headers = self.listed("cors_allow_headers", "*", |header| header.parse().ok());
        Some(Cors { origins: origins?, credentials: credentials?, methods: methods?, headers: headers? })
    }

    fn vault(&mut self) -> Option<Vault> {
        self.parsed("encryption_key", Vault::default(), Vault::parse)
    }

    /// Adds a problem for each setting that is for development only.
    fn refuse_development(&mut self, api: Option<&Api>, auth: Option<&Auth>, cors: Option<&Cors>) {
        let is_open = auth.is_some_and(|auth| !auth.enabled) && !self.values.contains_key("auth_enabled");
        let is_for_any_origin = cors.is_some_and(|cors| matches!(cors.origins, Listed::Any));
        let is_reloading = api.is_some_and(|api| api.reload);
        let refused = [
            (
                is_open,
                "jwt_secret",
                "is required with PRODUCTION=true; or AUTH_ENABLED=true for API keys alone, or \
              AUTH_ENABLED=false if everyone who reaches the port is to have every right",
            ),
            (is_for_any_origin, "cors_origins", "must list the origins with PRODUCTION=true, not *"),
            (is_reloading, "api_reload", "must be false with PRODUCTION=true"),
        ];
        for (_, name, problem) in refused.into_iter().filter(|(is_refused, ..)| *is_refused) {
            self.problem::<()>(name, problem);
        }
    }

    fn log(&mut self) -> Option<Log> {
        let level = self.parsed("log_level", tracing::Level::INFO, |value| match value.to_ascii_uppercase().as_str() {
            "TRACE" => Ok(tracing::Level::TRACE),
            "DEBUG" => Ok(tracing::Level::DEBUG),
            "INFO" => Ok(tracing::Level::INFO),
            "WARNING" | "WARN" => Ok(tracing::Level::WARN),
            "ERROR" | "CRITICAL" => Ok(tracing::Level::ERROR),
            _ => Err(format!("must be DEBUG, INFO, WARNING or ERROR, not {value:?}")),
        });
        let json = self.parsed("log_format", true, |value| match value.to_ascii_lowercase().as_str() {
            "json" => Ok(true),
            "text" => Ok(false),
            _ => Err(format!("must be json or text, not {value:?}")),
        });
        Some(Log { level: level?, json: json? })
    }

    fn circuit_breaker(&mut self) -> Option<Rules> {
        let default = Rules::default();
        let enabled = self.boolean("circuit_breaker_enabled", default.enabled);
        let max = breaker::MAX_CALLS;
        let failure_threshold = self.number("circuit_breaker_failure_threshold", default.failure_threshold, 1..=max);
        let rate = default.failure_rate_threshold;
        let failure_rate_threshold =
            self.parsed("circuit_breaker_failure_rate_threshold", rate, |value| match value.parse::<f64>() {
                Ok(rate) if rate > 0.0 && rate <= 1.0 => Ok(rate),
                _ => Err(format!("must be a number above 0 and at most 1, not {value:?}")),
            });
        let timeout = default.timeout.as_secs();
        let timeout = self.number("circuit_breaker_timeout_seconds", timeout, 1..=breaker::MAX_TIMEOUT_SECS);
        let max_calls = default.half_open_max_calls;
        let half_open_max_calls = self.number("circuit_breaker_half_open_max_calls", max_calls, 1..=max);
        let window = default.window.as_secs();
        let window = self.number("circuit_breaker_window_size_seconds", window, 1..=breaker::MAX_WINDOW_SECS);
        Some(Rules {
            enabled: enabled?,
            failure_threshold: failure_threshold?,
            failure_rate_threshold: failure_rate_threshold?,
            timeout: Duration::from_secs(timeout?),
            half_open_max_calls: half_open_max_calls?,
            window: Duration::from_secs(window?),
        })
    }

    fn pages(&mut self) -> Option<Pages> {
        let max_size = self.number("max_page_size", 100, 1..=10_000);
        let default_size = self.number("default_page_size", 20, 1..=10_000);
        let (max_size, default_size) = (max_size?, default_size?);
        if default_size > max_size {
            return self.problem("default_page_size", format!("must not be above MAX_PAGE_SIZE ({max_size})"));
        }
        Some(Pages { default_size, max_size })
    }
}

/// An address, or the path of a file.
fn parse_jwks_source(text: &str) -> Result<JwksSource, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(JwksSource::Url(url)),
        Ok(_) => Err("must be an http or https address, or the path of a file".to_owned()),
        Err(_) if std::path::Path::new(text).is_file() => Ok(JwksSource::File(text.into())),
        Err(_) => Err("is neither an address nor the path of a file".to_owned()),
    }
}

/// An origin as browsers send it: scheme, host and perhaps port.
fn parse_origin(text: &str) -> Option<http::HeaderValue> {
    let origin = url::Url::parse(text).ok()?.origin();
    (origin.is_tuple() && origin.ascii_serialization() == text.trim_end_matches('/').to_ascii_lowercase())
        .then(|| origin.ascii_serialization().parse().ok())?
}

fn is_host_and_port(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| {
        let legal = |c: char| c.is_alphanumeric() || "._-".contains(c);
        let is_bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = is_bracketed.map_or(!host.is_empty() && host.chars().all(legal), |address| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
        });
        is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../.env.api.example");

    /// `NAME` and the value of a line `NAME=value` or `# NAME=value`, and whether it is switched on.
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
        // The file is for trying the service out, with agents on the same host or network.
        let given = ["DATABASE_URL", "KAFKA_BROKERS", "EGRESS_ALLOW"];
        let required = pairs.into_iter().filter(|(name, _)| given.contains(&name.as_str()));
        let from_defaults = Config::load(required).expect("two variables are enough");
        assert_eq!(format!("{from_file:?}"), format!("{from_defaults:?}"));
    }

    /// The names of the variables that are refused, with these values beside the two that are required.
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
            ("DATABASE_URL", "mysql://x"),
            ("DEFAULT_PAGE_SIZE", "x"),
            ("EGRESS_ALLOW", "10.0.0.0/8, 10.0.0.1/8"),
            ("ENABLE_METRICS", "perhaps"),
            ("ENCRYPTION_KEY", "0123"),
            ("HSTS_MAX_AGE_SECS", "-1"),
            ("JWT_ALGORITHM", "none"),
            ("JWT_EXPIRATION_MINUTES", "0"),
            ("KAFKA_BROKERS", "a:1;b:2"),
            ("KAFKA_TOPIC_PARTITIONS", "q"),
            ("LOG_FORMAT", "xml"),
            ("MAX_CONCURRENT_REQUESTS", "0"),
            ("MAX_PAGE_SIZE", "x"),
            ("RATE_LIMIT_BURST", "x"),
            ("RATE_LIMIT_FAILED_AUTH", "-1"),
            ("RATE_LIMIT_PER_ADDRESS", "1e3"),
            ("RATE_LIMIT_PER_PRINCIPAL", "60000001"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
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
        assert_eq!(refused(&[("DATABASE_POOL_SIZE", "1"), ("DATABASE_MAX_OVERFLOW", "0")]), ["DATABASE_POOL_SIZE"]);
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
