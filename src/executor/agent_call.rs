//! Agent call: one call in the agent's protocol, under a deadline that covers all of it.
//!
//! A call is one HTTP request with the input. It is repeated only if the agent has proved that it has done nothing: an A2A
//! agent or an MCP server that does not know the method or the version, an MCP server that does not know the session. For a
//! task that is not done yet, further requests only query it. Agents can de-duplicate by the attempt in `Idempotency-Key`;
//! A2A agents also by the message's id, MCP servers by `_meta`.

mod a2a;
mod background;
mod chat;
mod chat_stream;
mod failure;
mod in_flight;
mod interrupted;
mod mcp;
mod plain;
mod remote_task;
mod responses;
mod responses_stream;

pub(super) use self::{
    failure::{CallErrorKind, Failure},
    in_flight::{Cancelled, cancel_task, no_more_given_up},
    interrupted::Interrupted,
    mcp::cancel_task as cancel_mcp_task,
    responses::cancel_response,
};

use self::failure::{AgentError, fault_of, is_passing, no_memory, not_allowed, refusal, transport};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use super::{
    Executor,
    agent_cards::HttpRequest,
    agent_question::AgentQuestion,
    agents::{Agent, Protocol},
    deltas::{DeltaWriter, Streamed},
    memory::{COUNTED_BYTES, Share, counted},
    retry::RetryDecision,
    run_trace::RunTrace,
};
use crate::{
    a2a::VERSION_HEADER,
    access::OrganizationId,
    agent::Credentials,
    egress::{self, Body, BodyError, Egress, RequestError},
    input::shorten_to,
    permits::Permit,
    telemetry::spans::{self, Kind, Span},
    trace::TRACEPARENT,
    usage::Usage,
    workflow::OnQuestion,
};

/// Maximum size of an answer, decompressed. More is not read.
const MAX_ANSWER_BYTES: usize = 10 << 20;
/// Maximum size of an answer with an error status, which is only searched for a message.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Bytes of an answer from which on parsing it is offloaded.
const LARGE_ANSWER_BYTES: usize = 64 << 10;
/// Header by which agents recognise a repeat of the attempt.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Maximum characters of an error message. The agent's text may be longer.
const MAX_MESSAGE_CHARS: usize = 500;

/// Outcome of a call.
#[derive(Debug)]
pub(super) struct CallOutcome {
    /// Output of the step.
    pub(super) result: Result<Box<RawValue>, Failure>,
    /// HTTP status of the last answer, if there was one.
    pub(super) http_status: Option<u16>,
    /// Memory permit of the output.
    pub(super) memory: Permit,
    /// Tokens that the answer says it took, whether it is a success or not.
    pub(super) usage: Option<Usage>,
}

/// Request: agent, run and input of a call.
pub(super) struct Request<'a> {
    pub(super) executor: &'a Executor,
    pub(super) agent: &'a Arc<Agent>,
    pub(super) organization: &'a OrganizationId,
    pub(super) run_id: &'a str,
    pub(super) lease_token: Uuid,
    /// The driver must stop and release the run.
    pub(super) stop: &'a CancellationToken,
    /// Id of the attempt. It stays the same if the attempt is repeated because its executor died.
    pub(super) attempt_id: &'a str,
    pub(super) correlation_id: &'a str,
    /// Trace of the run.
    pub(super) trace: &'a RunTrace,
    /// Span of the step.
    pub(super) span: &'a Span,
    /// Id of the step, and of the row of the attempt, for pieces of the output.
    pub(super) row: (&'a str, &'a str),
    pub(super) input: &'a RawValue,
    pub(super) conversation: Conversation<'a>,
    /// Memory for the answer.
    pub(super) memory: &'a Share,
}

/// Conversation with an A2A agent. Agents of other kinds have none.
#[derive(Clone, Copy, Default)]
pub(super) struct Conversation<'a> {
    /// What happens if the agent asks.
    pub(super) on_question: OnQuestion,
    /// Task that the message continues.
    pub(super) task_id: Option<&'a str>,
    /// Conversation that the message continues.
    pub(super) context_id: Option<&'a str>,
    /// Question that the message answers.
    pub(super) answered: Option<&'a AgentQuestion>,
    /// Whether the agent may have got the message already.
    pub(super) is_in_doubt: bool,
}

