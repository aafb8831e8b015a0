//! Results of tools: runs, and errors that a model can correct.

use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Failure, McpCall, OUTPUT_URI_END, OUTPUT_URI_START, elicitation, protocol::Client};
use crate::{
    api::{
        resources::exposed_run::{self, ExposedRun},
        vocabulary::{app::App, caller::Caller, error::ApiError},
    },
    input::{object_of, shorten_to, to_raw},
    run::State,
    timestamp::Timestamp,
};

/// Maximum bytes of an output in a result. A larger one is a resource of its own.
const MAX_OUTPUT_BYTES: usize = 50_000;
/// Maximum characters of a question in a text. The tools about runs have the whole one.
const MAX_QUESTION_CHARS: usize = 2000;

/// Run in the result of a tool.
#[derive(Serialize)]
struct Summary<'a> {
    run_id: &'a str,
    workflow: &'a str,
    status: &'a str,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_uri: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    questions: Vec<Asked<'a>>,
}

/// Question in the result of a tool.
#[derive(Serialize)]
struct Asked<'a> {
    question_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_run_id: Option<&'a str>,
    step_id: &'a str,
    question: String,
    is_approval: bool,
    role: Option<String>,
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_schema: Option<&'a RawValue>,
}

/// Output of a run that the caller may see; `None` if there is none.
pub async fn output_of(app: &App, caller: &Caller, run_id: &str) -> Result<Option<Box<RawValue>>, ApiError> {
    match exposed_run::find(app, caller, run_id).await {
        Ok(row) => Ok(ExposedRun::of(app, caller, row).await?.output),
        Err(error) if error.status() == StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// Content of a text.
fn text_content(text: &str) -> Box<RawValue> {
    let (kind, text) = (to_raw("text"), to_raw(text));
    object_of([("type", &*kind), ("text", &*text)])
}

/// Result of a tool with these contents.
fn tool_result(
    client: Client,
    contents: &[Box<RawValue>],
    structured: Option<&RawValue>,
    is_error: bool,
) -> Box<RawValue> {
    let (contents, is_error) = (to_raw(contents), to_raw(&is_error));
    let structured = structured.map(|structured| ("structuredContent", structured));
    let members: Vec<_> = [("content", &*contents), ("isError", &*is_error)].into_iter().chain(structured).collect();
    client.result("complete", &members)
}

/// Result of a tool with a value.
#[must_use]
pub fn value_result(client: Client, value: &RawValue) -> Box<RawValue> {
    tool_result(client, &[text_content(value.get())], Some(value), false)
}

/// Result of a tool that failed for a reason that a model can correct.
#[must_use]
pub fn error_result(client: Client, text: &str) -> Box<RawValue> {
    tool_result(client, &[text_content(text)], None, true)
}

/// The result of a tool that was refused, if a model can react to that; otherwise the error of the request.
pub fn refused_result(client: Client, error: ApiError) -> Result<Box<RawValue>, Failure> {
    let is_for_model = [
        StatusCode::BAD_REQUEST,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::GONE,
        StatusCode::PAYLOAD_TOO_LARGE,
        StatusCode::UNPROCESSABLE_ENTITY,
    ];
    if !is_for_model.contains(&error.status()) {
        return Err(error.into());
    }
    let faults = error.errors().iter().map(|fault| {
        let field = fault.field.replacen("body.input_data", "arguments", 1).replacen("body", "arguments", 1);
        format!("\n{field}: {}", fault.message)
    });
    // There is no list of errors here of which the detail could speak.
    let detail = if error.errors().is_empty() { error.detail() } else { "The call is not valid." };
    let text: String = [detail.to_owned()].into_iter().chain(faults).collect();
    Ok(error_result(client, &text))
}

fn output_uri(run: &ExposedRun) -> String {
    format!("{OUTPUT_URI_START}{}{OUTPUT_URI_END}", run.row.run_id)
}

fn is_large(output: &RawValue) -> bool {
    output.get().len() > MAX_OUTPUT_BYTES
}

/// Link to an output that is too large for a result.
fn link(run: &ExposedRun, output: &RawValue) -> Box<RawValue> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Link<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        uri: String,
        name: &'static str,
        description: String,
        mime_type: &'static str,
        size: usize,
        title: &'a str,
    }
    to_raw(&Link {
        kind: "resource_link",
        uri: output_uri(run),
        name: "output",
        description: format!("Output of the run {}", run.row.run_id),
        mime_type: "application/json",
        size: output.get().len(),
        title: &run.row.workflow_name,
    })
}

