//! The list of tools, and calls of the tools of workflows.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use sha2::{Digest as _, Sha256};

use super::{Failure, McpCall, fixed, invalid};
use crate::{
    access::Permission,
    api::{
        resources::{
            exposed_run::{self, ExposedRun},
            runs::wire::Run,
            workflows::execute::{self, NewRun},
        },
        vocabulary::{
            error::ApiError,
            idempotency::{Key, MAX_KEY_CHARS},
        },
    },
    db::{self, exposed::ExposedWorkflow, idempotency::IdempotencyKey, runs::TaskRow},
    input::{member, members, object_of, shorten, text, to_raw},
    kafka::message::DEFAULT_PRIORITY,
    mcp::IDEMPOTENCY_KEY,
    run::RunStatus,
    workflow::{Deadline, FIXED_TOOLS},
};

/// Time for which a tool waits for the end of its run.
pub const WAIT: Duration = Duration::from_secs(10);
/// Maximum number of tools of workflows on a page, and maximum bytes of their schemas together.
const PAGE: (usize, i64) = (100, 256 << 10);
/// Ids of calls with fewer characters are counters, which repeat in each client.
const UNIQUE_ID_CHARS: std::ops::RangeInclusive<usize> = 16..=128;

/// Tool in a list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListedTool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    description: String,
    input_schema: Box<RawValue>,
    annotations: Annotations,
}

/// Hints about the effects of a tool.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    read_only_hint: bool,
    open_world_hint: bool,
}

/// Keyword by which a schema asks clients to repeat arguments in headers. This server wants none.
const HEADER_KEYWORD: &str = "x-mcp-header";

/// Removes the keyword from a schema.
fn without_headers(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.remove(HEADER_KEYWORD);
            members.values_mut().for_each(without_headers);
        }
        Value::Array(elements) => elements.iter_mut().for_each(without_headers),
        _ => {}
    }
}

/// Schema of the arguments of a workflow's tool. It always says that they are an object, as the protocol demands.
fn arguments_schema(schema: Option<&RawValue>) -> Box<RawValue> {
    let object = to_raw("object");
    let cleaned = schema.filter(|schema| schema.get().contains(HEADER_KEYWORD)).and_then(|schema| {
        let mut schema = serde_json::from_str(schema.get()).ok()?;
        without_headers(&mut schema);
        Some(to_raw(&schema))
    });
    let given = cleaned.as_deref().or(schema).and_then(members).unwrap_or_default();
    let others = given.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| *name != "type");
    object_of([("type", &*object)].into_iter().chain(others))
}

fn listed(workflow: &ExposedWorkflow) -> Box<RawValue> {
    let name = workflow.expose.0.tool_name(&workflow.name).unwrap_or(&workflow.name);
    let own = workflow.expose.0.mcp.as_ref().and_then(|tool| tool.description.as_deref());
    let description = own.or(workflow.description.as_deref()).filter(|text| !text.trim().is_empty());
    let description = description.map_or_else(|| format!("Runs the workflow {:?}.", workflow.name), str::to_owned);
    to_raw(&ListedTool {
        name,
        title: (name != workflow.name).then_some(workflow.name.as_str()),
        description,
        input_schema: arguments_schema(workflow.input_schema.as_ref().map(|schema| &*schema.0)),
        annotations: Annotations { read_only_hint: false, open_world_hint: true },
    })
}

impl McpCall {
    /// Tools that the caller may use: on the first page those that are always there, then those of workflows by the
    /// workflow's name.
    pub(super) async fn list_tools(&self) -> Result<Box<RawValue>, Failure> {
        let cursor = member(&self.call.params, "cursor").filter(|cursor| cursor.get() != "null");
        let after = match cursor {
            None => None,
            Some(cursor) => Some(read_cursor(cursor).ok_or_else(|| invalid("The cursor is not one of this list"))?),
        };
        let mut tools: Vec<Box<RawValue>> = Vec::new();
        if after.is_none() {
            tools
                .extend(fixed::TOOLS.iter().filter(|tool| tool.may_be_used_by(&self.caller)).map(fixed::Fixed::listed));
        }
        let mut next = None;
        if self.caller.may(Permission::RunsWrite) {
            let (size, max_bytes) = PAGE;
            let bound = self.caller.grant.workflows.as_deref();
            // One more shows whether the list continues.
            let limits = (i64::try_from(size).unwrap_or(i64::MAX) + 1, max_bytes);
            let after = after.as_deref().unwrap_or_default();
            let organization = self.caller.organization();
            let found = db::exposed::tools(&self.app.pool, organization, bound, after, limits).await?;
            let shown = &found[..found.len().min(size)];
            tools.extend(shown.iter().map(listed));
            let last = shown.last().map(|last| last.name.clone());
            let is_whole = match &last {
                Some(last) if found.len() <= size => {
                    let limits = (1, max_bytes);
                    db::exposed::tools(&self.app.pool, organization, bound, last, limits).await?.is_empty()
                }
                Some(_) => false,
                None => true,
            };
            next = last.filter(|_| !is_whole).map(|last| to_raw(&URL_SAFE_NO_PAD.encode(last)));
        }
        let tools = to_raw(&tools);
        let next = next.as_deref().map(|next| ("nextCursor", next));
        let members: Vec<_> = [("tools", &*tools)].into_iter().chain(next).collect();
        Ok(self.client.cacheable(&members))
    }

