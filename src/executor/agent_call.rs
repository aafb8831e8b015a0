//! One call to an agent: what its kind makes of the input, under a deadline that covers all of it.
//!
//! A call is one HTTP request with the input, never repeated here, and for an A2A task that is not done yet further
//! ones that only ask for it. Who de-duplicates finds the attempt in `Idempotency-Key`, A2A agents also in the
//! message's id.

mod a2a;
mod chat;
mod in_flight;
mod plain;
mod rpc;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use super::{
    Executor,
    agents::{Agent, Protocol},
    memory::{COUNTED_BYTES, OUT_OF_MEMORY, Share, counted},
    retry::{self, RetryDecision},
};
use crate::{
    access::OrganizationId,
    agent::Credentials,
    egress::{self, Body, BodyError, Egress, NotAllowed},
    input::shorten_to,
    permits::Permit,
};

/// Of an answer, decompressed. More is not read.
const MAX_ANSWER_BYTES: usize = 10 << 20;
/// Of an answer with an error status, which is only looked through for a message.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// Bytes of an answer from which on reading it is left to threads that may take long.
const LARGE_ANSWER_BYTES: usize = 64 << 10;
/// Characters of an error message. The agent's words may be longer.
const MAX_MESSAGE_CHARS: usize = 500;

/// Why an attempt has no output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallErrorKind {
    /// The agent's circuit breaker is open.
    CircuitOpen,
    /// Its URL leads to an address that is not allowed.
    NotAllowed,
    /// What is stored of it cannot be used for a request.
    Unusable,
    Network,
    Timeout,
    /// A redirect, or an error that is the request's.
    Http4xx,
    Http5xx,
    /// The answer is not what the protocol says.
    Invalid,
    /// This executor has no memory for the answer.
    OutOfMemory,
    /// The agent answered that it refuses, or has failed, or needs something that no step can give it.
    Refused,
}

impl CallErrorKind {
    /// In metrics and in the log of a run.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::NotAllowed => "not_allowed",
            Self::Unusable => "unusable",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::Http4xx => "http_4xx",
            Self::Http5xx => "http_5xx",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::OutOfMemory => "out_of_memory",
        }
    }

    /// Whether it shows that the agent works, for its circuit breaker; `None`: it was not called.
    pub(super) fn is_healthy(self) -> Option<bool> {
        match self {
            Self::CircuitOpen | Self::NotAllowed | Self::Unusable | Self::OutOfMemory => None,
            Self::Network | Self::Timeout | Self::Http4xx | Self::Http5xx | Self::Invalid => Some(false),
            Self::Refused => Some(true),
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Fit for the step's error message where [`call`] gives it: short, no credentials, no URL.
    pub(super) message: String,
    pub(super) again: RetryDecision,
    pub(super) fault: CallErrorKind,
}

impl Failure {
    fn new(fault: CallErrorKind, again: RetryDecision, message: impl Into<String>) -> Self {
        Self { message: message.into(), again, fault }
    }
}

/// What an agent says about its failure, in full: it is masked before it is cut.
struct AgentError {
    words: String,
    /// Whatever the status, another attempt would fail in the same way.
    is_final: bool,
}

impl From<String> for AgentError {
    fn from(words: String) -> Self {
        Self { words, is_final: false }
    }
}

/// What a call came to.
#[derive(Debug)]
pub(super) struct CallOutcome {
    /// The output of the step.
    pub(super) result: Result<Box<RawValue>, Failure>,
    /// Of the last answer, if there was one.
    pub(super) http_status: Option<u16>,
    /// Of the output.
    pub(super) memory: Permit,
}

/// Whom to call, for whom and with what.
pub(super) struct Request<'a> {
    pub(super) executor: &'a Executor,
    pub(super) agent: &'a Arc<Agent>,
    pub(super) organization: &'a OrganizationId,
    pub(super) run_id: &'a str,
    pub(super) lease_token: Uuid,
    /// The run is to be left alone.
    pub(super) stop: &'a CancellationToken,
    /// The same if the attempt is made again because its executor died.
    pub(super) attempt_id: &'a str,
    pub(super) correlation_id: &'a str,
    pub(super) input: &'a RawValue,
    /// For the answer.
    pub(super) memory: &'a Share,
}

