//! Agents that are a tool of an MCP server, by streamable HTTP: the input of the step is the arguments of `tools/call`.
//! A server may answer at once, or with a task, which is queried until it is done, as a task of an A2A agent is. It may
//! also ask for something: then the call is sent again with the answers, or its task gets them.
//!
//! A call is sent again only if the server has proved that it did nothing: it knows neither the revision nor the session.

mod output;
mod task;

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode};
use serde_json::value::RawValue;
use url::Url;

pub(in crate::executor) use self::task::cancel_task;
use self::{
    output::{ToolOutput, checked, output, usage},
    task::{OfServer, in_flight},
};
use super::{
    AgentError, CallErrorKind, Failure, LARGE_ANSWER_BYTES, MAX_ANSWER_BYTES, Request, Wire, background, fault_of,
    in_flight::InFlight,
    interrupted::{Interrupted, asked},
    is_passing, not_allowed, remote_task, task_id,
};
use crate::{
    a2a::{RpcError, reply::rpc_result},
    agent::{Credentials, McpConfig},
    egress::{EventReader, NotAllowed, StreamEnd},
    executor::{agent_cards::HttpRequest, agent_question::AgentQuestion, memory::COUNTED_BYTES, retry::RetryDecision},
    input::{check_json, member, text, to_raw},
    mcp::{
        HEADER_MISMATCH, Link,
        reply::Answer,
        request::{self, Call, Outgoing},
    },
    mcp_client::{self, Fault, ServerError},
    workflow::OnQuestion,
};

/// Kind of the agent at which a task is kept.
const KIND: &str = "mcp";
/// Media type of all bodies.
const JSON: &str = "application/json";
/// Maximum number of requests that a server may send during a call.
const MAX_SERVER_REQUESTS: usize = 16;
/// Why a question fails a step: nobody can answer it, or the step does not have it answered.
const CANNOT_GIVE: &str = "which a step cannot give";
const NEEDS_ASK: &str = "which a step gives only with on_question: \"ask\"";

