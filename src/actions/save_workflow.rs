//! Creating, changing and deleting workflow definitions.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{Change, Context, Entity, SaveError};
use crate::{
    access::{Countable, OrganizationId},
    agent::AgentStatus,
    db::{self, agents::UnusableFallback, workflows::WorkflowRow},
    input::{self, FieldError},
    timestamp::Timestamp,
    workflow::{
        Callee, Content, Expose, FlowControl, NewWorkflow, Steps, Watch, WorkflowPatch, WorkflowStatus,
        plan_workflow_id,
    },
};

/// Maximum size of a stored plan, so that it fits into a Kafka record with some input.
const MAX_PLAN_BYTES: usize = 900 << 10;

/// Reason why a workflow was not saved.
pub type SaveWorkflowError = SaveError<WorkflowRefusal>;

/// Reason that concerns only workflows.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowRefusal {
    /// A step names an agent that does not exist.
    #[error("agent {0:?} not found")]
    AgentNotFound(String),
    /// A step names an agent that is not active.
    #[error("agent {name:?} is {status}")]
    AgentNotActive {
        /// Name of the agent.
        name: String,
        /// Status of the agent.
        status: String,
    },
    /// The caller is restricted to workflows, and the definition calls something that none of them calls.
    #[error("the caller is bound to workflows, none of which calls the {kind} {name:?}")]
    NotBoundTo {
        /// Kind of the callee: `agent` or `workflow`.
        kind: &'static str,
        /// Name of the callee, or the id of a workflow.
        name: String,
    },
    /// The expanded definition does not fit into a message.
    #[error("the definition is too large")]
    TooLarge,
}

impl From<WorkflowRefusal> for SaveWorkflowError {
    fn from(refusal: WorkflowRefusal) -> Self {
        Self::Other(refusal)
    }
}

#[derive(Serialize)]
struct Created<'a> {
    name: &'a str,
    description: Option<&'a str>,
    version: i32,
    workflow_data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_schema: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_days: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expose: Option<&'a Expose>,
    /// Omitted if nothing is watched.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    watch: Option<Watch>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    flow: Option<&'a FlowControl>,
}

#[derive(Serialize)]
struct Updated<'a> {
    /// Omitted if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_data: Option<&'a RawValue>,
    /// Omitted if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_schema: Option<&'a RawValue>,
    /// Null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    retention_days: Option<Box<RawValue>>,
    /// Null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    expose: Option<Box<RawValue>>,
    /// Omitted if it is the same.
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    watch: Option<Watch>,
    /// Null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    debounce: Option<Box<RawValue>>,
    /// Null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle: Option<Box<RawValue>>,
    /// Null if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<Box<RawValue>>,
}

/// Stores a definition as the next version of its name, in a row of its own.
pub async fn create_workflow(
    pool: &db::Pool,
    context: Context<'_>,
    new: NewWorkflow,
) -> Result<WorkflowRow, SaveWorkflowError> {
    db::in_transaction(pool, async |transaction| create_in(transaction, context, new).await).await
}

