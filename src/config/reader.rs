//! Reader of the environment: the variables as text, and the problems found in them.

use std::{collections::HashMap, fmt::Display, ops::RangeInclusive, str::FromStr};

use serde::Deserialize;

use sha2::{Digest as _, Sha256};

use super::{
    files::{self, SecretFiles, can_be_in_vault},
    vault_client::{Reference, SCHEME, VaultClient},
};

/// Declares the variables: all are optional text. The names are exactly those that the program reads.
macro_rules! variables {
    ($($name:ident),+ $(,)?) => {
        /// Environment as `envy` reads it. Nothing is parsed here, so that parsing can report all problems.
        #[derive(Deserialize, Default)]
        struct Variables { $($name: Option<String>),+ }

        impl Variables {
            fn into_pairs(self) -> Vec<(&'static str, Option<String>)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }

        /// Names of all variables, in lower case.
        pub const NAMES: &[&str] = &[$(stringify!($name)),+];
    };
}

variables! {
    production, database_url, database_replica_url, database_pool_size, database_max_overflow, database_echo, migrate_on_start,
    database_acquire_timeout_ms, database_connect_timeout_ms, database_max_connection_age_secs, database_validate_idle_ms,
    database_held_warning_secs,
    shutdown_notice_secs,
    kafka_brokers, kafka_execution_topic, kafka_cancellation_topic, kafka_topic_partitions, kafka_topic_replication,
    kafka_group_id,
    kafka_security_protocol, kafka_ssl_ca, kafka_ssl_certificate, kafka_ssl_key, kafka_ssl_key_password, kafka_sasl_mechanism,
    kafka_sasl_username, kafka_sasl_password, kafka_oauth_token_url, kafka_oauth_client_id, kafka_oauth_client_secret,
    kafka_oauth_scope, kafka_properties,
    kafka_dead_letter_topic, dead_letter_retention_days, max_dead_letters, kafka_monitoring_topic, enable_monitoring_updates,
    max_kafka_triggers, kafka_trigger_topics, kafka_trigger_delete_groups,
    kafka_events_topic,
    api_title, api_version, api_description, api_contact, api_prefix, api_host, api_port, api_reload, api_workers, api_keep_alive_secs,
    public_url,
    auth_enabled, jwt_secret, jwt_secret_previous, jwt_algorithm, jwt_expiration_minutes, api_key_header,
    jwt_public_key, jwt_jwks, jwt_issuer, jwt_audience, jwt_default_role, api_key_environment, bootstrap_api_key,
    cors_origins, cors_allow_credentials, cors_allow_methods, cors_allow_headers,
    encryption_key, trusted_proxies, hsts_max_age_secs, rate_limit_per_principal, rate_limit_per_address, rate_limit_burst,
    rate_limit_failed_auth, max_concurrent_requests, max_backlog,
    max_request_memory_mb, max_response_memory_mb,
    log_level, log_format, log_file, log_file_max_mb, log_file_count, otel_sdk_disabled, otel_exporter_otlp_endpoint,
    otel_exporter_otlp_traces_endpoint, otel_exporter_otlp_protocol, otel_exporter_otlp_headers,
    otel_exporter_otlp_timeout, otel_service_name, otel_resource_attributes, otel_traces_sampler,
    otel_traces_sampler_arg, default_page_size, max_page_size, idempotency_key_ttl_hours,
    run_retention_days, run_archive, run_archive_endpoint, run_archive_region, run_archive_access_key,
    run_archive_secret_key,
    default_agent_timeout_ms, default_agent_max_retries, default_agent_initial_delay_ms, default_agent_max_delay_ms,
    default_agent_backoff_multiplier,
    quota_agents, quota_workflows, quota_api_keys, quota_queued_runs,
    enable_docs, console_enabled, enable_metrics, metrics_access, enable_audit_logging, audit_retention_days, readiness_requires_kafka,
    max_concurrent_executions, max_workflow_duration_ms, max_sub_runs, max_run_steps, max_run_branches, max_run_bytes,
    max_executor_memory_bytes, max_run_memory_bytes, max_run_takeovers, management_port,
    vault_addr, vault_namespace, vault_cacert, vault_token, vault_role_id, vault_secret_id, vault_kubernetes_role,
    vault_kubernetes_token_path, vault_auth_mount, vault_refresh_secs,
    egress_allow, circuit_breaker_enabled, circuit_breaker_failure_threshold, circuit_breaker_failure_rate_threshold,
    circuit_breaker_timeout_seconds, circuit_breaker_half_open_max_calls, circuit_breaker_window_size_seconds,
    webhook_retention_days, webhook_retry_seconds, webhook_disable_after_hours,
}

/// Beginning of the variables that are properties of librdkafka.
pub(super) const KAFKA_PROPERTY: &str = "KAFKA_PROPERTY_";

/// All problems of the environment, one line per variable. They never show a value that could be a secret.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has {} problem(s):\n{}", .0.len(), .0.join("\n"))]
pub struct Problems(pub Vec<String>);

/// A section of the settings with its own variables.
pub trait Section: Sized {
    /// Reads and checks the section. `None` means that problems were added to the reader.
    fn read(reader: &mut Reader) -> Option<Self>;
}

/// Reads a single section, for commands that need no other.
pub fn load<S: Section>(environment: impl Iterator<Item = (String, String)>) -> Result<S, Problems> {
    let mut reader = Reader::new(environment);
    let section = S::read(&mut reader);
    reader.finish(section)
}

/// Variables as text, and the problems found so far. A method returns `None` if it has added a problem.
pub struct Reader {
    values: HashMap<&'static str, String>,
    /// Variables whose values are in Vault, and have not been needed yet.
    references: HashMap<&'static str, Reference>,
    /// Client that reads them, once it was needed, unless its settings are wrong.
    vault: Option<VaultClient>,
    is_vault_needed: bool,
    /// Variables that begin with [`KAFKA_PROPERTY`], without it.
    kafka_properties: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Reader {
    pub(super) fn new(environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut problems = Vec::new();
        let environment: Vec<_> = environment.collect();
        let files = SecretFiles::of(environment.iter().cloned());
        let kafka_properties = environment.iter().filter_map(|(name, value)| {
            let begin = name.get(..KAFKA_PROPERTY.len()).filter(|begin| begin.eq_ignore_ascii_case(KAFKA_PROPERTY))?;
            let value = value.trim();
            (!value.is_empty()).then(|| (name[begin.len()..].to_owned(), value.to_owned()))
        });
        let mut kafka_properties: Vec<(String, String)> = kafka_properties.collect();
        kafka_properties.sort_unstable();
        let variables: Variables = envy::from_iter(environment).unwrap_or_else(|error| {
            problems.push(format!("  environment: {error}"));
            Variables::default()
        });
        let (mut values, mut references) = (HashMap::new(), HashMap::new());
        for (name, value) in variables.into_pairs() {
            let value = value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
            match (value, files.get(name)) {
                (Some(value), _) if value.contains(char::REPLACEMENT_CHARACTER) => {
                    problems.push(format!("  {}: is not valid UTF-8", name.to_ascii_uppercase()));
                }
                (Some(_), Some(_)) => {
                    problems.push(format!("  {}: set both directly and by {0}_FILE", name.to_ascii_uppercase()));
                }
                (Some(value), None) if value.starts_with(SCHEME) => match Reference::parse(&value) {
                    _ if !can_be_in_vault(name) => {
                        let name = name.to_ascii_uppercase();
                        problems.push(format!("  {name}: cannot be in Vault, because it is no secret"));
                    }
                    Ok(reference) => drop(references.insert(name, reference)),
                    Err(problem) => problems.push(format!("  {}: {problem}", name.to_ascii_uppercase())),
                },
                (Some(value), None) => drop(values.insert(name, value)),
                (None, Some(path)) => match files::read(path) {
                    Ok(text) => drop(values.insert(name, text)),
                    Err(why) => {
                        let path = path.display();
                        problems.push(format!("  {}_FILE: {why}: {path}", name.to_ascii_uppercase()));
                    }
                },
                (None, None) => {}
            }
        }
        Self { values, references, vault: None, is_vault_needed: false, kafka_properties, problems }
    }

    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, Problems> {
        if let Some(vault) = self.vault.take() {
            vault.end();
        }
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems(self.problems)),
        }
    }

    pub(super) fn problem<T>(&mut self, name: &str, problem: impl Display) -> Option<T> {
        self.problems.push(format!("  {}: {problem}", name.to_ascii_uppercase()));
        None
    }

    /// Whether a problem of the variable was reported already, so that it cannot be read.
    fn has_problem(&self, name: &str) -> bool {
        let name = name.to_ascii_uppercase();
        self.problems.iter().any(|problem| {
            let named = problem.trim_start().split(':').next().unwrap_or_default();
            named == name || named.strip_suffix("_FILE") == Some(name.as_str())
        })
    }

    /// Reads the value of a variable if it is in Vault.
    fn resolve(&mut self, name: &str) {
        let Some((name, reference)) = self.references.remove_entry(name) else { return };
        if !std::mem::replace(&mut self.is_vault_needed, true) {
            self.vault = VaultClient::read(self);
        }
        let value = match &mut self.vault {
            Some(vault) => vault.value(&reference).map_err(|why| format!("{reference}: {why}")),
            None => Err(format!("{reference} cannot be read without the settings VAULT_*")),
        };
        match value {
            Ok(text) => drop(self.values.insert(name, text)),
            Err(problem) => drop(self.problem::<()>(name, problem)),
        }
    }

    /// Names of the variables whose values are in Vault, each with the SHA-256 of its value, or `None` if it cannot be read.
    pub(super) fn vault_digests(mut self) -> Vec<(&'static str, Option<[u8; 32]>)> {
        let mut names: Vec<&'static str> = self.references.keys().copied().collect();
        names.sort_unstable();
        let digests =
            names.into_iter().map(|name| (name, self.get(name).map(|text| Sha256::digest(text).into()))).collect();
        // The problems are those of reading all settings.
        drop(self.finish(None::<()>));
        digests
    }

    /// Whether values are in Vault.
    pub(super) fn uses_vault(&self) -> bool {
        self.is_vault_needed || !self.references.is_empty()
    }

    /// Text of a variable that is set and has no problem.
    pub(super) fn get(&mut self, name: &str) -> Option<&str> {
        self.resolve(name);
        self.values.get(name).map(String::as_str)
    }

    /// Whether a variable is set, with a problem or without.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name) || self.references.contains_key(name) || self.has_problem(name)
    }

    /// Variables that begin with [`KAFKA_PROPERTY`], without it, in order of their names.
    pub(super) fn kafka_properties(&self) -> &[(String, String)] {
        &self.kafka_properties
    }

    pub(super) fn text(&mut self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    pub(super) fn required(&mut self, name: &str) -> Option<String> {
        match self.get(name).map(str::to_owned) {
            Some(value) => Some(value),
            None if self.has_problem(name) => None,
            None => self.problem(name, "is required and not set"),
        }
    }

    pub(super) fn parsed<T>(&mut self, name: &str, default: T, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match self.get(name).map(parse) {
            None => Some(default),
            Some(Ok(value)) => Some(value),
            Some(Err(problem)) => self.problem(name, problem),
        }
    }

    pub(super) fn number<T>(&mut self, name: &str, default: T, range: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        self.parsed(name, default, |value| match value.parse::<T>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(format!("must be a whole number from {} to {}, not {value:?}", range.start(), range.end())),
        })
    }

    pub(super) fn boolean(&mut self, name: &str, default: bool) -> Option<bool> {
        self.parsed(name, default, |value| match value.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err(format!("must be true or false, not {value:?}")),
        })
    }
}
