//! Answer of an A2A agent: the output of the step, or the reason why it failed. Pure.
//!
//! Answers have the form of A2A 0.2 or 0.3. Some servers answer a request of 0.3 in the form of 1.0, which is read too:
//! the result is wrapped, states and roles are `TASK_STATE_COMPLETED` and `ROLE_AGENT`, and parts have no `kind`.
//!
//! The agent's texts are returned in full: they are masked before they are shortened.

use serde_json::value::RawValue;

use crate::input::{elements, member, members, object_of, text, to_raw};

/// Metadata members that mark a part as a thought; the first is of Google's Agent Development Kit.
const THOUGHT_MARKS: [&str; 2] = ["adk_thought", "thought"];

/// Reason why an answer is not an output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// The answer violates the protocol.
    #[error("the answer is not a JSON-RPC 2.0 response: {0}")]
    Invalid(String),
    /// The agent refused or failed.
    #[error("JSON-RPC Error {code}: {message}")]
    Rpc {
        /// Code as given.
        code: String,
        /// Message as given.
        message: String,
    },
    /// The task is in another state than completed.
    #[error("Task state: {0}")]
    State(String),
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
}

/// Reads a response to `message/send` or `tasks/get`.
pub(super) fn read(response: &RawValue) -> Result<Answer, AnswerError> {
    let invalid = |text: &str| AnswerError::Invalid(text.to_owned());
    if members(response).is_none() {
        return Err(invalid("it is not an object"));
    }
    match member(response, "jsonrpc").and_then(text).as_deref() {
        Some("2.0") => {}
        Some(_) => return Err(invalid("another version than 2.0")),
        None => return Err(invalid("member jsonrpc is missing")),
    }
    if let Some(error) = rpc_error(response) {
        return Err(error);
    }
    let result = unwrapped(member(response, "result").ok_or_else(|| invalid("neither result nor error"))?);
    let status = member(result, "status");
    let state = status.and_then(|status| member(status, "state")).and_then(text);
    match state.as_deref().map(state_of).as_deref() {
        Some("completed") => Ok(Answer::Output(extract(result, status))),
        Some(state) => {
            let task = member(result, "id").and_then(text).filter(|task| !task.is_empty());
            match task {
                Some(task) if matches!(state, "submitted" | "working") => Ok(Answer::UnderWay { task }),
                _ => Err(AnswerError::State(described(state, status))),
            }
        }
        // An agent that is done at once may answer with a message instead of a task.
        None if is_message(result) => Ok(Answer::Output(extract_message(result))),
        None => Err(AnswerError::State("unknown".to_owned())),
    }
}

/// The task or the message. A2A 1.0 wraps it into an object with one member.
fn unwrapped(result: &RawValue) -> &RawValue {
    if member(result, "status").is_some() || member(result, "kind").is_some() {
        return result;
    }
    let inside = |name| member(result, name).filter(|inner| members(inner).is_some());
    inside("task").or_else(|| inside("message")).unwrap_or(result)
}

/// State, spelled as in A2A 0.3.
fn state_of(state: &str) -> String {
    match state.strip_prefix("TASK_STATE_") {
        None => state.to_owned(),
        Some("CANCELLED") => "canceled".to_owned(),
        Some(state) => state.to_lowercase().replace('_', "-"),
    }
}

fn is_message(result: &RawValue) -> bool {
    match member(result, "kind").and_then(text) {
        Some(kind) => kind == "message",
        None => member(result, "parts").is_some() && is_of_agent(result),
    }
}

fn is_of_agent(message: &RawValue) -> bool {
    member(message, "role").and_then(text).is_some_and(|role| matches!(role.as_str(), "agent" | "ROLE_AGENT"))
}

/// The error of a JSON-RPC response, if it has one. An `error: null` beside a result is no error.
pub(super) fn rpc_error(response: &RawValue) -> Option<AnswerError> {
    let error = member(response, "error").filter(|error| error.get() != "null")?;
    let code = member(error, "code").map_or("without code", RawValue::get);
    let message = member(error, "message").and_then(text);
    Some(AnswerError::Rpc { code: code.to_owned(), message: message.unwrap_or_else(|| "no message".to_owned()) })
}

