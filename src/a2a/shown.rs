//! Tasks, messages and events as this service shows its runs to A2A clients, in both versions.

use chrono::SecondsFormat;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{MEDIA_TYPE, Version};
use crate::{
    input::{member, members, object_of, text, to_raw},
    run::State,
    timestamp::Timestamp,
};

/// Media type of data parts, and of push notifications of 0.3.
const JSON: &str = "application/json";
/// Id of the artifact with the output.
const OUTPUT: &str = "output";

/// Run of this service.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Run<'a> {
    pub id: &'a str,
    /// Label of the conversation.
    pub context_id: &'a str,
    pub state: State,
    pub updated_at: Timestamp,
    /// Reason of its failure or cancellation.
    pub error: Option<&'a str>,
}

/// Question that a run waits for, as data.
#[derive(Serialize)]
#[expect(missing_docs, reason = "said by the names, and in docs/expose.md")]
pub struct Question<'a> {
    /// Text for people.
    #[serde(skip)]
    pub text: String,
    pub question_id: String,
    pub step_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub_run_id: Option<&'a str>,
    pub is_approval: bool,
    pub role: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_schema: Option<&'a RawValue>,
}

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
    /// Whole output of a run, if it has one.
    #[must_use]
    pub fn of(output: Option<&'a RawValue>) -> Self {
        output.map_or(Self::Nothing, Self::Value)
    }
}

/// Time of an event, with milliseconds.
fn instant(at: Timestamp) -> String {
    at.as_naive_utc().and_utc().to_rfc3339_opts(SecondsFormat::Millis, true)
}

impl Version {
    fn only_v03<T>(self, value: T) -> Option<T> {
        (self == Self::V03).then_some(value)
    }

