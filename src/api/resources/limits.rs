//! `/system/limits`: the limits that a caller meets.

use std::time::Duration;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::runs::bulk;
use crate::{
    access::{Countable, Quotas},
    actions::import,
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::ApiError,
        prefer,
        request_limits::{MAX_BODY_BYTES, MAX_URI_BYTES, TIME_LIMIT},
        sets,
    },
    config::Config,
    db::list::MAX_PAGE_DEPTH,
    input::MAX_JSON_DEPTH,
    rate::Rate,
    run_poller::{MAX_WATCHERS, MAX_WATCHERS_OF_CALLER, MAX_WATCHERS_OF_ORGANIZATION},
    trigger::MAX_TRIGGERS,
    webhook::MAX_WEBHOOKS,
};

/// Limits that a caller meets.
#[derive(Serialize, ToSchema)]
pub struct SystemLimits {
    /// The limits, group by group. The settings are those of the answering process; executors have their own.
    items: Vec<SystemLimit>,
}

/// Limit that a caller meets.
#[derive(Serialize, ToSchema)]
pub struct SystemLimit {
    /// What it is a limit of.
    #[schema(value_type = sets::LimitGroup)]
    group: &'static str,
    /// Name in the group.
    #[schema(example = "body")]
    name: &'static str,
    /// What it limits.
    #[schema(example = "Body of a request")]
    description: &'static str,
    /// The limit; null: there is none.
    value: Option<u64>,
    /// Unit of the limit.
    #[schema(value_type = sets::LimitUnit)]
    unit: &'static str,
    /// Setting that changes it; null: it is fixed, or the organisation has a value of its own.
    #[schema(example = "MAX_PAGE_SIZE")]
    setting: Option<&'static str>,
}

/// List the limits
///
/// Limits of requests, lists and runs, with the values that they have here, and the quotas of the caller's organisation.
#[utoipa::path(get, path = "/system/limits", tag = "system", responses((status = 200, body = SystemLimits)))]
pub async fn list_limits(State(app): State<App>, caller: Caller) -> Result<Json<SystemLimits>, ApiError> {
    let own = app.organizations.quotas(caller.organization()).await?;
    Ok(Json(SystemLimits { items: limits(&app.config, own) }))
}

