//! Answer of an A2A agent: the output of the step, or the reason why it failed. Pure. [`judge`] is where the state of a
//! task is judged.
//!
//! The agent's texts are returned in full: they are masked before they are shortened.

use serde_json::value::RawValue;

use super::agent_question::AgentQuestion;
use crate::{
    a2a::{
        Message, Part, Reply, RpcError, StatusMessage, Task, TaskState,
        reply::{self, NotRpc},
    },
    input::{member, members, object_of, to_raw},
};

/// Reason why an answer is not an output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// The answer violates the protocol.
    #[error("the answer is not a JSON-RPC 2.0 response: {0}")]
    Invalid(String),
    /// The agent refused or failed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The task is in another state than completed.
    #[error("Task state: {0}")]
    State(String),
}

impl From<NotRpc> for AnswerError {
    fn from(NotRpc(why): NotRpc) -> Self {
        Self::Invalid(why.to_owned())
    }
}

/// Content of a response.
#[derive(Debug)]
pub(super) enum Answer {
    /// The task is completed, with the output of the step.
    Output(Box<RawValue>),
    /// The task is not done yet.
    UnderWay {
        /// The agent's id of the task.
        task: String,
    },
    /// The agent asks.
    Question {
        /// The question.
        question: Box<AgentQuestion>,
        /// What it means for a step that cannot answer it.
        error: AnswerError,
    },
}

/// Reads a JSON-RPC response to a message, or to the question for a task.
pub(super) fn read(response: &RawValue) -> Result<Answer, AnswerError> {
    judge(Reply::read(reply::rpc_result(response)??))
}

/// What a reply means for the step.
pub(super) fn judge(reply: Reply<'_>) -> Result<Answer, AnswerError> {
    let task = match reply {
        // An agent that is done at once may answer with a message instead of a task.
        Reply::Message(message) => return Ok(Answer::Output(extract_message(message))),
        Reply::Task(task) => task,
    };
    let Some(state) = task.state() else { return Err(AnswerError::State("unknown".to_owned())) };
    match state {
        TaskState::Completed => Ok(Answer::Output(extract(task))),
        TaskState::Submitted | TaskState::Working | TaskState::Unknown(_) => match task.id() {
            Some(task) => Ok(Answer::UnderWay { task }),
            // A task without an id cannot be queried.
            None => Err(AnswerError::State(described(&state, &task.status_message()))),
        },
        TaskState::InputRequired | TaskState::AuthRequired => {
            let error = AnswerError::State(described(&state, &task.status_message()));
            match AgentQuestion::of(task) {
                Some(question) => Ok(Answer::Question { question: Box::new(question), error }),
                None => Err(error),
            }
        }
        TaskState::Failed | TaskState::Canceled | TaskState::Rejected => {
            Err(AnswerError::State(described(&state, &task.status_message())))
        }
    }
}

/// What a question means for a step that cannot answer it.
pub(super) fn cannot_answer(question: &AgentQuestion) -> AnswerError {
    let state = if question.is_auth { TaskState::AuthRequired } else { TaskState::InputRequired };
    AnswerError::State(with_words(&state, question.text.as_deref()))
}

/// Description of a state, with the agent's text about it.
fn described(state: &TaskState, status: &StatusMessage<'_>) -> String {
    with_words(state, status.text.as_deref())
}

fn with_words(state: &TaskState, words: Option<&str>) -> String {
    let why = match state {
        TaskState::InputRequired => " (the agent asks for more input, which a step cannot give)",
        TaskState::AuthRequired => " (the agent asks for other credentials than its own)",
        _ => "",
    };
    let words = words.map_or_else(String::new, |words| format!(": {words}"));
    format!("{}{why}{words}", state.as_str())
}