/// What an attempt is called towards A2A agents and observers.
pub(super) fn task_id(attempt_id: &str) -> String {
    format!("task-{attempt_id}")
}

/// Asks the agent for the output of the step. Dropping the future closes the connection, and tells an A2A agent that
/// has made a task of it to cancel that.
pub(super) async fn call(request: Request<'_>) -> CallOutcome {
    let memory = tokio::sync::Mutex::new(request.memory.hold(0));
    let wire = Wire { request, http_status: AtomicU16::new(0), memory, waits_for_memory: AtomicBool::new(false) };
    let agent = wire.request.agent;
    let exchange = async {
        match &agent.protocol {
            Protocol::A2a => a2a::call(&wire).await,
            Protocol::Http => plain::call(&wire).await,
            Protocol::OpenAi(config) => chat::call(&wire, config).await,
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
        let masked = agent.secrets.mask(failure.message);
        Failure { message: shorten_to(&masked, MAX_MESSAGE_CHARS).into_owned(), ..failure }
    });
    let http_status = Some(wire.http_status.into_inner()).filter(|status| *status > 0);
    let mut memory = wire.memory.into_inner();
    memory.resize(result.as_ref().map_or(0, |output| counted(output.get().len())));
    CallOutcome { result, http_status, memory }
}

/// The HTTP below all kinds.
struct Wire<'a> {
    request: Request<'a>,
    /// Of the last answer; 0: none yet.
    http_status: AtomicU16,
    /// Of the answers that were read.
    memory: tokio::sync::Mutex<Permit>,
    /// An answer is there and waits for room.
    waits_for_memory: AtomicBool,
}

impl Wire<'_> {
    /// Posts the attempt's input, once, and reads the answer to it. `explain` finds the agent's own words in an answer
    /// that says by its status that it is none.
    async fn post(
        &self,
        url: Url,
        body: String,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        let key = header_text(self.request.attempt_id);
        self.exchange(self.prepare(url, body)?.header("Idempotency-Key", key), explain).await
    }

    /// The same for a request that only asks, and may be made again.
    async fn ask(
        &self,
        url: Url,
        body: String,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        self.exchange(self.prepare(url, body)?, explain).await
    }

    fn prepare(&self, url: Url, body: String) -> Result<RequestBuilder, Failure> {
        let Request { executor, agent, correlation_id, .. } = &self.request;
        prepare(&executor.egress, agent, url, body, correlation_id)
    }

    async fn exchange(
        &self,
        http: RequestBuilder,
        explain: impl Fn(&RawValue) -> Option<AgentError>,
    ) -> Result<Body, Failure> {
        let response = http.send().await.map_err(|error| transport(&error))?;
        self.http_status.store(response.status().as_u16(), Ordering::Relaxed);
        if response.status().is_success() {
            let mut permit = self.memory.lock().await;
            let (small, waits) = (COUNTED_BYTES, &self.waits_for_memory);
            let memory = egress::Memory { permit: &mut permit, small, patience: self.request.memory.patience(), waits };
            return read_body(response, MAX_ANSWER_BYTES, Some(memory)).await;
        }
        Err(refusal(response, explain).await)
    }

    /// What is made of an answer; of a large one, which takes long, in turn with others.
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

/// A POST with all that any request to the agent carries.
fn prepare(
    egress: &Egress,
    agent: &Agent,
    url: Url,
    body: String,
    correlation_id: &str,
) -> Result<RequestBuilder, Failure> {
    let http = egress.request(Method::POST, url).map_err(not_allowed)?;
    let http = http
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header("X-Correlation-ID", correlation_id)
        .body(body);
    match &agent.credentials {
        Ok(Credentials::None) => Ok(http),
        Ok(Credentials::Header(name, value)) => Ok(http.header(name, value)),
        Err(sealed) => {
            Err(Failure::new(CallErrorKind::Unusable, RetryDecision::Never, format!("its auth_config is {sealed}")))
        }
        Ok(Credentials::Unusable) => {
            let text = "its auth_config lacks a value, or has one that cannot be sent in a header";
            Err(Failure::new(CallErrorKind::Unusable, RetryDecision::Never, text))
        }
    }
}