/// Reason why a call has no result.
enum Refusal {
    /// The server does not know the revision or the session, and has done nothing.
    Unknown(Failure),
    /// Headers do not repeat what the body says, and the server has done nothing.
    Headers(Failure),
    /// The server waits for an answer that it does not get.
    AsksBack(Failure),
    Other(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}

impl Refusal {
    fn failure(self) -> Failure {
        match self {
            Self::Unknown(failure) | Self::Headers(failure) | Self::AsksBack(failure) | Self::Other(failure) => failure,
        }
    }
}

pub(super) async fn call(wire: &Wire<'_>, config: &McpConfig) -> Result<Box<RawValue>, Failure> {
    let Request { executor, agent, organization, attempt_id, row: (_, row_id), input, conversation, .. } =
        &wire.request;
    let answered = conversation.answered;
    // Only the revision without sessions has tasks.
    let link = &Link::MODERN;
    if let Some(answered) = answered.filter(|answered| !answered.task_id.is_empty()) {
        return task::answer(wire, link, answered).await;
    }
    let begun = match answered {
        None => remote_task::of_interrupted(wire, KIND).await?,
        Some(_) if conversation.is_in_doubt => remote_task::of_attempt(wire, KIND, row_id).await?,
        Some(_) => None,
    };
    if let Some(id) = begun {
        let in_flight = in_flight(wire, link, id)?;
        return background::follow(wire, in_flight, None, &OfServer { wire, link }).await;
    }
    // The answers to questions go with the arguments.
    let arguments = match answered {
        None => Cow::Borrowed(*input),
        Some(_) => Cow::Owned(remote_task::input_of_attempt(wire).await?),
    };
    let answers = answered.map(|answered| (answered.input_responses(input), answered.state_of_server()));
    let tool = to_raw(&config.tool);
    let mut params = vec![("name", &*tool), ("arguments", &*arguments)];
    if let Some((responses, state)) = &answers {
        params.push(("inputResponses", responses));
        params.extend(state.map(|state| ("requestState", state)));
    }
    let id = task_id(attempt_id);
    let name = Some(config.tool.as_str());
    let may_ask = may_ask(wire);
    let call = Call { id: &id, method: "tools/call", name, params: &params, key: Some(attempt_id), may_ask };
    let servers = &executor.mcp_servers;
    let link = servers.connect(agent, config).await.map_err(|error| of_server(wire, &error))?;
    let mut called = send(wire, &call, &arguments, &link).await;
    let mut spoken = link;
    match &called {
        Err(Refusal::Unknown(_)) => {
            servers.forget(agent, &spoken).await;
            spoken = servers.connect(agent, config).await.map_err(|error| of_server(wire, &error))?;
            called = send(wire, &call, &arguments, &spoken).await;
        }
        Err(Refusal::Headers(_)) => {
            servers.refresh(agent, organization, config).await;
            called = send(wire, &call, &arguments, &spoken).await;
        }
        _ => {}
    }
    let is_answer = match &called {
        Ok(_) => true,
        Err(refusal) => matches!(refusal, Refusal::Other(failure) if failure.fault == CallErrorKind::Refused),
    };
    if is_answer {
        servers.answered(agent, organization, config, &spoken);
    }
    match called.map_err(Refusal::failure)? {
        Called::Output(output) => checked(wire, output).await,
        Called::Question(question, failure) => asked(wire, Interrupted::without_task(*question), failure),
        Called::Task { id, poll } => {
            let in_flight = in_flight(wire, &spoken, id.clone())?;
            remote_task::keep(wire, KIND, &id).await?;
            background::follow(wire, in_flight, poll, &OfServer { wire, link: &spoken }).await
        }
    }
}

/// Whether the step answers questions.
fn may_ask(wire: &Wire<'_>) -> bool {
    wire.request.conversation.on_question == OnQuestion::Ask
}

/// Failure because of a server that cannot be connected.
fn of_server(wire: &Wire<'_>, error: &ServerError) -> Failure {
    let failure = |fault, again| Failure::new(fault, again, error.text.clone());
    match error.fault {
        Fault::NotAllowed => not_allowed(NotAllowed),
        Fault::Unusable => failure(CallErrorKind::Unusable, RetryDecision::Never),
        Fault::Network => failure(CallErrorKind::Network, RetryDecision::Later),
        Fault::Http(status) => {
            wire.http_status.store(status.as_u16(), Ordering::Relaxed);
            // The next attempt gets a new token.
            let is_of_token = matches!(wire.request.agent.credentials, Ok(Credentials::Client(_)));
            let may_pass = is_passing(status) || (status == StatusCode::UNAUTHORIZED && is_of_token);
            failure(fault_of(status), if may_pass { RetryDecision::Later } else { RetryDecision::Never })
        }
        Fault::Invalid => failure(CallErrorKind::Invalid, RetryDecision::Never),
        Fault::Refused => failure(CallErrorKind::Refused, RetryDecision::Never),
    }
}

/// Result of a call.
enum Called {
    Output(ToolOutput),
    /// The task, and the pause before it is queried.
    Task {
        id: String,
        poll: Option<Duration>,
    },
    /// The server asks, and keeps no task. The failure is for a step that cannot answer.
    Question(Box<AgentQuestion>, Failure),
}

/// Calls the tool.
async fn send(wire: &Wire<'_>, call: &Call<'_>, arguments: &RawValue, link: &Arc<Link>) -> Result<Called, Refusal> {
    let Request { executor, agent, .. } = wire.request;
    let id = call.id.to_owned();
    let mut outgoing = call.to(link);
    if link.is_modern() {
        outgoing.headers.extend(executor.mcp_servers.parameters(agent).headers(arguments));
    }
    // In the revision without sessions, a closed connection is a cancellation.
    let mut in_flight = (!link.is_modern()).then(|| {
        let cancel = post(wire, request::cancelled(link, &id));
        cancel.map(|cancel| InFlight::cancelled_by(&wire.request, cancel, id.clone()))
    });
    let result = exchange(wire, link, outgoing, &id).await;
    if let (Some(Ok(in_flight)), false) = (&mut in_flight, matches!(result, Err(Refusal::AsksBack(_)))) {
        in_flight.is_over();
    }
    result
}

async fn exchange(wire: &Wire<'_>, link: &Link, outgoing: Outgoing, id: &str) -> Result<Called, Refusal> {
    let code = AtomicI32::default();
    let opened = wire.open_stream(post(wire, outgoing)?, explain(&code)).await;
    let (response, _span) = opened.map_err(|failure| {
        let status = wire.http_status.load(Ordering::Relaxed);
        refusal(link, failure, status, code.load(Ordering::Relaxed))
    })?;
    if !EventReader::is_stream(&response) {
        let status = response.status();
        let body = wire.read_answer(response).await?;
        if body.is_empty() {
            return Err(invalid(format!("it is empty, with status {}", status.as_u16())).into());
        }
        return wire
            .read(&body, |body| match body.json() {
                Ok(json) => {
                    wire.used(usage(json));
                    called(link, json)
                }
                Err(fault) => Err(invalid(fault.to_string()).into()),
            })
            .await;
    }
    let Request { executor, organization, .. } = wire.request;
    let mut events = EventReader::of_large_events(response, &executor.clock, MAX_ANSWER_BYTES);
    let (mut has_memory, mut requests) = (false, 0);
    loop {
        let event = match events.pull().await {
            Ok(Some(event)) => event,
            Ok(None) => {
                if !has_memory && events.held() >= COUNTED_BYTES {
                    wire.reserve_answer().await?;
                    has_memory = true;
                }
                continue;
            }
            Err(end) => return Err(broken(end).into()),
        };
        let is_long = event.data.len() > LARGE_ANSWER_BYTES;
        match executor.work(organization, is_long, || seen(wire, link, id, &event.data)).await? {
            Seen::Answer(called) => return Ok(called),
            Seen::Nothing => {}
            Seen::Request(method, answer) => {
                requests += 1;
                if requests > MAX_SERVER_REQUESTS {
                    let text = format!("it has more than {MAX_SERVER_REQUESTS} requests of the server");
                    return Err(invalid(text).into());
                }
                // A server that does not take the answer goes on waiting, or without it.
                if let Err(failure) = wire.ask(post(wire, answer)?, |_| None).await {
                    let reason = failure.message;
                    tracing::debug!(method, reason, "an MCP server does not take an answer");
                }
            }
        }
    }
}

/// What an event of a stream is.
enum Seen {
    Answer(Called),
    /// Request of the server with this method, and the answer to it.
    Request(String, Outgoing),
    /// An answer to something else; progress, and the like.
    Nothing,
}

fn seen(wire: &Wire<'_>, link: &Link, id: &str, data: &str) -> Result<Seen, Refusal> {
    let json =
        check_json(data.as_bytes()).map_err(|fault| invalid(format!("an event of the stream is not JSON: {fault}")))?;
    match (member(json, "method").and_then(text), member(json, "id")) {
        (None, Some(answered)) if text(answered).as_deref() == Some(id) => {
            wire.used(usage(json));
            called(link, json).map(Seen::Answer)
        }
        // An error that the server could not assign.
        (None, _) if member(json, "error").is_some() => called(link, json).map(Seen::Answer),
        (None, _) | (Some(_), None) => Ok(Seen::Nothing),
        (Some(method), Some(_)) if method == "elicitation/create" => {
            let asked = member(json, "params").and_then(|params| member(params, "message")).and_then(text);
            Err(Refusal::AsksBack(asks_back(CANNOT_GIVE, &asked.unwrap_or_default())))
        }
        (Some(method), Some(request_id)) => {
            let answer = request::answer(link, request_id, &method);
            Ok(Seen::Request(method, answer))
        }
    }
}

/// Why a stream has no answer.
fn broken(end: StreamEnd) -> Failure {
    match end {
        StreamEnd::TooLarge => invalid(format!("its event stream is larger than {MAX_ANSWER_BYTES} bytes")),
        StreamEnd::Complete | StreamEnd::Broken => {
            let text = "the event stream ended before the answer";
            Failure::new(CallErrorKind::Network, RetryDecision::Later, text)
        }
    }
}

/// What a refused request says about the connection.
fn refusal(link: &Link, failure: Failure, status: u16, code: i32) -> Refusal {
    if failure.fault != CallErrorKind::Http4xx {
        return failure.into();
    }
    match code {
        HEADER_MISMATCH if link.is_modern() => Refusal::Headers(failure),
        code if mcp_client::is_of_revision(code) => Refusal::Unknown(failure),
        // A session that has ended; some servers answer it with 400.
        _ if link.session.is_some() && matches!(status, 404 | 400) => Refusal::Unknown(failure),
        _ => failure.into(),
    }
}

/// Reads a response to the call.
fn called(link: &Link, response: &RawValue) -> Result<Called, Refusal> {
    let result = match rpc_result(response) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => {
            let code = error.number().unwrap_or_default();
            let failure = of_error(&error);
            return Err(match code {
                HEADER_MISMATCH if link.is_modern() => Refusal::Headers(failure),
                code if mcp_client::is_of_revision(code) => Refusal::Unknown(failure),
                _ => failure.into(),
            });
        }
        Err(not_rpc) => {
            return Err(Failure::new(CallErrorKind::Invalid, RetryDecision::Never, not_rpc.to_string()).into());
        }
    };
    match Answer::read(result).map_err(invalid)? {
        Answer::Done(done) => Ok(Called::Output(output(done)?)),
        Answer::AsksBack(questions) => {
            let words = questions.words();
            match AgentQuestion::of_server(questions, "", None) {
                Some(question) => Ok(Called::Question(Box::new(question), asks_back(NEEDS_ASK, &words))),
                None => Err(asks_back(CANNOT_GIVE, &words).into()),
            }
        }
        Answer::Task(task) => {
            let id = task.id().filter(|id| remote_task::is_fit(id));
            let id = id.ok_or_else(|| invalid("its task has no id that can be kept".to_owned()))?;
            Ok(Called::Task { id, poll: task.poll_interval() })
        }
    }
}

