//! Agents with the Responses API: Open Responses, <https://www.openresponses.org>, and OpenAI's,
//! <https://platform.openai.com/docs/api-reference/responses>. A response that is created in the background is queried
//! until it is done, as a task of an A2A agent is; only OpenAI's API has that.

use http::Method;
use serde_json::{json, value::RawValue};
use url::Url;

use super::{
    CallErrorKind, Failure, Wire,
    background::{self, Polled, Work},
    chat::{as_failure, error_in, explain, json_of, refused},
    in_flight::{Cancelled, Form, InFlight, request_cancellation},
    remote_task,
    responses_stream::{self, Streamed},
};
use crate::{
    agent::{ResponsesConfig, model_url},
    executor::{Executor, agent_cards::HttpRequest, agents::Agent, retry::RetryDecision},
    input::{elements, member, members, object_of, text, to_raw},
    mapping,
    usage::Usage,
};

/// Kind of the agent at which a task is kept.
const KIND: &str = "responses";
/// Media type of all bodies.
const JSON: &str = "application/json";

/// State of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// Its output is there; it may have been cut short.
    Done,
    Failed,
    Cancelled,
    UnderWay,
}

impl Status {
    fn of(response: &RawValue) -> Self {
        match member(response, "status").and_then(text).as_deref() {
            // Servers of Open Responses that have no states leave it out.
            None | Some("completed" | "incomplete") => Self::Done,
            Some("failed") => Self::Failed,
            Some("cancelled") => Self::Cancelled,
            Some(_) => Self::UnderWay,
        }
    }
}

pub(super) async fn call(wire: &Wire<'_>, config: &ResponsesConfig) -> Result<Box<RawValue>, Failure> {
    let base = wire.url()?;
    let url = model_url(&base, "responses");
    if config.background
        && let Some(id) = remote_task::of_interrupted(wire, KIND).await?
    {
        let in_flight = in_flight(wire, &base, id);
        return background::follow(wire, in_flight, None, &OfResponse { wire, config, base: &base }).await;
    }
    let request = request(config, wire.request.input);
    if config.streaming {
        let read = |response: &RawValue| ended(wire, config, response);
        return match responses_stream::complete(wire, url, &request, read).await? {
            Streamed::Output(output) => Ok(output),
            Streamed::Body(body) => {
                let read = wire.read(&body, |body| body.json().map(|json| ended(wire, config, json))).await;
                read.map_err(|fault| invalid(&fault.to_string()))?
            }
        };
    }
    let body = wire.post(url, request.get().to_owned(), explain).await?;
    let first = wire.read(&body, |body| body.json().map(|json| begun(wire, config, json))).await;
    match first.map_err(|fault| invalid(&fault.to_string()))?? {
        Begun::Ended(output) => Ok(output),
        Begun::UnderWay(id) => {
            let in_flight = in_flight(wire, &base, id.clone());
            remote_task::keep(wire, KIND, &id).await?;
            background::follow(wire, in_flight, None, &OfResponse { wire, config, base: &base }).await
        }
    }
}

/// What the answer to the request says.
enum Begun {
    Ended(Box<RawValue>),
    UnderWay(String),
}

fn begun(wire: &Wire<'_>, config: &ResponsesConfig, response: &RawValue) -> Result<Begun, Failure> {
    if config.background && error_in(response).is_none() && Status::of(response) == Status::UnderWay {
        let id = member(response, "id").and_then(text).filter(|id| remote_task::is_fit(id));
        return id.map(Begun::UnderWay).ok_or_else(|| invalid("it is under way and has no id that can be kept"));
    }
    ended(wire, config, response).map(Begun::Ended)
}

fn in_flight(wire: &Wire<'_>, base: &Url, id: String) -> InFlight {
    let cancel = request_about(Method::POST, of_response(base, &id, Some("cancel")));
    InFlight::cancelled_by(&wire.request, cancel, id)
}

