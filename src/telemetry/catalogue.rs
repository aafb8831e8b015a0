//! Catalogue of metrics: each name with its type, unit, text and the values of its closed labels.
//!
//! Counters of a process exist from its start with the value 0, so that a rate includes the first occurrence.
//! `docs/metrics.md` has the same names; a test compares the two.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{Label, SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};

use crate::{access::OrganizationId, run::RunStatus};

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Value that only grows.
    Counter,
    /// Value that goes up and down. One that is computed on demand has no value before the first request.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// Definition of a metric.
#[derive(Debug)]
pub struct Metric {
    /// Name of the metric.
    pub name: &'static str,
    /// Type of the metric.
    pub kind: Kind,
    /// Help text.
    pub help: &'static str,
    /// Label with its possible values; `None` for no label, an empty list for values that are not known in advance.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// Label of an open set as well, such as `organization_id`, with the value that it has at the start.
    pub open_label: Option<(&'static str, &'static str)>,
}

const fn metric(kind: Kind, name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, help, label: None, open_label: None }
}

impl Metric {
    const fn by(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Self { label: Some((label, values)), ..self }
    }

    const fn by_organization(self) -> Self {
        Self { open_label: Some(("organization_id", OrganizationId::DEFAULT)), ..self }
    }

    const fn by_workflow(self) -> Self {
        Self { open_label: Some(("workflow_id", OTHER)), ..self }
    }

    const fn by_agent(self) -> Self {
        Self { open_label: Some(("agent", OTHER)), ..self }
    }
}

use Kind::{Counter, Gauge, Histogram};

/// Value of an open label beyond its maximum number of values.
const OTHER: &str = "(other)";

/// Ends of a run that an executor writes.
const ENDS: &[&str] = &["COMPLETED", "FAILED"];
/// `success`, and the names of `executor::agent_call::CallErrorKind`.
const OUTCOMES: &[&str] = &[
    "success",
    "circuit_open",
    "not_allowed",
    "unusable",
    "network",
    "timeout",
    "http_4xx",
    "http_5xx",
    "invalid",
    "refused",
    "out_of_memory",
];

/// Errors after which another agent is called: those of `OUTCOMES` that it may mend, and an agent that is not there.
const FALLBACK_REASONS: &[&str] =
    &["circuit_open", "not_allowed", "unusable", "network", "timeout", "http_4xx", "http_5xx", "invalid", "not_found"];

/// Causes of a failed run: those of a failed call, and the names of `executor::error_code`.
const ERROR_CODES: &[&str] = &[
    "circuit_open",
    "not_allowed",
    "unusable",
    "network",
    "timeout",
    "http_4xx",
    "http_5xx",
    "invalid",
    "refused",
    "out_of_memory",
    "step_failed",
    "run_timeout",
    "run_budget",
    "budget_exceeded",
    "invalid_plan",
    "takeovers",
    "refused_by_database",
    "statement_timeout",
    "internal_error",
];

/// Codes of records that no executor can process: those of `kafka::message::MessageError` and of `executor::request`.
const DEAD_LETTERS: &[&str] = &[
    "empty",
    "invalid_json",
    "invalid_message",
    "unknown_kind",
    "too_large",
    "invalid_content",
    "invalid_plan",
    "refused_by_database",
];

/// Changes of a run's status that the API writes, as labels.
pub const API_TRANSITIONS: &[(&str, &str)] = &[
    ("NONE", "PENDING"),
    ("PENDING", "CANCELLED"),
    ("RUNNING", "CANCELLED"),
    ("PENDING", "FAILED"),
    ("FAILED", "PENDING"),
    ("CANCELLED", "PENDING"),
];
/// Changes of a run's status that an executor writes.
pub const EXECUTOR_TRANSITIONS: &[(&str, &str)] =
    &[("NONE", "PENDING"), ("PENDING", "RUNNING"), ("RUNNING", "COMPLETED"), ("RUNNING", "FAILED")];

