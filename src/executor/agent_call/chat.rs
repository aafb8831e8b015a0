//! Agents with OpenAI's chat completions API, <https://platform.openai.com/docs/api-reference/chat>.

use http::StatusCode;
use serde_json::{json, value::RawValue};

use super::{
    AgentError, CallErrorKind, Failure, Wire,
    chat_stream::{self, Streamed},
    fault_of, is_passing,
};
use crate::{
    agent::{ChatConfig, model_url},
    egress::Body,
    executor::retry::RetryDecision,
    input::{JsonFault, check_json, elements, member, members, object_of, text, to_raw},
    mapping,
    usage::Usage,
};

/// Error codes that are final until the account is paid, whatever the status.
const UNPAID: [&str; 2] = ["insufficient_quota", "billing_not_active"];
/// Error codes without a status, with the equivalent status.
const CODES: [(&str, StatusCode); 4] = [
    ("rate_limit", StatusCode::TOO_MANY_REQUESTS),
    ("overloaded", StatusCode::SERVICE_UNAVAILABLE),
    ("server_error", StatusCode::INTERNAL_SERVER_ERROR),
    ("timeout", StatusCode::GATEWAY_TIMEOUT),
];
/// Types of message parts that contain the model's answer; other parts are thoughts or no text.
const SPOKEN_PARTS: [&str; 2] = ["text", "output_text"];
/// Fence of a Markdown code block, which models put around JSON.
const FENCE: &str = "```";

pub(super) async fn call(wire: &Wire<'_>, config: &ChatConfig) -> Result<Box<RawValue>, Failure> {
    let url = model_url(&wire.url()?, "chat/completions");
    let request = request(config, wire.request.input);
    if config.streaming {
        let completion = chat_stream::complete(wire, url, &request, explain).await?;
        return match completion {
            Streamed::Completion(completion) => read(wire, config, &completion),
            Streamed::Body(body) => wire.read(&body, |body| read_body(wire, config, body)).await,
        };
    }
    let body = wire.post(url, request.get().to_owned(), explain).await?;
    wire.read(&body, |body| read_body(wire, config, body)).await
}

fn read_body(wire: &Wire<'_>, config: &ChatConfig, body: &Body) -> Result<Box<RawValue>, Failure> {
    read(wire, config, body.json().map_err(|fault| invalid(&fault.to_string()))?)
}

fn read(wire: &Wire<'_>, config: &ChatConfig, answer: &RawValue) -> Result<Box<RawValue>, Failure> {
    // Failed answers use tokens too.
    wire.used(member(answer, "usage").and_then(Usage::read));
    output(config, answer)
}

fn invalid(why: &str) -> Failure {
    Failure::new(CallErrorKind::Invalid, RetryDecision::Never, format!("the answer is no chat completion: {why}"))
}

pub(super) fn refused(why: String) -> Failure {
    Failure::new(CallErrorKind::Refused, RetryDecision::Never, why)
}

/// Request body: the input's `messages`, or the input as one message of the user, after the system prompt.
fn request(config: &ChatConfig, input: &RawValue) -> Box<RawValue> {
    let message = |role: &str, content: &str| to_raw(&json!({"role": role, "content": content}));
    let mut messages: Vec<Box<RawValue>> = Vec::new();
    messages.extend(config.system_prompt.as_deref().map(|prompt| message("system", prompt)));
    match member(input, "messages").and_then(elements) {
        Some(given) => messages.extend(given.into_iter().map(ToOwned::to_owned)),
        None => messages.push(message("user", &mapping::message_text(input))),
    }
    let (model, messages) = (to_raw(&config.model), to_raw(&messages));
    let parameters = config.parameters.as_deref().and_then(members).unwrap_or_default();
    let own = [("model", &*model), ("messages", &*messages)].into_iter();
    let format = config.response_format.as_deref().map(|format| ("response_format", format));
    object_of(own.chain(format).chain(parameters.iter().map(|(name, value)| (name.as_str(), *value))))
}

