//! Tasks, messages and events on the wire, in both versions.

use chrono::SecondsFormat;
use serde::Serialize;
use serde_json::value::RawValue;

use super::version::Version;
use crate::{
    api::resources::exposed_run::{ExposedRun, State, answer_schema, question_text, role, sub_run},
    db::{runs::TaskRow, waits::Question},
    input::{member, members, object_of, text, to_raw},
    timestamp::Timestamp,
};

/// Media type of data parts.
const JSON: &str = "application/json";
/// Id of the artifact with the output.
const OUTPUT: &str = "output";

/// Task.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    id: String,
    context_id: String,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifacts: Option<Vec<Artifact>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<[Message; 1]>,
}

/// Status of a task.
#[derive(Serialize)]
pub struct Status {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message>,
    timestamp: String,
}

/// Message of a task.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    message_id: String,
    context_id: String,
    task_id: String,
    role: &'static str,
    parts: Vec<Part>,
    /// The schema of the answer, of a question that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    artifact_id: &'static str,
    name: &'static str,
    parts: Vec<Part>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<File>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    uri: String,
    mime_type: &'static str,
}

/// Output of a task in an answer.
pub enum Output<'a> {
    /// The client has not asked for it.
    Omitted,
    /// There is none.
    Nothing,
    /// The value.
    Value(&'a RawValue),
    /// It is too large for the answer; this is the address of the run.
    At(String),
}

impl<'a> Output<'a> {
    /// Whole output of a run.
    #[must_use]
    pub fn of(run: &'a ExposedRun) -> Self {
        run.output.as_deref().map_or(Self::Nothing, Self::Value)
    }
}