/// Outcomes of a firing: a run, those of a schedule without a run, and the reasons of `actions::fire_trigger`.
const FIRINGS: &[&str] = &[
    "started",
    "present",
    "missed",
    "overlap_skipped",
    "buffer_dropped",
    "workflow_not_found",
    "workflow_not_active",
    "input_not_resolved",
    "input_invalid",
    "too_large",
    "quota_exceeded",
    "chain_too_long",
    "record_unreadable",
    "expression_failed",
    "refused_by_database",
];
/// Decisions of flow control.
const FLOW_DECISIONS: &[&str] = &["admitted", "queued", "skipped", "dropped", "replaced"];

/// Tables that `db::retention` deletes from.
const RETAINED: &[&str] = &[
    "workflow_runs",
    "step_executions",
    "run_events",
    "step_waits",
    "run_wakes",
    "idempotency_keys",
    "outbox",
    "call_usage",
    "run_usage",
];

/// Metrics of `serve`.
pub const API: &[Metric] = &[
    metric(Gauge, "api_info", "Version of the API, as a label").by("version", &[]),
    metric(Gauge, "api_uptime_seconds", "Time since the start of the process"),
    metric(Counter, "http_requests_total", "Answered requests by method, route and status").by("endpoint", &[]),
    metric(Histogram, "http_request_latency_seconds", "Time from request to answer by method and route")
        .by("endpoint", &[]),
    metric(Gauge, "http_requests_active", "Requests that are being answered"),
    metric(Counter, "requests_refused_total", "Requests that a limit has refused, by limit").by(
        "reason",
        &[
            "overload",
            "too_many_concurrent_requests",
            "principal",
            "address",
            "failed_auth",
            "too_many_request_bytes",
            "too_many_response_bytes",
            "too_many_checks",
            "too_many_streams",
        ],
    ),
    metric(Counter, "workflow_executions_total", "Runs by the status that they have reached, and by workflow")
        .by("status", &["PENDING", "CANCELLED", "FAILED"])
        .by_workflow(),
    metric(Counter, "workflow_state_transition_total", "Changes of the status of runs; NONE before a run exists")
        .by("from_state", &[]),
    metric(Counter, "workflow_error_total", "Runs that failed, by cause")
        .by("error_code", &["dispatch_failed", "message_too_large"]),
    metric(Counter, "organization_runs_started_total", "Runs that were accepted, by organisation").by_organization(),
    metric(Counter, "trigger_firings_total", "Firings of triggers, by outcome").by("outcome", FIRINGS),
    metric(Counter, "workflow_execution_failures_total", "Accepted runs that could not be dispatched"),
    metric(
        Gauge,
        "workflow_runs",
        "Runs that have not ended: waiting for an executor, held by flow control, running, parked, or paused; up to 100000",
    )
    .by("state", &[]),
    metric(Gauge, "flow_control_held_runs", "Runs that the flow control of their workflow holds, by stage").by("stage", &[]),
    metric(Counter, "flow_control_runs_total", "Runs that flow control has decided on, by decision")
        .by("decision", FLOW_DECISIONS),
    metric(Gauge, "workflow_instances_active", "Runs that have not ended"),
    metric(Gauge, "workflow_runs_oldest_waiting_seconds", "Time for which the oldest run has waited for an executor"),
    metric(Histogram, "run_writer_batch_size", "Runs written by one statement"),
    metric(Histogram, "run_reader_batch_size", "Requests for a run that one statement answered"),
    metric(Gauge, "outbox_events_limit", "Messages that may wait for Kafka before new runs are refused"),
    metric(Gauge, "outbox_events_pending", "Messages that Kafka has not acknowledged yet"),
    metric(Gauge, "outbox_oldest_age_seconds", "Age of the oldest of them"),
    metric(Counter, "outbox_messages_published_total", "Messages that Kafka has acknowledged"),
    metric(Counter, "kafka_trigger_records_total", "Records of Kafka triggers, by what has become of them")
        .by("outcome", &["started", "present", "filtered", "dead_letter"]),
    metric(Gauge, "kafka_trigger_lag", "Records that wait in the partitions of this process, by trigger").by("trigger_id", &[]),
    metric(Counter, "webhook_deliveries_received_total", "Deliveries to webhook triggers, by what has become of them")
        .by(
            "outcome",
            &[
                "started",
                "repeated",
                "filtered",
                "greeting",
                "refused",
                "not_found",
                "paused",
                "unreadable",
                "failed_to_start",
                "error",
            ],
        ),
    metric(Gauge, "circuit_breakers", "Circuit breakers that are open or half open").by("state", &[]),
    metric(
        Counter,
        "retention_deleted_rows_total",
        "Rows that were deleted because the retention of their runs is over",
    )
    .by("table", RETAINED),
    metric(Histogram, "retention_batch_seconds", "Time to delete one batch of runs"),
    metric(
        Gauge,
        "retention_lag_seconds",
        "Time since the end of the retention of the oldest run that was not checked yet",
    ),
    metric(Counter, "retention_archived_runs_total", "Runs that were written to the archive"),
    metric(Counter, "retention_archived_bytes_total", "Compressed bytes that were written to the archive"),
    metric(Counter, "retention_archive_failures_total", "Batches that could not be archived and were not deleted"),
    metric(Gauge, "retention_archive_failing", "1 while the archive cannot be written, and nothing is deleted"),
    metric(Gauge, "events_pending", "Events that a reader has not seen, of 100000 at most")
        .by("reader", &["topic", "webhooks"]),
    metric(Gauge, "events_pending_oldest_age_seconds", "Age of the oldest of them")
        .by("reader", &["topic", "webhooks"]),
    metric(Counter, "events_published_total", "Events that Kafka has acknowledged"),
    metric(Counter, "events_refused_total", "Events that Kafka refuses for good"),
    metric(Counter, "run_deadlines_missed_total", "Runs that have missed their deadline"),
    metric(Counter, "audit_denied_attempts_lost_total", "Denied attempts that are only counted in the audit trail"),
    metric(Gauge, "audit_unsealed_entries", "Entries of the audit trail without a seal, of 10000 batches at most"),
    metric(Gauge, "audit_unsealed_oldest_age_seconds", "Age of the oldest of them"),
    metric(Counter, "audit_seal_failures_total", "Failed attempts to seal entries of the audit trail"),
    metric(Gauge, "workflow_api_invariant_violations", "Violations of an invariant of the database")
        .by("invariant", &[]),
    metric(Gauge, "workflow_api_invariants_check_success", "1 if the last recorded check could check all invariants"),
    metric(Gauge, "workflow_api_invariants_check_timestamp_seconds", "Time of the last recorded check"),
];