/// Task id of an attempt for A2A agents and observers.
pub(super) fn task_id(attempt_id: &str) -> String {
    format!("task-{attempt_id}")
}

/// Calls the agent for the output of the step. Dropping the future closes the connection; if an A2A agent has created a
/// task, the task is cancelled.
pub(super) async fn call(request: Request<'_>) -> CallOutcome {
    let memory = tokio::sync::Mutex::new(request.memory.hold(0));
    let (http_status, waits_for_memory, usage) = (AtomicU16::new(0), AtomicBool::new(false), Mutex::default());
    let wire = Wire { request, http_status, memory, waits_for_memory, usage };
    let agent = wire.request.agent;
    let exchange = async {
        match &agent.protocol {
            Protocol::A2a(config) => a2a::call(&wire, config).await,
            Protocol::Http => plain::call(&wire).await,
            Protocol::OpenAi(config) => chat::call(&wire, config).await,
            // In boxes, so that runs without such agents are not larger because of them.
            Protocol::Responses(config) => responses::call(&wire, config).boxed().await,
            Protocol::Mcp(config) => mcp::call(&wire, config).boxed().await,
        }
    };
    let result = tokio::time::timeout(agent.timeout, exchange).await.unwrap_or_else(|_| {
        if wire.waits_for_memory.load(Ordering::Relaxed) {
            return Err(no_memory());
        }
        let text = format!("no complete answer within {} ms", agent.timeout.as_millis());
        Err(Failure::new(CallErrorKind::Timeout, RetryDecision::Later, text))
    });
    let result = result.map_err(|failure| {
        let mut masked = agent.secrets.mask(failure.message);
        if let Ok(credentials) = &agent.credentials {
            masked = wire.request.executor.egress.mask(credentials, masked);
        }
        Failure { message: shorten_to(&masked, MAX_MESSAGE_CHARS).into_owned(), ..failure }
    });
    let http_status = Some(wire.http_status.into_inner()).filter(|status| *status > 0);
    let usage = wire.usage.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(Usage { input_tokens, output_tokens }) = usage {
        metrics::counter!("executor_agent_tokens_total", "kind" => "prompt").increment(input_tokens);
        metrics::counter!("executor_agent_tokens_total", "kind" => "completion").increment(output_tokens);
    }
    let mut memory = wire.memory.into_inner();
    memory.resize(result.as_ref().map_or(0, |output| counted(output.get().len())));
    CallOutcome { result, http_status, memory, usage }
}

/// HTTP client of one call, used by all protocols.
struct Wire<'a> {
    request: Request<'a>,
    /// HTTP status of the last answer; 0: none yet.
    http_status: AtomicU16,
    /// Memory permit of the answers that were read.
    memory: tokio::sync::Mutex<Permit>,
    /// Whether an answer has arrived and waits for memory.
    waits_for_memory: AtomicBool,
    usage: Mutex<Option<Usage>>,
}

