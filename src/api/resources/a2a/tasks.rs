//! Methods of an agent that are answered at once, or at the end of a task.

use std::time::Duration;

use chrono::DateTime;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    AgentCall,
    errors::{A2aError, Failure, invalid_param, unrooted},
    message::{Message, Sending, history_length},
};
use crate::{
    a2a::shown::{self, Output},
    actions::{cancel_run::cancel_run, task_pushes::NewPush},
    api::{
        resources::{
            exposed_run::{self, ExposedRun, NoQuestion},
            runs::wire::Run,
            workflows::execute::{self, NewRun},
        },
        vocabulary::{
            cursor::{ListQuery, ListRequest},
            error::ApiError,
            extract::Query,
            idempotency::Key,
            prefer::MAX_WAIT,
        },
    },
    db::{
        self,
        idempotency::IdempotencyKey,
        runs::{Filter, Sort, TaskRow},
    },
    input::{Node, Read, to_raw},
    kafka::message::DEFAULT_PRIORITY,
    run::{RunStatus, State},
    timestamp::Timestamp,
    workflow::Deadline,
};

/// Maximum and default number of tasks on a page.
const PAGE_SIZE: (i64, i64) = (100, 50);
/// Maximum bytes of an output in a list or in a stream. Larger ones are replaced by the address of their run.
pub const LISTED_OUTPUT_BYTES: i32 = 64 << 10;

impl AgentCall {
    /// Run of this workflow with that id, as a task.
    pub(super) async fn task(&self, task_id: &str) -> Result<TaskRow, Failure> {
        let found = exposed_run::find(&self.app, &self.caller, task_id).await.and_then(|row| {
            if row.workflow_name == self.workflow.name { Ok(row) } else { Err(ApiError::run_not_found()) }
        });
        found.map_err(|error| match error.code() {
            "run_not_found" => A2aError::TaskNotFound.with("Task not found", &[("taskId", task_id)]).into(),
            _ => error.into(),
        })
    }

    /// The task that the parameter `id` names, and whether the client wants its messages.
    pub(super) async fn named_task(&self) -> Result<(TaskRow, bool), Failure> {
        let params = Node::new("params", &self.call.params).object()?;
        let mut errors = Vec::new();
        let id = params.required("id", &mut errors, |node| node.not_blank(1..=255));
        let length = params.nullable("historyLength", &mut errors, history_length);
        match id {
            Some(id) if errors.is_empty() => Ok((self.task(&id).await?, length.is_some_and(|length| length > 0))),
            _ => Err(unrooted(errors).into()),
        }
    }

    /// Address of a run, for an output that is too large for an answer.
    pub(super) fn address(&self, row: &TaskRow) -> String {
        let api = &self.app.config.api;
        format!("{}{}/runs/{}", api.public_url, api.prefix, row.run_id)
    }

    fn key(&self, scope: &str, message: &Message) -> Option<IdempotencyKey> {
        Key::given(message.id.clone()).bound(scope, &self.caller, message.fingerprint.clone())
    }

    /// Delivers a message: starts a run, or answers a question, and sets the client's push notifications. Returns the task
    /// as it is then.
    pub(super) async fn deliver(&self, message: Message, push: Option<NewPush>) -> Result<TaskRow, Failure> {
        let Some(task_id) = message.task_id.clone() else {
            let row = self.start(message).await?;
            // What has happened to the run in between is told at once.
            if let Some(push) = push {
                self.set_push(&row.run_id, push).await?;
            }
            return Ok(row);
        };
        if let Some(push) = push {
            let row = self.task(&task_id).await?;
            self.set_push(&row.run_id, push).await?;
        }
        self.resolve(&task_id, &message).await
    }

    async fn start(&self, message: Message) -> Result<TaskRow, Failure> {
        let key = self.key(&format!("a2a {:?}", self.workflow.name), &message);
        let (input, workflow_id) = (message.input()?, self.workflow.id);
        let context_id = message.context_id;
        let (priority, label) = (DEFAULT_PRIORITY.into(), context_id.clone());
        let new = NewRun {
            workflow_id,
            input,
            priority,
            key,
            context_id: label,
            limits: None,
            deadline: Deadline::default(),
        };
        let (run, is_repeat) = execute::begin(&self.app, &self.caller, new).await?;
        if is_repeat { self.task(run.run_id()).await } else { Ok(self.submitted(&run, context_id)) }
    }