/// Metrics of `executor`.
pub const EXECUTOR: &[Metric] = &[
    metric(Gauge, "executor_active_runs", "Runs that this executor drives"),
    metric(Gauge, "executor_max_runs", "Runs that this executor may drive at a time"),
    metric(Counter, "workflow_executions_total", "Runs by the status that they have reached, and by workflow")
        .by("status", ENDS)
        .by_workflow(),
    metric(Counter, "workflow_state_transition_total", "Changes of the status of runs; NONE before a run exists")
        .by("from_state", &[]),
    metric(Counter, "workflow_error_total", "Runs that failed, by cause").by("error_code", ERROR_CODES),
    metric(Counter, "executor_runs_total", "Runs that this executor ended, by status").by("status", ENDS),
    metric(Counter, "organization_runs_ended_total", "Runs that this executor ended, by status and organisation")
        .by("status", ENDS)
        .by_organization(),
    metric(
        Histogram,
        "workflow_duration_seconds",
        "Time from the first claim of a run to its end, without parked time",
    )
    .by("status", ENDS)
    .by_workflow(),
    metric(Counter, "executor_runs_parked_total", "Runs that were parked"),
    metric(Counter, "executor_runs_taken_over_total", "Runs that were taken over from a lost executor"),
    metric(Histogram, "executor_step_duration_seconds", "Duration of attempts of agent steps by workflow")
        .by("status", ENDS)
        .by_workflow(),
    metric(Counter, "executor_agent_requests_total", "Attempts of agent steps by outcome and agent")
        .by("outcome", OUTCOMES)
        .by_agent(),
    metric(
        Counter,
        "executor_agent_fallbacks_total",
        "Steps that went on with a fallback of an agent, by reason and by the agent that was left",
    )
    .by("reason", FALLBACK_REASONS)
    .by_agent(),
    metric(Histogram, "executor_agent_call_seconds", "Duration of calls of agents").by_agent(),
    metric(Counter, "executor_agent_tokens_total", "Tokens of calls, as the answers of agents say")
        .by("kind", &["prompt", "completion"]),
    metric(
        Counter,
        "executor_agent_cost_billionths_total",
        "Cost of calls by agent, in billionths of the unit of prices",
    )
    .by_agent(),
    metric(Counter, "workflow_tokens_total", "Tokens of calls by workflow")
        .by("kind", &["input", "output"])
        .by_workflow(),
    metric(Counter, "workflow_cost_billionths_total", "Cost of calls by workflow, in billionths of the unit of prices")
        .by_workflow(),
    metric(Counter, "executor_budget_exceeded_total", "Runs that failed because of a limit of their own, by the limit")
        .by("limit", &["tokens", "cost", "calls", "steps", "seconds"]),
    metric(Counter, "executor_circuit_breaker_transitions_total", "Changes of circuit breakers by new state")
        .by("state", &["closed", "open", "half_open"])
        .by_agent(),
    metric(Histogram, "executor_journal_batch_size", "Writes of runs in one statement"),
    metric(Gauge, "executor_journal_waiting", "Writes of runs that are not committed yet"),
    metric(Counter, "executor_journal_failures_total", "Statements that write runs and have failed, by cause")
        .by("cause", &["statement_timeout", "unavailable"]),
    metric(Gauge, "executor_memory_bytes", "Bytes of inputs and outputs of all runs that are held in memory"),
    metric(Gauge, "executor_memory_max_bytes", "Limit of these bytes"),
    metric(Counter, "executor_monitoring_updates_total", "Monitoring updates that Kafka has acknowledged"),
    metric(Counter, "executor_monitoring_updates_dropped_total", "Monitoring updates lost because too many wait"),
    metric(Gauge, "executor_monitoring_backlog", "Statements whose monitoring updates Kafka has not acknowledged yet"),
    metric(
        Gauge,
        "kafka_consumer_lag",
        "Requests in the partitions of this executor that are not processed yet, by topic and partition",
    )
    .by("topic", &[]),
    metric(Counter, "executor_dead_letters_total", "Records that no executor can process, by reason")
        .by("reason", DEAD_LETTERS),
];