/// Description of a state, with the agent's text about it.
fn described(state: &str, status: Option<&RawValue>) -> String {
    let why = match state {
        "input-required" => " (the agent asks for more input, which a step cannot give)",
        "auth-required" => " (the agent asks for other credentials than its own)",
        _ => "",
    };
    let words = status_text(status).map_or_else(String::new, |words| format!(": {words}"));
    format!("{state}{why}{words}")
}

/// The agent's text in the status of a task.
fn status_text(status: Option<&RawValue>) -> Option<String> {
    message_text(member(status?, "message")?)
}

/// Text of a message, if it has any.
fn message_text(message: &RawValue) -> Option<String> {
    let texts = texts_of(message);
    (!texts.is_empty()).then(|| texts.join("\n"))
}

/// All members of the message, and those that the output of a task has.
fn extract_message(message: &RawValue) -> Box<RawValue> {
    let text = message_text(message).map(|text| to_raw(&text));
    let derived = [
        ("text", text.clone()),
        ("response", text.filter(|_| member(message, "response").is_none())),
        ("context_id", Some(member(message, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(message, "taskId").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(message, derived)
}

/// All members of the task, and the members under which references find the text and the ids.
fn extract(task: &RawValue, status: Option<&RawValue>) -> Box<RawValue> {
    let artifacts = member(task, "artifacts").and_then(elements).unwrap_or_default();
    // The parts of an artifact are the pieces in which it was sent.
    let texts: Vec<String> =
        artifacts.into_iter().map(texts_of).filter(|texts| !texts.is_empty()).map(|texts| texts.concat()).collect();
    let last_in_history = || {
        let history = member(task, "history").and_then(elements).unwrap_or_default();
        history.into_iter().rev().filter(|item| is_of_agent(item)).find_map(message_text)
    };
    // The message in the status came last, and is not in the history yet.
    let response = status_text(status).or_else(last_in_history).filter(|_| member(task, "response").is_none());
    let derived = [
        ("text", (!texts.is_empty()).then(|| to_raw(&texts.join("\n")))),
        ("response", response.map(|text| to_raw(&text))),
        ("context_id", Some(member(task, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(task, "id").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(task, derived)
}

fn with_derived(result: &RawValue, derived: [(&str, Option<Box<RawValue>>); 4]) -> Box<RawValue> {
    let Some(given) = members(result) else { return result.to_owned() };
    let derived: Vec<_> = derived.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let is_kept = |name: &str| derived.iter().all(|(derived, _)| *derived != name);
    let given = given.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| is_kept(name));
    object_of(given.chain(derived.iter().map(|(name, value)| (*name, &**value))))
}

/// Texts of the text parts of an artifact or a message, without those marked as thoughts.
fn texts_of(holder: &RawValue) -> Vec<String> {
    let parts = member(holder, "parts").and_then(elements).unwrap_or_default();
    let is_text = |part: &&RawValue| member(part, "kind").is_none_or(|kind| text(kind).as_deref() == Some("text"));
    let is_thought = |part: &&RawValue| {
        let metadata = member(part, "metadata");
        metadata.is_some_and(|metadata| THOUGHT_MARKS.iter().any(|mark| is_true(member(metadata, mark))))
    };
    let answer_parts = parts.into_iter().filter(is_text).filter(|part| !is_thought(part));
    answer_parts.filter_map(|part| text(member(part, "text")?)).collect()
}

fn is_true(value: Option<&RawValue>) -> bool {
    value.is_some_and(|value| value.get() == "true")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn output(body: &[u8]) -> Result<Box<RawValue>, AnswerError> {
        read(check_json(body).expect("JSON")).map(|answer| match answer {
            Answer::Output(output) => output,
            Answer::UnderWay { task } => panic!("{task} is under way"),
        })
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