    /// Task of a run that has just been started, without reading it.
    fn submitted(&self, run: &Run, context_id: Option<String>) -> TaskRow {
        TaskRow {
            run_id: run.run_id().to_owned(),
            workflow_name: self.workflow.name.clone(),
            context_id,
            status: RunStatus::Pending.as_str().to_owned(),
            created_at: run.created_at(),
            updated_at: run.created_at(),
            error_message: None,
            is_waiting: false,
        }
    }

    async fn resolve(&self, task_id: &str, message: &Message) -> Result<TaskRow, Failure> {
        let row = self.task(task_id).await?;
        if message.context_id.as_deref().is_some_and(|given| given != row.shown().context_id) {
            return Err(invalid_param("message.contextId", "is not that of the task").into());
        }
        let key = self.key(&format!("a2a task {task_id}"), message);
        // A repeat must not answer the next question.
        if let Some(key) = &key
            && let Some(taken) = db::idempotency::find(&self.app.pool, &key.scope, &key.key).await?
        {
            let is_repeat = taken.fingerprint == key.fingerprint;
            let reused = || invalid_param("message.messageId", "was used before with another message");
            return if is_repeat { Ok(row) } else { Err(reused().into()) };
        }
        let questions = exposed_run::questions(&self.app, &self.caller, task_id).await?;
        if questions.is_empty() {
            let text = if row.state().is_terminal() {
                "The task has ended and accepts no more messages"
            } else {
                "The task waits for no answer at the moment"
            };
            return Err(A2aError::UnsupportedOperation.with(text, &[("taskId", task_id)]).into());
        }
        let (step_id, question_id) = (message.step_id.as_deref(), message.question_id.as_deref());
        let question = exposed_run::chosen(&questions, step_id, question_id).map_err(|none| {
            let (member, text) = match none {
                NoQuestion::Missing if question_id.is_some() => {
                    ("question_id", "no question with this id waits for an answer".to_owned())
                }
                NoQuestion::Missing => ("step_id", "no step with this id waits for an answer".to_owned()),
                NoQuestion::SeveralSteps(ids) => {
                    ("step_id", format!("the task has several questions: name one of the steps {ids}"))
                }
                NoQuestion::SeveralOfStep(ids) => {
                    ("question_id", format!("the step has several questions: name one of {ids}"))
                }
            };
            invalid_param(&format!("message.metadata.{member}"), &text)
        })?;
        let answer = message.answer_to(question)?;
        exposed_run::answer(&self.app, &self.caller, question, &answer, key.as_ref()).await?;
        self.task(task_id).await
    }

    /// Parameters of sending a message.
    pub(super) fn sending(&self) -> Result<Sending, Failure> {
        Sending::read(&self.call.params, self.version, &self.app.config.egress)
    }

    /// Sends a message. Returns the result, and the time for which it was waited.
    pub(super) async fn send(&self) -> Result<(Box<RawValue>, Duration), Failure> {
        let Sending { message, push, is_blocking, wants_history } = self.sending()?;
        let row = self.deliver(message, push).await?;
        let (row, waited) = if is_blocking && !row.state().is_settled() {
            exposed_run::until_settled(&self.app, &self.caller, &self.patience, row, MAX_WAIT).await
        } else {
            (row, Duration::ZERO)
        };
        let run = self.shown(row).await;
        // What was just written is shown without messages if they cannot be read.
        let first = self.first_message(&run.row, wants_history).await.unwrap_or_default();
        let output = Output::of(run.output.as_deref());
        Ok((self.version.started(run.row.shown(), &run.asked(), output, first), waited))
    }

