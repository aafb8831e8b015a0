//! Events of a task's stream.

use serde_json::value::RawValue;

use super::{
    reply::{Message, Part, Reply, parts},
    state::TaskState,
};
use crate::input::{member, members, text};

/// Event of a stream.
#[derive(Clone, Debug)]
pub enum StreamEvent<'a> {
    /// The whole task, or a message instead of a task.
    Reply(Reply<'a>),
    /// The state of the task has changed.
    Status(StatusUpdate<'a>),
    /// An artifact has grown.
    Artifact(ArtifactUpdate<'a>),
    /// An event of an unknown form.
    Unknown,
}

/// Change of a task's state.
#[derive(Clone, Debug)]
pub struct StatusUpdate<'a> {
    /// Id of the task.
    pub task_id: Option<String>,
    /// State.
    pub state: Option<TaskState>,
    /// The agent's message about it.
    pub message: Option<Message<'a>>,
    /// Whether 0.3 marks it as the last event.
    pub is_final: bool,
}

/// Growth of an artifact.
#[derive(Clone, Debug)]
pub struct ArtifactUpdate<'a> {
    /// Id of the task.
    pub task_id: Option<String>,
    /// Id of the artifact.
    pub artifact_id: Option<String>,
    /// Whether the parts continue those of an earlier event.
    pub append: bool,
    /// Parts.
    pub parts: Vec<Part<'a>>,
}

/// Reads the result in an event. 0.3 names its kind, 1.0 wraps it into an object with one member.
#[must_use]
pub fn read(result: &RawValue) -> StreamEvent<'_> {
    let inside = |name| member(result, name).filter(|inner| members(inner).is_some());
    match member(result, "kind").and_then(text).as_deref() {
        Some("status-update") => return StreamEvent::Status(status(result)),
        Some("artifact-update") => return StreamEvent::Artifact(artifact(result)),
        Some("task" | "message") => return StreamEvent::Reply(Reply::read(result)),
        _ => {}
    }
    if let Some(update) = inside("statusUpdate") {
        StreamEvent::Status(status(update))
    } else if let Some(update) = inside("artifactUpdate") {
        StreamEvent::Artifact(artifact(update))
    } else if inside("task").is_some() || inside("message").is_some() || inside("status").is_some() {
        StreamEvent::Reply(Reply::read(result))
    } else {
        StreamEvent::Unknown
    }
}

fn status(update: &RawValue) -> StatusUpdate<'_> {
    let status = member(update, "status");
    StatusUpdate {
        task_id: id(update, "taskId"),
        state: status.and_then(|status| member(status, "state")).and_then(text).map(|name| TaskState::parse(&name)),
        message: status.and_then(|status| member(status, "message")).map(Message),
        is_final: is_true(update, "final"),
    }
}

fn artifact(update: &RawValue) -> ArtifactUpdate<'_> {
    let artifact = member(update, "artifact");
    ArtifactUpdate {
        task_id: id(update, "taskId"),
        artifact_id: artifact.and_then(|artifact| id(artifact, "artifactId")),
        append: is_true(update, "append"),
        parts: artifact.map_or_else(Vec::new, |artifact| parts(artifact).collect()),
    }
}

fn id(holder: &RawValue, name: &str) -> Option<String> {
    member(holder, name).and_then(text).filter(|id| !id.is_empty())
}

fn is_true(holder: &RawValue, name: &str) -> bool {
    member(holder, name).is_some_and(|value| value.get() == "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    #[test]
    fn events_are_read_in_the_form_of_either_version() {
        for event in [
            r#"{"kind":"status-update","taskId":"t","status":{"state":"working","message":{"role":"agent","parts":[{"kind":"text","text":"x"}]}},"final":true}"#,
            r#"{"statusUpdate":{"taskId":"t","status":{"state":"TASK_STATE_WORKING","message":{"role":"ROLE_AGENT","parts":[{"text":"x"}]}},"final":true}}"#,
        ] {
            let StreamEvent::Status(update) = read(raw(event)) else { panic!("{event}") };
            assert_eq!((update.task_id.as_deref(), update.state), (Some("t"), Some(TaskState::Working)));
            assert_eq!(update.message.and_then(Message::text).as_deref(), Some("x"));
            assert!(update.is_final);
        }
        for event in [
            r#"{"kind":"artifact-update","taskId":"t","append":true,"artifact":{"artifactId":"a","parts":[{"kind":"text","text":"x"}]}}"#,
            r#"{"artifactUpdate":{"taskId":"t","append":true,"artifact":{"artifactId":"a","parts":[{"text":"x"}]}}}"#,
        ] {
            let StreamEvent::Artifact(update) = read(raw(event)) else { panic!("{event}") };
            assert_eq!((update.artifact_id.as_deref(), update.append), (Some("a"), true));
            assert!(matches!(&update.parts[..], [Part::Text(text)] if text == "x"), "{event}");
        }
        for event in [
            r#"{"kind":"task","id":"t","status":{"state":"submitted"}}"#,
            r#"{"task":{"id":"t","status":{"state":"TASK_STATE_SUBMITTED"}}}"#,
            r#"{"id":"t","status":{"state":"submitted"}}"#,
        ] {
            let StreamEvent::Reply(Reply::Task(task)) = read(raw(event)) else { panic!("{event}") };
            assert_eq!(task.id().as_deref(), Some("t"));
        }
        for event in [
            r#"{"kind":"message","role":"agent","parts":[{"kind":"text","text":"x"}]}"#,
            r#"{"message":{"role":"ROLE_AGENT","parts":[{"text":"x"}]}}"#,
        ] {
            let StreamEvent::Reply(Reply::Message(message)) = read(raw(event)) else { panic!("{event}") };
            assert_eq!(message.text().as_deref(), Some("x"));
        }
        for event in ["7", "{}", r#"{"kind":"surprise"}"#, r#"{"statusUpdate":null}"#] {
            assert!(matches!(read(raw(event)), StreamEvent::Unknown), "{event}");
        }
    }
}