/// Time of an event, with milliseconds.
fn instant(at: Timestamp) -> String {
    at.as_naive_utc().and_utc().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Label of the conversation of a task.
#[must_use]
pub fn context_id(row: &TaskRow) -> &str {
    row.context_id.as_deref().unwrap_or(&row.run_id)
}

impl Version {
    fn only_0_3<T>(self, value: T) -> Option<T> {
        (self == Self::V0_3).then_some(value)
    }

    fn agent_role(self) -> &'static str {
        match self {
            Self::V0_3 => "agent",
            Self::V1_0 => "ROLE_AGENT",
        }
    }

    /// Name of a state.
    #[must_use]
    pub fn state(self, state: State) -> &'static str {
        match (self, state) {
            (Self::V0_3, State::Submitted) => "submitted",
            (Self::V0_3, State::Working) => "working",
            (Self::V0_3, State::Waiting) => "input-required",
            (Self::V0_3, State::Completed) => "completed",
            (Self::V0_3, State::Failed) => "failed",
            (Self::V0_3, State::Cancelled) => "canceled",
            (Self::V1_0, State::Submitted) => "TASK_STATE_SUBMITTED",
            (Self::V1_0, State::Working) => "TASK_STATE_WORKING",
            (Self::V1_0, State::Waiting) => "TASK_STATE_INPUT_REQUIRED",
            (Self::V1_0, State::Completed) => "TASK_STATE_COMPLETED",
            (Self::V1_0, State::Failed) => "TASK_STATE_FAILED",
            (Self::V1_0, State::Cancelled) => "TASK_STATE_CANCELED",
        }
    }

    fn text(self, text: String) -> Part {
        Part { kind: self.only_0_3("text"), text: Some(text), ..Part::default() }
    }

    /// A data part. In 0.3 the data is always an object.
    fn data(self, data: &RawValue) -> Part {
        match self {
            Self::V0_3 if members(data).is_none() => {
                Part { kind: Some("data"), data: Some(object_of([("value", data)])), ..Part::default() }
            }
            Self::V0_3 => Part { kind: Some("data"), data: Some(data.to_owned()), ..Part::default() },
            Self::V1_0 => Part { data: Some(data.to_owned()), media_type: Some(JSON), ..Part::default() },
        }
    }

    fn link(self, url: String) -> Part {
        match self {
            Self::V0_3 => {
                Part { kind: Some("file"), file: Some(File { uri: url, mime_type: JSON }), ..Part::default() }
            }
            Self::V1_0 => Part { url: Some(url), media_type: Some(JSON), ..Part::default() },
        }
    }

    /// The message that has started a task, as far as it is kept: the input of the run.
    #[must_use]
    pub fn first_message(self, row: &TaskRow, input: &RawValue) -> Message {
        let given = members(input).unwrap_or_default();
        let only_text = match given.as_slice() {
            [(name, value)] if name == "text" => text(value),
            _ => None,
        };
        let part = only_text.map_or_else(|| self.data(input), |said| self.text(said));
        let message = self.message(row, format!("{}-input", row.run_id), vec![part]);
        Message { role: self.user_role(), ..message }
    }

    fn message(self, row: &TaskRow, id: String, parts: Vec<Part>) -> Message {
        Message {
            kind: self.only_0_3("message"),
            message_id: id,
            context_id: context_id(row).to_owned(),
            task_id: row.run_id.clone(),
            role: self.agent_role(),
            parts,
            metadata: None,
        }
    }

    /// The artifact with an output: the data, and its text if it is one or has one.
    fn artifact(self, output: &RawValue) -> Artifact {
        let said = || ["text", "response"].into_iter().find_map(|name| text(member(output, name)?));
        let said = text(output).or_else(said);
        let parts = said.map(|said| self.text(said)).into_iter().chain([self.data(output)]);
        Artifact { artifact_id: OUTPUT, name: OUTPUT, parts: parts.collect() }
    }

    /// Parts of a message with questions: for each its text, and its data.
    fn questions(self, run_id: &str, questions: &[Question]) -> Vec<Part> {
        #[derive(Serialize)]
        struct Asked<'a> {
            question_id: String,
            step_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            sub_run_id: Option<&'a str>,
            is_approval: bool,
            role: Option<String>,
            expires_at: Option<Timestamp>,
            input: Option<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            answer_schema: Option<&'a RawValue>,
        }
        let parts = |question: &Question| {
            let asked = Asked {
                question_id: question.name(),
                sub_run_id: sub_run(question, run_id),
                step_id: &question.step_id,
                is_approval: question.approval.is_some(),
                role: role(question),
                expires_at: question.expires_at,
                // The input of a step whose agent asks was for the agent.
                input: question.input_data.as_ref().filter(|_| question.question.is_none()).map(|input| &*input.0),
                answer_schema: answer_schema(question),
            };
            [self.text(question_text(question)), self.data(&to_raw(&asked))]
        };
        questions.iter().flat_map(parts).collect()
    }

    /// Status of a task: with the questions if it waits, and with the reason if it has failed or was cancelled.
    #[must_use]
    pub fn status(self, row: &TaskRow, questions: &[Question]) -> Status {
        let state = State::of(row);
        let parts = match (state, &row.error_message) {
            (State::Waiting, _) => self.questions(&row.run_id, questions),
            (State::Failed | State::Cancelled, Some(error)) => vec![self.text(error.clone())],
            _ => Vec::new(),
        };
        // The same status has the same message.
        let id = questions.first().map_or_else(|| format!("{}-end", row.run_id), Question::name);
        // The rule by which this service finds the schema of an answer, too.
        let schema = match questions {
            [only] => answer_schema(only).map(|schema| object_of([("answer_schema", schema)])),
            _ => None,
        };
        let message = (!parts.is_empty()).then(|| Message { metadata: schema, ..self.message(row, id, parts) });
        Status { state: self.state(state), message, timestamp: instant(row.updated_at) }
    }

    /// Artifacts of a task; `None`: they are omitted.
    fn artifacts(self, output: Output<'_>) -> Option<Vec<Artifact>> {
        Some(match output {
            Output::Omitted => return None,
            Output::Nothing => Vec::new(),
            Output::Value(output) => vec![self.artifact(output)],
            Output::At(url) => vec![Artifact { artifact_id: OUTPUT, name: OUTPUT, parts: vec![self.link(url)] }],
        })
    }

    /// A task.
    #[must_use]
    pub fn task(self, row: &TaskRow, questions: &[Question], output: Output<'_>) -> Task {
        Task {
            kind: self.only_0_3("task"),
            id: row.run_id.clone(),
            context_id: context_id(row).to_owned(),
            status: self.status(row, questions),
            artifacts: self.artifacts(output),
            history: None,
        }
    }

    /// A task with that output, and with the message that has started it if the client wants messages.
    #[must_use]
    pub fn whole_task(self, run: &ExposedRun, output: Output<'_>, first: Option<Message>) -> Box<RawValue> {
        let history = first.map(|first| [first]);
        to_raw(&Task { history, ..self.task(&run.row, &run.questions, output) })
    }

    /// Result of sending a message, and the first event of a stream.
    #[must_use]
    pub fn started(self, run: &ExposedRun, output: Output<'_>, first: Option<Message>) -> Box<RawValue> {
        let task = self.whole_task(run, output, first);
        match self {
            Self::V0_3 => task,
            Self::V1_0 => object_of([("task", &*task)]),
        }
    }

    /// Event with the status of a task.
    #[must_use]
    pub fn status_event(self, row: &TaskRow, status: &Status, is_final: bool) -> Box<RawValue> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Update<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            kind: Option<&'static str>,
            task_id: &'a str,
            context_id: &'a str,
            status: &'a Status,
            #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
            is_final: Option<bool>,
        }
        let update = to_raw(&Update {
            kind: self.only_0_3("status-update"),
            task_id: &row.run_id,
            context_id: context_id(row),
            status,
            is_final: self.only_0_3(is_final),
        });
        match self {
            Self::V0_3 => update,
            Self::V1_0 => object_of([("statusUpdate", &*update)]),
        }
    }

    /// Status of a task that goes on, with an entry of its log.
    #[must_use]
    pub fn progress(self, row: &TaskRow, seq: i32, at: Timestamp, message: String) -> Status {
        let message = self.message(row, format!("{}-{seq}", row.run_id), vec![self.text(message)]);
        Status { state: self.state(State::Working), message: Some(message), timestamp: instant(at) }
    }

    /// Event with the output of a task; `None` if there is none.
    #[must_use]
    pub fn artifact_event(self, row: &TaskRow, output: Output<'_>) -> Option<Box<RawValue>> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Update<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            kind: Option<&'static str>,
            task_id: &'a str,
            context_id: &'a str,
            artifact: Artifact,
            last_chunk: bool,
        }
        let update = to_raw(&Update {
            kind: self.only_0_3("artifact-update"),
            task_id: &row.run_id,
            context_id: context_id(row),
            artifact: self.artifacts(output)?.pop()?,
            last_chunk: true,
        });
        Some(match self {
            Self::V0_3 => update,
            Self::V1_0 => object_of([("artifactUpdate", &*update)]),
        })
    }
}