/// Metrics of both.
pub const SHARED: &[Metric] = &[
    metric(Gauge, "build_info", "1; version and revision of the program, as labels").by("version", &[]),
    metric(Gauge, "service_ready", "1 while /health/ready is answered with 200"),
    metric(Gauge, "service_check", "1 while this check of /health/ready succeeds").by("check", &[]),
    metric(Gauge, "runtime_workers", "Worker threads of the asynchronous runtime"),
    metric(Gauge, "runtime_tasks", "Tasks of the asynchronous runtime that have not ended"),
    metric(Gauge, "runtime_queued_tasks", "Tasks that are ready and wait for any worker thread"),
    metric(Gauge, "db_pool_size", "Connections of the pool"),
    metric(Gauge, "db_pool_idle", "Connections of the pool that are idle"),
    metric(Gauge, "db_pool_in_use", "Connections of the pool that are in use"),
    metric(Gauge, "db_pool_waiting", "Callers that wait for a connection"),
    metric(Gauge, "db_pool_max", "Connections that the pool may open"),
    metric(Counter, "db_pool_acquired_total", "Connections that callers got from the pool"),
    metric(Histogram, "db_pool_wait_seconds", "Time for which callers waited for a connection, if none was ready"),
    metric(Counter, "db_pool_timeouts_total", "Callers that got no connection in time"),
    metric(Counter, "db_pool_held_too_long_total", "Connections that were held for too long"),
    metric(
        Gauge,
        "dead_letters_open",
        "Records that no executor can process and that were neither redriven nor discarded",
    ),
    metric(Counter, "dead_letters_deleted_total", "Dead letters that were deleted, by status and reason")
        .by("status", &[]),
    metric(Gauge, "kafka_connected", "1 while a broker answers, by client").by("client", &[]),
    metric(Gauge, "kafka_throttle_seconds", "Longest delay by a quota of Kafka in the last 15 s, by client")
        .by("client", &[]),
    metric(
        Counter,
        "kafka_send_failures_total",
        "Messages that Kafka did not take, each time they were sent, by reason",
    )
    .by("reason", &["denied", "not_enough_replicas", "too_large", "invalid", "unknown_topic", "other"]),
    metric(
        Counter,
        "kafka_clients_renewed_total",
        "Clients replaced because no broker answered them, or they sent nothing, by client",
    )
    .by("client", &[]),
];

