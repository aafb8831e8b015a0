//! JSON-RPC 2.0, and the A2A methods of the demo agent.

use std::borrow::Cow;

use serde_json::{Value, json};
use uuid::Uuid;

use super::Skill;
use crate::{
    a2a::{Operation, Version},
    timestamp::Timestamp,
};

/// Error answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RpcError {
    code: i32,
    message: Cow<'static, str>,
}

impl RpcError {
    const PARSE: Self = Self::new(-32700, "Parse error");
    pub(super) const INVALID_REQUEST: Self = Self::new(-32600, "Invalid request");
    const METHOD_NOT_FOUND: Self = Self::new(-32601, "Method not found");
    const INVALID_PARAMS: Self = Self::new(-32602, "Invalid params");
    /// Error codes from the range of A2A.
    pub(super) const TASK_NOT_FOUND: Self = Self::new(-32001, "Task not found");
    pub(super) const UNSUPPORTED_OPERATION: Self = Self::new(-32004, "This operation is not supported");
    pub(super) const TASK_NOT_CANCELABLE: Self = Self::new(-32002, "Task cannot be canceled");
    /// Error code from the range that the protocol reserves for servers.
    pub(super) const SIMULATED_FAILURE: Self = Self::new(-32000, "simulated failure of the demo agent");

    const fn new(code: i32, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    /// Adds a detail to the error.
    pub(super) fn with(self, detail: impl std::fmt::Display) -> Self {
        Self { message: format!("{}: {detail}", self.message).into(), ..self }
    }

    /// Body of the answer.
    pub(super) fn answer(&self, id: &Value) -> Value {
        json!({"jsonrpc": "2.0", "id": id, "error": {"code": self.code, "message": self.message}})
    }
}

/// Request to the agent.
#[derive(Debug)]
pub(super) enum Request {
    Send(Call),
    /// A query of a task, or its cancellation.
    Task {
        /// Id that is repeated in the answer.
        id: Value,
        version: Version,
        is_cancel: bool,
        task: String,
    },
}

/// Body of a successful answer.
pub(super) fn result(id: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

/// A message.
#[derive(Debug)]
pub(super) struct Call {
    /// Id that is repeated in the answer.
    pub(super) id: Value,
    pub(super) version: Version,
    /// Whether the events of the task are streamed.
    pub(super) is_streamed: bool,
    /// The caller's id of the message; the id of the call if there is none.
    pub(super) message_id: String,
    context_id: String,
    /// Task that the message continues.
    pub(super) task_id: Option<String>,
    message: Value,
    pub(super) text: String,
}

impl Request {
    /// Parses a request. `None`: a notification, which is not answered. An error contains the id of its answer.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Self>, (Value, RpcError)> {
        let request: Value =
            serde_json::from_slice(body).map_err(|error| (Value::Null, RpcError::PARSE.with(error)))?;
        let refuse = |error: RpcError| Err((request.get("id").cloned().unwrap_or_default(), error));
        let Some(members) = request.as_object() else {
            return refuse(RpcError::INVALID_REQUEST.with("an object is expected"));
        };
        let id = match members.get("id") {
            Some(Value::Object(_) | Value::Array(_) | Value::Bool(_)) => {
                return Err((Value::Null, RpcError::INVALID_REQUEST.with("id must be a string or a number")));
            }
            id => id,
        };
        if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return refuse(RpcError::INVALID_REQUEST.with("jsonrpc must be \"2.0\""));
        }
        let Some(method) = members.get("method").and_then(Value::as_str) else {
            return refuse(RpcError::INVALID_REQUEST.with("method must be a string"));
        };
        let Some(id) = id else { return Ok(None) };
        let param = |name: &str| members.get("params").and_then(|params| params.get(name));
        let Some((version, operation)) = named(method) else {
            let known = "the methods of A2A 0.3 and 1.0 that send messages, and that get and cancel tasks, are known";
            return refuse(RpcError::METHOD_NOT_FOUND.with(known));
        };
        if matches!(operation, Operation::Get | Operation::Cancel) {
            let Some(task) = param("id").and_then(Value::as_str) else {
                return refuse(RpcError::INVALID_PARAMS.with("params.id must be a string"));
            };
            let is_cancel = operation == Operation::Cancel;
            return Ok(Some(Self::Task { id: id.clone(), version, is_cancel, task: task.to_owned() }));
        }
        let Some(message) = param("message").filter(|it| it.is_object()) else {
            return refuse(RpcError::INVALID_PARAMS.with("params.message must be an object"));
        };
        let text = match text_of(message) {
            Ok(text) => text,
            Err(problem) => return refuse(RpcError::INVALID_PARAMS.with(problem)),
        };
        let own = |name: &str| message.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Some(Self::Send(Call {
            id: id.clone(),
            version,
            is_streamed: operation == Operation::Stream,
            message_id: own("messageId").unwrap_or_else(|| id.to_string()),
            task_id: own("taskId"),
            context_id: own("contextId").unwrap_or_else(|| Uuid::now_v7().to_string()),
            message: message.clone(),
            text,
        })))
    }
}

/// Version and operation of a method.
fn named(method: &str) -> Option<(Version, Operation)> {
    let operations = [Operation::Send, Operation::Stream, Operation::Get, Operation::Cancel];
    let methods = [Version::V03, Version::V1].into_iter().flat_map(|version| operations.map(|it| (version, it)));
    methods.into_iter().find(|(version, operation)| version.method(*operation) == method)
}

impl Call {
    /// Result: a completed task with the text as artifact and history, and structured under `data`, which a later step
    /// of a workflow can reference as `${step.output.data.words}`.
    pub(super) fn completed(&self, skill: Skill) -> Value {
        self.completed_with(skill, &self.text)
    }

    /// The same for this text.
    pub(super) fn completed_with(&self, skill: Skill, given: &str) -> Value {
        let text = skill.apply(given);
        let data = json!({
            "skill": skill.name(),
            "text": text,
            "words": given.split_whitespace().count(),
            "characters": given.chars().count(),
        });
        let answer = json!({
            "role": "agent",
            "messageId": Uuid::now_v7(),
            "kind": "message",
            "parts": [{"kind": "text", "text": text}],
        });
        json!({
            "id": Uuid::now_v7(),
            "contextId": self.context_id,
            "kind": "task",
            "status": {"state": "completed", "timestamp": Timestamp::now().to_string()},
            "artifacts": [{
                "artifactId": Uuid::now_v7(),
                "name": skill.name(),
                "parts": [{"kind": "text", "text": text}, {"kind": "data", "data": data}],
            }],
            "history": [self.message, answer],
            "data": data,
        })
    }
}

/// All parts as one text; structured parts as JSON.
fn text_of(message: &Value) -> Result<String, &'static str> {
    let parts = message.get("parts").and_then(Value::as_array).filter(|parts| !parts.is_empty());
    let parts = parts.ok_or("params.message.parts must be a list with at least one part")?;
    let mut texts = Vec::with_capacity(parts.len());
    for part in parts {
        match (part.get("kind").and_then(Value::as_str), part.get("text"), part.get("data")) {
            (Some("text") | None, Some(Value::String(text)), _) => texts.push(text.clone()),
            (Some("data") | None, _, Some(data)) => {
                texts.push(data["text"].as_str().map_or_else(|| data.to_string(), str::to_owned));
            }
            _ => return Err("every part must have a text or data"),
        }
    }
    Ok(texts.join("\n"))
}
