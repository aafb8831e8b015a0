//! The seven tools that are always there: finding workflows, and starting, reading and deciding about runs.

use std::time::Duration;

use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::{
    Failure, McpCall,
    outcome::{error_result, run_result, value_result},
};
use crate::{
    access::Permission,
    actions::cancel_run::cancel_run,
    api::{
        resources::exposed_run::{self, ExposedRun, NoQuestion},
        vocabulary::{
            caller::Caller,
            cursor::{ListQuery, ListRequest},
            error::ApiError,
            extract::Query,
        },
    },
    db::{
        self,
        runs::{Filter, Sort},
    },
    input::{FieldError, Node, Object, Read, object_of, to_raw},
    run::RunStatus,
    timestamp::Timestamp,
};

/// Maximum time for which a tool waits, in seconds.
const MAX_WAIT_SECS: i64 = 30;
/// Maximum number of workflows or runs in a result.
const MAX_LISTED: i64 = 50;

/// Tool that is always there.
pub struct Fixed {
    /// Name of the tool.
    pub name: &'static str,
    description: &'static str,
    /// JSON text of the schema of its arguments.
    schema: &'static str,
    needs: Permission,
    /// Whether it concerns a workflow or a run that its arguments name.
    names_object: bool,
    is_read_only: bool,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    ApprovalAnswer,
    RunAwait,
    RunCancel,
    RunGet,
    RunStart,
    RunsList,
    WorkflowsSearch,
}

/// All of them, by name.
pub static TOOLS: [Fixed; 7] = [
    Fixed {
        name: "approval_answer",
        description: "Answers a question of a run that waits. Only with the decision of the user.",
        schema: r#"{"type":"object","required":["run_id"],"additionalProperties":false,"properties":{"run_id":{"type":"string"},"step_id":{"type":"string","description":"Needed if several steps wait"},"question_id":{"type":"string","description":"Needed if a step asks several questions"},"approved":{"type":"boolean","description":"Of an approval: the decision"},"comment":{"type":"string","maxLength":2000},"answer":{"type":"object","description":"Of another question: the answer"}}}"#,
        needs: Permission::RunsWrite,
        names_object: true,
        is_read_only: false,
        kind: Kind::ApprovalAnswer,
    },
    Fixed {
        name: "run_await",
        description: "Waits until a run has ended or waits for an answer, and returns it.",
        schema: r#"{"type":"object","required":["run_id"],"additionalProperties":false,"properties":{"run_id":{"type":"string"},"timeout_seconds":{"type":"integer","minimum":0,"maximum":30,"default":30}}}"#,
        needs: Permission::RunsRead,
        names_object: true,
        is_read_only: true,
        kind: Kind::RunAwait,
    },
    Fixed {
        name: "run_cancel",
        description: "Cancels a run.",
        schema: r#"{"type":"object","required":["run_id"],"additionalProperties":false,"properties":{"run_id":{"type":"string"},"reason":{"type":"string","maxLength":500}}}"#,
        needs: Permission::RunsWrite,
        names_object: true,
        is_read_only: false,
        kind: Kind::RunCancel,
    },
    Fixed {
        name: "run_get",
        description: "Returns a run: status, output, error, and the questions that it waits for.",
        schema: r#"{"type":"object","required":["run_id"],"additionalProperties":false,"properties":{"run_id":{"type":"string"}}}"#,
        needs: Permission::RunsRead,
        names_object: true,
        is_read_only: true,
        kind: Kind::RunGet,
    },
    Fixed {
        name: "run_start",
        description: "Starts a run of any workflow by name. Waits for its end for up to wait_seconds.",
        schema: r#"{"type":"object","required":["workflow"],"additionalProperties":false,"properties":{"workflow":{"type":"string","description":"Name of the workflow"},"input":{"type":"object","default":{}},"wait_seconds":{"type":"integer","minimum":0,"maximum":30,"default":10}}}"#,
        needs: Permission::RunsWrite,
        names_object: true,
        is_read_only: false,
        kind: Kind::RunStart,
    },
    Fixed {
        name: "runs_list",
        description: "Lists runs, the latest first.",
        schema: r#"{"type":"object","additionalProperties":false,"properties":{"workflow":{"type":"string","description":"Name of the workflow"},"status":{"enum":["PENDING","RUNNING","COMPLETED","FAILED","CANCELLED"]},"limit":{"type":"integer","minimum":1,"maximum":50,"default":20},"cursor":{"type":"string","description":"The next_cursor of a result with the same arguments"}}}"#,
        needs: Permission::RunsRead,
        names_object: false,
        is_read_only: true,
        kind: Kind::RunsList,
    },
    Fixed {
        name: "workflows_search",
        description: "Finds workflows whose name or description contains a text, with the schemas of their inputs.",
        schema: r#"{"type":"object","additionalProperties":false,"properties":{"query":{"type":"string","default":""},"limit":{"type":"integer","minimum":1,"maximum":50,"default":20}}}"#,
        needs: Permission::WorkflowsRead,
        names_object: false,
        is_read_only: true,
        kind: Kind::WorkflowsSearch,
    },
];