/// [`create_workflow`] inside of the caller's transaction.
pub(super) async fn create_in(
    transaction: &mut PgConnection,
    context: Context<'_>,
    new: NewWorkflow,
) -> Result<WorkflowRow, SaveWorkflowError> {
    let id = Uuid::now_v7();
    context.claim(transaction, &id.to_string()).await?;
    check_size(context, &new.content)?;
    context.hold_quota(transaction, context.organization(), Countable::Workflows).await?;
    check_binding(transaction, context, new.content.steps()).await?;
    check_agents(transaction, context.organization(), new.content.steps()).await?;
    db::workflows::lock_name(transaction, context.organization(), &new.name).await?;
    if !db::workflows::is_present(&mut *transaction, context.organization(), &new.name).await? {
        context.check_quota(transaction, context.organization(), Countable::Workflows).await??;
    }
    check_tool(transaction, context.organization(), &new.name, new.expose.as_ref()).await?;
    let version = db::workflows::next_version(transaction, context.organization(), &new.name).await?;
    let at = Timestamp::now();
    let row = WorkflowRow {
        id,
        workflow_data: Json(sized(new.content.new_plan(&new.name, version))?),
        name: new.name,
        input_schema: new.input_schema.map(Json),
        description: new.description,
        version,
        status: WorkflowStatus::Active.as_str().to_owned(),
        retention_days: new.retention_days,
        expose: new.expose.map(Json),
        watch: new.watch,
        flow_control: new.flow.map(Json),
        created_by: Some(context.actor.subject.clone()),
        updated_by: Some(context.actor.subject.clone()),
        created_at: at,
        updated_at: at,
        organization_id: context.organization().to_string(),
    };
    db::workflows::insert(transaction, &row).await?;
    if version > 1 {
        db::workflows::set_flow(transaction, &row).await?;
    }
    let changes = input::to_raw(&Created {
        name: &row.name,
        description: row.description.as_deref(),
        version,
        workflow_data: &row.workflow_data.0,
        input_schema: row.input_schema.as_ref().map(|schema| &*schema.0),
        retention_days: row.retention_days,
        expose: row.expose(),
        watch: Some(row.watch).filter(|watch| *watch != Watch::default()),
        flow: row.flow(),
    });
    let entity = Entity("workflow", row.id, &row.name);
    context.record(transaction, entity, "create", Change::to(&changes), at).await?;
    // The row is read again as the database renders it, so that every answer shows the same text.
    Ok(db::workflows::find(&mut *transaction, context.organization(), row.id).await?.unwrap_or(row))
}

/// Changes the members that are set in the patch. New steps make a new version, which keeps the row's id; the replaced
/// content is moved to a new row with its old version number.
pub async fn update_workflow(
    pool: &db::Pool,
    context: Context<'_>,
    id: Uuid,
    patch: WorkflowPatch,
) -> Result<WorkflowRow, SaveWorkflowError> {
    db::in_transaction(pool, async |transaction| {
        if patch.status.is_some() {
            context.hold_quota(transaction, context.organization(), Countable::Workflows).await?;
        }
        update_in(transaction, context, id, patch).await
    })
    .await
}

