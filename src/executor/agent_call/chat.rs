//! Agents that speak OpenAI's chat completions, <https://platform.openai.com/docs/api-reference/chat>.

use serde_json::{json, value::RawValue};

use super::{Failure, Fault, Wire};
use crate::{
    agent::{ChatConfig, chat_url},
    executor::retry::Again,
    input::{check_json, elements, member, members, object_of, shorten, text, to_raw},
    mapping,
};

pub(super) async fn call(wire: &Wire<'_>, config: &ChatConfig) -> Result<Box<RawValue>, Failure> {
    let url = chat_url(&wire.url()?, "chat/completions");
    let body = wire.post(url, request(config, wire.request.input).get().to_owned(), explain).await?;
    let (output, usage) = output(config, &body)?;
    for (kind, name) in [("prompt", "prompt_tokens"), ("completion", "completion_tokens")] {
        let tokens = usage.as_deref().and_then(|usage| member(usage, name)?.get().parse::<u64>().ok());
        metrics::counter!("executor_agent_tokens_total", "kind" => kind).increment(tokens.unwrap_or_default());
    }
    Ok(output)
}

/// The input's `messages`, or what an A2A agent would be told as a message of the user, after the system prompt.
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

/// The output, and the tokens it took as the endpoint counts them.
fn output(config: &ChatConfig, body: &[u8]) -> Result<(Box<RawValue>, Option<Box<RawValue>>), Failure> {
    let invalid =
        |why: String| Failure::new(Fault::Invalid, Again::Never, format!("the answer is no chat completion: {why}"));
    let answer = check_json(body).map_err(|fault| invalid(fault.to_string()))?;
    let choices = member(answer, "choices").and_then(elements).unwrap_or_default();
    let choice = choices.first().ok_or_else(|| invalid("it has no choices".to_owned()))?;
    let message = member(choice, "message").ok_or_else(|| invalid("its choice has no message".to_owned()))?;
    let finish_reason = member(choice, "finish_reason").unwrap_or(RawValue::NULL);
    if let Some(refusal) = member(message, "refusal").and_then(text).filter(|refusal| !refusal.is_empty()) {
        let why = format!("the model refuses: {}", shorten(&refusal));
        return Err(Failure::new(Fault::Refused, Again::Never, why));
    }
    let reason =
        || text(finish_reason).map_or_else(String::new, |reason| format!(" (finish_reason {})", shorten(&reason)));
    let said = member(message, "content").and_then(content_text);
    let said = said.ok_or_else(|| {
        Failure::new(Fault::Refused, Again::Never, format!("the model answered without text{}", reason()))
    })?;
    let said_json = to_raw(&said);
    let content = if config.wants_json() {
        check_json(said.as_bytes()).map(ToOwned::to_owned).map_err(|fault| {
            Failure::new(
                Fault::Refused,
                Again::Never,
                format!("the model did not answer with JSON{}: {fault}", reason()),
            )
        })?
    } else {
        said_json.clone()
    };
    let shown = |name: &str| member(answer, name).unwrap_or(RawValue::NULL);
    let output = object_of([
        ("text", &*said_json),
        ("content", &*content),
        ("finish_reason", finish_reason),
        ("model", shown("model")),
        ("usage", shown("usage")),
        ("id", shown("id")),
    ]);
    Ok((output, member(answer, "usage").map(ToOwned::to_owned)))
}

/// A text, or the texts of its parts.
fn content_text(content: &RawValue) -> Option<String> {
    text(content).or_else(|| {
        let parts = elements(content)?;
        let texts: Vec<String> = parts.into_iter().filter_map(|part| text(member(part, "text")?)).collect();
        (!texts.is_empty()).then(|| texts.concat())
    })
}

fn explain(body: &RawValue) -> Option<String> {
    let error = member(body, "error")?;
    let said = text(error).or_else(|| text(member(error, "message")?))?;
    Some(shorten(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::input::Node;

    fn config(json: &str) -> ChatConfig {
        ChatConfig::read(&Node::new("config", check_json(json.as_bytes()).expect(json))).expect(json)
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
            let (output, _) = output(&config(wanted), said.as_bytes()).expect("a completion");
            let expected = json!({"text": "{\"a\":1}", "content": content, "finish_reason": "stop", "model": "m-1",
                "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}, "id": "c"});
            assert_eq!(parsed(&output), expected);
        }
        let parts = completion(json!({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}));
        assert_eq!(parsed(&output(&config(r#"{"model":"m"}"#), parts.as_bytes()).expect("parts").0)["text"], "ab");
        for (body, fault, expected) in [
            ("[]".to_owned(), Fault::Invalid, "no choices"),
            ("{".to_owned(), Fault::Invalid, "no chat completion"),
            (json!({"choices": []}).to_string(), Fault::Invalid, "no choices"),
            (json!({"choices": [{}]}).to_string(), Fault::Invalid, "no message"),
            (completion(json!({"content": null})), Fault::Refused, "without text (finish_reason stop)"),
            (completion(json!({"content": null, "refusal": "no"})), Fault::Refused, "refuses: no"),
            (completion(json!({"content": "plain"})), Fault::Refused, "not answer with JSON"),
        ] {
            let failure =
                output(&config(r#"{"model":"m","response_format":"json"}"#), body.as_bytes()).expect_err(&body);
            assert_eq!(failure.fault, fault, "{body}");
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }
}
