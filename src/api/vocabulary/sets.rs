//! The closed sets of values in the OpenAPI document, each a named schema. Where the code has an enum, its names are
//! taken from there.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type, extensions::Extensions},
};

use crate::{access, agent, breaker, run, workflow};

/// A schema by name.
type Named = (String, RefOr<Schema>);

/// Makes a type of each set, for `value_type` and parameters, and `all`.
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
    /// How an agent is spoken to: A2A (JSON-RPC), plain HTTP (JSON in, JSON out), or OpenAI's chat completions.
    AgentKind = agent::AgentKind::ALL.map(agent::AgentKind::as_str);
    /// Which credentials an agent wants.
    AuthType = agent::AuthType::ALL.map(agent::AuthType::as_str);
    /// What a check of an agent found.
    AgentHealthStatus = ["healthy", "unhealthy"];
    /// `closed`: the agent is called; `open`: it is not; `half_open`: a few calls show whether it works again.
    CircuitBreakerState = breaker::State::ALL.map(breaker::State::as_str);
    /// Whether a definition may be executed.
    WorkflowStatus = workflow::WorkflowStatus::ALL.map(workflow::WorkflowStatus::as_str);
    /// What a caller may make the status of an agent or a workflow; `deleted` comes by deleting.
    SettableStatus = ["active", "inactive"];
    /// The type of a step that calls an agent.
    AgentStepType = ["agent"];
    /// The type of a step that runs steps at the same time.
    ParallelStepType = ["parallel"];
    /// The type of a step that runs one of two steps.
    ConditionalStepType = ["conditional"];
    /// The type of a step that runs steps for each element of an array.
    LoopStepType = ["loop"];
    /// The type of a step that runs branches at the same time.
    ForkJoinStepType = ["fork_join"];
    /// The type of a step that lets time pass.
    WaitStepType = ["wait"];
    /// The type of a step that waits for an answer.
    CallbackStepType = ["callback"];
    /// The type of a step that runs another workflow.
    SubWorkflowStepType = ["sub_workflow"];
    /// Whether the iterations of a loop run one after the other or at the same time.
    ExecutionMode = ["sequential", "parallel"];
    /// What the failure of an iteration means: the loop fails at once, it is passed over, or it is kept and the loop fails
    /// at its end.
    OnError = ["stop", "continue", "collect"];
    /// How many branches have to succeed: every one, one, more than half, or `n_required`.
    JoinPolicy = ["all", "any", "majority", "n_of_m"];
    /// What a rejection means: the step fails, or it completes with `approved: false` in its output.
    OnReject = ["fail", "continue"];
    /// The state of a run.
    RunStatus = run::RunStatus::ALL.map(run::RunStatus::as_str);
    /// The state of an attempt of a step. `PENDING`: it waits for a time, an answer or another run.
    StepStatus = ["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"];
    /// What an entry of a run's log tells of.
    RunEventKind = [
        "run.created", "run.dispatched", "run.started", "run.taken_over", "run.completed", "run.failed",
        "run.cancelled", "run.retried", "run.paused", "run.resumed", "run.changed", "attempt.started",
        "attempt.waiting", "attempt.completed", "attempt.failed", "attempt.skipped", "attempt.changed",
        "callback.answered", "agent.answered", "agent.failed",
    ];
    /// How much an entry of a run's log matters.
    LogLevel = run::Level::ALL.map(run::Level::as_str);
    /// What a list of runs can be sorted by.
    RunSortKey = ["created_at", "updated_at", "completed_at", "status"];
    /// What a list of workflows can be sorted by.
    WorkflowSortKey = ["created_at", "updated_at", "name", "version"];
    /// The order of a list.
    SortOrder = ["asc", "desc"];
    /// How a graph is drawn.
    GraphFormat = ["svg", "mermaid"];
    /// What a document of definitions says that it is.
    DefinitionsFormat = ["workflow-api/definitions"];
    /// What a caller is to the service.
    Role = access::Role::ALL.map(access::Role::as_str);
    /// What a role consists of, and what an API key may be narrowed to.
    Permission = access::Permission::ALL.map(access::Permission::as_str);
    /// How a token is sent.
    TokenType = ["Bearer"];
    /// `suspended`: its API keys and tokens let nobody in. Its runs go on.
    OrganizationStatus = ["active", "suspended"];
    /// What an audit entry is about; `request` of a denied attempt.
    AuditEntityType = ["agent", "workflow", "run", "api_key", "organization", "dead_letter", "request"];
    /// Whether something was done or denied.
    AuditOutcome = ["success", "denied"];
    /// How the entries of an export are written.
    AuditExportFormat = ["ndjson", "csv"];
    /// What is wrong with the audit trail. `entry_added`: past the service; `hash_differs`: from the one that was given.
    AuditProblemKind = ["entry_changed", "entry_missing", "entry_added", "seal_changed", "seal_missing", "hash_differs"];
    /// Why a record could not be used.
    DeadLetterReason = [
        "empty", "invalid_json", "invalid_message", "unknown_kind", "invalid_content", "invalid_plan", "too_large",
        "refused_by_database",
    ];
    /// `open`: nobody has decided. `redriving`: it is about to be sent again. `redriven`, `discarded`: done.
    DeadLetterStatus = ["open", "redriving", "redriven", "discarded"];
    /// How bytes are shown: as text if they are UTF-8, else in base64.
    OctetEncoding = ["text", "base64"];
    /// What the service says of itself.
    ServiceStatus = ["operational"];
    /// What a living process says.
    HealthStatus = ["healthy"];
    /// `degraded`: ready, but Kafka is away: runs are accepted and dispatched later.
    ReadinessStatus = ["ready", "degraded", "not_ready"];
    /// `connected` or `disconnected` for `database` and `kafka`, `current` or `outdated` for `schema`, `stopping` for
    /// `process`.
    CheckStatus = ["connected", "disconnected", "current", "outdated", "stopping"];
}

/// Some languages make a constant of each value, in one name space for all sets (Go, as openapi-generator writes it): so
/// each has a name with that of its set.
fn closed_set(name: &str, description: &str, values: &[&str]) -> RefOr<Schema> {
    let constants: Vec<String> = values.iter().map(|value| constant(name, value)).collect();
    let object = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .enum_values(Some(values.iter().copied()))
        .extensions(Some(Extensions::builder().add("x-enum-varnames", constants).build()));
    Schema::from(object).into()
}

/// `RUN_STATUS_PENDING` of `RunStatus` and `PENDING`.
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