/// [`update_workflow`] inside of the caller's transaction, which has locked the quota if the patch has a status.
pub(super) async fn update_in(
    transaction: &mut PgConnection,
    context: Context<'_>,
    id: Uuid,
    patch: WorkflowPatch,
) -> Result<WorkflowRow, SaveWorkflowError> {
    let name = db::workflows::find(&mut *transaction, context.organization(), id)
        .await?
        .ok_or(SaveWorkflowError::NotFound)?
        .name;
    // The name is locked before the row, in the same order as by every writer of versions.
    db::workflows::lock_name(transaction, context.organization(), &name).await?;
    let current =
        db::workflows::lock(transaction, context.organization(), id).await?.ok_or(SaveWorkflowError::NotFound)?;
    context.check_revision(&current.revision())?;
    if patch.status.is_some_and(|status| status != WorkflowStatus::Deleted)
        && !db::workflows::is_present(&mut *transaction, context.organization(), &name).await?
    {
        context.check_quota(transaction, context.organization(), Countable::Workflows).await??;
    }
    let mut content = patch.merge(&current.workflow_data.0)?;
    let input_schema = patch.input_schema.clone().or(current.input_schema.clone().map(|schema| schema.0));
    let other_schema = !patch.input_schema.is_absent()
        && !db::workflows::has_input_schema(&mut *transaction, id, input_schema.as_deref()).await?;
    if other_schema && content.is_none() {
        // The schema belongs to the content, and is archived with it.
        content = Some(Content::of_plan(&current.workflow_data.0)?);
    }
    if let Some(content) = &content {
        check_size(context, content)?;
        check_binding(transaction, context, content.steps()).await?;
        check_agents(transaction, context.organization(), content.steps()).await?;
    }
    let comes_back = patch.status == Some(WorkflowStatus::Active) && current.status != WorkflowStatus::Active.as_str();
    if comes_back && content.is_none() && context.workflows.is_some() {
        let stored = Content::of_plan(&current.workflow_data.0)?;
        check_binding(transaction, context, stored.steps()).await?;
    }
    let at = Timestamp::now();
    let mut row = WorkflowRow {
        description: patch.description.clone().or(current.description.clone()),
        input_schema: input_schema.map(Json),
        status: patch.status.map_or_else(|| current.status.clone(), |status| status.as_str().to_owned()),
        retention_days: patch.retention_days.clone().or(current.retention_days),
        expose: patch.expose.clone().or(current.expose().cloned()).and_then(Expose::unless_empty).map(Json),
        watch: patch.watch.apply(current.watch),
        flow_control: patch.flow(current.flow()).map(Json),
        ..current.clone()
    };
    let other_expose = row.expose() != current.expose();
    if other_expose || row.status != current.status {
        check_tool(transaction, context.organization(), &name, row.expose()).await?;
    }
    if let Some(content) = &content {
        row.version = db::workflows::next_version(transaction, context.organization(), &name).await?;
        let workflow_id =
            plan_workflow_id(&current.workflow_data.0).unwrap_or_else(|| format!("wf-{name}-{}", current.version));
        row.workflow_data = Json(sized(content.plan(&workflow_id, &name, row.version))?);
    }
    let other_retention = row.retention_days != current.retention_days;
    let other_watch = row.watch != current.watch;
    let other_flow = row.flow() != current.flow();
    let other_rest = other_retention || other_expose || other_watch || other_flow || row.status != current.status;
    if content.is_some() || row.description != current.description || other_rest {
        row.updated_at = at;
        row.updated_by = Some(context.actor.subject.clone());
        db::workflows::update(transaction, &row).await?;
        if content.is_some() {
            // The exposure is that of the newest version.
            let archived = WorkflowRow { id: Uuid::now_v7(), expose: None, ..current.clone() };
            db::workflows::insert(transaction, &archived).await?;
        }
        if other_flow {
            db::workflows::set_flow(transaction, &row).await?;
        }
        let members = |of: &WorkflowRow| {
            input::to_raw(&Updated {
                description: (row.description != current.description).then(|| input::to_raw(&of.description)),
                status: (row.status != current.status).then_some(&of.status),
                version: content.is_some().then_some(of.version),
                workflow_data: content.is_some().then_some(&of.workflow_data.0),
                input_schema: other_schema.then(|| of.input_schema.as_ref().map_or(RawValue::NULL, |schema| &schema.0)),
                retention_days: other_retention.then(|| input::to_raw(&of.retention_days)),
                expose: other_expose.then(|| input::to_raw(&of.expose())),
                watch: other_watch.then_some(of.watch),
                debounce: changed_flow(&row, &current, of, |flow| flow.debounce.as_ref()),
                throttle: changed_flow(&row, &current, of, |flow| flow.throttle.as_ref()),
                concurrency: changed_flow(&row, &current, of, |flow| flow.concurrency.as_ref()),
            })
        };
        let (before, after) = (members(&current), members(&row));
        let entity = Entity("workflow", id, &row.name);
        context.record(transaction, entity, "update", Change::between(&before, &after), at).await?;
    }
    Ok(db::workflows::find(&mut *transaction, context.organization(), id).await?.unwrap_or(row))
}

/// A part of the flow control of one of these rows, if it differs between them; null if there is none.
fn changed_flow<T: PartialEq + Serialize>(
    row: &WorkflowRow,
    current: &WorkflowRow,
    of: &WorkflowRow,
    part: fn(&FlowControl) -> Option<&T>,
) -> Option<Box<RawValue>> {
    (row.flow().and_then(part) != current.flow().and_then(part)).then(|| input::to_raw(&of.flow().and_then(part)))
}

/// Marks this row as deleted; other versions stay. A repeat changes nothing.
pub async fn delete_workflow(pool: &db::Pool, context: Context<'_>, id: Uuid) -> Result<(), SaveWorkflowError> {
    db::in_transaction(pool, async |transaction| {
        let row = db::workflows::lock(transaction, context.organization(), id).await?;
        let mut row = row.ok_or(SaveWorkflowError::NotFound)?;
        context.check_revision(&row.revision())?;
        if row.status != WorkflowStatus::Deleted.as_str() {
            let before = input::to_raw(&serde_json::json!({"version": row.version, "status": row.status}));
            row.status = WorkflowStatus::Deleted.as_str().to_owned();
            row.updated_at = Timestamp::now();
            row.updated_by = Some(context.actor.subject.clone());
            db::workflows::update(transaction, &row).await?;
            let entity = Entity("workflow", id, &row.name);
            context.record(transaction, entity, "delete", Change::from(&before), row.updated_at).await?;
        }
        Ok(())
    })
    .await
}