/// A run in words and members, for the tools about runs.
#[must_use]
pub fn run_result(client: Client, run: &ExposedRun) -> Box<RawValue> {
    let row = &run.row;
    let (large, small) = (run.output.as_deref().filter(|output| is_large(output)), run.output.as_deref());
    let summary = Summary {
        run_id: &row.run_id,
        workflow: &row.workflow_name,
        status: if run.state() == State::Waiting { "WAITING_FOR_ANSWER" } else { &row.status },
        created_at: row.created_at,
        updated_at: row.updated_at,
        error: row.error_message.as_deref(),
        output: small.filter(|output| !is_large(output)),
        output_uri: large.map(|_| output_uri(run)),
        questions: run
            .questions
            .iter()
            .map(|question| Asked {
                question_id: question.name(),
                sub_run_id: question.sub_run(&row.run_id),
                step_id: &question.step_id,
                question: question.text(),
                is_approval: question.approval.is_some(),
                role: question.role(),
                expires_at: question.expires_at,
                answer_schema: question.answer_schema(),
            })
            .collect(),
    };
    let summary = to_raw(&summary);
    let link = large.map(|output| link(run, output));
    let contents: Vec<_> = [text_content(summary.get())].into_iter().chain(link).collect();
    tool_result(client, &contents, Some(&summary), false)
}

/// Result of a run that has ended, as the result of the tool of its workflow.
#[must_use]
pub fn ended_result(client: Client, run: &ExposedRun) -> Box<RawValue> {
    match (run.state(), &run.output) {
        (State::Completed, Some(output)) if is_large(output) => {
            let text = format!("The output has {} bytes; it is the resource {}", output.get().len(), output_uri(run));
            tool_result(client, &[text_content(&text), link(run, output)], None, false)
        }
        (State::Completed, Some(output)) => value_result(client, output),
        (State::Completed, None) => value_result(client, &object_of([])),
        (state, _) => {
            let what = if state == State::Cancelled { "was cancelled" } else { "has failed" };
            let because = run.row.error_message.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            error_result(client, &format!("The run {} {what}{because}", run.row.run_id))
        }
    }
}

/// What a client without forms is told about a run that waits: the questions, and how they are answered.
#[must_use]
pub fn waits_text(run: &ExposedRun) -> String {
    let questions = run.questions.iter().map(|question| shorten_to(&question.text(), MAX_QUESTION_CHARS).into_owned());
    format!(
        "The run {} waits for an answer. Ask the user, and give the answer by approval_answer. {}",
        run.row.run_id,
        questions.collect::<Vec<_>>().join(" | ")
    )
}

impl McpCall {
    /// Result of a tool that has started a run: its end, a task, a question to the user, or the word to await it.
    pub(super) async fn outcome(&self, run: &ExposedRun) -> Result<Box<RawValue>, Failure> {
        let (client, state) = (self.client, run.state());
        if state.is_terminal() {
            return Ok(ended_result(client, run));
        }
        let is_told = state == State::Waiting && !client.has_forms;
        // Nobody would look at a task that only the tool can bring on.
        if client.has_tasks && !is_told {
            return Ok(self.task_result("task", run));
        }
        if state == State::Waiting && client.has_forms {
            return self.input_required(run).await;
        }
        let text = if is_told {
            waits_text(run)
        } else {
            format!("The run {} goes on. Await its end by run_await.", run.row.run_id)
        };
        let about = elicitation::about(run);
        Ok(tool_result(client, &[text_content(&text)], Some(&about), false))
    }
}