    /// Role of the client in messages.
    #[must_use]
    pub fn user_role(self) -> &'static str {
        match self {
            Self::V03 => "user",
            Self::V1 => "ROLE_USER",
        }
    }

    fn agent_role(self) -> &'static str {
        match self {
            Self::V03 => "agent",
            Self::V1 => "ROLE_AGENT",
        }
    }

    /// Name of a state.
    #[must_use]
    pub fn state(self, state: State) -> &'static str {
        match (self, state) {
            (Self::V03, State::Submitted) => "submitted",
            (Self::V03, State::Working) => "working",
            (Self::V03, State::Waiting) => "input-required",
            (Self::V03, State::Completed) => "completed",
            (Self::V03, State::Failed) => "failed",
            (Self::V03, State::Cancelled) => "canceled",
            (Self::V1, State::Submitted) => "TASK_STATE_SUBMITTED",
            (Self::V1, State::Working) => "TASK_STATE_WORKING",
            (Self::V1, State::Waiting) => "TASK_STATE_INPUT_REQUIRED",
            (Self::V1, State::Completed) => "TASK_STATE_COMPLETED",
            (Self::V1, State::Failed) => "TASK_STATE_FAILED",
            (Self::V1, State::Cancelled) => "TASK_STATE_CANCELED",
        }
    }

    fn text(self, text: String) -> Part {
        Part { kind: self.only_v03("text"), text: Some(text), ..Part::default() }
    }

    /// A data part. In 0.3 the data is always an object.
    fn data(self, data: &RawValue) -> Part {
        match self {
            Self::V03 if members(data).is_none() => {
                Part { kind: Some("data"), data: Some(object_of([("value", data)])), ..Part::default() }
            }
            Self::V03 => Part { kind: Some("data"), data: Some(data.to_owned()), ..Part::default() },
            Self::V1 => Part { data: Some(data.to_owned()), media_type: Some(JSON), ..Part::default() },
        }
    }

    fn link(self, url: String) -> Part {
        match self {
            Self::V03 => Part { kind: Some("file"), file: Some(File { uri: url, mime_type: JSON }), ..Part::default() },
            Self::V1 => Part { url: Some(url), media_type: Some(JSON), ..Part::default() },
        }
    }

    /// The message that has started a task, as far as it is kept: the input of the run.
    #[must_use]
    pub fn first_message(self, run: Run<'_>, input: &RawValue) -> Message {
        let given = members(input).unwrap_or_default();
        let only_text = match given.as_slice() {
            [(name, value)] if name == "text" => text(value),
            _ => None,
        };
        let part = only_text.map_or_else(|| self.data(input), |said| self.text(said));
        let message = self.message(run, format!("{}-input", run.id), vec![part]);
        Message { role: self.user_role(), ..message }
    }

    fn message(self, run: Run<'_>, id: String, parts: Vec<Part>) -> Message {
        Message {
            kind: self.only_v03("message"),
            message_id: id,
            context_id: run.context_id.to_owned(),
            task_id: run.id.to_owned(),
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
    fn questions(self, questions: &[Question<'_>]) -> Vec<Part> {
        let parts = |question: &Question<'_>| [self.text(question.text.clone()), self.data(&to_raw(question))];
        questions.iter().flat_map(parts).collect()
    }

    /// Status of a task: with the questions if it waits, and with the reason if it has failed or was cancelled.
    #[must_use]
    pub fn status(self, run: Run<'_>, questions: &[Question<'_>]) -> Status {
        let parts = match (run.state, run.error) {
            (State::Waiting, _) => self.questions(questions),
            (State::Failed | State::Cancelled, Some(error)) => vec![self.text(error.to_owned())],
            _ => Vec::new(),
        };
        // The same status has the same message.
        let id = questions.first().map_or_else(|| format!("{}-end", run.id), |question| question.question_id.clone());
        // The rule by which this service finds the schema of an answer, too.
        let schema = match questions {
            [only] => only.answer_schema.map(|schema| object_of([("answer_schema", schema)])),
            _ => None,
        };
        let message = (!parts.is_empty()).then(|| Message { metadata: schema, ..self.message(run, id, parts) });
        Status { state: self.state(run.state), message, timestamp: instant(run.updated_at) }
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
    pub fn task(self, run: Run<'_>, questions: &[Question<'_>], output: Output<'_>) -> Task {
        Task {
            kind: self.only_v03("task"),
            id: run.id.to_owned(),
            context_id: run.context_id.to_owned(),
            status: self.status(run, questions),
            artifacts: self.artifacts(output),
            history: None,
        }
    }

    /// A task with that output, and with the message that has started it if the client wants messages.
    #[must_use]
    pub fn whole_task(
        self,
        run: Run<'_>,
        questions: &[Question<'_>],
        output: Output<'_>,
        first: Option<Message>,
    ) -> Box<RawValue> {
        let history = first.map(|first| [first]);
        to_raw(&Task { history, ..self.task(run, questions, output) })
    }

    /// Result of sending a message, and the first event of a stream.
    #[must_use]
    pub fn started(
        self,
        run: Run<'_>,
        questions: &[Question<'_>],
        output: Output<'_>,
        first: Option<Message>,
    ) -> Box<RawValue> {
        let task = self.whole_task(run, questions, output, first);
        match self {
            Self::V03 => task,
            Self::V1 => object_of([("task", &*task)]),
        }
    }

    /// Event with the status of a task.
    #[must_use]
    pub fn status_event(self, run: Run<'_>, status: &Status, is_final: bool) -> Box<RawValue> {
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
            kind: self.only_v03("status-update"),
            task_id: run.id,
            context_id: run.context_id,
            status,
            is_final: self.only_v03(is_final),
        });
        match self {
            Self::V03 => update,
            Self::V1 => object_of([("statusUpdate", &*update)]),
        }
    }

    /// Body of a push notification with the status of a task: the event of a stream, in 0.3 the task without its output.
    #[must_use]
    pub fn notification(self, run: Run<'_>, questions: &[Question<'_>]) -> Box<RawValue> {
        match self {
            Self::V03 => to_raw(&self.task(run, questions, Output::Omitted)),
            Self::V1 => self.status_event(run, &self.status(run, questions), false),
        }
    }

    /// Media type of push notifications.
    #[must_use]
    pub fn notification_type(self) -> &'static str {
        match self {
            Self::V03 => JSON,
            Self::V1 => MEDIA_TYPE,
        }
    }

    /// Status of a task that goes on, with an entry of its log.
    #[must_use]
    pub fn progress(self, run: Run<'_>, seq: i32, at: Timestamp, message: String) -> Status {
        let message = self.message(run, format!("{}-{seq}", run.id), vec![self.text(message)]);
        Status { state: self.state(State::Working), message: Some(message), timestamp: instant(at) }
    }

    /// Event with the output of a task; `None` if there is none.
    #[must_use]
    pub fn artifact_event(self, run: Run<'_>, output: Output<'_>) -> Option<Box<RawValue>> {
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
            kind: self.only_v03("artifact-update"),
            task_id: run.id,
            context_id: run.context_id,
            artifact: self.artifacts(output)?.pop()?,
            last_chunk: true,
        });
        Some(match self {
            Self::V03 => update,
            Self::V1 => object_of([("artifactUpdate", &*update)]),
        })
    }
}