    /// The task with its questions and its output. What was just written is shown without them if they cannot be read.
    async fn shown(&self, row: TaskRow) -> ExposedRun {
        match ExposedRun::of(&self.app, &self.caller, row.clone()).await {
            Ok(run) => run,
            Err(error) => {
                tracing::debug!("a task cannot be read: {error:?}");
                ExposedRun::open(TaskRow { status: RunStatus::Running.as_str().to_owned(), is_waiting: false, ..row })
            }
        }
    }

    /// The message that has started a task, if the client wants messages.
    async fn first_message(&self, row: &TaskRow, is_wanted: bool) -> Result<Option<shown::Message>, ApiError> {
        if !is_wanted {
            return Ok(None);
        }
        let shown = self.app.runs.find(self.caller.organization(), &row.run_id).await?;
        let input = shown.and_then(|shown| shown.run.input_data);
        Ok(input.map(|input| self.version.first_message(row.shown(), &input.0)))
    }

    pub(super) async fn get(&self) -> Result<Box<RawValue>, Failure> {
        let (row, wants_history) = self.named_task().await?;
        let run = ExposedRun::of(&self.app, &self.caller, row).await?;
        let first = self.first_message(&run.row, wants_history).await?;
        let output = Output::of(run.output.as_deref());
        Ok(self.version.whole_task(run.row.shown(), &run.asked(), output, first))
    }

    pub(super) async fn cancel(&self) -> Result<Box<RawValue>, Failure> {
        let (row, _) = self.named_task().await?;
        let context = self.caller.context(&self.app);
        cancel_run(&self.app.pool, &self.app.relay, context, &row.run_id, None).await.map_err(ApiError::from)?;
        tracing::info!(target: "api.routes.runs", run_id = row.run_id, "Run cancelled");
        let row = self.task(&row.run_id).await?;
        Ok(self.version.whole_task(row.shown(), &[], Output::Nothing, None))
    }

    pub(super) async fn list(&self) -> Result<Box<RawValue>, Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Listed {
            tasks: Vec<shown::Task>,
            next_page_token: String,
            page_size: i64,
            total_size: i64,
        }
        let asked = Asked::read(&self.call.params).map_err(unrooted)?;
        let (organization, workflow) = (self.caller.organization().clone(), &self.workflow.name);
        let Some((statuses, is_waiting)) = asked.statuses() else {
            let (page_size, next_page_token) = (asked.page_size, String::new());
            return Ok(to_raw(&Listed { tasks: Vec::new(), next_page_token, page_size, total_size: 0 }));
        };
        let query = asked.query();
        let query = Query::parse(&query)?;
        let mut parameters = ListQuery::new(&query);
        // A cursor is bound to what is read here.
        for name in ["status", "context", "updated_after"] {
            parameters.text(name);
        }
        let list = ListRequest::read(&self.app, &parameters, &format!("tasks of {workflow:?}")).await?;
        let filter = Filter {
            organization: organization.clone(),
            statuses,
            workflow_id: None,
            workflow_definition_id: None,
            name: Some(workflow.clone()),
            name_prefix: None,
            triggered_by: None,
            trigger_id: None,
            parent_run_id: None,
            context: asked.context_id,
            is_waiting,
            is_paused: None,
            created: (None, None),
            updated: (asked.updated_after, None),
            sort: Sort::UpdatedAt,
            ascending: false,
        };
        let page = db::runs::list(&mut *self.app.pool.acquire().await?, &filter, &list.page).await?;
        let ids = page.entries.positions.iter().filter_map(|position| position.id.text()).collect::<Vec<_>>();
        let (_, next) = list.neighbours(&page.entries);
        let rows = db::runs::tasks(&self.app.pool, &organization, &ids).await?;
        let outputs = if asked.include_artifacts {
            db::runs::small_outputs(&self.app.pool, &ids, LISTED_OUTPUT_BYTES).await?
        } else {
            Vec::new()
        };
        let task = |row: &TaskRow| {
            let found = outputs.iter().find(|(run_id, _)| *run_id == row.run_id);
            let output = match found {
                _ if !asked.include_artifacts => Output::Omitted,
                Some((_, output)) => Output::Value(&output.0),
                None if row.state() == State::Completed => Output::At(self.address(row)),
                None => Output::Nothing,
            };
            self.version.task(row.shown(), &[], output)
        };
        Ok(to_raw(&Listed {
            tasks: rows.iter().map(task).collect(),
            next_page_token: next.unwrap_or_default(),
            page_size: list.page.size,
            total_size: page.total.count,
        }))
    }
}