fn output(config: &ChatConfig, answer: &RawValue) -> Result<Box<RawValue>, Failure> {
    if let Some(error) = error_in(answer) {
        return Err(as_failure(error));
    }
    let choices = member(answer, "choices").and_then(elements).unwrap_or_default();
    let choice = choices.first().ok_or_else(|| invalid("it has no choices"))?;
    if let Some(error) = error_in(choice) {
        return Err(as_failure(error));
    }
    let message = member(choice, "message").ok_or_else(|| invalid("its choice has no message"))?;
    if let Some(refusal) = member(message, "refusal").and_then(text).filter(|refusal| !refusal.is_empty()) {
        return Err(refused(format!("the model refuses: {refusal}")));
    }
    let finish_reason = member(choice, "finish_reason").unwrap_or(RawValue::NULL);
    let reason = text(finish_reason).map_or_else(String::new, |reason| format!(" (finish_reason {reason})"));
    let said = member(message, "content").and_then(content_text).filter(|said| !said.trim().is_empty());
    if text(finish_reason).as_deref() == Some("error") {
        let what = format!("the model stopped early{reason}");
        return Err(Failure::new(CallErrorKind::Http5xx, RetryDecision::Later, what));
    }
    let said = said.ok_or_else(|| refused(format!("the model answered without text{reason}")))?;
    let said_json = to_raw(&said);
    let content = if config.wants_json() {
        let json = json_of(&said).map(ToOwned::to_owned);
        json.map_err(|fault| refused(format!("the model did not answer with JSON{reason}: {fault}")))?
    } else {
        said_json.clone()
    };
    let shown = |name: &str| member(answer, name).unwrap_or(RawValue::NULL);
    Ok(object_of([
        ("text", &*said_json),
        ("content", &*content),
        ("finish_reason", finish_reason),
        ("model", shown("model")),
        ("usage", shown("usage")),
        ("id", shown("id")),
    ]))
}

/// A text, or the texts of those parts that are not thoughts.
fn content_text(content: &RawValue) -> Option<String> {
    text(content).or_else(|| {
        let is_spoken = |part: &&RawValue| {
            let kind = member(part, "type");
            kind.is_none_or(|kind| text(kind).is_some_and(|kind| SPOKEN_PARTS.contains(&kind.as_str())))
        };
        let parts = elements(content)?.into_iter().filter(is_spoken);
        let texts: Vec<String> = parts.filter_map(|part| text(member(part, "text")?)).collect();
        (!texts.is_empty()).then(|| texts.concat())
    })
}

/// JSON in the model's answer: all of it, or the content of its code fence.
pub(super) fn json_of(said: &str) -> Result<&RawValue, JsonFault> {
    check_json(said.as_bytes()).or_else(|fault| {
        let fenced = fenced(said).and_then(|inside| check_json(inside.as_bytes()).ok());
        fenced.ok_or(fault)
    })
}

fn fenced(said: &str) -> Option<&str> {
    let (_, fenced) = said.split_once(FENCE)?;
    let (inside, _) = fenced.rsplit_once(FENCE)?;
    // The name of the language follows the fence.
    Some(inside.trim_start_matches(|char: char| char.is_ascii_alphabetic()))
}

/// The error in an answer or in a choice.
pub(super) fn error_in(holder: &RawValue) -> Option<&RawValue> {
    member(holder, "error").filter(|error| !["null", "\"\"", "{}", "false"].contains(&error.get()))
}

/// Failure for an error in an answer with status 200, which gateways send: as if the answer had the error's status.
pub(super) fn as_failure(error: &RawValue) -> Failure {
    let AgentError { words, is_final } = agent_error(error);
    let status = status_of(error);
    let again = if !is_final && status.is_some_and(is_passing) { RetryDecision::Later } else { RetryDecision::Never };
    // Without a known status the endpoint counts as healthy.
    let fault = status.map_or(CallErrorKind::Refused, fault_of);
    let shown = status.map_or_else(String::new, |status| format!(" {}", status.as_u16()));
    Failure::new(fault, again, format!("the answer is an error{shown}: {words}"))
}

/// The status that an error names as a number, or by a code.
fn status_of(error: &RawValue) -> Option<StatusCode> {
    let named = |name| member(error, name).map(|value| text(value).unwrap_or_else(|| value.get().to_owned()));
    let number = ["code", "status", "status_code"].into_iter().filter_map(named).find_map(|code| code.parse().ok());
    let number = number.and_then(|code: u16| StatusCode::from_u16(code).ok());
    number.filter(|status| status.is_client_error() || status.is_server_error()).or_else(|| {
        let codes = ["code", "type"].into_iter().filter_map(named);
        codes.into_iter().find_map(|code| CODES.iter().find(|(part, _)| code.contains(part)).map(|(_, status)| *status))
    })
}

