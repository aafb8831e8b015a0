//! Export and import of agents, workflows, triggers and webhooks as one document: `/export` and `/import`.
//!
//! Secrets are exported only on request. Otherwise an agent's `auth_config` and the user and password in its URL are
//! absent from the document, and importing it keeps the stored ones.

use std::{ops::ControlFlow, time::Duration};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json as Column;
use utoipa::ToSchema;

use super::{
    agents::bodies::NewAgentBody,
    webhooks::wire::{ExportedWebhook, NewWebhookBody, read_definition},
    workflows::wire::NewWorkflowBody,
};
use crate::{
    access::Permission,
    actions::import::{self, FORMAT, FORMAT_VERSION, Import, ImportError, MAX_BYTES, MAX_ENTRIES},
    agent::{AuthType, RetryConfig, masked_url, render_auth_config},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{JsonBody, Query},
        idempotency::{Key, replayed},
        parameters, sets,
        streamed::{Array, JSON},
    },
    db::{
        self,
        agents::AgentRow,
        idempotency::{ClaimError, IdempotencyKey},
        triggers::TriggerRow,
        workflows::WorkflowRow,
    },
    input::{FieldError, Object, member},
    trigger::{Labels, NewTriggerBody},
    workflow::{DeadlineAction, Expose, FlowControl},
};

/// Time-out of an import, which is all or nothing. Together with its last statements it stays within the time-out of
/// a request.
const IMPORT_TIME: Duration = Duration::from_secs(5);

/// Agent in a document.
#[derive(Serialize)]
pub struct ExportedAgent {
    /// Name, unique forever.
    name: String,
    /// URL, without user and password unless secrets are requested.
    url: String,
    /// Description for people.
    description: Option<String>,
    /// `none`, `bearer` or `apikey`.
    auth_type: &'static str,
    /// Credentials; absent unless secrets are requested and there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_config: Option<Box<RawValue>>,
    /// Time-out of one call in milliseconds.
    timeout_ms: i32,
    /// Retries of calls.
    retry_config: RetryConfig,
    /// Overrides of the settings.
    circuit_breaker_config: Option<Box<RawValue>>,
    /// `a2a`, `http`, `openai`, `responses` or `mcp`.
    kind: String,
    /// Configuration for its kind.
    config: Option<Box<RawValue>>,
    /// Names of its fallbacks; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fallbacks: Vec<String>,
    /// `active` or `inactive`.
    status: String,
}

impl ExportedAgent {
    fn new(row: AgentRow, with_secrets: bool) -> Self {
        let stored = |json: Option<Column<Box<RawValue>>>| json.map(|json| json.0);
        let auth_type = row.auth_type.as_deref().and_then(AuthType::parse).unwrap_or(AuthType::None);
        // Credentials that cannot be decrypted here could not be imported anywhere.
        let is_sealed = row.is_sealed();
        let auth_config = stored(row.auth_config).filter(|_| with_secrets && !is_sealed && auth_type != AuthType::None);
        Self {
            url: if with_secrets { row.url } else { masked_url(&row.url) },
            name: row.name,
            description: row.description,
            auth_type: auth_type.as_str(),
            auth_config: auth_config.and_then(|config| render_auth_config(auth_type, Some(&config))),
            timeout_ms: row.timeout_ms,
            retry_config: RetryConfig::from_stored(stored(row.retry_config).as_deref()),
            circuit_breaker_config: stored(row.circuit_breaker_config).filter(|config| config.get() != "null"),
            kind: row.kind,
            config: stored(row.config),
            fallbacks: row.fallbacks,
            status: row.status,
        }
    }
}

/// Workflow in a document, as it would be created.
#[derive(Serialize)]
pub struct ExportedWorkflow {
    /// Name that all versions share.
    name: String,
    /// Description for people.
    description: Option<String>,
    /// The id of the first step.
    start_step: Option<Box<RawValue>>,
    /// The steps by id in their normal form.
    steps: Option<Box<RawValue>>,
    /// Limits of its runs; absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Box<RawValue>>,
    /// JSON Schema for the input of runs.
    input_schema: Option<Box<RawValue>>,
    /// Days of retention; absent if the organisation's value applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_days: Option<i32>,
    /// Exposure by other protocols; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    expose: Option<Expose>,
    /// Deadline of runs; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_seconds: Option<i32>,
    /// What happens to a run that misses it; absent if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_action: Option<DeadlineAction>,
    /// Hours of silence; absent if it is not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    silence_hours: Option<i32>,
    /// Flow control: `debounce`, `throttle` and `concurrency`; absent if there is none.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    flow: Option<FlowControl>,
}

