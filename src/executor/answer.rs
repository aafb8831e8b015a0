//! What an agent's answer says: the output of the step, or why it failed. Pure.

use serde_json::value::RawValue;

use crate::input::{check_json, elements, member, members, object_of, shorten, text, to_raw};

/// Why an answer is not an output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerError {
    /// It is not what the protocol says.
    #[error("the answer is not a JSON-RPC 2.0 response: {0}")]
    Invalid(String),
    /// The agent refuses or has failed.
    #[error("JSON-RPC Error {code}: {message}")]
    Rpc {
        /// As given.
        code: String,
        /// As given, shortened.
        message: String,
    },
    /// The task is in another state than completed.
    #[error("Task state: {0}")]
    State(String),
}

/// What a response says.
#[derive(Debug)]
pub(super) enum Answer {
    /// The task is completed; the output of the step.
    Output(Box<RawValue>),
    /// It is not done yet.
    UnderWay {
        /// The agent's id of the task.
        task: String,
    },
}

/// What a response to `message/send` or `tasks/get` says.
pub(super) fn read(body: &[u8]) -> Result<Answer, AnswerError> {
    let invalid = |text: &str| AnswerError::Invalid(text.to_owned());
    let response = check_json(body).map_err(|fault| AnswerError::Invalid(fault.to_string()))?;
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
    let result = member(response, "result").ok_or_else(|| invalid("neither result nor error"))?;
    let status = member(result, "status");
    let state = status.and_then(|status| member(status, "state")).and_then(text);
    match state.as_deref() {
        Some("completed") => Ok(Answer::Output(extract(result))),
        Some(state) => {
            let task = member(result, "id").and_then(text).filter(|task| !task.is_empty());
            match task {
                Some(task) if matches!(state, "submitted" | "working") => Ok(Answer::UnderWay { task }),
                _ => Err(AnswerError::State(told(state, status))),
            }
        }
        // An agent that is done at once may answer with a message instead of a task.
        None if member(result, "kind").and_then(text).as_deref() == Some("message") => {
            Ok(Answer::Output(extract_message(result)))
        }
        None => Err(AnswerError::State("unknown".to_owned())),
    }
}

/// The error of a JSON-RPC response, if it has one. An `error: null` beside a result is none.
pub(super) fn rpc_error(response: &RawValue) -> Option<AnswerError> {
    let error = member(response, "error").filter(|error| error.get() != "null")?;
    let code = member(error, "code").map_or("without code", RawValue::get);
    let message = member(error, "message").and_then(text);
    Some(AnswerError::Rpc {
        code: shorten(code).into_owned(),
        message: shorten(message.as_deref().unwrap_or("no message")).into_owned(),
    })
}

/// The state, and what the agent says about it.
fn told(state: &str, status: Option<&RawValue>) -> String {
    let why = match state {
        "input-required" => " (the agent asks for more input, which a step cannot give)",
        "auth-required" => " (the agent asks for other credentials than its own)",
        _ => "",
    };
    let words = status.and_then(|status| member(status, "message")).map(|message| texts_of(message).join("\n"));
    let words = words.filter(|words| !words.is_empty());
    let words = words.map_or_else(String::new, |words| format!(": {}", shorten(&words)));
    format!("{}{why}{words}", shorten(state))
}

/// All members of the message, and those that an output of a task has.
fn extract_message(message: &RawValue) -> Box<RawValue> {
    let texts = texts_of(message);
    let derived = [
        ("text", (!texts.is_empty()).then(|| to_raw(&texts.join("\n")))),
        ("response", texts.first().map(to_raw).filter(|_| member(message, "response").is_none())),
        ("context_id", Some(member(message, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(message, "taskId").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(message, derived)
}

/// All members of the result, and those under which references find the text and the ids.
fn extract(result: &RawValue) -> Box<RawValue> {
    let artifacts = member(result, "artifacts").and_then(elements).unwrap_or_default();
    let texts: Vec<String> = artifacts.into_iter().flat_map(texts_of).collect();
    let history = member(result, "history").and_then(elements).unwrap_or_default();
    let response = history
        .into_iter()
        .rev()
        .filter(|item| member(item, "role").and_then(text).as_deref() == Some("agent"))
        .find_map(|item| texts_of(item).into_iter().next())
        .filter(|_| member(result, "response").is_none());
    let derived = [
        ("text", (!texts.is_empty()).then(|| to_raw(&texts.join("\n")))),
        ("response", response.map(|text| to_raw(&text))),
        ("context_id", Some(member(result, "contextId").unwrap_or(RawValue::NULL).to_owned())),
        ("task_id", Some(member(result, "id").unwrap_or(RawValue::NULL).to_owned())),
    ];
    with_derived(result, derived)
}

fn with_derived(result: &RawValue, derived: [(&str, Option<Box<RawValue>>); 4]) -> Box<RawValue> {
    let Some(given) = members(result) else { return result.to_owned() };
    let derived: Vec<_> = derived.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let is_kept = |name: &str| derived.iter().all(|(derived, _)| *derived != name);
    let given = given.iter().map(|(name, value)| (name.as_str(), *value)).filter(|(name, _)| is_kept(name));
    object_of(given.chain(derived.iter().map(|(name, value)| (*name, &**value))))
}

/// The texts of the text parts of an artifact or a message.
fn texts_of(holder: &RawValue) -> Vec<String> {
    let parts = member(holder, "parts").and_then(elements).unwrap_or_default();
    let is_text = |part: &&RawValue| member(part, "kind").and_then(text).as_deref() == Some("text");
    parts.into_iter().filter(is_text).filter_map(|part| text(member(part, "text")?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(body: &[u8]) -> Result<Box<RawValue>, AnswerError> {
        read(body).map(|answer| match answer {
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
            ("response", r#""new""#),
            ("context_id", r#""c""#),
            ("task_id", r#""t""#),
            ("extra", "12345678901234567890"),
            ("contextId", r#""c""#),
        ] {
            assert_eq!(member(&output, name).map(RawValue::get), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_the_agent_gave_as_response_is_kept_and_absent_texts_are_not_made_up() {
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
            ("", "JSON-RPC 2.0 response"),
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
            (r#"{"jsonrpc":"2.0","result":{"status":{"state":"completed"},"a":"\u0000"}}"#, "NUL"),
        ] {
            let error = output(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }

    #[test]
    fn a_task_that_is_not_done_is_under_way() {
        for state in ["submitted", "working"] {
            let body = format!(r#"{{"jsonrpc":"2.0","result":{{"id":"t-1","status":{{"state":"{state}"}}}}}}"#);
            assert!(matches!(read(body.as_bytes()), Ok(Answer::UnderWay { task }) if task == "t-1"), "{state}");
        }
    }

    #[test]
    fn a_message_is_an_output_too() {
        let body = br#"{"jsonrpc":"2.0","result":{"kind":"message","messageId":"m","contextId":"c","role":"agent",
            "parts":[{"kind":"text","text":"a"},{"kind":"text","text":"b"}]}}"#;
        let output = output(body).expect("a message");
        let shown = |name| member(&output, name).map(RawValue::get);
        assert_eq!((shown("text"), shown("response")), (Some(r#""a\nb""#), Some(r#""a""#)));
        assert_eq!(
            (shown("context_id"), shown("task_id"), shown("messageId")),
            (Some(r#""c""#), Some("null"), Some(r#""m""#))
        );
    }
}