/// The text of an error, which is an object or a string.
fn agent_error(error: &RawValue) -> AgentError {
    let words = text(error).or_else(|| text(member(error, "message")?));
    let code_is_final = |name| {
        let code = member(error, name).and_then(text);
        code.is_some_and(|code| UNPAID.contains(&code.as_str()))
    };
    AgentError {
        words: words.unwrap_or_else(|| error.get().to_owned()),
        is_final: code_is_final("code") || code_is_final("type"),
    }
}

pub(super) fn explain(body: &RawValue) -> Option<AgentError> {
    // Some endpoints answer with a list of one.
    let listed = elements(body).and_then(|answers| answers.first().copied());
    error_in(listed.unwrap_or(body)).map(agent_error)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::input::Node;

    fn config(json: &str) -> ChatConfig {
        ChatConfig::read(&Node::new("config", check_json(json.as_bytes()).expect(json))).expect(json)
    }

    const WANTS_JSON: &str = r#"{"model":"m","response_format":"json"}"#;

    fn read(wanted: &str, body: &str) -> Result<Box<RawValue>, Failure> {
        output(&config(wanted), check_json(body.as_bytes()).expect(body))
    }

    fn parsed(raw: &RawValue) -> Value {
        serde_json::from_str(raw.get()).expect("JSON")
    }

    #[test]
    fn an_input_becomes_messages() {
        let full = config(
            r#"{"model":"m","system_prompt":"be kind","parameters":{"temperature":0,"max_tokens":9},"response_format":"json"}"#,
        );
        let (system, format) = (json!({"role": "system", "content": "be kind"}), json!({"type": "json_object"}));
        for (input, expected) in [
            (r#"{"text":"hi","more":1}"#, json!([system, {"role": "user", "content": "hi"}])),
            (r#"{"term":"quorum"}"#, json!([system, {"role": "user", "content": "{\"term\":\"quorum\"}"}])),
            (
                r#"{"messages":[{"role":"assistant","content":"a"}]}"#,
                json!([system, {"role": "assistant", "content": "a"}]),
            ),
        ] {
            let expected = json!({"model": "m", "messages": expected, "response_format": format, "temperature": 0,
                "max_tokens": 9});
            assert_eq!(parsed(&request(&full, check_json(input.as_bytes()).expect(input))), expected);
        }
        let bare = request(&config(r#"{"model":"m"}"#), check_json(br#"{"query":"q"}"#).expect("JSON"));
        assert_eq!(parsed(&bare), json!({"model": "m", "messages": [{"role": "user", "content": "q"}]}));
    }

    #[test]
    fn a_completion_becomes_an_output() {
        let completion = |message: Value| {
            json!({"id": "c", "model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
                "choices": [{"finish_reason": "stop", "message": message}]})
            .to_string()
        };
        let said = completion(json!({"role": "assistant", "content": "{\"a\":1}"}));
        for (wanted, content) in
            [(r#"{"model":"m"}"#, json!("{\"a\":1}")), (r#"{"model":"m","response_format":"json"}"#, json!({"a": 1}))]
        {
            let output = read(wanted, &said).expect("a completion");
            let expected = json!({"text": "{\"a\":1}", "content": content, "finish_reason": "stop", "model": "m-1",
                "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}, "id": "c"});
            assert_eq!(parsed(&output), expected);
        }
        let parts = completion(json!({"content": [{"type": "text", "text": "a"}, {"type": "reasoning", "text": "hmm"},
            {"type": "thinking", "thinking": [{"type": "text", "text": "hmm"}]}, {"type": "output_text", "text": "b"}]}));
        assert_eq!(parsed(&read(r#"{"model":"m"}"#, &parts).expect("parts"))["text"], "ab");
        for said in
            ["```json\n{\"a\":1}\n```", "Here it is:\n```\n{\"a\":1}\n```\nGlad to help.", "```json {\"a\":1}```"]
        {
            let output = parsed(&read(WANTS_JSON, &completion(json!({"content": said}))).expect(said));
            assert_eq!((&output["content"], &output["text"]), (&json!({"a": 1}), &json!(said)));
        }
        for (body, fault, expected) in [
            ("[]".to_owned(), CallErrorKind::Invalid, "no choices"),
            (json!({"choices": []}).to_string(), CallErrorKind::Invalid, "no choices"),
            (json!({"choices": [{}]}).to_string(), CallErrorKind::Invalid, "no message"),
            (completion(json!({"content": null})), CallErrorKind::Refused, "without text (finish_reason stop)"),
            (completion(json!({"content": " \n"})), CallErrorKind::Refused, "without text (finish_reason stop)"),
            (
                completion(json!({"content": [{"type": "reasoning", "text": "hmm"}]})),
                CallErrorKind::Refused,
                "without text",
            ),
            (completion(json!({"content": "```json\n{\"a\":"})), CallErrorKind::Refused, "not answer with JSON"),
            (completion(json!({"content": null, "refusal": "no"})), CallErrorKind::Refused, "refuses: no"),
            (completion(json!({"content": "plain"})), CallErrorKind::Refused, "not answer with JSON"),
        ] {
            let failure = read(WANTS_JSON, &body).expect_err(&body);
            assert_eq!(failure.fault, fault, "{body}");
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn an_error_with_status_200_is_classified_by_its_code() {
        let choice = |choice: Value| json!({"choices": [choice]});
        let broken = json!({"code": 502, "message": "died"});
        for (body, fault, again, expected) in [
            (
                json!({"error": {"code": 429, "message": "slow down"}}),
                CallErrorKind::Http4xx,
                RetryDecision::Later,
                "an error 429: slow down",
            ),
            (
                json!({"error": {"code": "503", "message": "m"}}),
                CallErrorKind::Http5xx,
                RetryDecision::Later,
                "an error 503: m",
            ),
            (
                json!({"error": {"code": 400, "message": "bad"}}),
                CallErrorKind::Http4xx,
                RetryDecision::Never,
                "an error 400: bad",
            ),
            (
                json!({"error": {"type": "rate_limit_error", "message": "m"}}),
                CallErrorKind::Http4xx,
                RetryDecision::Later,
                "an error 429: m",
            ),
            (
                json!({"error": {"code": "insufficient_quota", "status": 429, "message": "pay"}}),
                CallErrorKind::Http4xx,
                RetryDecision::Never,
                "an error 429: pay",
            ),
            (
                json!({"choices": null, "error": {"message": "odd"}}),
                CallErrorKind::Refused,
                RetryDecision::Never,
                "an error: odd",
            ),
            (json!({"error": "words"}), CallErrorKind::Refused, RetryDecision::Never, "an error: words"),
            (json!({"error": {"a": 1}}), CallErrorKind::Refused, RetryDecision::Never, "an error: {\"a\":1}"),
            (
                choice(json!({"finish_reason": "error", "error": broken, "message": {"content": "half"}})),
                CallErrorKind::Http5xx,
                RetryDecision::Later,
                "an error 502: died",
            ),
            (
                choice(json!({"finish_reason": "error", "message": {"content": "half"}})),
                CallErrorKind::Http5xx,
                RetryDecision::Later,
                "stopped early (finish_reason error)",
            ),
        ] {
            let failure = read(r#"{"model":"m"}"#, &body.to_string()).expect_err("an error");
            assert_eq!((failure.fault, failure.again), (fault, again), "{body}");
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
        let unharmed = json!({"error": null, "choices": [{"message": {"content": "x"}, "error": {}}]}).to_string();
        assert!(read(r#"{"model":"m"}"#, &unharmed).is_ok());
    }

    #[test]
    fn an_error_says_whether_it_is_final() {
        for (body, words, is_final) in [
            (json!({"error": {"message": "pay", "type": "insufficient_quota"}}), "pay", true),
            (json!({"error": {"message": "pay", "code": "billing_not_active"}}), "pay", true),
            (json!([{"error": {"message": "slow", "code": 429}}]), "slow", false),
            (json!({"error": "words"}), "words", false),
        ] {
            let said = explain(check_json(body.to_string().as_bytes()).expect("JSON")).expect("words");
            assert_eq!((said.words.as_str(), said.is_final), (words, is_final), "{body}");
        }
    }
}