impl From<WorkflowRow> for ExportedWorkflow {
    fn from(row: WorkflowRow) -> Self {
        let part = |name| member(&row.workflow_data.0, name).map(ToOwned::to_owned);
        Self {
            start_step: part("start_step"),
            steps: part("steps"),
            limits: part("limits"),
            name: row.name,
            description: row.description,
            input_schema: row.input_schema.map(|schema| schema.0),
            retention_days: row.retention_days,
            expose: row.expose.map(|expose| expose.0),
            deadline_seconds: row.watch.deadline_seconds,
            deadline_action: row.watch.deadline_action,
            silence_hours: row.watch.silence_hours,
            flow: row.flow_control.map(|flow| flow.0),
        }
    }
}

/// Trigger in a document, as it would be created.
#[derive(Serialize)]
pub struct ExportedTrigger {
    name: String,
    kind: String,
    workflow_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<Box<RawValue>>,
    priority: i16,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    config: Box<RawValue>,
}

impl From<TriggerRow> for ExportedTrigger {
    fn from(row: TriggerRow) -> Self {
        Self {
            name: row.name,
            kind: row.kind,
            workflow_name: row.workflow_name,
            version: row.workflow_version,
            input: row.input.map(|input| input.0),
            priority: row.priority,
            labels: row.labels.0,
            enabled: row.enabled,
            note: row.note,
            config: row.config.0,
        }
    }
}

/// Document of agents, workflows, triggers and webhooks, for export and import.
#[derive(ToSchema)]
#[schema(as = Definitions, example = json!({"format": FORMAT, "version": FORMAT_VERSION, "agents": [], "workflows": []}))]
#[expect(dead_code, reason = "describes what `export_definitions` writes, and what `import::Import::parse` reads")]
pub struct DefinitionsBody {
    /// Name of the format.
    format: sets::DefinitionsFormat,
    /// Version of the format: 1.
    #[schema(minimum = 1, maximum = 1, example = 1)]
    version: i64,
    /// Agents. An export contains all agents that are not deleted, by name.
    #[schema(nullable = false)]
    agents: Option<Vec<AgentDefinitionBody>>,
    /// Workflows. An export contains the newest active version of each workflow, by name.
    #[schema(nullable = false)]
    workflows: Option<Vec<NewWorkflowBody>>,
    /// Triggers, by name. Absent if there are none. To import some needs `runs:write` besides.
    #[schema(nullable = false)]
    triggers: Option<Vec<NewTriggerBody>>,
    /// Webhooks, by name, without secrets and values of headers. Absent if there are none, or without `webhooks:read`. To
    /// import some needs `webhooks:write` besides; their names must differ.
    #[schema(nullable = false)]
    webhooks: Option<Vec<NewWebhookBody>>,
}

/// Agent in a document: its definition and its status.
#[derive(ToSchema)]
#[schema(as = AgentDefinition)]
#[expect(dead_code, reason = "describes `ExportedAgent`, and what `import::Import::parse` reads")]
pub struct AgentDefinitionBody {
    #[serde(flatten)]
    agent: NewAgentBody,
    /// Whether it may be used; the default is `active`.
    #[schema(required = false)]
    status: sets::SettableStatus,
}

/// Result of an import.
#[derive(Serialize, ToSchema)]
pub struct ImportReport {
    /// Whether nothing was stored, and this only shows what would have happened.
    dry_run: bool,
    /// Names that did not exist.
    created: Names,
    /// Names whose content was different.
    updated: Names,
    /// Names whose content was the same.
    unchanged: Names,
    /// Reasons why the document would be refused; only in a dry run.
    errors: Vec<FieldError>,
}

impl ImportReport {
    fn new(report: import::Report, dry_run: bool) -> Self {
        let import::Report { created, updated, unchanged, errors } = report;
        let (created, updated, unchanged) = (created.into(), updated.into(), unchanged.into());
        Self { dry_run, created, updated, unchanged, errors }
    }
}