/// The limits with these settings, for an organisation with these quotas of its own.
fn limits(config: &Config, own: Quotas) -> Vec<SystemLimit> {
    let Config { limits, pages, executor, kafka, .. } = config;
    let per_minute = |rate: Option<Rate>| rate.map(|rate| u64::from(rate.per_minute));
    let burst = limits.per_principal.or(limits.per_address).map(|rate| u64::from(rate.burst));
    let run = &executor.run_budget;
    let keys_ms = u64::from(config.idempotency_key_ttl_hours.unsigned_abs()) * 3_600_000;
    let (body_memory, answer_memory) = (limits.max_request_memory_bytes, limits.max_response_memory_bytes);
    let mut all = List::default();
    all.group("requests")
        .add("body", "Body of a request", MAX_BODY_BYTES as u64, BYTES)
        .add("import", "Body of an import", import::MAX_BYTES as u64, BYTES)
        .add("address", "Path and query", MAX_URI_BYTES as u64, BYTES)
        .add("json_depth", "Levels of JSON in a body", MAX_JSON_DEPTH as u64, COUNT)
        .add("time", "Time to answer, without the time in which the body is sent", millis(TIME_LIMIT), MILLIS)
        .add("wait", "Time that a request waits for a run (Prefer: wait)", millis(prefer::MAX_WAIT), MILLIS)
        .add("at_a_time", "Requests that a process works on", limits.max_concurrent_requests as u64, COUNT)
        .by("MAX_CONCURRENT_REQUESTS")
        .add("body_memory", "Bodies that a process holds; an organisation half of it", body_memory, BYTES)
        .by("MAX_REQUEST_MEMORY_MB")
        .add("answer_memory", "Answers that a process holds; an organisation half of it", answer_memory, BYTES)
        .by("MAX_RESPONSE_MEMORY_MB");
    all.group("rates")
        .add("principal", "Requests of an API key or a token subject", per_minute(limits.per_principal), PER_MINUTE)
        .by("RATE_LIMIT_PER_PRINCIPAL")
        .add("address", "Requests from an address", per_minute(limits.per_address), PER_MINUTE)
        .by("RATE_LIMIT_PER_ADDRESS")
        .add("burst", "Requests at once after a pause, for both", burst, COUNT)
        .by("RATE_LIMIT_BURST")
        .add("wrong", "Wrong credentials from an address", per_minute(limits.failed_authentication), PER_MINUTE)
        .by("RATE_LIMIT_FAILED_AUTH");
    all.group("lists")
        .add("page_size", "Entries of a page, if the request names no number", pages.default_size.unsigned_abs(), COUNT)
        .by("DEFAULT_PAGE_SIZE")
        .add("max_page_size", "Entries of a page at most", pages.max_size.unsigned_abs(), COUNT)
        .by("MAX_PAGE_SIZE")
        .add("page_depth", "Entry up to which pages have numbers", MAX_PAGE_DEPTH.unsigned_abs(), COUNT)
        .add("bulk", "Runs that one request of /runs/bulk changes", bulk::MAX_RUNS.unsigned_abs(), COUNT);
    all.group("streams")
        .add("process", "Event streams of a process, and as many requests that wait", MAX_WATCHERS, COUNT)
        .add("organization", "Those of an organisation", MAX_WATCHERS_OF_ORGANIZATION, COUNT)
        .add("caller", "Those of a caller", MAX_WATCHERS_OF_CALLER, COUNT);
    all.group("organization");
    for (what, name, description, setting) in [
        (Countable::Agents, "agents", "Agents", "QUOTA_AGENTS"),
        (Countable::Workflows, "workflows", "Workflows", "QUOTA_WORKFLOWS"),
        (Countable::ApiKeys, "api_keys", "API keys", "QUOTA_API_KEYS"),
        (Countable::QueuedRuns, "queued_runs", "Runs that have not begun", "QUOTA_QUEUED_RUNS"),
    ] {
        let most = own.or(config.quotas).of(what).map(|most| u64::from(most.unsigned_abs()));
        all.add(name, description, most, COUNT);
        if own.of(what).is_none() {
            all.by(setting);
        }
    }
    all.add("triggers", "Triggers", MAX_TRIGGERS.unsigned_abs(), COUNT).add(
        "webhooks",
        "Webhooks",
        MAX_WEBHOOKS.unsigned_abs(),
        COUNT,
    );
    all.group("runs")
        .add("duration", "Duration of a run, without waiting", millis(executor.max_run_duration), MILLIS)
        .by("MAX_WORKFLOW_DURATION_MS")
        .add("steps", "Attempts of steps of a run", run.steps, COUNT)
        .by("MAX_RUN_STEPS")
        .add("branches", "Branches and iterations of a run", run.branches, COUNT)
        .by("MAX_RUN_BRANCHES")
        .add("bytes", "Inputs and outputs of the steps of a run", run.bytes, BYTES)
        .by("MAX_RUN_BYTES")
        .add("memory", "Outputs that a run keeps for later steps", run.memory_bytes, BYTES)
        .by("MAX_RUN_MEMORY_BYTES")
        .add("sub_runs", "Runs that the steps of a run begin", u64::from(run.sub_runs.unsigned_abs()), COUNT)
        .by("MAX_SUB_RUNS")
        .add("at_a_time", "Runs that an executor drives", executor.max_runs as u64, COUNT)
        .by("MAX_CONCURRENT_EXECUTIONS")
        .add("backlog", "Messages that wait for Kafka before runs are refused", kafka.max_backlog.unsigned_abs(), COUNT)
        .by("MAX_BACKLOG")
        .add("kafka_triggers", "Kafka triggers of all organisations", kafka.triggers.most.unsigned_abs(), COUNT)
        .by("MAX_KAFKA_TRIGGERS")
        .add("idempotency", "Time for which a repeated key gets the first answer", keys_ms, MILLIS)
        .by("IDEMPOTENCY_KEY_TTL_HOURS");
    all.items
}

const BYTES: &str = "bytes";
const COUNT: &str = "count";
const MILLIS: &str = "milliseconds";
const PER_MINUTE: &str = "per_minute";

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Limits, as they are put together.
#[derive(Default)]
struct List {
    group: &'static str,
    items: Vec<SystemLimit>,
}

impl List {
    /// Begins a group.
    fn group(&mut self, group: &'static str) -> &mut Self {
        self.group = group;
        self
    }

    /// Adds a limit.
    fn add(
        &mut self,
        name: &'static str,
        description: &'static str,
        value: impl Into<Option<u64>>,
        unit: &'static str,
    ) -> &mut Self {
        let group = self.group;
        self.items.push(SystemLimit { group, name, description, value: value.into(), unit, setting: None });
        self
    }

    /// Names the setting of the limit that was added last.
    fn by(&mut self, setting: &'static str) -> &mut Self {
        if let Some(last) = self.items.last_mut() {
            last.setting = Some(setting);
        }
        self
    }
}