/// Metrics of outgoing webhooks, of the API.
pub const WEBHOOKS: &[Metric] = &[
    metric(Counter, "webhook_attempts_total", "Attempts to send a delivery of a webhook, by outcome")
        .by("outcome", &["success", "status", "timeout", "network", "not_allowed"]),
    metric(Counter, "webhook_deliveries_total", "Deliveries of webhooks that have ended, by outcome")
        .by("outcome", &["delivered", "failed"]),
    metric(Counter, "webhooks_given_up_total", "Webhooks that this process has disabled because of their failures"),
    metric(Gauge, "webhooks", "Webhooks, by state; failing ones are enabled too").by("state", &[]),
    metric(Gauge, "webhook_disabled", "1 while a webhook is disabled because of its failures, by webhook")
        .by("webhook_id", &[]),
    metric(Gauge, "webhook_oldest_due_seconds", "Time since the oldest delivery of an enabled webhook was due"),
];

/// Metrics of the export of traces; they exist if it is on.
pub const TRACES: &[Metric] = &[
    metric(Counter, "trace_spans_exported_total", "Spans that the collector has taken"),
    metric(Counter, "trace_spans_dropped_total", "Spans that were not exported, by reason")
        .by("reason", &["queue_full", "export_failed"]),
];

/// Metrics of the reads from a replica; they exist if there is one.
pub const REPLICA: &[Metric] = &[
    metric(
        Counter,
        "db_replica_reads_total",
        "Reads of lists and exports, by the server that was used, or why the primary was",
    )
    .by("outcome", &["replica", "repeated", "behind", "busy", "unavailable"]),
    metric(Gauge, "db_replica_used", "1 while lists and exports are read from the replica"),
    metric(
        Gauge,
        "db_replica_lag_bytes",
        "Bytes of the write-ahead log that the replica had not replayed when last asked",
    ),
];

/// Metrics of the process, named as in Prometheus's client libraries.
pub const PROCESS: &[Metric] = &[
    metric(Counter, "process_cpu_seconds_total", "User and system CPU time"),
    metric(Gauge, "process_open_fds", "Open file descriptors"),
    metric(Gauge, "process_max_fds", "Limit of open file descriptors"),
    metric(Gauge, "process_virtual_memory_bytes", "Virtual memory"),
    metric(Gauge, "process_virtual_memory_max_bytes", "Limit of virtual memory"),
    metric(Gauge, "process_resident_memory_bytes", "Resident memory"),
    metric(Gauge, "process_start_time_seconds", "Start of the process in seconds since 1970"),
    metric(Gauge, "process_threads", "Threads of the process"),
];

/// Names of the reference deployment and of earlier releases, each with the metric that replaces it.
pub const OLD_NAMES: &[(Metric, &str)] = &[
    (metric(Counter, "api_requests_total", "Old name, without labels: http_requests_total"), "http_requests_total"),
    (
        metric(Histogram, "api_request_duration_seconds", "Old name, without labels: http_request_latency_seconds"),
        "http_request_latency_seconds",
    ),
    // The name ends like that of a counter, so it is rendered without a type.
    (metric(Gauge, PENDING_BEFORE, "Old name: outbox_events_pending"), PENDING),
];

const PENDING_BEFORE: &str = "outbox_event_pending_total";
const PENDING: &str = "outbox_events_pending";