impl Wire<'_> {
    /// Posts the attempt's input as JSON, once, and reads the answer. `explain` finds the agent's error text in an answer
    /// with an error status.
    async fn post(
        &self,
        url: Url,
        body: String,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        self.send_input(json_post(url, body), explain).await
    }

    /// Sends the attempt's input, and reads the answer.
    async fn send_input(
        &self,
        request: HttpRequest,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        let span = self.begin_span(&request);
        let http = self.prepare(request, &span).await?.header(IDEMPOTENCY_KEY, self.key());
        self.exchange(http, explain, span).await
    }

    /// Sends the attempt's input, and returns the answer, whose body is not read yet, with its span.
    async fn open_stream(
        &self,
        request: HttpRequest,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<(Response, Span), Failure> {
        let mut span = self.begin_span(&request);
        let http = self.prepare(request, &span).await?.header(IDEMPOTENCY_KEY, self.key());
        let response = self.begin(http, explain, &mut span).await;
        let response = response.inspect_err(|failure| span.fail(failure.fault.as_str()))?;
        Ok((response, span))
    }

    /// Sends a query, which may be repeated, and reads the answer.
    async fn ask(
        &self,
        request: HttpRequest,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        let span = self.begin_span(&request);
        self.exchange(self.prepare(request, &span).await?, explain, span).await
    }

    /// Notes the tokens that an answer says it took. The last answer that says so counts.
    fn used(&self, usage: Option<Usage>) {
        let mut noted = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = usage.or(*noted);
    }

    /// Whether the agent may have got the message already: from an executor that died, or before its answer was lost.
    fn is_repeat(&self) -> bool {
        let Request { attempt_id, row: (_, row_id), conversation, .. } = &self.request;
        if conversation.answered.is_some() { conversation.is_in_doubt } else { attempt_id != row_id }
    }

    fn key(&self) -> String {
        header_text(self.request.attempt_id)
    }

    /// Writer of the pieces of a streamed output.
    fn deltas(&self) -> DeltaWriter {
        let Request { executor, run_id, lease_token, row: (step_id, attempt_id), .. } = self.request;
        executor.deltas.of(Streamed {
            run_id: run_id.to_owned(),
            lease_token,
            attempt_id: attempt_id.to_owned(),
            step_id: step_id.to_owned(),
        })
    }

    /// Begins the span of a request. It has no path and no query, since they may contain secrets.
    fn begin_span(&self, request: &HttpRequest) -> Span {
        let method = request.method.as_str();
        let mut span = spans::child(self.request.span.context(), Kind::Client, || method.to_owned());
        span.set("http.request.method", method);
        span.set("server.address", request.url.host_str().unwrap_or_default());
        span.set_number("server.port", request.url.port_or_known_default().unwrap_or_default());
        span.set("workflow_api.agent.name", &self.request.agent.name);
        span
    }

    async fn prepare(&self, request: HttpRequest, span: &Span) -> Result<RequestBuilder, Failure> {
        let Request { executor, agent, correlation_id, trace, .. } = &self.request;
        prepare(&executor.egress, agent, request, (correlation_id, trace.outgoing(span))).await
    }

    /// Sends the request, and reads the answer.
    async fn exchange(
        &self,
        http: RequestBuilder,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
        mut span: Span,
    ) -> Result<Body, Failure> {
        let result = self.send(http, explain, &mut span).await;
        if let Err(failure) = &result {
            span.fail(failure.fault.as_str());
        }
        result
    }

    async fn send(
        &self,
        http: RequestBuilder,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
        span: &mut Span,
    ) -> Result<Body, Failure> {
        let response = self.begin(http, explain, span).await?;
        self.read_answer(response).await
    }

    /// Sends the request. An answer with an error status is a failure.
    async fn begin(
        &self,
        http: RequestBuilder,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
        span: &mut Span,
    ) -> Result<Response, Failure> {
        let response = http.send().await.map_err(|error| transport(&error))?;
        let status = response.status();
        self.http_status.store(status.as_u16(), Ordering::Relaxed);
        span.set_number("http.response.status_code", status.as_u16());
        if status.is_success() {
            return Ok(response);
        }
        let mut failure = refusal(response, explain, self.request.executor.clock.now()).await;
        if let (StatusCode::UNAUTHORIZED, Ok(Credentials::Client(client))) = (status, &self.request.agent.credentials) {
            // The next attempt gets a new token.
            self.request.executor.egress.refused(client);
            failure.again = RetryDecision::Later;
        }
        Err(failure)
    }

    /// Reads a successful answer.
    async fn read_answer(&self, response: Response) -> Result<Body, Failure> {
        let mut permit = self.memory.lock().await;
        let (small, waits) = (COUNTED_BYTES, &self.waits_for_memory);
        let memory = egress::Memory { permit: &mut permit, small, patience: self.request.memory.patience(), waits };
        read_body(response, MAX_ANSWER_BYTES, Some(memory)).await
    }

    /// Reserves memory for a streamed answer, whose size is not known.
    async fn reserve_answer(&self) -> Result<(), Failure> {
        let mut permit = self.memory.lock().await;
        self.waits_for_memory.store(true, Ordering::Relaxed);
        let grown = permit.grow_patiently(MAX_ANSWER_BYTES as u64, self.request.memory.patience()).await;
        self.waits_for_memory.store(false, Ordering::Relaxed);
        grown.map_err(|_| no_memory())
    }

    /// Parses an answer. Large answers take long, so their parsing is offloaded.
    async fn read<T>(&self, body: &Body, make: impl FnOnce(&Body) -> T) -> T {
        let Request { executor, organization, .. } = &self.request;
        executor.work(organization, body.bytes().len() > LARGE_ANSWER_BYTES, || make(body)).await
    }

    fn url(&self) -> Result<Url, Failure> {
        url_of(self.request.agent)
    }
}

