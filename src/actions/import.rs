//! Import of agents, workflows, triggers and webhooks from a document, atomically.
//!
//! Credentials that the document omits keep their stored values: `auth_config` of an agent, and user, password and
//! query values of its URL. A new agent needs those that its `auth_type` requires.

use std::{collections::HashSet, time::Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::PgConnection;

use super::{
    Context,
    put_workflow::{self, Put},
    save_agent::{self, SaveAgentError},
    save_trigger::{self, SaveTriggerError},
    save_workflow::SaveWorkflowError,
    webhooks::{self, NewWebhook, SaveWebhookError},
};
use crate::{
    access::Countable,
    agent::{AgentPatch, AgentStatus, Defaults, NewAgent, masked_url},
    clock::Clock,
    db::{self, idempotency::ClaimError},
    input::{self, FieldError, Node, Object, Read, keep, text},
    trigger::{NewTrigger, TriggerPatch},
    webhook::Payload,
    workflow::NewWorkflow,
};

/// Format name of a document.
pub const FORMAT: &str = "workflow-api/definitions";
/// The version of the format.
pub const FORMAT_VERSION: i64 = 1;
/// Maximum number of agents and of workflows in one document: more would hold their locks for too long.
pub const MAX_ENTRIES: usize = 2_000;
/// Maximum bytes of an exported or imported document.
pub const MAX_BYTES: usize = 16 << 20;

/// Parsed document. It has no `Debug`, since it may hold secrets.
pub struct Import {
    agents: Vec<Entry<AgentPatch>>,
    workflows: Vec<Entry<NewWorkflow>>,
    triggers: Vec<Entry<NewTrigger>>,
    webhooks: Vec<Entry<NewWebhook>>,
    /// For agents that are new.
    defaults: Defaults,
}

/// Agent or workflow with its path in the document.
struct Entry<T> {
    at: String,
    name: String,
    raw: Box<RawValue>,
    wanted: T,
}

/// Report of an import or dry run: names that were (or would be) created, updated or unchanged.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Created objects.
    pub created: Names,
    /// Updated objects.
    pub updated: Names,
    /// Unchanged objects.
    pub unchanged: Names,
    /// Errors that prevent the import.
    #[serde(skip)]
    pub errors: Vec<FieldError>,
}

/// Names of a part of a report.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Names {
    /// Names of agents.
    pub agents: Vec<String>,
    /// Names of workflows.
    pub workflows: Vec<String>,
    /// Names of triggers.
    #[serde(default)]
    pub triggers: Vec<String>,
    /// Names of webhooks.
    #[serde(default)]
    pub webhooks: Vec<String>,
}

impl Import {
    /// Parses a document. `read_webhook` reads what the create request of a webhook has.
    pub fn parse(
        body: &RawValue,
        defaults: &Defaults,
        read_webhook: impl Fn(&RawValue) -> Read<NewWebhook>,
    ) -> Read<Self> {
        let body = Object::body(body)?;
        let mut errors = Vec::new();
        body.required("format", &mut errors, |node| {
            node.parsed(|text| if text == FORMAT { Ok(()) } else { Err(format!("must be {FORMAT}")) })
        });
        body.required("version", &mut errors, |node| node.int(FORMAT_VERSION..=FORMAT_VERSION));
        let read_agent = |raw: &RawValue| AgentPatch::parse(raw, defaults);
        let agents = body.defaulted("agents", &mut errors, Vec::new(), |node| entries(node, read_agent));
        let workflows = body.defaulted("workflows", &mut errors, Vec::new(), |node| entries(node, NewWorkflow::parse));
        let triggers = body.defaulted("triggers", &mut errors, Vec::new(), |node| entries(node, NewTrigger::parse));
        let webhooks = body.defaulted("webhooks", &mut errors, Vec::new(), |node| entries(node, read_webhook));
        let defaults = defaults.clone();
        if errors.is_empty() { Ok(Self { agents, workflows, triggers, webhooks, defaults }) } else { Err(errors) }
    }

    /// Whether the document has triggers, which need a permission of their own.
    #[must_use]
    pub fn has_triggers(&self) -> bool {
        !self.triggers.is_empty()
    }

    /// Whether a webhook sends input and output of runs.
    #[must_use]
    pub fn has_full_payloads(&self) -> bool {
        self.webhooks.iter().any(|webhook| webhook.wanted.definition.payload == Payload::Full)
    }

    /// Whether the document has webhooks, which need a permission of their own.
    #[must_use]
    pub fn has_webhooks(&self) -> bool {
        !self.webhooks.is_empty()
    }
}