fn of_error(error: &RpcError) -> Failure {
    Failure::new(CallErrorKind::Refused, RetryDecision::Never, error.to_string())
}

fn invalid(why: impl std::fmt::Display) -> Failure {
    let text = format!("the answer is no result of a tool: {why}");
    Failure::new(CallErrorKind::Invalid, RetryDecision::Never, text)
}

/// Failure because the server asks for something before it goes on.
fn asks_back(why: &str, words: &str) -> Failure {
    let words = if words.is_empty() { String::new() } else { format!(": {words}") };
    let text = format!("the tool asks for more input, {why}{words}");
    Failure::new(CallErrorKind::Refused, RetryDecision::Never, text)
}

fn post(wire: &Wire<'_>, outgoing: Outgoing) -> Result<HttpRequest, Failure> {
    Ok(post_to(wire.url()?, outgoing))
}

fn post_to(url: Url, outgoing: Outgoing) -> HttpRequest {
    let Outgoing { headers, body } = outgoing;
    let (method, body) = (Method::POST, Some(body));
    HttpRequest { method, url, body, media_type: JSON, accept: request::ACCEPT, version: None, headers }
}

/// Finds the error text in an answer with an error status, and its code.
fn explain(code: &AtomicI32) -> impl Fn(&RawValue) -> Option<AgentError> + use<'_> {
    move |body| {
        let error = RpcError::of_response(body)?;
        code.store(error.number().unwrap_or_default(), Ordering::Relaxed);
        Some(error.to_string().into())
    }
}
