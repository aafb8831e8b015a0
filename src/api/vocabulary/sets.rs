//! Closed sets of values in the OpenAPI document, each a named schema. Where the code has an enum, the names come
//! from it.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type, extensions::Extensions},
};

use crate::{a2a, access, agent, breaker, db::callbacks, executor, run, trigger, usage, webhook, workflow};

/// Schema with its name.
type Named = (String, RefOr<Schema>);

/// Defines a type for each set, for `value_type` and parameters, and `all`.
macro_rules! sets {
    ($($(#[doc = $doc:literal])+ $name:ident = $values:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub struct $name;

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    closed_set(stringify!($name), concat!($($doc, "\n"),+).trim(), &$values)
                }
            }

            impl ToSchema for $name {
                fn name() -> Cow<'static, str> {
                    stringify!($name).into()
                }
            }
        )+

        /// All sets by name.
        pub fn all() -> Vec<Named> {
            vec![$((stringify!($name).to_owned(), $name::schema())),+]
        }
    };
}

sets! {
    /// Whether an agent may be used.
    AgentStatus = agent::AgentStatus::ALL.map(agent::AgentStatus::as_str);
    /// Protocol of an agent: A2A (JSON-RPC), plain HTTP (JSON in, JSON out), OpenAI's chat completions, the Responses API
    /// of OpenAI and Open Responses, or a tool of an MCP server.
    AgentKind = agent::AgentKind::ALL.map(agent::AgentKind::as_str);
    /// Kind of credentials that an agent requires.
    AuthType = agent::AuthType::ALL.map(agent::AuthType::as_str);
    /// Version in which an agent answered: of the A2A protocol, or of MCP.
    ProtocolVersion = ["0.3", "1.0", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
    /// Revision of MCP to speak with a server.
    McpProtocol = ["auto", "2026-07-28", "2025-11-25", "2025-06-18"];
    /// Version of the A2A protocol to speak with an agent.
    A2aProtocol = ["auto", "1.0", "0.3"];
    /// Whether an agent's card is signed by one of the keys in its `config`.
    CardSignature = a2a::Signature::ALL.map(a2a::Signature::as_str);
    /// Result of an agent's health check.
    AgentHealthStatus = ["healthy", "unhealthy"];
    /// `closed`: the agent is called; `open`: it is not called; `half_open`: a few calls test whether it works again.
    CircuitBreakerState = breaker::State::ALL.map(breaker::State::as_str);
    /// Limit of a run.
    RunLimit = usage::LimitKind::ALL.map(usage::LimitKind::as_str);
    /// Whether a definition may be executed.
    WorkflowStatus = workflow::WorkflowStatus::ALL.map(workflow::WorkflowStatus::as_str);
    /// Versions in the list of workflows: all of them, or the newest one of each name.
    ListedVersions = ["all", "newest"];
    /// Status that a caller may set on an agent or a workflow; `deleted` is set by deleting.
    SettableStatus = ["active", "inactive"];
    /// What happens to a run that misses its deadline, besides the event.
    DeadlineAction = [workflow::DeadlineAction::Notify, workflow::DeadlineAction::Cancel].map(workflow::DeadlineAction::as_str);
    /// Type of a step that calls an agent.
    AgentStepType = ["agent"];
    /// Type of a step that runs steps at the same time.
    ParallelStepType = ["parallel"];
    /// Type of a step that runs one of two steps.
    ConditionalStepType = ["conditional"];
    /// Type of a step that runs steps for each element of an array.
    LoopStepType = ["loop"];
    /// Type of a step that runs branches at the same time.
    ForkJoinStepType = ["fork_join"];
    /// Type of a step that waits for a time.
    WaitStepType = ["wait"];
    /// Type of a step that waits for an answer.
    CallbackStepType = ["callback"];
    /// Type of a step that runs another workflow.
    SubWorkflowStepType = ["sub_workflow"];
    /// Whether the iterations of a loop run one after the other or at the same time.
    ExecutionMode = ["sequential", "parallel"];
    /// Effect of a failed iteration: the loop fails at once, the failure is ignored, or it is recorded and the loop
    /// fails at its end.
    OnError = ["stop", "continue", "collect"];
    /// Number of branches that have to succeed: every one, one, more than half, or `n_required`.
    JoinPolicy = ["all", "any", "majority", "n_of_m"];
    /// Effect of a rejection: the step fails, or it completes with `approved: false` in its output.
    OnReject = ["fail", "continue"];
    /// Effect of a question of the agent: the step fails, the run waits for an answer, or the step completes with the
    /// question.
    OnQuestion = workflow::OnQuestion::ALL.map(workflow::OnQuestion::as_str);
    /// What an agent that asks needs: input, or an authorisation that somebody gives it elsewhere.
    QuestionState = ["input-required", "auth-required"];
    /// State of a callback in the list of all runs: it can be answered, or it was answered.
    CallbackState = callbacks::State::ALL.map(callbacks::State::as_str);
    /// Kind of a trigger: `schedule` fires at times, `kafka` by records of a topic, `webhook` by deliveries of other services.
    TriggerKind = trigger::TriggerKind::ALL.map(trigger::TriggerKind::as_str);
    /// Why a trigger fires: what its kind waits for has happened, a caller has asked for it, or a backfill makes up for it.
    FiringCause = ["event", "manual", "backfill"];
    /// `failing`: the last firing has failed to start a run or was dropped, its run has failed, or the topic cannot be read;
    /// `healthy`: none of these; `unknown`: it has not fired yet.
    TriggerHealthStatus = ["healthy", "failing", "unknown"];
    /// State of a backfill.
    BackfillState = ["running", "completed", "stopped"];
    /// State of a run.
    RunStatus = run::RunStatus::ALL.map(run::RunStatus::as_str);
    /// State of an attempt of a step. `PENDING`: it waits for a time, an answer or another run.
    StepStatus = ["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"];
    /// Type of a step.
    StepType = workflow::StepKind::ALL.map(workflow::StepKind::as_str);
    /// How a tested run ended. `WAITING`: it waits for an answer that no mock gives; `STOPPED`: it reached a limit of
    /// tests.
    TestStatus = ["COMPLETED", "FAILED", "WAITING", "STOPPED"];
    /// Answer to a step without a mock: `echo` is its input, `null` is null, and with `fail` its attempts fail.
    MissingMock = executor::MissingMock::ALL.map(executor::MissingMock::as_str);
    /// Source of the answer to a tested step. `echo`, `null` and `missing`: there was no mock; `run`: the sub-workflow
    /// ran; `recording`: an earlier run.
    AnswerSource =
        ["output", "template", "expression", "failure", "echo", "null", "missing", "run", "recording"];
    /// Code of a failed call of an agent.
    CallErrorCode = [
        "circuit_open", "not_allowed", "unusable", "network", "timeout", "http_4xx", "http_5xx", "invalid", "refused",
        "out_of_memory",
    ];
    /// How a replayed run compares to the recorded one.
    ReplayResult = ["same", "changed", "skipped"];
    /// Reason why a run was not replayed: its attempts are too large, nothing was recorded, or the time was over.
    SkippedReplay = ["too_large", "no_recording", "time"];
    /// Difference of a step in a replayed run. `added`: only the replay executed it; `removed`: only the run did.
    StepChangeKind = ["added", "removed", "status", "input", "output"];
    /// Kind of an entry of a run's log.
    RunEventKind = [
        "run.created", "run.dispatched", "run.started", "run.taken_over", "run.completed", "run.failed",
        "run.cancelled", "run.retried", "run.paused", "run.resumed", "run.queued", "run.admitted", "run.changed", "attempt.started",
        "attempt.waiting", "attempt.completed", "attempt.failed", "attempt.skipped", "attempt.changed",
        "callback.answered", "agent.answered", "agent.failed",
    ];
    /// What happens to a run for which the concurrency of its workflow has no room. `queue`: it waits; `skip`: it ends at
    /// once as cancelled; `cancel_running`: the oldest runs of the key are cancelled.
    ConcurrencyPolicy = workflow::ConcurrencyPolicy::ALL.map(workflow::ConcurrencyPolicy::as_str);
    /// What happens to a run that comes too early for the throttle of its workflow. `queue`: it waits; `drop`: it ends at
    /// once as cancelled.
    ThrottlePolicy = workflow::ThrottlePolicy::ALL.map(workflow::ThrottlePolicy::as_str);
    /// Stage of flow control. A run passes them in this order.
    FlowStage = workflow::FlowStage::ALL.map(workflow::FlowStage::as_str);
    /// Why a run has not started.
    WaitingReason = ["concurrency", "throttle", "debounce", "paused"];
    /// Decision of a stage of flow control. `arrived`: there is none yet; `queued`: the run waits; `admitted`: it may run;
    /// `skipped` (concurrency), `dropped` (throttle), `replaced`: it was cancelled.
    FlowState = ["arrived", "queued", "admitted", "skipped", "dropped", "replaced"];
    /// Severity of an entry of a run's log.
    LogLevel = run::Level::ALL.map(run::Level::as_str);
    /// Sort key of a list of runs.
    RunSortKey = ["created_at", "updated_at", "completed_at", "status"];
    /// Sort key of a list of workflows.
    WorkflowSortKey = ["created_at", "updated_at", "name", "version"];
    /// Sort order of a list.
    SortOrder = ["asc", "desc"];
    /// Action on many runs.
    BulkAction = ["cancel", "pause", "resume", "retry"];
    /// Length of the spans of time in which runs are counted.
    CountInterval = ["hour", "day"];
    /// Format of a graph.
    GraphFormat = ["svg", "mermaid", "json"];
    /// Format of a document of definitions.
    DefinitionsFormat = ["workflow-api/definitions"];
    /// Role of a caller.
    Role = access::Role::ALL.map(access::Role::as_str);
    /// Kind of credentials of a caller.
    Credential = ["api_key", "token"];
    /// Permission: roles consist of permissions, and an API key can be restricted to some of them.
    Permission = access::Permission::ALL.map(access::Permission::as_str);
    /// Authentication scheme of a token.
    TokenType = ["Bearer"];
    /// `suspended`: its API keys and tokens are refused. Its runs continue.
    OrganizationStatus = ["active", "suspended"];
    /// Kind of object of an audit entry; `request` for a denied attempt.
    AuditEntityType = ["agent", "workflow", "run", "trigger", "api_key", "organization", "dead_letter", "webhook", "session", "saved_view", "request"];
    /// Whether the action was performed or denied.
    AuditOutcome = ["success", "denied"];
    /// Format of an export of audit entries.
    AuditExportFormat = ["ndjson", "csv"];
    /// Kind of a problem in the audit trail. `entry_added`: an entry was written without the service; `hash_differs`:
    /// the hash is not the given one.
    AuditProblemKind = ["entry_changed", "entry_missing", "entry_added", "seal_changed", "seal_missing", "hash_differs"];
    /// Reason why a record could not be used.
    DeadLetterReason = [
        "empty", "invalid_json", "invalid_message", "unknown_kind", "invalid_content", "invalid_plan", "too_large",
        "refused_by_database", "record_unreadable", "expression_failed", "workflow_not_found", "workflow_not_active",
        "input_not_resolved", "input_invalid", "chain_too_long",
    ];
    /// `open`: not decided yet. `redriving`: about to be sent again. `redriven`, `discarded`: final.
    DeadLetterStatus = ["open", "redriving", "redriven", "discarded"];
    /// What a delivery contains: the event, or also the input and the output of its run.
    WebhookPayload = webhook::Payload::ALL.map(webhook::Payload::as_str);
    /// Order of deliveries: none, or one after the other for each run.
    WebhookOrdering = webhook::Ordering::ALL.map(webhook::Ordering::as_str);
    /// Way of signing, by Standard Webhooks.
    WebhookSignature = webhook::secret::SignatureKind::ALL.map(webhook::secret::SignatureKind::as_str);
    /// `healthy`: deliveries arrive. `failing`: the last four attempts or more have failed. `disabled`: nothing is sent.
    WebhookHealth = ["healthy", "failing", "disabled"];
    /// Why a webhook is disabled: by a user, because its receiver answered 410, or because none of its deliveries arrived
    /// for a long time.
    WebhookDisabledReason = ["by_user", "gone", "no_success"];
    /// What a recovery sends again: what has failed, what was never sent, or all events.
    WebhookReplayKind = webhook::Which::ALL.map(webhook::Which::as_str);
    /// What is sent when a webhook is enabled.
    WebhookReplayChoice = ["none", "failed", "missing"];
    /// `pending`: to be sent. `held`: the webhook was disabled when the event came; a recovery sends it.
    WebhookDeliveryState = ["pending", "held", "delivered", "failed"];
    /// How an attempt ended. `status`: by an answer other than 2xx.
    WebhookAttemptOutcome = ["success", "status", "timeout", "network", "not_allowed"];
    /// Encoding of bytes: text if they are UTF-8, otherwise base64.
    OctetEncoding = ["text", "base64"];
    /// Role of a process: it serves the API, or it executes runs.
    ProcessRole = ["serve", "executor"];
    /// What a limit belongs to. `rates` and `streams` are those of one process.
    LimitGroup = ["requests", "rates", "lists", "streams", "organization", "runs"];
    /// Unit of a limit.
    LimitUnit = ["bytes", "count", "milliseconds", "per_minute"];
    /// Status of the service.
    ServiceStatus = ["operational"];
    /// Status of a running process.
    HealthStatus = ["healthy"];
    /// `degraded`: ready, but Kafka is unavailable; runs are accepted and dispatched later.
    ReadinessStatus = ["ready", "degraded", "not_ready"];
    /// `connected` or `disconnected` for `database` and `kafka`, `current` or `outdated` for `schema`, `stopping` for
    /// `process`.
    CheckStatus = ["connected", "disconnected", "current", "outdated", "stopping"];
}

/// Schema of a set. Some generators write a constant for each value, in one name space for all sets (Go, by
/// openapi-generator), so each value gets a name that contains that of its set.
fn closed_set(name: &str, description: &str, values: &[&str]) -> RefOr<Schema> {
    let constants: Vec<String> = values.iter().map(|value| constant(name, value)).collect();
    let object = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .enum_values(Some(values.iter().copied()))
        .extensions(Some(Extensions::builder().add("x-enum-varnames", constants).build()));
    Schema::from(object).into()
}

/// Name of a constant: `RUN_STATUS_PENDING` for `RunStatus` and `PENDING`.
fn constant(set: &str, value: &str) -> String {
    let mut constant = String::new();
    for letter in set.chars() {
        if letter.is_ascii_uppercase() && !constant.is_empty() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    let value =
        value.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter.to_ascii_uppercase() } else { '_' });
    constant.push('_');
    constant.extend(value);
    constant
}