/// Entries of a list ordered by name, which is the order in which their locks are taken.
fn entries<T>(node: &Node<'_>, read: impl Fn(&RawValue) -> Read<T>) -> Read<Vec<Entry<T>>> {
    let nodes = node.list()?;
    if nodes.len() > MAX_ENTRIES {
        let message = format!("List should have at most {MAX_ENTRIES} items after validation, not {}", nodes.len());
        return Err(vec![node.error("too_long", message)]);
    }
    let mut errors = Vec::new();
    let mut names = HashSet::new();
    let mut entries = Vec::with_capacity(nodes.len());
    for node in nodes {
        let at = node.path();
        let Some(wanted) = keep(read(node.raw()).map_err(|errors| relocated(errors, &at)), &mut errors) else {
            continue;
        };
        let Some(name) = input::member(node.raw(), "name").and_then(text) else {
            errors.push(FieldError::missing(format!("{at}.name")));
            continue;
        };
        if !names.insert(name.clone()) {
            errors.push(FieldError::rule(format!("{at}.name"), "is in the document twice"));
        }
        entries.push(Entry { at, name, raw: node.raw().to_owned(), wanted });
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    if errors.is_empty() { Ok(entries) } else { Err(errors) }
}

/// Moves the errors of a body to a part of a body.
fn relocated(mut errors: Vec<FieldError>, at: &str) -> Vec<FieldError> {
    for error in &mut errors {
        if let Some(rest) = error.field.strip_prefix("body") {
            error.field = format!("{at}{rest}");
        }
    }
    errors
}

/// Failure of an import without a report.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The idempotency key is taken.
    #[error(transparent)]
    Key(#[from] ClaimError),
    /// The import exceeded its time limit. Nothing was changed.
    #[error("the import took too long")]
    OutOfTime,
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Imports the document; with `dry_run`, only reports the changes. If there are errors, nothing is changed.
///
/// The key of the context, if there is one, is stored with the report, unless this is a dry run. Nothing is committed
/// after `deadline`, since the caller's request times out soon after it and would not receive the result.
pub async fn import(
    pool: &db::Pool,
    context: Context<'_>,
    document: Import,
    dry_run: bool,
    (clock, deadline): (&Clock, Instant),
) -> Result<Report, ImportError> {
    let in_time = || if clock.instant() < deadline { Ok(()) } else { Err(ImportError::OutOfTime) };
    let mut report = Report::default();
    let mut transaction = db::begin(pool).await?;
    let key = context.key.filter(|_| !dry_run);
    // The key belongs to the whole document and is claimed once.
    let context = context.with_key(None);
    context.with_key(key).claim(&mut transaction, "import").await?;
    for what in [Countable::Agents, Countable::Workflows] {
        context.hold_quota(&mut transaction, context.organization(), what).await?;
    }
    let mut switched_off = Vec::new();
    for Entry { at, name, raw, mut wanted } in document.agents {
        in_time()?;
        let stored = db::agents::lock_by_name(&mut transaction, context.organization(), &name).await?;
        let is_new = stored.is_none();
        let (before, saved) = match stored {
            None => {
                let new = match NewAgent::parse(&raw, &document.defaults) {
                    Ok(new) => new,
                    Err(errors) => {
                        report.errors.extend(relocated(errors, &at));
                        continue;
                    }
                };
                // Workflows of the document may use the agent: it is deactivated after they are imported.
                if wanted.status == Some(AgentStatus::Inactive) {
                    switched_off.push((at.clone(), name.clone()));
                }
                (None, save_agent::create_in(&mut transaction, context, new).await)
            }
            Some(stored) => {
                if wanted.url.as_deref().is_some_and(|url| url == masked_url(&stored.url)) {
                    wanted.url = None;
                }
                if stored.status == AgentStatus::Deleted.as_str() {
                    wanted.status = wanted.status.or(Some(AgentStatus::Active));
                }
                (Some(stored.updated_at), save_agent::update_in(&mut transaction, context, stored.id, wanted).await)
            }
        };
        match saved {
            Ok(_) if is_new => report.created.agents.push(name),
            Ok(row) if before == Some(row.updated_at) => report.unchanged.agents.push(name),
            Ok(_) => report.updated.agents.push(name),
            Err(SaveAgentError::Invalid(errors)) => report.errors.extend(relocated(errors, &at)),
            Err(SaveAgentError::Db(error)) => return Err(error.into()),
            Err(error) => {
                // Another transaction has just created it, so this transaction is aborted.
                report.errors.push(FieldError::rule(at, error));
                return Ok(report);
            }
        }
    }
    for Entry { at, name, wanted, .. } in document.workflows {
        in_time()?;
        match put_workflow::put_in(&mut transaction, context, wanted).await {
            Ok(Put::Created(_)) => report.created.workflows.push(name),
            Ok(Put::Updated(_)) => report.updated.workflows.push(name),
            Ok(Put::Unchanged(_)) => report.unchanged.workflows.push(name),
            Err(SaveWorkflowError::Invalid(errors)) => report.errors.extend(relocated(errors, &at)),
            Err(SaveWorkflowError::Db(error)) => return Err(error.into()),
            Err(error) => report.errors.push(FieldError::rule(at, error)),
        }
    }
    for Entry { at, name, wanted, .. } in document.triggers {
        in_time()?;
        match put_trigger(&mut transaction, context, wanted).await {
            Ok(PutTrigger::Created) => report.created.triggers.push(name),
            Ok(PutTrigger::Updated) => report.updated.triggers.push(name),
            Ok(PutTrigger::Unchanged) => report.unchanged.triggers.push(name),
            Err(SaveTriggerError::Invalid(errors)) => report.errors.extend(relocated(errors, &at)),
            Err(SaveTriggerError::Db(error)) => return Err(error.into()),
            Err(error) => {
                // Another transaction has just created it, so this transaction is aborted.
                report.errors.push(FieldError::rule(at, error));
                return Ok(report);
            }
        }
    }
    for webhook in document.webhooks {
        in_time()?;
        put_webhook(&mut transaction, context, webhook, &mut report).await?;
    }
    switch_off(&mut transaction, context, switched_off, &mut report).await?;
    report.errors.truncate(input::MAX_ERRORS);
    if report.errors.is_empty() && !dry_run {
        if let Some(key) = key {
            db::idempotency::keep_answer(&mut transaction, key, &input::to_raw(&report)).await?;
        }
        in_time()?;
        db::commit(transaction).await?;
    }
    Ok(report)
}

/// Deactivates agents that the document has as inactive.
async fn switch_off(
    conn: &mut PgConnection,
    context: Context<'_>,
    agents: Vec<(String, String)>,
    report: &mut Report,
) -> Result<(), db::Error> {
    for (at, name) in agents {
        let Some(agent) = db::agents::find_by_name(&mut *conn, context.organization(), &name).await? else {
            continue;
        };
        let patch = AgentPatch { status: Some(AgentStatus::Inactive), ..AgentPatch::default() };
        match save_agent::update_in(&mut *conn, context, agent.id, patch).await {
            Ok(_) => {}
            Err(SaveAgentError::Db(error)) => return Err(error),
            Err(error) => report.errors.push(FieldError::rule(at, error)),
        }
    }
    Ok(())
}

/// Sets the webhook of that name to the definition, and reports it.
async fn put_webhook(
    conn: &mut PgConnection,
    context: Context<'_>,
    Entry { at, name, wanted, .. }: Entry<NewWebhook>,
    report: &mut Report,
) -> Result<(), db::Error> {
    match webhooks::put_in(conn, context, wanted).await {
        Ok(webhooks::Put::Created) => report.created.webhooks.push(name),
        Ok(webhooks::Put::Updated) => report.updated.webhooks.push(name),
        Ok(webhooks::Put::Unchanged) => report.unchanged.webhooks.push(name),
        Err(SaveWebhookError::Invalid(errors)) => report.errors.extend(relocated(errors, &at)),
        Err(SaveWebhookError::Db(error)) => return Err(error),
        Err(error) => report.errors.push(FieldError::rule(at, error)),
    }
    Ok(())
}

/// Result of putting a trigger.
enum PutTrigger {
    Created,
    Updated,
    Unchanged,
}

/// Sets the trigger of that name to the definition.
async fn put_trigger(
    conn: &mut PgConnection,
    context: Context<'_>,
    wanted: NewTrigger,
) -> Result<PutTrigger, SaveTriggerError> {
    let Some(stored) = db::triggers::lock_by_name(conn, context.organization(), &wanted.name).await? else {
        save_trigger::create_in(conn, context, wanted).await?;
        return Ok(PutTrigger::Created);
    };
    if stored.kind != wanted.config.kind().as_str() {
        let text = format!("the trigger is a {}, and its kind never changes", stored.kind);
        return Err(vec![FieldError::rule("body.kind", text)].into());
    }
    let before = stored.updated_at;
    let row = save_trigger::update_in(conn, context, stored, TriggerPatch::to(wanted), "update").await?;
    Ok(if row.updated_at == before { PutTrigger::Unchanged } else { PutTrigger::Updated })
}