/// Requests the cancellation of a response; `None`: there is no answer.
pub(in crate::executor) async fn cancel_response(
    executor: &Executor,
    agent: &Agent,
    id: &str,
    names: (&str, Option<String>),
) -> Option<Cancelled> {
    let cancel = request_about(Method::POST, of_response(agent.url.as_ref()?, id, Some("cancel")));
    Cancelled::read(request_cancellation(executor, agent, cancel, names).await?, Form::Responses, &executor.clock).await
}

/// Response in the background.
struct OfResponse<'a> {
    wire: &'a Wire<'a>,
    config: &'a ResponsesConfig,
    base: &'a Url,
}

impl Work for OfResponse<'_> {
    async fn poll(&self, id: &str) -> Result<Polled, Failure> {
        let Self { wire, config, base } = self;
        let query = request_about(Method::GET, of_response(base, id, None));
        let body = wire.ask(query, explain).await?;
        let read = |json: &RawValue| match Status::of(json) {
            Status::UnderWay if error_in(json).is_none() => Polled::UnderWay(None),
            _ => Polled::Ended(ended(wire, config, json)),
        };
        wire.read(&body, |body| body.json().map(read)).await.map_err(|fault| invalid(&fault.to_string()))
    }
}

/// Request about a response, without a body.
fn request_about(method: Method, url: Url) -> HttpRequest {
    HttpRequest { method, url, body: None, media_type: JSON, accept: JSON, version: None, headers: Vec::new() }
}

/// Address of a response. Its id is one segment, whatever characters it has.
fn of_response(base: &Url, id: &str, action: Option<&str>) -> Url {
    let mut url = model_url(base, "responses");
    if let Ok(mut path) = url.path_segments_mut() {
        path.push(id).extend(action);
    }
    url
}

fn invalid(why: &str) -> Failure {
    Failure::new(CallErrorKind::Invalid, RetryDecision::Never, format!("the answer is no response: {why}"))
}

/// Request body. The input is the step's `input`, or its `messages`, or the text of all of it.
fn request(config: &ResponsesConfig, input: &RawValue) -> Box<RawValue> {
    let given = ["input", "messages"].into_iter().find_map(|name| {
        member(input, name).filter(|value| elements(value).is_some() || (name == "input" && text(value).is_some()))
    });
    let content = given.map_or_else(|| to_raw(&mapping::message_text(input)), ToOwned::to_owned);
    let (model, on) = (to_raw(&config.model), to_raw(&true));
    let instructions = config.instructions.as_ref().map(to_raw);
    let format = config.format.as_deref().map(|format| object_of([("format", format)]));
    let previous = member(input, "previous_response_id").filter(|id| text(id).is_some());
    let parameters = config.parameters.as_deref().and_then(members).unwrap_or_default();
    let has = |name: &str| parameters.iter().any(|(known, _)| known == name);
    let own = [("model", &*model), ("input", &*content)].into_iter();
    let optional = [
        ("instructions", instructions.as_deref()),
        ("text", format.as_deref()),
        ("previous_response_id", previous.filter(|_| !has("previous_response_id"))),
        ("background", Some(&*on).filter(|_| config.background)),
        // What is not stored cannot be queried.
        ("store", Some(&*on).filter(|_| config.background && !has("store"))),
    ];
    let optional = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    object_of(own.chain(optional).chain(parameters.iter().map(|(name, value)| (name.as_str(), *value))))
}

/// Output of a response that has ended.
fn ended(wire: &Wire<'_>, config: &ResponsesConfig, response: &RawValue) -> Result<Box<RawValue>, Failure> {
    // Failed answers use tokens too.
    wire.used(member(response, "usage").and_then(Usage::read));
    output(config, response)
}