/// Describes the metrics and initialises the known series to 0.
pub fn register(metrics: &'static [Metric]) {
    for metric in metrics {
        describe(metric);
        let open = metric.open_label.map(|(label, value)| Label::from_static_parts(label, value));
        let label_sets: Vec<Vec<Label>> = match metric.label {
            None => vec![open.into_iter().collect()],
            Some((label, values)) => values
                .iter()
                .map(|value| [Label::from_static_parts(label, value)].into_iter().chain(open.clone()).collect())
                .collect(),
        };
        for labels in label_sets {
            match metric.kind {
                Counter => counter!(metric.name, labels).increment(0),
                Histogram => drop(histogram!(metric.name, labels)),
                Gauge => {}
            }
        }
    }
}

fn describe(metric: &Metric) {
    let unit = match metric.name {
        name if name.ends_with("_seconds") || name.ends_with("_seconds_total") => Unit::Seconds,
        name if name.ends_with("_bytes") => Unit::Bytes,
        _ => Unit::Count,
    };
    match metric.kind {
        Counter => describe_counter!(metric.name, unit, metric.help),
        Gauge => describe_gauge!(metric.name, unit, metric.help),
        Histogram => describe_histogram!(metric.name, unit, metric.help),
    }
}

/// Initialises the changes of a run's status to 0.
pub fn register_transitions(transitions: &[(&'static str, &'static str)]) {
    for (from, to) in transitions {
        count_transition(from, to, 0);
    }
}

/// Counts changes of the status of runs.
pub fn count_transition(from: &'static str, to: &'static str, runs: u64) {
    counter!("workflow_state_transition_total", "from_state" => from, "to_state" => to).increment(runs);
}

/// Counts a run that has reached a status.
pub fn count_execution(status: RunStatus, workflow_id: &str) {
    let workflow_id = WORKFLOWS.of(workflow_id);
    counter!("workflow_executions_total", "status" => status.as_str(), "workflow_id" => workflow_id).increment(1);
}

/// Registers the old names that are still counted under their own.
pub fn register_old_names() {
    for (metric, _) in OLD_NAMES.iter().filter(|(metric, _)| metric.name != PENDING_BEFORE) {
        register(std::slice::from_ref(metric));
    }
}

/// Lines of the old names that copy others in `rendered`.
pub fn old_names(rendered: &str) -> String {
    let value = rendered.lines().find_map(|line| line.strip_prefix(PENDING)?.strip_prefix(' '));
    value.map_or_else(String::new, |value| {
        format!("# HELP {PENDING_BEFORE} Old name: {PENDING}\n{PENDING_BEFORE} {value}\n")
    })
}

/// Label of an open set of values, such as ids. The number of its values in this process is bounded, and with it the
/// number of series: further values count as `(other)`.
pub struct OpenLabel {
    max: usize,
    known: Mutex<BTreeSet<Arc<str>>>,
}

impl OpenLabel {
    const fn new(max: usize) -> Self {
        Self { max, known: Mutex::new(BTreeSet::new()) }
    }

    /// The value, or `(other)`.
    pub fn of(&self, value: &str) -> SharedString {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(value) {
            return SharedString::from_shared(Arc::clone(known));
        }
        if known.len() >= self.max {
            return SharedString::const_str(OTHER);
        }
        let value: Arc<str> = value.into();
        known.insert(Arc::clone(&value));
        SharedString::from_shared(value)
    }
}

/// Organisations, by id.
pub static ORGANIZATIONS: OpenLabel = OpenLabel::new(200);
/// Workflows, by id. A histogram has 16 series for each of them.
pub static WORKFLOWS: OpenLabel = OpenLabel::new(100);
/// Kafka triggers, by id.
pub static KAFKA_TRIGGERS: OpenLabel = OpenLabel::new(100);
/// Agents, by name.
pub static AGENTS: OpenLabel = OpenLabel::new(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_label_has_a_bounded_number_of_values() {
        let label = OpenLabel::new(2);
        let values: Vec<SharedString> = ["a", "b", "c", "a"].iter().map(|value| label.of(value)).collect();
        assert_eq!(values.iter().map(|value| &**value).collect::<Vec<_>>(), ["a", "b", OTHER, "a"]);
    }
}
