//! Replies of agents: tasks and messages, with their parts.

use serde_json::value::RawValue;

use super::state::TaskState;
use crate::input::{elements, member, members, text};

/// Metadata members that mark a part as a thought; the first is of Google's Agent Development Kit.
const THOUGHT_MARKS: [&str; 2] = ["adk_thought", "thought"];

/// Error in a reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON-RPC Error {code}: {message}")]
pub struct RpcError {
    /// Code as given.
    pub code: String,
    /// Message as given.
    pub message: String,
}

impl RpcError {
    /// The error of a JSON-RPC response, if it has one. An `error: null` beside a result is no error.
    #[must_use]
    pub fn of_response(response: &RawValue) -> Option<Self> {
        let error = member(response, "error").filter(|error| error.get() != "null")?;
        let code = member(error, "code").map_or("without code", RawValue::get).to_owned();
        let message = member(error, "message").and_then(text).unwrap_or_else(|| "no message".to_owned());
        Some(Self { code, message })
    }

    /// The error of a response of the HTTP+JSON binding. Its reason stands for the code of JSON-RPC.
    #[must_use]
    pub fn of_http(response: &RawValue) -> Option<Self> {
        let error = member(response, "error").filter(|error| members(error).is_some())?;
        let details = member(error, "details").and_then(elements).unwrap_or_default();
        let reason = details.into_iter().find_map(|detail| member(detail, "reason").and_then(text));
        let code = match reason.as_deref() {
            Some("TASK_NOT_FOUND") => super::TASK_NOT_FOUND.to_string(),
            Some("TASK_NOT_CANCELABLE") => super::TASK_NOT_CANCELABLE.to_string(),
            Some("UNSUPPORTED_OPERATION") => super::UNSUPPORTED_OPERATION.to_string(),
            Some("VERSION_NOT_SUPPORTED") => super::VERSION_NOT_SUPPORTED.to_string(),
            _ => member(error, "code").map_or("without code", RawValue::get).to_owned(),
        };
        let message = member(error, "message").and_then(text).unwrap_or_else(|| "no message".to_owned());
        Some(Self { code, message })
    }

    /// The code, if it is a number.
    #[must_use]
    pub fn number(&self) -> Option<i32> {
        self.code.parse().ok()
    }
}

/// Error of a response that is not JSON-RPC 2.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a JSON-RPC 2.0 response: {0}")]
pub struct NotRpc(pub &'static str);

/// The result of a JSON-RPC response, or its error.
pub fn rpc_result(response: &RawValue) -> Result<Result<&RawValue, RpcError>, NotRpc> {
    if members(response).is_none() {
        return Err(NotRpc("it is not an object"));
    }
    match member(response, "jsonrpc").and_then(text).as_deref() {
        Some("2.0") => {}
        Some(_) => return Err(NotRpc("another version than 2.0")),
        None => return Err(NotRpc("member jsonrpc is missing")),
    }
    if let Some(error) = RpcError::of_response(response) {
        return Ok(Err(error));
    }
    member(response, "result").map(Ok).ok_or(NotRpc("neither result nor error"))
}

/// Reply to a message, or to the question for a task.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// Task, in whatever state.
    Task(Task<'a>),
    /// Message of an agent that needs no task.
    Message(Message<'a>),
}

impl<'a> Reply<'a> {
    /// Reads a result. 1.0 wraps it into an object with one member, except for the question for a task.
    #[must_use]
    pub fn read(result: &'a RawValue) -> Self {
        let result = unwrapped(result);
        let task = Task(result);
        if task.state().is_none() && is_message(result) { Self::Message(Message(result)) } else { Self::Task(task) }
    }
}

fn unwrapped(result: &RawValue) -> &RawValue {
    if member(result, "status").is_some() || member(result, "kind").is_some() {
        return result;
    }
    let inside = |name| member(result, name).filter(|inner| members(inner).is_some());
    inside("task").or_else(|| inside("message")).unwrap_or(result)
}

fn is_message(result: &RawValue) -> bool {
    match member(result, "kind").and_then(text) {
        Some(kind) => kind == "message",
        None => member(result, "parts").is_some() && Message(result).is_of_agent(),
    }
}

/// Task.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a>(pub &'a RawValue);

impl<'a> Task<'a> {
    /// All of it, as sent.
    #[must_use]
    pub fn raw(self) -> &'a RawValue {
        self.0
    }

    /// Id; `None` also for an empty one.
    #[must_use]
    pub fn id(self) -> Option<String> {
        member(self.0, "id").and_then(text).filter(|id| !id.is_empty())
    }

    /// Id of the conversation.
    #[must_use]
    pub fn context_id(self) -> Option<String> {
        member(self.0, "contextId").and_then(text).filter(|id| !id.is_empty())
    }

    /// State, if it has one.
    #[must_use]
    pub fn state(self) -> Option<TaskState> {
        member(member(self.0, "status")?, "state").and_then(text).map(|name| TaskState::parse(&name))
    }

    /// What the agent says about the state: the question of an interrupted task, the reason of a failed one.
    #[must_use]
    pub fn status_message(self) -> StatusMessage<'a> {
        let message = member(self.0, "status").and_then(|status| member(status, "message")).map(Message);
        let (task_id, context_id) = (self.id(), self.context_id());
        StatusMessage {
            message,
            text: message.and_then(Message::text),
            data: message.map_or_else(Vec::new, Message::data),
            task_id: task_id.or_else(|| message?.task_id()),
            context_id: context_id.or_else(|| message?.context_id()),
        }
    }

    /// Artifacts, as sent.
    #[must_use]
    pub fn artifacts(self) -> Vec<&'a RawValue> {
        member(self.0, "artifacts").and_then(elements).unwrap_or_default()
    }

    /// Text of the agent's last message in the history that has one.
    #[must_use]
    pub fn last_text_in_history(self) -> Option<String> {
        let history = member(self.0, "history").and_then(elements).unwrap_or_default();
        history.into_iter().rev().map(Message).filter(|message| message.is_of_agent()).find_map(Message::text)
    }
}