impl Fixed {
    /// Whether the caller may use the tool. A caller that is bound to workflows may not list others.
    pub fn may_be_used_by(&self, caller: &Caller) -> bool {
        caller.may(self.needs) && (self.names_object || caller.grant.workflows.is_none())
    }

    /// 403 unless the caller may use the tool.
    fn authorize(&self, caller: &Caller) -> Result<(), ApiError> {
        caller.must(self.needs)?;
        if self.may_be_used_by(caller) {
            return Ok(());
        }
        let detail = "The API key is bound to workflows, and the tool lists others too";
        Err(ApiError::new(http::StatusCode::FORBIDDEN, "key_is_bound", detail))
    }

    /// The tool in a list.
    pub fn listed(&self) -> Box<RawValue> {
        let hints = to_raw(&json!({"readOnlyHint": self.is_read_only, "openWorldHint": !self.is_read_only}));
        let schema: &RawValue = serde_json::from_str(self.schema).expect("the schemas are well-formed");
        let (name, description) = (to_raw(self.name), to_raw(self.description));
        object_of([("name", &*name), ("description", &*description), ("inputSchema", schema), ("annotations", &*hints)])
    }
}

/// Reads arguments, of which no others may be there.
fn read<T>(
    arguments: &RawValue,
    known: &[&str],
    read: impl FnOnce(&Object<'_>, &mut Vec<FieldError>) -> T,
) -> Result<T, ApiError> {
    let object = Node::new("arguments", arguments).object()?;
    let mut errors = Vec::new();
    object.only(known, &mut errors);
    let value = read(&object, &mut errors);
    if errors.is_empty() { Ok(value) } else { Err(errors.into()) }
}

fn id(node: &Node<'_>) -> Read<String> {
    node.not_blank(1..=255)
}

/// The parameters of a list as a query.
fn query(page_size: i64, parameters: [(&str, &Option<String>); 3]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("page_size", &page_size.to_string());
    for (name, value) in parameters {
        value.as_ref().map(|value| query.append_pair(name, value));
    }
    query.finish()
}

fn seconds(secs: Option<i64>, default: i64) -> Duration {
    Duration::from_secs(u64::try_from(secs.unwrap_or(default)).unwrap_or_default())
}

impl McpCall {
    /// Calls a tool that is always there.
    pub(super) async fn call_fixed(&mut self, tool: &Fixed, arguments: &RawValue) -> Result<Box<RawValue>, Failure> {
        tool.authorize(&self.caller)?;
        match tool.kind {
            Kind::ApprovalAnswer => Ok(self.answer_approval(arguments).await?),
            Kind::RunAwait => Ok(self.await_run(arguments).await?),
            Kind::RunCancel => Ok(self.cancel(arguments).await?),
            Kind::RunGet => Ok(self.get_run(arguments).await?),
            Kind::RunStart => self.start_run(arguments).await,
            Kind::RunsList => Ok(self.list_runs(arguments).await?),
            Kind::WorkflowsSearch => Ok(self.search(arguments).await?),
        }
    }

    /// The run in a result.
    async fn shown(&self, run_id: &str) -> Result<Box<RawValue>, ApiError> {
        let row = exposed_run::find(&self.app, &self.caller, run_id).await?;
        Ok(run_result(self.client, &ExposedRun::of(&self.app, &self.caller, row).await?))
    }

    async fn get_run(&self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        let run_id = read(arguments, &["run_id"], |object, errors| object.required("run_id", errors, id))?;
        self.shown(&run_id.unwrap_or_default()).await
    }

    async fn await_run(&mut self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        let (run_id, secs) = read(arguments, &["run_id", "timeout_seconds"], |object, errors| {
            let run_id = object.required("run_id", errors, id);
            (run_id, object.nullable("timeout_seconds", errors, |node| node.int(0..=MAX_WAIT_SECS)))
        })?;
        let row = exposed_run::find(&self.app, &self.caller, &run_id.unwrap_or_default()).await?;
        let run = self.settled(row, seconds(secs, MAX_WAIT_SECS)).await;
        Ok(run_result(self.client, &run))
    }

    async fn cancel(&self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        let (run_id, reason) = read(arguments, &["run_id", "reason"], |object, errors| {
            let run_id = object.required("run_id", errors, id);
            (run_id, object.nullable("reason", errors, |node| node.string(0..=500)))
        })?;
        let run = exposed_run::find(&self.app, &self.caller, &run_id.unwrap_or_default()).await?;
        let context = self.caller.context(&self.app);
        cancel_run(&self.app.pool, &self.app.relay, context, &run.run_id, reason.as_deref()).await?;
        tracing::info!(target: "api.routes.runs", run_id = run.run_id, "Run cancelled");
        self.shown(&run.run_id).await
    }

    async fn start_run(&mut self, arguments: &RawValue) -> Result<Box<RawValue>, Failure> {
        let (workflow, input, secs) = read(arguments, &["workflow", "input", "wait_seconds"], |object, errors| {
            let workflow = object.required("workflow", errors, id);
            let input = object.nullable("input", errors, Node::free_object);
            (workflow, input, object.nullable("wait_seconds", errors, |node| node.int(0..=MAX_WAIT_SECS)))
        })?;
        let name = workflow.unwrap_or_default();
        let bound = self.caller.grant.workflows.as_ref();
        let found = if bound.is_none_or(|bound| bound.contains(&name)) {
            db::workflows::find_active(&self.app.pool, self.caller.organization(), &name).await?
        } else {
            None
        };
        let Some(found) = found else {
            return Ok(error_result(
                self.client,
                "There is no such workflow; workflows_search finds those that there are",
            ));
        };
        let key = self.key("run_start", arguments)?;
        let input = input.unwrap_or_else(|| object_of([]));
        let row = self.start(found.id, name, input, key).await?;
        self.awaited(row, seconds(secs, 10)).await
    }

    async fn answer_approval(&mut self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        let known = ["run_id", "step_id", "question_id", "approved", "comment", "answer"];
        let (run_id, step_id, question_id, approved, comment, answer) = read(arguments, &known, |object, errors| {
            (
                object.required("run_id", errors, id),
                object.nullable("step_id", errors, id),
                object.nullable("question_id", errors, id),
                object.nullable("approved", errors, Node::boolean),
                object.nullable("comment", errors, |node| node.string(0..=2000)),
                object.nullable("answer", errors, Node::free_object),
            )
        })?;
        let row = exposed_run::find(&self.app, &self.caller, &run_id.unwrap_or_default()).await?;
        let questions = exposed_run::questions(&self.app, &self.caller, &row.run_id).await?;
        let question = exposed_run::chosen(&questions, step_id.as_deref(), question_id.as_deref());
        let question = question.map_err(|none| match none {
            NoQuestion::Missing => {
                ApiError::bad_request("no_question", "The run waits for no such answer at the moment")
            }
            NoQuestion::SeveralSteps(ids) => {
                FieldError::rule("arguments.step_id", format!("several steps wait: one of {ids}")).into()
            }
            NoQuestion::SeveralOfStep(ids) => {
                FieldError::rule("arguments.question_id", format!("the step asks several questions: one of {ids}"))
                    .into()
            }
        })?;
        let answer = match (question.approval.is_some(), approved, answer) {
            (true, Some(approved), None) => {
                let (approved, comment) = (to_raw(&approved), comment.map(|comment| to_raw(&comment)));
                let comment = comment.as_deref().map(|comment| ("comment", comment));
                object_of([("approved", &*approved)].into_iter().chain(comment))
            }
            (false, None, Some(answer)) if comment.is_none() => answer,
            (true, ..) => return Err(FieldError::rule("arguments.approved", "is needed, and no `answer`").into()),
            (false, ..) => return Err(FieldError::rule("arguments.answer", "is needed, and nothing else").into()),
        };
        exposed_run::answer(&self.app, &self.caller, question, &answer, None).await?;
        self.shown(&row.run_id).await
    }

    async fn list_runs(&self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        #[derive(Serialize)]
        struct Listed {
            runs: Vec<ListedRun>,
            next_cursor: Option<String>,
        }
        #[derive(Serialize)]
        struct ListedRun {
            run_id: String,
            workflow: String,
            status: String,
            is_waiting: bool,
            created_at: Timestamp,
            updated_at: Timestamp,
            error: Option<String>,
        }
        let (workflow, status, limit, cursor) =
            read(arguments, &["workflow", "status", "limit", "cursor"], |object, errors| {
                let workflow = object.nullable("workflow", errors, id);
                let status = object.nullable("status", errors, |node| {
                    node.parsed(|name| RunStatus::parse(name).ok_or_else(|| "must be the status of a run".to_owned()))
                });
                let limit = object.nullable("limit", errors, |node| node.int(1..=MAX_LISTED));
                (workflow, status, limit, object.nullable("cursor", errors, |node| node.string(0..=1000)))
            })?;
        let status = status.map(|status| status.as_str().to_owned());
        let parameters = [("name", &workflow), ("status", &status), ("cursor", &cursor)];
        let query = Query::parse(&query(limit.unwrap_or(20), parameters))?;
        let mut parameters = ListQuery::new(&query);
        // A cursor is bound to what is read here.
        for name in ["name", "status"] {
            parameters.text(name);
        }
        let list = ListRequest::read(&self.app, &parameters, "runs of mcp").await?;
        let organization = self.caller.organization().clone();
        let filter = Filter {
            organization: organization.clone(),
            statuses: status.into_iter().collect(),
            workflow_id: None,
            workflow_definition_id: None,
            name: workflow,
            name_prefix: None,
            triggered_by: None,
            trigger_id: None,
            parent_run_id: None,
            context: None,
            is_waiting: None,
            is_paused: None,
            created: (None, None),
            updated: (None, None),
            sort: Sort::CreatedAt,
            ascending: false,
        };
        let page = db::runs::list(&mut *self.app.pool.acquire().await?, &filter, &list.page).await?;
        let ids: Vec<_> = page.entries.positions.iter().filter_map(|position| position.id.text()).collect();
        let (_, next_cursor) = list.neighbours(&page.entries);
        let rows = db::runs::tasks(&self.app.pool, &organization, &ids).await?;
        let runs = rows.into_iter().map(|row| ListedRun {
            run_id: row.run_id,
            workflow: row.workflow_name,
            status: row.status,
            is_waiting: row.is_waiting,
            created_at: row.created_at,
            updated_at: row.updated_at,
            error: row.error_message,
        });
        Ok(value_result(self.client, &to_raw(&Listed { runs: runs.collect(), next_cursor })))
    }

    async fn search(&self, arguments: &RawValue) -> Result<Box<RawValue>, ApiError> {
        #[derive(Serialize)]
        struct Found<'a> {
            name: &'a str,
            description: Option<&'a str>,
            version: i32,
            input_schema: Option<&'a RawValue>,
        }
        let (query, limit) = read(arguments, &["query", "limit"], |object, errors| {
            let query = object.nullable("query", errors, |node| node.string(0..=500));
            (query, object.nullable("limit", errors, |node| node.int(1..=MAX_LISTED)))
        })?;
        let (query, organization) = (query.unwrap_or_default(), self.caller.organization());
        let found = db::exposed::search(&self.app.pool, organization, query.trim(), limit.unwrap_or(20)).await?;
        let workflows: Vec<_> = found
            .iter()
            .map(|found| Found {
                name: &found.name,
                description: found.description.as_deref(),
                version: found.version,
                input_schema: found.input_schema.as_ref().map(|schema| &*schema.0),
            })
            .collect();
        let workflows = to_raw(&workflows);
        Ok(value_result(self.client, &object_of([("workflows", &*workflows)])))
    }
}