/// Names in the result of an import.
#[derive(Serialize, ToSchema)]
#[schema(as = ImportedNames)]
pub struct Names {
    /// Names of agents.
    agents: Vec<String>,
    /// Names of workflows.
    workflows: Vec<String>,
    /// Names of triggers; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    triggers: Vec<String>,
    /// Names of webhooks; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    webhooks: Vec<String>,
}

impl From<import::Names> for Names {
    fn from(import::Names { agents, workflows, triggers, webhooks }: import::Names) -> Self {
        Self { agents, workflows, triggers, webhooks }
    }
}

/// Parses a parameter that is `true` or `false`; absent is false.
fn flag(query: &Query, name: &str) -> Result<bool, ApiError> {
    match query.text(name) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(_) => {
            let message = "Input should be a valid boolean, unable to interpret input";
            Err(FieldError::new(format!("query.{name}"), "bool_parsing", message).into())
        }
    }
}

/// Export definitions
///
/// All agents, the newest active version of every workflow, all triggers and all webhooks as one document for
/// `POST /import`. Secrets are omitted unless they are requested; those of webhooks always are.
#[utoipa::path(
    get, path = "/export", tag = "workflows",
    params(
        ("name_prefix" = Option<String>, Query, description = "Only what has a name with this prefix"),
        ("include_secrets" = Option<bool>, Query, description = "With the agents' credentials and the values in the \
            queries of their URLs, which needs `agents:secrets`. Without it these values are asterisks, and an import \
            takes asterisks only for an agent that has a value already")),
    responses(
        (status = 200, body = DefinitionsBody),
        (status = 413, description = "There are more than a document can hold: export them in parts, by `name_prefix`", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn export_definitions(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let with_secrets = flag(&query, "include_secrets")?;
    if with_secrets {
        caller.must(Permission::AgentsSecrets)?;
    }
    let prefix = query.text("name_prefix").unwrap_or_default();
    // An export is a consistent snapshot, so it is read as a whole: by few requests at a time, and up to the maximum
    // length.
    let _permit = app.memory.large_read(caller.owners()).await;
    let (organization, vault) = (caller.organization(), &app.config.vault);
    let (shows_webhooks, shows_urls) = (caller.may(Permission::WebhooksRead), caller.may(Permission::WebhooksWrite));
    let document = app.reads.read_snapshot(|mut conn| async move {
        let mut document = Document::new();
        document.begin(",\"agents\":[");
        let show = |row: AgentRow| document.push(&ExportedAgent::new(row.opened(vault), with_secrets));
        db::agents::present(&mut conn, organization, prefix, show).await?;
        document.begin("],\"workflows\":[");
        let show = |row: WorkflowRow| document.push(&ExportedWorkflow::from(row));
        db::workflows::all_active(&mut conn, organization, prefix, show).await?;
        // A document without triggers is as it always was.
        let mut is_first = true;
        let show = |row: TriggerRow| {
            if std::mem::take(&mut is_first) {
                document.begin("],\"triggers\":[");
            }
            document.push(&ExportedTrigger::from(row))
        };
        db::triggers::all(&mut conn, organization, prefix, show).await?;
        if shows_webhooks && document.exceeds.is_none() {
            for (index, row) in db::webhooks::all_named(&mut conn, organization, prefix).await?.into_iter().enumerate()
            {
                if index == 0 {
                    document.begin("],\"webhooks\":[");
                }
                if document.push(&ExportedWebhook::new(row, vault, shows_urls)).is_break() {
                    break;
                }
            }
        }
        Ok(document)
    });
    let document = document.await?;
    // A document that cannot be imported again is refused. The remaining rows are not read: the connection is closed.
    if let Some(limit) = document.exceeds {
        return Err(too_large(&limit));
    }
    Ok(([(header::CONTENT_TYPE, JSON)], document.end()).into_response())
}

/// Text of an export. The same content gives the same document, so that it can be kept under version control.
struct Document {
    text: Vec<u8>,
    entries: Array,
    /// Number of entries in the current list.
    count: usize,
    /// Limit that was exceeded.
    exceeds: Option<String>,
}

impl Document {
    fn new() -> Self {
        let text = format!("{{\"format\":\"{FORMAT}\",\"version\":{FORMAT_VERSION}").into_bytes();
        Self { text, entries: Array::default(), count: 0, exceeds: None }
    }

    /// Begins a list; `before` is the text before its first entry.
    fn begin(&mut self, before: &str) {
        self.text.extend_from_slice(before.as_bytes());
        (self.entries, self.count) = (Array::default(), 0);
    }

    /// Appends an entry, unless a limit would be exceeded.
    fn push(&mut self, entry: &impl Serialize) -> ControlFlow<()> {
        self.entries.push(&mut self.text, entry);
        self.count += 1;
        // Includes the closing characters.
        if self.text.len() + 2 > MAX_BYTES {
            self.exceeds = Some(format!("{} MiB", MAX_BYTES >> 20));
        } else if self.count > MAX_ENTRIES {
            self.exceeds = Some(format!("{MAX_ENTRIES} agents, {MAX_ENTRIES} workflows and {MAX_ENTRIES} triggers"));
        }
        if self.exceeds.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn end(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"]}");
        self.text
    }
}

fn too_large(limit: &str) -> ApiError {
    let detail = format!("A document holds at most {limit}; export it in parts, by name_prefix");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "export_too_large", detail)
}

/// Import definitions
///
/// Sets agents, workflows, triggers and webhooks to the content of the document, all of them or none; safe to repeat. What
/// is not in the document stays. Omitted credentials stay as they are stored; the secret of a new webhook is a random one,
/// and `rotate-secret` shows another.
#[utoipa::path(
    post, path = "/import", tag = "workflows", request_body = DefinitionsBody,
    params(
        ("dry_run" = Option<bool>, Query, description = "Only report what would happen, including errors"),
        parameters::IdempotencyKey,
    ),
    responses(
        (status = 200, body = ImportReport),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 413, description = "The document is larger than 16 MiB", body = ErrorBody),
        (status = 422, description = "Nothing was imported; `errors` names every entry that is wrong", body = ErrorBody),
        (status = 503, description = "The import took too long, and nothing was imported", body = ErrorBody),
    ),
)]
pub async fn import_definitions(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    key: Key,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let deadline = app.clock.instant() + IMPORT_TIME;
    let dry_run = flag(&query, "dry_run")?;
    let key = key.bound("import", &caller, body.fingerprint());
    Object::body(body.raw())?;
    let defaults = app.config.agent_defaults.clone();
    let report = match body.read(&app, &caller, move |body| Import::parse(body, &defaults, read_definition)).await? {
        Ok(document) => {
            if document.has_triggers() {
                caller.must(Permission::RunsWrite)?;
            }
            if document.has_webhooks() {
                caller.must(Permission::WebhooksWrite)?;
            }
            if document.has_full_payloads() {
                caller.must(Permission::RunsRead)?;
            }
            let context = caller.context(&app).with_key(key.as_ref());
            match import::import(&app.pool, context, document, dry_run, (&app.clock, deadline)).await {
                Ok(report) => report,
                Err(ImportError::Key(ClaimError::Repeated(_))) => return repeated(&app, key.as_ref()).await,
                Err(ImportError::Key(error)) => return Err(error.into()),
                Err(ImportError::OutOfTime) => {
                    let detail = "The import took too long, and nothing was imported; import the document in parts";
                    return Err(ApiError::unavailable("import_too_slow", detail));
                }
                Err(ImportError::Db(error)) => return Err(error.into()),
            }
        }
        Err(errors) => import::Report { errors, ..import::Report::default() },
    };
    if !report.errors.is_empty() && !dry_run {
        return Err(report.errors.into());
    }
    if !dry_run {
        tracing::info!(
            target: "api.routes.workflows",
            agents = report.created.agents.len() + report.updated.agents.len(),
            workflows = report.created.workflows.len() + report.updated.workflows.len(),
            "Definitions imported"
        );
    }
    Ok(Json(ImportReport::new(report, dry_run)).into_response())
}

/// The stored answer to the first request with the key.
async fn repeated(app: &App, key: Option<&IdempotencyKey>) -> Result<Response, ApiError> {
    let kept = match key {
        Some(key) => db::idempotency::kept_answer(&app.pool, key).await?,
        None => None,
    };
    // If it expired between the two reads, the client has to retry.
    let report = kept.and_then(|kept| serde_json::from_str(kept.get()).ok()).ok_or(ClaimError::InFlight)?;
    Ok(replayed(Json(ImportReport::new(report, false)).into_response()))
}