/// Message in the status of a task, with the ids that an answer to it needs.
#[derive(Clone, Debug)]
pub struct StatusMessage<'a> {
    /// The message, if there is one.
    pub message: Option<Message<'a>>,
    /// Its text parts.
    pub text: Option<String>,
    /// Its data parts.
    pub data: Vec<&'a RawValue>,
    /// Id of the task.
    pub task_id: Option<String>,
    /// Id of the conversation.
    pub context_id: Option<String>,
}

/// Message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a>(pub &'a RawValue);

impl<'a> Message<'a> {
    /// All of it, as sent.
    #[must_use]
    pub fn raw(self) -> &'a RawValue {
        self.0
    }

    /// Text parts, a line for each.
    #[must_use]
    pub fn text(self) -> Option<String> {
        let texts = texts(self.0);
        (!texts.is_empty()).then(|| texts.join("\n"))
    }

    /// Data parts.
    #[must_use]
    pub fn data(self) -> Vec<&'a RawValue> {
        data(self.0)
    }

    /// Id of its task.
    #[must_use]
    pub fn task_id(self) -> Option<String> {
        member(self.0, "taskId").and_then(text).filter(|id| !id.is_empty())
    }

    /// Id of its conversation.
    #[must_use]
    pub fn context_id(self) -> Option<String> {
        member(self.0, "contextId").and_then(text).filter(|id| !id.is_empty())
    }

    /// Whether the agent has sent it.
    #[must_use]
    pub fn is_of_agent(self) -> bool {
        member(self.0, "role").and_then(text).is_some_and(|role| matches!(role.as_str(), "agent" | "ROLE_AGENT"))
    }
}

/// Part of a message or an artifact.
#[derive(Clone, Debug)]
pub enum Part<'a> {
    /// Text.
    Text(String),
    /// JSON.
    Data(&'a RawValue),
    /// File.
    File(File),
}

/// Part with a file. Its bytes, if it has them inline, stay in the part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Name.
    pub name: Option<String>,
    /// Media type.
    pub media_type: Option<String>,
    /// Address of the content; `None`: the content is inline.
    pub url: Option<String>,
}

/// Parts of a message or an artifact, without those marked as thoughts, and without those of unknown forms.
pub fn parts(holder: &RawValue) -> impl Iterator<Item = Part<'_>> {
    let parts = member(holder, "parts").and_then(elements).unwrap_or_default();
    parts.into_iter().filter(|part| !is_thought(part)).filter_map(read_part)
}

fn read_part(part: &RawValue) -> Option<Part<'_>> {
    // 0.3 names the kind; 1.0 tells it by the member.
    let kind = member(part, "kind").map(|kind| text(kind).unwrap_or_default());
    let is = |name: &str| kind.as_deref().is_none_or(|kind| kind == name);
    let inner = |name: &str| member(part, name).and_then(text);
    if is("text")
        && let Some(said) = inner("text")
    {
        return Some(Part::Text(said));
    }
    if is("data")
        && let Some(data) = member(part, "data")
    {
        return Some(Part::Data(data));
    }
    if !is("file") {
        return None;
    }
    if let Some(file) = member(part, "file") {
        let inner = |name: &str| member(file, name).and_then(text);
        return Some(Part::File(File { name: inner("name"), media_type: inner("mimeType"), url: inner("uri") }));
    }
    let is_file = ["url", "raw"].iter().any(|name| member(part, name).is_some());
    is_file.then(|| Part::File(File { name: inner("filename"), media_type: inner("mediaType"), url: inner("url") }))
}