/// Parameters of a list.
struct Asked {
    context_id: Option<String>,
    status: Option<String>,
    page_size: i64,
    page_token: Option<String>,
    updated_after: Option<Timestamp>,
    include_artifacts: bool,
}

/// Runs in a state: their status, and whether they wait. `None`: no run is ever in it.
type RunsInState = Option<(RunStatus, Option<bool>)>;

/// States of 1.0 by which a list can be filtered.
const STATES: [(&str, RunsInState); 8] = [
    ("TASK_STATE_SUBMITTED", Some((RunStatus::Pending, None))),
    ("TASK_STATE_WORKING", Some((RunStatus::Running, Some(false)))),
    ("TASK_STATE_INPUT_REQUIRED", Some((RunStatus::Running, Some(true)))),
    ("TASK_STATE_COMPLETED", Some((RunStatus::Completed, None))),
    ("TASK_STATE_FAILED", Some((RunStatus::Failed, None))),
    ("TASK_STATE_CANCELED", Some((RunStatus::Cancelled, None))),
    // No run has one of these.
    ("TASK_STATE_REJECTED", None),
    ("TASK_STATE_AUTH_REQUIRED", None),
];
/// State that stands for none.
const UNSPECIFIED: &str = "TASK_STATE_UNSPECIFIED";

impl Asked {
    fn read(params: &RawValue) -> Read<Self> {
        let params = Node::new("params", params).object()?;
        let mut errors = Vec::new();
        let (most, default) = PAGE_SIZE;
        let text = |node: &Node<'_>| node.string(0..=1000);
        let asked = Self {
            context_id: params.nullable("contextId", &mut errors, |node| node.string(0..=255)),
            status: params.nullable("status", &mut errors, |node| {
                let is_known = |name: &str| name == UNSPECIFIED || STATES.iter().any(|(state, _)| *state == name);
                node.parsed(|name| {
                    let names = STATES.map(|(state, _)| state).join(", ");
                    if is_known(name) { Ok(name.to_owned()) } else { Err(format!("must be one of {names}")) }
                })
            }),
            page_size: params.nullable("pageSize", &mut errors, |node| node.int(1..=most)).unwrap_or(default),
            page_token: params.nullable("pageToken", &mut errors, text),
            updated_after: params.nullable("statusTimestampAfter", &mut errors, |node| {
                node.parsed(|text| {
                    let at = DateTime::parse_from_rfc3339(text).map_err(|_| "must be a time of RFC 3339".to_owned())?;
                    Ok(Timestamp::from(at.to_utc()))
                })
            }),
            include_artifacts: params.nullable("includeArtifacts", &mut errors, Node::boolean).unwrap_or_default(),
        };
        params.nullable("historyLength", &mut errors, history_length);
        let asked = Self {
            context_id: asked.context_id.filter(|text| !text.is_empty()),
            status: asked.status.filter(|status| status != UNSPECIFIED),
            page_token: asked.page_token.filter(|text| !text.is_empty()),
            ..asked
        };
        if errors.is_empty() { Ok(asked) } else { Err(errors) }
    }

    /// Statuses of the wanted runs, and whether they wait; `None`: no run is wanted.
    fn statuses(&self) -> Option<(Vec<String>, Option<bool>)> {
        let Some(wanted) = &self.status else { return Some((Vec::new(), None)) };
        let (status, is_waiting) = STATES.iter().find(|(state, _)| state == wanted)?.1?;
        Some((vec![status.as_str().to_owned()], is_waiting))
    }

    /// The same as a query of a list.
    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("page_size", &self.page_size.to_string());
        let updated_after = self.updated_after.map(|at| at.to_string());
        for (name, value) in [
            ("status", &self.status),
            ("context", &self.context_id),
            ("updated_after", &updated_after),
            ("cursor", &self.page_token),
        ] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }
}