/// An id as it can stand in a header: what is not a plain character is percent-encoded.
fn header_text(id: &str) -> String {
    url::form_urlencoded::byte_serialize(id.as_bytes()).collect()
}

/// What an answer says whose status is no success.
async fn refusal(response: Response, explain: impl Fn(&RawValue) -> Option<AgentError>) -> Failure {
    let status = response.status();
    let wanted = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wanted = wanted.and_then(|value| retry::retry_after(value, chrono::Utc::now()));
    let reason = status.canonical_reason().unwrap_or("no reason");
    let mut text = format!("HTTP {}: {reason}", status.as_u16());
    let mut is_final = !is_passing(status);
    if status.is_redirection() {
        text += " (redirects are not followed)";
    } else if let Ok(body) = read_body(response, MAX_ERROR_BYTES, None).await {
        if let Some(said) = body.json().ok().and_then(explain) {
            text = format!("{text}, {}", said.words);
            is_final |= said.is_final;
        } else if let Some(excerpt) = body.excerpt() {
            text = format!("{text}, {excerpt}");
        }
    }
    let again = match wanted {
        _ if is_final => RetryDecision::Never,
        None => RetryDecision::Later,
        Some(pause) => RetryDecision::After(pause),
    };
    Failure::new(fault_of(status), again, text)
}

fn fault_of(status: StatusCode) -> CallErrorKind {
    if status.is_server_error() { CallErrorKind::Http5xx } else { CallErrorKind::Http4xx }
}

/// The same request may be answered otherwise later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

async fn read_body(response: Response, limit: usize, memory: Option<egress::Memory<'_>>) -> Result<Body, Failure> {
    egress::read_body(response, limit, memory).await.map_err(|error| match error {
        BodyError::Broken(error) => transport(&error),
        BodyError::NoRoom => no_memory(),
        error => Failure::new(CallErrorKind::Invalid, RetryDecision::Never, error.to_string()),
    })
}

fn no_memory() -> Failure {
    Failure::new(CallErrorKind::OutOfMemory, RetryDecision::Later, OUT_OF_MEMORY)
}

fn not_allowed(error: NotAllowed) -> Failure {
    Failure::new(CallErrorKind::NotAllowed, RetryDecision::Never, error.to_string())
}

/// What went wrong on the wire.
fn transport(error: &reqwest::Error) -> Failure {
    if egress::was_not_allowed(error) {
        return not_allowed(NotAllowed);
    }
    if error.is_builder() {
        return Failure::new(CallErrorKind::Unusable, RetryDecision::Never, "its URL cannot be called");
    }
    let what = if error.is_connect() { "cannot be connected" } else { "the connection failed" };
    let why = egress::cause_of(error).map_or_else(String::new, |cause| format!(": {cause}"));
    Failure::new(CallErrorKind::Network, RetryDecision::Later, format!("{what}{why}"))
}

/// A duration from half of this to this: so that what began together does not stay together.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passing_statuses_are_tried_again() {
        for (status, expected) in [(500, true), (503, true), (429, true), (400, false), (401, false), (302, false)] {
            assert_eq!(is_passing(StatusCode::from_u16(status).expect("valid")), expected, "{status}");
        }
    }

    #[test]
    fn any_id_can_stand_in_a_header() {
        for (id, expected) in [("run-1-a-0123abcd", "run-1-a-0123abcd"), ("ü b\n%", "%C3%BC+b%0A%25")] {
            assert_eq!(header_text(id), expected);
            assert!(http::HeaderValue::from_str(&header_text(id)).is_ok());
        }
    }
}