fn url_of(agent: &Agent) -> Result<Url, Failure> {
    agent
        .url
        .clone()
        .ok_or_else(|| Failure::new(CallErrorKind::Unusable, RetryDecision::Never, "its URL cannot be called"))
}

/// A POST of JSON.
fn json_post(url: Url, body: String) -> HttpRequest {
    let media_type = "application/json";
    let (method, body, headers) = (Method::POST, Some(body), Vec::new());
    HttpRequest { method, url, body, media_type, accept: media_type, version: None, headers }
}

/// A request with the headers common to all requests to the agent.
async fn prepare(
    egress: &Egress,
    agent: &Agent,
    request: HttpRequest,
    (correlation_id, traceparent): (&str, Option<String>),
) -> Result<RequestBuilder, Failure> {
    let unusable = |text: String| Failure::new(CallErrorKind::Unusable, RetryDecision::Never, text);
    let credentials = agent.credentials.as_ref().map_err(|sealed| unusable(format!("its auth_config is {sealed}")))?;
    let prepared = egress.request_as(request.method, request.url, credentials).await;
    let http = prepared.map_err(|error| match error {
        RequestError::NotAllowed(error) => not_allowed(error),
        RequestError::Unusable => unusable(error.to_string()),
        RequestError::NoToken(none) if none.may_pass => {
            Failure::new(CallErrorKind::Network, RetryDecision::Later, none.to_string())
        }
        RequestError::NoToken(none) => unusable(none.to_string()),
    })?;
    let http = http
        .header(header::CONTENT_TYPE, request.media_type)
        .header(header::ACCEPT, request.accept)
        .header("X-Correlation-ID", correlation_id);
    let http = match request.version {
        Some(version) => http.header(VERSION_HEADER, version),
        None => http,
    };
    let http = request.headers.into_iter().fold(http, |http, (name, value)| http.header(name, value));
    let http = match request.body {
        Some(body) => http.body(body),
        None => http,
    };
    Ok(match traceparent {
        Some(traceparent) => http.header(TRACEPARENT, traceparent),
        None => http,
    })
}

/// An id as a header value: all but plain characters are percent-encoded.
fn header_text(id: &str) -> String {
    url::form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

async fn read_body(response: Response, limit: usize, memory: Option<egress::Memory<'_>>) -> Result<Body, Failure> {
    egress::read_body(response, limit, memory).await.map_err(|error| match error {
        BodyError::Broken(error) => transport(&error),
        BodyError::NoRoom => no_memory(),
        error => Failure::new(CallErrorKind::Invalid, RetryDecision::Never, error.to_string()),
    })
}

/// Random duration from half of `pause` to all of it, so that calls that began together spread out.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_can_stand_in_a_header() {
        for (id, expected) in [("run-1-a-0123abcd", "run-1-a-0123abcd"), ("ü b\n%", "%C3%BC+b%0A%25")] {
            assert_eq!(header_text(id), expected);
            assert!(http::HeaderValue::from_str(&header_text(id)).is_ok());
        }
    }
}