fn output(config: &ResponsesConfig, response: &RawValue) -> Result<Box<RawValue>, Failure> {
    if let Some(error) = error_in(response) {
        return Err(as_failure(error));
    }
    match Status::of(response) {
        Status::Done => {}
        Status::Failed => return Err(refused("the response failed, and does not say why".to_owned())),
        Status::Cancelled => return Err(refused("the response was cancelled".to_owned())),
        Status::UnderWay => return Err(invalid("it is not done, and was not created in the background")),
    }
    let items = member(response, "output").and_then(elements).ok_or_else(|| invalid("it has no output"))?;
    let is = |item: &RawValue, kind: &str| member(item, "type").and_then(text).as_deref() == Some(kind);
    let messages = items.iter().filter(|item| is(item, "message"));
    let parts: Vec<&RawValue> =
        messages.filter_map(|message| member(message, "content").and_then(elements)).flatten().collect();
    let refusal = parts.iter().filter(|part| is(part, "refusal")).find_map(|part| text(member(part, "refusal")?));
    if let Some(refusal) = refusal.filter(|refusal| !refusal.is_empty()) {
        return Err(refused(format!("the model refuses: {refusal}")));
    }
    let spoken = parts.iter().filter(|part| is(part, "output_text"));
    let said: String = spoken.filter_map(|part| text(member(part, "text")?)).collect();
    let reason = member(response, "incomplete_details").and_then(|details| member(details, "reason")).and_then(text);
    let because = reason.as_ref().map_or_else(String::new, |reason| format!(" (incomplete: {reason})"));
    // Calls of functions are for the workflow to answer.
    let calls = items.iter().any(|item| is(item, "function_call") || is(item, "custom_tool_call"));
    if said.trim().is_empty() && !calls {
        return Err(refused(format!("the model answered without text{because}")));
    }
    let said_json = to_raw(&said);
    let content = if config.wants_json() && !said.trim().is_empty() {
        let json = json_of(&said).map(ToOwned::to_owned);
        json.map_err(|fault| refused(format!("the model did not answer with JSON{because}: {fault}")))?
    } else {
        said_json.clone()
    };
    let shown = |name: &str| member(response, name).unwrap_or(RawValue::NULL);
    let reason = to_raw(&json!(reason));
    Ok(object_of([
        ("text", &*said_json),
        ("content", &*content),
        ("status", shown("status")),
        ("incomplete_reason", &*reason),
        ("output", shown("output")),
        ("model", shown("model")),
        ("usage", shown("usage")),
        ("id", shown("id")),
    ]))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::input::{Node, check_json};

    fn config(json: &str) -> ResponsesConfig {
        ResponsesConfig::read(&Node::new("config", check_json(json.as_bytes()).expect(json))).expect(json)
    }

    fn parsed(raw: &RawValue) -> Value {
        serde_json::from_str(raw.get()).expect("JSON")
    }

    #[test]
    fn an_input_becomes_a_request() {
        let full = config(
            r#"{"model":"m","instructions":"be kind","response_format":"json","parameters":{"tools":[{"type":"web_search"}],"max_output_tokens":9}}"#,
        );
        let talk = json!([{"role": "user", "content": "a"}]);
        for (input, content, previous) in [
            (json!({"text": "hi", "more": 1}), json!("hi"), None),
            (json!({"term": "quorum"}), json!(r#"{"term":"quorum"}"#), None),
            (json!({"messages": talk, "previous_response_id": "resp_1"}), talk.clone(), Some("resp_1")),
            (json!({"input": "plain", "previous_response_id": null}), json!("plain"), None),
            (json!({"input": talk}), talk.clone(), None),
        ] {
            let mut expected = json!({"model": "m", "input": content, "instructions": "be kind",
                "text": {"format": {"type": "json_object"}}, "tools": [{"type": "web_search"}], "max_output_tokens": 9});
            if let Some(previous) = previous {
                expected["previous_response_id"] = json!(previous);
            }
            assert_eq!(parsed(&request(&full, &to_raw(&input))), expected);
        }
        let background =
            parsed(&request(&config(r#"{"model":"m","background":true}"#), &to_raw(&json!({"text": "x"}))));
        assert_eq!(background, json!({"model": "m", "input": "x", "background": true, "store": true}));
        let own = config(r#"{"model":"m","background":true,"parameters":{"store":false,"previous_response_id":"p"}}"#);
        let own = request(&own, &to_raw(&json!({"text": "x", "previous_response_id": "q"})));
        assert_eq!((own.get().matches("store").count(), own.get().matches("previous_response_id").count()), (1, 1));
    }

    fn response(output: &Value) -> Value {
        json!({"id": "resp_1", "status": "completed", "model": "m-1", "output": output,
            "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}})
    }

    fn message(parts: &Value) -> Value {
        json!({"type": "message", "role": "assistant", "content": parts})
    }

    #[test]
    fn the_texts_of_all_messages_are_the_output() {
        let said = |text: &str| json!({"type": "output_text", "text": text, "annotations": []});
        let items = json!([{"type": "reasoning", "summary": [said("hmm")]}, message(&json!([said("{\"a\""), said(":1}")])),
            message(&json!([said(" ")]))]);
        for (wanted, content) in
            [(r#"{"model":"m"}"#, json!("{\"a\":1} ")), (r#"{"model":"m","response_format":"json"}"#, json!({"a": 1}))]
        {
            let found = output(&config(wanted), &to_raw(&response(&items))).expect("a response");
            let expected = json!({"text": "{\"a\":1} ", "content": content, "status": "completed",
                "incomplete_reason": null, "output": items, "model": "m-1", "id": "resp_1",
                "usage": {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}});
            assert_eq!(parsed(&found), expected);
        }
        let call = json!([{"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}]);
        let found = output(&config(r#"{"model":"m","response_format":"json"}"#), &to_raw(&response(&call)));
        assert_eq!(parsed(&found.expect("a call"))["output"], call);
        let mut cut = response(&json!([message(&json!([said("half")]))]));
        cut["status"] = json!("incomplete");
        cut["incomplete_details"] = json!({"reason": "max_output_tokens"});
        let found = parsed(&output(&config(r#"{"model":"m"}"#), &to_raw(&cut)).expect("half an answer"));
        assert_eq!((&found["text"], &found["incomplete_reason"]), (&json!("half"), &json!("max_output_tokens")));
    }

    #[test]
    fn what_is_no_output_is_said() {
        let with = |members: Value| {
            let mut given = response(&json!([]));
            given.as_object_mut().expect("an object").extend(members.as_object().expect("members").clone());
            given
        };
        for (given, fault, again, expected) in [
            (json!([]), CallErrorKind::Invalid, RetryDecision::Never, "no output"),
            (response(&json!([])), CallErrorKind::Refused, RetryDecision::Never, "without text"),
            (
                with(json!({"output": [message(&json!([{"type": "refusal", "refusal": "no"}]))]})),
                CallErrorKind::Refused,
                RetryDecision::Never,
                "refuses: no",
            ),
            (
                with(json!({"status": "failed", "error": {"code": "server_error", "message": "died"}})),
                CallErrorKind::Http5xx,
                RetryDecision::Later,
                "an error 500: died",
            ),
            (
                with(json!({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}})),
                CallErrorKind::Http4xx,
                RetryDecision::Later,
                "an error 429: slow",
            ),
            (
                with(json!({"status": "failed", "error": null})),
                CallErrorKind::Refused,
                RetryDecision::Never,
                "does not say why",
            ),
            (with(json!({"status": "cancelled"})), CallErrorKind::Refused, RetryDecision::Never, "was cancelled"),
            (with(json!({"status": "queued"})), CallErrorKind::Invalid, RetryDecision::Never, "not done"),
            (
                with(json!({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}})),
                CallErrorKind::Refused,
                RetryDecision::Never,
                "without text (incomplete: content_filter)",
            ),
        ] {
            let failure = output(&config(r#"{"model":"m"}"#), &to_raw(&given)).expect_err("no output");
            assert_eq!((failure.fault, failure.again), (fault, again), "{given}");
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }

    #[test]
    fn the_id_of_a_response_stays_one_segment() {
        let base = Url::parse("https://a.example/v1?api-version=7").expect("a URL");
        for (id, action, expected) in [
            ("resp_1", None, "https://a.example/v1/responses/resp_1?api-version=7"),
            ("../x", Some("cancel"), "https://a.example/v1/responses/..%2Fx/cancel?api-version=7"),
            ("a?b#c", None, "https://a.example/v1/responses/a%3Fb%23c?api-version=7"),
        ] {
            assert_eq!(of_response(&base, id, action).as_str(), expected);
        }
    }
}