fn is_thought(part: &RawValue) -> bool {
    let metadata = member(part, "metadata");
    let is_true = |value: Option<&RawValue>| value.is_some_and(|value| value.get() == "true");
    metadata.is_some_and(|metadata| THOUGHT_MARKS.iter().any(|mark| is_true(member(metadata, mark))))
}

/// Texts of the text parts.
#[must_use]
pub fn texts(holder: &RawValue) -> Vec<String> {
    let texts = parts(holder).filter_map(|part| if let Part::Text(said) = part { Some(said) } else { None });
    texts.collect()
}

/// Values of the data parts.
#[must_use]
pub fn data(holder: &RawValue) -> Vec<&RawValue> {
    parts(holder).filter_map(|part| if let Part::Data(data) = part { Some(data) } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    #[test]
    fn parts_are_told_by_their_kind_or_by_their_member() {
        let holder = raw(
            r#"{"parts":[{"kind":"text","text":"a"},{"text":"b"},{"kind":"data","data":{"n":1}},{"data":[2]},
            {"kind":"file","file":{"uri":"http://f/1","mimeType":"image/png","name":"x.png"}},
            {"kind":"file","file":{"bytes":"aGk="}},{"url":"http://f/2","mediaType":"a/b","filename":"y"},{"raw":"aGk="},
            {"kind":"data","text":"no"},{"kind":"video","text":"no"},{"text":7},{}]}"#,
        );
        let shown: Vec<String> = parts(holder)
            .map(|part| match part {
                Part::Text(text) => text,
                Part::Data(data) => data.get().to_owned(),
                Part::File(File { name, media_type, url }) => format!("{name:?} {media_type:?} {url:?}"),
            })
            .collect();
        let expected = [
            "a",
            "b",
            r#"{"n":1}"#,
            "[2]",
            r#"Some("x.png") Some("image/png") Some("http://f/1")"#,
            "None None None",
            r#"Some("y") Some("a/b") Some("http://f/2")"#,
            "None None None",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_question_has_its_text_its_data_and_its_ids() {
        for task in [
            r#"{"id":"t","contextId":"c","status":{"state":"input-required","message":{"role":"agent","parts":[
                {"kind":"text","text":"Which"},{"kind":"text","text":"one?"},{"kind":"data","data":{"type":"object"}}]}}}"#,
            r#"{"task":{"id":"t","status":{"state":"TASK_STATE_INPUT_REQUIRED","message":{"role":"ROLE_AGENT",
                "contextId":"c","parts":[{"text":"Which"},{"text":"one?"},{"data":{"type":"object"}}]}}}}"#,
        ] {
            let Reply::Task(task) = Reply::read(raw(task)) else { panic!("a task") };
            assert_eq!(task.state(), Some(TaskState::InputRequired));
            let asked = task.status_message();
            assert_eq!(asked.text.as_deref(), Some("Which\none?"));
            assert_eq!(asked.data.iter().map(|data| data.get()).collect::<Vec<_>>(), [r#"{"type":"object"}"#]);
            assert_eq!((asked.task_id.as_deref(), asked.context_id.as_deref()), (Some("t"), Some("c")));
        }
        let Reply::Task(bare) = Reply::read(raw(r#"{"id":"","status":{"state":"working"}}"#)) else { panic!("a task") };
        assert!(bare.id().is_none() && bare.status_message().message.is_none());
    }

    #[test]
    fn errors_of_both_bindings_have_a_code() {
        for (of_http, body, code) in [
            (false, r#"{"error":{"code":-32601,"message":"m"}}"#, Some(-32601)),
            (false, r#"{"error":{"code":"x"}}"#, None),
            (true, r#"{"error":{"code":404,"message":"m","details":[{"reason":"TASK_NOT_FOUND"}]}}"#, Some(-32001)),
            (
                true,
                r#"{"error":{"code":400,"message":"m","details":[{},{"reason":"VERSION_NOT_SUPPORTED"}]}}"#,
                Some(-32009),
            ),
            (true, r#"{"error":{"code":400,"message":"m"}}"#, Some(400)),
        ] {
            let error = if of_http { RpcError::of_http(raw(body)) } else { RpcError::of_response(raw(body)) };
            assert_eq!(error.expect(body).number(), code, "{body}");
        }
        assert_eq!(RpcError::of_response(raw(r#"{"error":null,"result":1}"#)), None);
        assert_eq!(RpcError::of_http(raw(r#"{"error":"words"}"#)), None);
    }
}