/// All members of the message, and those that the output of a task has.
fn extract_message(message: Message<'_>) -> Box<RawValue> {
    let text = message.text().map(|text| to_raw(&text));
    let raw = message.raw();
    let derived = [
        ("text", text.clone()),
        ("data", absent(raw, "data").then(|| message.data().first().map(|data| (*data).to_owned())).flatten()),
        ("response", text.filter(|_| absent(raw, "response"))),
        ("context_id", Some(member(raw, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(raw, "taskId").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(raw, derived)
}

/// All members of the task, and the members under which references find the text, the data, the files and the ids.
fn extract(task: Task<'_>) -> Box<RawValue> {
    let raw = task.raw();
    let (mut texts, mut data, mut files) = (Vec::new(), None, Vec::new());
    for artifact in task.artifacts() {
        // The text parts of an artifact are the pieces in which it was sent.
        let (mut pieces, mut has_text) = (String::new(), false);
        for part in reply::parts(artifact) {
            match part {
                Part::Text(piece) => {
                    pieces += &piece;
                    has_text = true;
                }
                Part::Data(value) => data = data.or(Some(value)),
                Part::File(file) => files.push(object_of([
                    ("name", &*to_raw(&file.name)),
                    ("media_type", &*to_raw(&file.media_type)),
                    ("url", &*to_raw(&file.url)),
                ])),
            }
        }
        if has_text {
            texts.push(pieces);
        }
    }
    // The message in the status came last, and is not in the history yet.
    let response = task.status_message().text.or_else(|| task.last_text_in_history());
    let derived = [
        ("text", (!texts.is_empty()).then(|| to_raw(&texts.join("\n")))),
        ("data", data.filter(|_| absent(raw, "data")).map(ToOwned::to_owned)),
        ("files", (!files.is_empty() && absent(raw, "files")).then(|| to_raw(&files))),
        ("response", response.filter(|_| absent(raw, "response")).map(|text| to_raw(&text))),
        ("context_id", Some(member(raw, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(raw, "id").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(raw, derived)
}

fn absent(holder: &RawValue, name: &str) -> bool {
    member(holder, name).is_none()
}

fn with_derived<const N: usize>(result: &RawValue, derived: [(&str, Option<Box<RawValue>>); N]) -> Box<RawValue> {
    let Some(given) = members(result) else { return result.to_owned() };
    let derived: Vec<_> = derived.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let is_kept = |name: &str| derived.iter().all(|(derived, _)| *derived != name);
    let given = given.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| is_kept(name));
    object_of(given.chain(derived.iter().map(|(name, value)| (*name, &**value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{check_json, text};

    fn output(body: &[u8]) -> Result<Box<RawValue>, AnswerError> {
        match read(check_json(body).expect("JSON"))? {
            Answer::Output(output) => Ok(output),
            Answer::UnderWay { task } => panic!("{task} is under way"),
            Answer::Question { error, .. } => Err(error),
        }
    }

    #[test]
    fn an_output_has_the_results_members_and_the_derived_ones() {
        let result = r#"{"id":"t","contextId":"c","status":{"state":"completed"},"extra":12345678901234567890,
            "artifacts":[{"parts":[{"kind":"text","text":"a"},{"kind":"data","data":{}}]},{"parts":[{"kind":"text","text":"b"}]}],
            "history":[{"role":"agent","parts":[{"kind":"text","text":"old"}]},
                {"role":"agent","parts":[{"kind":"text","text":"new"},{"kind":"text","text":"x"}]},
                {"role":"agent","parts":[]},{"role":"user","parts":[{"kind":"text","text":"u"}]}]}"#;
        let output = output(format!(r#"{{"jsonrpc":"2.0","error":null,"result":{result}}}"#).as_bytes()).expect("ok");
        for (name, expected) in [
            ("text", r#""a\nb""#),
            ("response", r#""new\nx""#),
            ("context_id", r#""c""#),
            ("task_id", r#""t""#),
            ("extra", "12345678901234567890"),
            ("contextId", r#""c""#),
        ] {
            assert_eq!(member(&output, name).map(RawValue::get), Some(expected), "{name}");
        }
    }

    #[test]
    fn the_latest_text_is_that_of_the_status() {
        for (more, expected) in [
            (r#""status":{"state":"completed","message":{"parts":[{"kind":"text","text":"42"}]}}"#, Some("42")),
            (r#""status":{"state":"completed","message":{"parts":[{"kind":"data","data":{}}]}}"#, Some("thinking")),
            (r#""status":{"state":"completed"}"#, Some("thinking")),
            (r#""status":{"state":"completed"},"history":[]"#, None),
        ] {
            let body = format!(
                r#"{{"jsonrpc":"2.0","result":{{{more}{}}}}}"#,
                if more.contains("history") {
                    ""
                } else {
                    r#","history":[{"role":"agent","parts":[{"kind":"text","text":"thinking"}]}]"#
                }
            );
            let output = output(body.as_bytes()).expect("completed");
            assert_eq!(member(&output, "response").and_then(text).as_deref(), expected, "{more}");
        }
    }

    #[test]
    fn the_pieces_of_an_artifact_are_one_text_and_thoughts_are_none() {
        let body = br#"{"jsonrpc":"2.0","result":{"status":{"state":"completed"},"artifacts":[
            {"parts":[{"kind":"text","text":"hmm","metadata":{"adk_thought":true}},{"kind":"text","text":"Hel"},
                {"kind":"text","text":"lo","metadata":{"adk_thought":false}}]},
            {"parts":[{"kind":"data","data":{}}]},
            {"parts":[{"kind":"text","text":"you"}]}]}}"#;
        let output = output(body).expect("completed");
        assert_eq!(member(&output, "text").map(RawValue::get), Some(r#""Hello\nyou""#));
    }

    #[test]
    fn an_answer_of_the_next_version_is_unwrapped() {
        let body = br#"{"jsonrpc":"2.0","result":{"task":{"id":"t","contextId":"c",
            "status":{"state":"TASK_STATE_COMPLETED","message":{"role":"ROLE_AGENT","parts":[{"text":"bye"}]}},
            "artifacts":[{"artifactId":"a","parts":[{"text":"4"},{"text":"2"},{"data":{"text":"no"}}]}]}}}"#;
        let output_of_task = output(body).expect("completed");
        let shown = |name| member(&output_of_task, name).and_then(text);
        assert_eq!(
            ["text", "response", "task_id", "context_id", "id"].map(shown),
            ["42", "bye", "t", "c", "t"].map(|text| Some(text.to_owned()))
        );
        let body =
            br#"{"jsonrpc":"2.0","result":{"message":{"messageId":"m","role":"ROLE_AGENT","parts":[{"text":"a"}]}}}"#;
        let output_of_message = output(body).expect("a message");
        assert_eq!(member(&output_of_message, "text").map(RawValue::get), Some(r#""a""#));
        let canceled = br#"{"jsonrpc":"2.0","result":{"task":{"id":"t","status":{"state":"TASK_STATE_CANCELLED"}}}}"#;
        assert_eq!(output(canceled).expect_err("not completed").to_string(), "Task state: canceled");
    }

    #[test]
    fn a_given_response_is_kept_and_absent_texts_stay_absent() {
        let body = br#"{"jsonrpc":"2.0","result":{"status":{"state":"completed"},"response":7,"text":"own",
            "history":[{"role":"agent","parts":[{"kind":"text","text":"h"}]}]}}"#;
        let output = output(body).expect("completed");
        assert_eq!(member(&output, "response").map(RawValue::get), Some("7"));
        assert_eq!(member(&output, "text").map(RawValue::get), Some(r#""own""#));
        assert_eq!(member(&output, "task_id").map(RawValue::get), Some("null"));
    }

    #[test]
    fn answers_that_are_no_output_say_why() {
        for (body, expected) in [
            ("[]", "not an object"),
            (r#"{"result":{}}"#, "jsonrpc is missing"),
            (r#"{"jsonrpc":"1.0","result":{}}"#, "version"),
            (r#"{"jsonrpc":"2.0"}"#, "neither result nor error"),
            (r#"{"jsonrpc":"2.0","error":{"code":-32601,"message":"no"}}"#, "JSON-RPC Error -32601: no"),
            (r#"{"jsonrpc":"2.0","error":"x"}"#, "JSON-RPC Error without code: no message"),
            (r#"{"jsonrpc":"2.0","result":{"status":{"state":"working"}}}"#, "Task state: working"),
            (r#"{"jsonrpc":"2.0","result":"x"}"#, "Task state: unknown"),
            (r#"{"jsonrpc":"2.0","result":{"id":"","status":{"state":"submitted"}}}"#, "Task state: submitted"),
            (r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"rejected"}}}"#, "Task state: rejected"),
            (r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"canceled"}}}"#, "Task state: canceled"),
            (
                r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"failed",
                    "message":{"parts":[{"kind":"text","text":"no paper"}]}}}}"#,
                "Task state: failed: no paper",
            ),
            (
                r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"input-required"}}}"#,
                "Task state: input-required (the agent asks",
            ),
            (
                r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"auth-required"}}}"#,
                "Task state: auth-required (the agent asks",
            ),
            (
                r#"{"jsonrpc":"2.0","result":{"task":{"id":"t","status":{"state":"TASK_STATE_INPUT_REQUIRED"}}}}"#,
                "Task state: input-required (the agent asks",
            ),
        ] {
            let error = output(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }

    #[test]
    fn a_task_that_is_not_done_is_under_way() {
        for state in ["submitted", "working"] {
            let body = format!(r#"{{"jsonrpc":"2.0","result":{{"id":"t-1","status":{{"state":"{state}"}}}}}}"#);
            let answer = read(check_json(body.as_bytes()).expect("JSON"));
            assert!(matches!(answer, Ok(Answer::UnderWay { task }) if task == "t-1"), "{state}");
        }
    }

    #[test]
    fn an_unknown_state_is_under_way_if_the_task_can_be_queried() {
        for state in ["pondering", "unknown", "TASK_STATE_UNSPECIFIED"] {
            let body = format!(r#"{{"jsonrpc":"2.0","result":{{"id":"t-1","status":{{"state":"{state}"}}}}}}"#);
            let answer = read(check_json(body.as_bytes()).expect("JSON"));
            assert!(matches!(answer, Ok(Answer::UnderWay { task }) if task == "t-1"), "{state}");
        }
    }

    #[test]
    fn data_and_files_of_artifacts_are_members_of_the_output() {
        for body in [
            &br#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"completed"},"artifacts":[{"parts":[
                {"kind":"file","file":{"uri":"http://f/1","mimeType":"image/png","name":"x.png"}},
                {"kind":"data","data":{"n":12345678901234567890}},{"kind":"data","data":{"n":2}}]}]}}"#[..],
            br#"{"jsonrpc":"2.0","result":{"task":{"id":"t","status":{"state":"TASK_STATE_COMPLETED"},"artifacts":[{"parts":[
                {"url":"http://f/1","mediaType":"image/png","filename":"x.png"},
                {"data":{"n":12345678901234567890}},{"data":{"n":2}}]}]}}}"#,
        ] {
            let output = output(body).expect("completed");
            let shown = |name| member(&output, name).map(RawValue::get);
            assert_eq!(shown("data"), Some(r#"{"n":12345678901234567890}"#));
            assert_eq!(
                shown("files"),
                Some(r#"[{"name":"x.png","media_type":"image/png","url":"http://f/1"}]"#)
            );
            assert_eq!(shown("text"), None);
            assert!(shown("artifacts").is_some());
        }
        let own = br#"{"jsonrpc":"2.0","result":{"status":{"state":"completed"},"data":1,"files":2,
            "artifacts":[{"parts":[{"kind":"data","data":{}},{"kind":"file","file":{}}]}]}}"#;
        let output = output(own).expect("completed");
        assert_eq!(["data", "files"].map(|name| member(&output, name).map(RawValue::get)), [Some("1"), Some("2")]);
    }

    #[test]
    fn a_message_is_an_output_too() {
        let body = br#"{"jsonrpc":"2.0","result":{"kind":"message","messageId":"m","contextId":"c","role":"agent",
            "parts":[{"kind":"text","text":"a"},{"kind":"text","text":"b"}]}}"#;
        let output = output(body).expect("a message");
        let shown = |name| member(&output, name).map(RawValue::get);
        assert_eq!((shown("text"), shown("response")), (Some(r#""a\nb""#), Some(r#""a\nb""#)));
        assert_eq!(
            (shown("context_id"), shown("task_id"), shown("messageId")),
            (Some(r#""c""#), Some("null"), Some(r#""m""#))
        );
    }
}