    pub(super) async fn call_tool(&mut self) -> Result<Box<RawValue>, Failure> {
        let params = self.call.params.clone();
        let name = member(&params, "name").and_then(text).ok_or_else(|| invalid("`name` should be a text"))?;
        let arguments = member(&params, "arguments").filter(|arguments| arguments.get() != "null");
        let nothing = object_of([]);
        let arguments = arguments.unwrap_or(&nothing);
        if members(arguments).is_none() {
            return Err(invalid("`arguments` should be an object"));
        }
        if let Some(run_id) = self.continued().await? {
            self.caller.must(Permission::RunsWrite)?;
            let row = exposed_run::find(&self.app, &self.caller, &run_id).await?;
            self.give_answers(&run_id).await?;
            return self.awaited(row, WAIT).await;
        }
        if let Some(tool) = fixed::TOOLS.iter().find(|tool| tool.name == name) {
            return self.call_fixed(tool, arguments).await;
        }
        let unknown = || invalid(format!("Unknown tool: {}", shorten(&name)));
        self.caller.must(Permission::RunsWrite)?;
        let organization = self.caller.organization();
        let workflow =
            if name.contains('\0') { None } else { db::exposed::tool(&self.app.pool, organization, &name).await? };
        let workflow = workflow.filter(|workflow| {
            let bound = self.caller.grant.workflows.as_ref();
            bound.is_none_or(|bound| bound.contains(&workflow.name))
        });
        let ExposedWorkflow { id, name: workflow, .. } = workflow.ok_or_else(unknown)?;
        let key = self.key(&name, arguments)?;
        let row = self.start(id, workflow, arguments.to_owned(), key).await?;
        self.awaited(row, WAIT).await
    }

    /// Starts a run.
    pub(super) async fn start(
        &self,
        workflow_id: uuid::Uuid,
        workflow_name: String,
        input: Box<RawValue>,
        key: Option<IdempotencyKey>,
    ) -> Result<TaskRow, ApiError> {
        let priority = DEFAULT_PRIORITY.into();
        let deadline = Deadline::default();
        let new = NewRun { workflow_id, input, priority, key, context_id: None, limits: None, deadline };
        let (run, is_repeat) = execute::begin(&self.app, &self.caller, new).await?;
        if is_repeat {
            exposed_run::find(&self.app, &self.caller, run.run_id()).await
        } else {
            Ok(submitted(&run, workflow_name))
        }
    }

    /// Waits for the run, and returns the result of the tool that has started it.
    pub(super) async fn awaited(&mut self, row: TaskRow, at_most: Duration) -> Result<Box<RawValue>, Failure> {
        let run = self.settled(row, at_most).await;
        self.outcome(&run).await
    }

    /// Waits until the run has ended or waits for an answer.
    pub(super) async fn settled(&mut self, row: TaskRow, at_most: Duration) -> ExposedRun {
        let (row, waited) = exposed_run::until_settled(&self.app, &self.caller, &self.patience, row, at_most).await;
        self.waited += waited;
        match ExposedRun::of(&self.app, &self.caller, row.clone()).await {
            Ok(run) => run,
            Err(error) => {
                tracing::debug!("a run cannot be read: {error:?}");
                ExposedRun::open(TaskRow { status: RunStatus::Running.as_str().to_owned(), is_waiting: false, ..row })
            }
        }
    }

    /// Idempotency key of a call: the client's, or the id of the call if it is long enough to be unique. A repeat of an id
    /// with other arguments is another call.
    pub(super) fn key(&self, tool: &str, arguments: &RawValue) -> Result<Option<IdempotencyKey>, Failure> {
        let digest = Sha256::digest(arguments.get()).to_vec();
        let in_meta = member(&self.call.params, "_meta").and_then(|meta| member(meta, IDEMPOTENCY_KEY));
        let given = match in_meta {
            Some(key) => Some(text(key).ok_or_else(|| invalid("`idempotencyKey` should be a text"))?),
            None => self.idempotency_key.clone(),
        };
        if given.as_ref().is_some_and(|key| key.trim().is_empty() || key.chars().count() > MAX_KEY_CHARS) {
            return Err(invalid(format!("The idempotency key should have 1 to {MAX_KEY_CHARS} characters")));
        }
        let id = || self.call.id.as_deref().and_then(text).filter(|id| UNIQUE_ID_CHARS.contains(&id.chars().count()));
        let of_id = || id().map(|id| format!("{id} {}", URL_SAFE_NO_PAD.encode(&digest)));
        let key = given.or_else(of_id);
        Ok(key.and_then(|key| Key::given(key).bound(&format!("mcp {tool:?}"), &self.caller, digest)))
    }
}

/// A run that has just been started, without reading it.
fn submitted(run: &Run, workflow_name: String) -> TaskRow {
    TaskRow {
        run_id: run.run_id().to_owned(),
        workflow_name,
        context_id: None,
        status: RunStatus::Pending.as_str().to_owned(),
        created_at: run.created_at(),
        updated_at: run.created_at(),
        error_message: None,
        is_waiting: false,
    }
}

/// Name of the workflow after which a page begins.
fn read_cursor(cursor: &RawValue) -> Option<String> {
    let name = String::from_utf8(URL_SAFE_NO_PAD.decode(text(cursor)?).ok()?).ok()?;
    (!name.contains('\0')).then_some(name)
}

const _: () = assert!(FIXED_TOOLS.len() == fixed::TOOLS.len(), "no workflow may have the name of a fixed tool");