fn sized(plan: Box<RawValue>) -> Result<Box<RawValue>, SaveWorkflowError> {
    if plan.get().len() > MAX_PLAN_BYTES { Err(WorkflowRefusal::TooLarge.into()) } else { Ok(plan) }
}

/// Rejects definitions whose runs would certainly exceed the step limit.
fn check_size(context: Context<'_>, content: &Content) -> Result<(), SaveWorkflowError> {
    let fault = content.check_size(context.max_run_steps);
    fault.map_or(Ok(()), |fault| Err(vec![fault].into()))
}

/// Callers that are restricted to workflows may create definitions that call only these workflows and what these call
/// already. Otherwise a definition could reach agents, and show their answers, that its author may not use. The error
/// does not reveal whether other callees exist.
async fn check_binding(conn: &mut PgConnection, context: Context<'_>, steps: &Steps) -> Result<(), SaveWorkflowError> {
    let Some(bound) = context.workflows else { return Ok(()) };
    let called: HashSet<Callee> = db::workflows::called_by(conn, context.organization(), bound).await?;
    for callee in steps.iter().flat_map(Callee::of) {
        let is_bound = match &callee {
            Callee::Workflow(name) => bound.contains(name),
            Callee::WorkflowId(id) => {
                let name = match Uuid::try_parse(id) {
                    Ok(id) => db::workflows::name(&mut *conn, context.organization(), id).await?,
                    Err(_) => None,
                };
                name.is_some_and(|name| bound.contains(&name))
            }
            Callee::Agent(_) => false,
        };
        if !is_bound && !called.contains(&callee) {
            let (kind, name) = match callee {
                Callee::Agent(name) => ("agent", name),
                Callee::Workflow(name) | Callee::WorkflowId(name) => ("workflow", name),
            };
            return Err(WorkflowRefusal::NotBoundTo { kind, name }.into());
        }
    }
    Ok(())
}

/// Checks an exposure of the workflow with that name: no other workflow of the organisation has a tool of the same name.
async fn check_tool(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    workflow: &str,
    expose: Option<&Expose>,
) -> Result<(), SaveWorkflowError> {
    let Some(expose) = expose else { return Ok(()) };
    expose.check(workflow)?;
    let Some(tool) = expose.tool_name(workflow) else { return Ok(()) };
    db::exposed::lock_tools(conn, organization).await?;
    match db::exposed::other_with_tool(conn, organization, tool, workflow).await? {
        None => Ok(()),
        Some(other) => {
            let text = format!("is the name of the tool of the workflow {:?}", input::shorten(&other));
            Err(vec![FieldError::rule("body.expose.mcp.name", text)].into())
        }
    }
}

/// Every agent of a step must exist and be active. The first violation is reported.
async fn check_agents(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    steps: &Steps,
) -> Result<(), SaveWorkflowError> {
    match unusable_agents(conn, organization, steps).await?.into_iter().next() {
        None => Ok(()),
        Some((name, None)) => Err(WorkflowRefusal::AgentNotFound(name).into()),
        Some((name, Some(status))) => Err(WorkflowRefusal::AgentNotActive { name, status }.into()),
    }
}

/// Fallbacks of the agents of steps that cannot be called.
pub async fn unusable_fallbacks(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    steps: &Steps,
) -> Result<Vec<UnusableFallback>, db::Error> {
    let names: Vec<String> = steps.agent_names().into_iter().map(str::to_owned).collect();
    db::agents::unusable_fallbacks(conn, organization, &names).await
}

/// Agents of steps that cannot be called, in order of mention: with their status, or none if they do not exist.
pub async fn unusable_agents(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    steps: &Steps,
) -> Result<Vec<(String, Option<String>)>, db::Error> {
    let names: Vec<String> = steps.agent_names().into_iter().map(str::to_owned).collect();
    let mut statuses: HashMap<String, String> =
        db::agents::statuses(conn, organization, &names).await?.into_iter().collect();
    let with_status = names.into_iter().map(|name| {
        let status = statuses.remove(&name);
        (name, status)
    });
    Ok(with_status.filter(|(_, status)| status.as_deref() != Some(AgentStatus::Active.as_str())).collect())
}
