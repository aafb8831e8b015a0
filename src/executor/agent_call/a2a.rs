//! A2A, <https://a2a-protocol.org>, in the version and binding of the agent's route. A message is not blocking: so the
//! answer has the task's id, and the task can be cancelled. While the task is not done, it is queried, or its events are
//! streamed. The truth is always the task as the agent answers it.

use std::{
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use serde_json::value::RawValue;

use super::{
    AgentError, CallErrorKind, Failure, MAX_ANSWER_BYTES, Request, Wire, in_flight::InFlight, jitter, task_id,
};
use crate::{
    a2a::{
        METHOD_NOT_FOUND, Message, Operation, Part, Reply, RpcError, UNSUPPORTED_OPERATION, VERSION_NOT_SUPPORTED,
        reply,
        request::{self, Outgoing},
        stream::{self, ArtifactUpdate, StreamEvent},
    },
    agent::A2aConfig,
    egress::{Body, EventReader},
    executor::{
        agent_cards::{HttpRequest, Route},
        answer::{self, Answer, AnswerError},
        deltas::DeltaWriter,
        retry::RetryDecision,
    },
    input::check_json,
};

/// Pause before the first query of the task; later pauses grow. Many tasks are done at once, and a blocking message
/// would be answered so.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PAUSE_GROWTH: f64 = 1.5;

/// Failure with the agent's error code, if it has named one.
struct Refusal {
    failure: Failure,
    code: Option<i32>,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self { failure, code: None }
    }
}

impl From<AnswerError> for Refusal {
    fn from(error: AnswerError) -> Self {
        let code = if let AnswerError::Rpc(error) = &error { error.number() } else { None };
        let fault =
            if matches!(error, AnswerError::Invalid(_)) { CallErrorKind::Invalid } else { CallErrorKind::Refused };
        Self { failure: Failure::new(fault, RetryDecision::Never, error.to_string()), code }
    }
}

impl Refusal {
    /// Failure with the code that was found in the answer; 0: none.
    fn with(failure: Failure, code: &AtomicI32) -> Self {
        Self { failure, code: Some(code.load(Ordering::Relaxed)).filter(|code| *code != 0) }
    }

    /// Whether the agent has answered with a task that did not complete.
    fn is_of_task(&self) -> bool {
        self.failure.fault == CallErrorKind::Refused && self.code.is_none()
    }

    /// Whether the code says that nothing was done, since the agent does not know the method or the version.
    fn is_of_version(&self) -> bool {
        self.is(&[METHOD_NOT_FOUND, VERSION_NOT_SUPPORTED])
    }

    fn is(&self, codes: &[i32]) -> bool {
        let has_refused = matches!(self.failure.fault, CallErrorKind::Refused | CallErrorKind::Http4xx);
        has_refused && self.code.is_some_and(|code| codes.contains(&code))
    }
}

/// Reply to the message.
enum Sent {
    Output(Box<RawValue>),
    /// The task, and the pause before it is queried.
    UnderWay(Box<InFlight>, Duration),
}

/// Sends the message and follows its task. The caller's deadline ends both. If the agent does not know the version, the
/// message is sent once more in the other one.
pub(super) async fn call(wire: &Wire<'_>, config: &A2aConfig) -> Result<Box<RawValue>, Failure> {
    let Request { executor, agent, organization, .. } = &wire.request;
    let cards = &executor.cards;
    let unusable = |text: String| Failure::new(CallErrorKind::Unusable, RetryDecision::Never, text);
    let mut route = cards.route(agent, organization, config).await.map_err(unusable)?;
    let mut sent = begin(wire, &route).await;
    let may_fall_back = config.protocol.is_none() && !route.is_rest;
    let falls_back = may_fall_back && sent.as_ref().is_err_and(Refusal::is_of_version);
    if falls_back {
        route = cards.other_route(agent, config, &route).map_err(unusable)?;
        sent = begin(wire, &route).await;
    }
    if sent.as_ref().map_or_else(Refusal::is_of_task, |_| true) {
        cards.answered(agent, organization, route.version, falls_back);
    }
    match sent.map_err(|refusal| refusal.failure)? {
        Sent::Output(output) => Ok(output),
        Sent::UnderWay(in_flight, pause) => follow(wire, &route, *in_flight, pause).await,
    }
}

/// Sends the message, streamed if the route says so and the agent can.
async fn begin(wire: &Wire<'_>, route: &Route) -> Result<Sent, Refusal> {
    if route.streams {
        match stream(wire, route).await {
            // Nothing was done.
            Err(refusal) if refusal.is(&[METHOD_NOT_FOUND, UNSUPPORTED_OPERATION]) => {}
            sent => return sent,
        }
    }
    let code = AtomicI32::default();
    let body = wire.send_input(message(wire, route, Operation::Send), explain(route, &code)).await;
    let body = body.map_err(|failure| Refusal::with(failure, &code))?;
    let answer = wire.read(&body, |body| read(route, body)).await?;
    Ok(sent(wire, route, answer))
}

fn sent(wire: &Wire<'_>, route: &Route, answer: Answer) -> Sent {
    match answer {
        Answer::Output(output) => Sent::Output(output),
        Answer::UnderWay { task } => Sent::UnderWay(Box::new(InFlight::new(&wire.request, route, task)), FIRST_PAUSE),
    }
}

/// Request that sends the message.
fn message(wire: &Wire<'_>, route: &Route, operation: Operation) -> HttpRequest {
    let rpc_id = task_id(wire.request.attempt_id);
    let outgoing = Outgoing {
        message_id: &format!("msg-{rpc_id}"),
        input: wire.request.input,
        accepts_json: route.accepts_json,
        task_id: None,
        context_id: None,
        tenant: route.tenant.as_deref(),
    };
    route.request(&rpc_id, operation, &request::send(route.version, &outgoing), None)
}

/// Sends the message and reads the events of its task until it is done, or the stream ends for another reason. Then the
/// task is queried.
async fn stream(wire: &Wire<'_>, route: &Route) -> Result<Sent, Refusal> {
    let code = AtomicI32::default();
    let opened = wire.open_stream(message(wire, route, Operation::Stream), explain(route, &code)).await;
    let (response, _span) = opened.map_err(|failure| Refusal::with(failure, &code))?;
    if !EventReader::is_stream(&response) {
        let body = wire.read_answer(response).await?;
        let answer = wire.read(&body, |body| read(route, body)).await?;
        return Ok(sent(wire, route, answer));
    }
    let mut events = EventReader::new(response, &wire.request.executor.clock, MAX_ANSWER_BYTES);
    let mut deltas = wire.deltas();
    let mut under_way: Option<InFlight> = None;
    let note = |under_way: &mut Option<InFlight>, task: Option<String>| {
        if let (None, Some(task)) = (&under_way, task) {
            *under_way = Some(InFlight::new(&wire.request, route, task));
        }
    };
    while let Ok(event) = events.next().await {
        // Half an event, or anything else that cannot be read, leaves a doubt, which the query resolves.
        let Ok(json) = check_json(event.data.as_bytes()) else { break };
        let result = match (route.is_rest, &under_way) {
            (true, _) => json,
            (false, known) => match reply::rpc_result(json) {
                Ok(Ok(result)) => result,
                Ok(Err(error)) if known.is_none() => return Err(AnswerError::Rpc(error).into()),
                _ => break,
            },
        };
        match stream::read(result) {
            StreamEvent::Reply(reply) => match answer::judge(reply) {
                Ok(Answer::UnderWay { task }) => note(&mut under_way, Some(task)),
                ended => {
                    if let Some(mut in_flight) = under_way {
                        in_flight.is_over();
                    }
                    return Ok(sent(wire, route, ended?));
                }
            },
            StreamEvent::Status(update) => {
                note(&mut under_way, update.task_id);
                if let Some(said) = update.message.and_then(Message::text) {
                    deltas.text(None, false, &said);
                }
                if update.is_final || !update.state.is_none_or(|state| state.is_under_way()) {
                    break;
                }
            }
            StreamEvent::Artifact(update) => {
                note(&mut under_way, update.task_id.clone());
                add(&mut deltas, &update);
            }
            StreamEvent::Unknown => {}
        }
    }
    let lost = "the event stream ended before it named a task";
    let in_flight = under_way.ok_or_else(|| Failure::new(CallErrorKind::Network, RetryDecision::Later, lost))?;
    Ok(Sent::UnderWay(Box::new(in_flight), Duration::ZERO))
}

/// Passes a piece of an artifact on.
fn add(deltas: &mut DeltaWriter, update: &ArtifactUpdate<'_>) {
    let (artifact, mut append) = (update.artifact_id.as_deref(), update.append);
    for part in &update.parts {
        match part {
            Part::Text(text) => deltas.text(artifact, append, text),
            Part::Data(data) => deltas.data(artifact, append, data),
            Part::File(_) => continue,
        }
        append = true;
    }
}

/// Queries the task until it is done.
async fn follow(
    wire: &Wire<'_>,
    route: &Route,
    mut in_flight: InFlight,
    first: Duration,
) -> Result<Box<RawValue>, Failure> {
    let clock = &wire.request.executor.clock;
    let rpc_id = task_id(wire.request.attempt_id);
    let (mut pause, mut wanted) = (first, Duration::ZERO);
    loop {
        let wait = jitter(pause).max(wanted);
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        pause = pause.mul_f64(PAUSE_GROWTH).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        wanted = Duration::ZERO;
        let task = Some(in_flight.task());
        let params = request::about(route.version, Operation::Get, task, route.tenant.as_deref());
        let query = route.request(&rpc_id, Operation::Get, &params, task);
        let answered = match wire.ask(query, explain(route, &AtomicI32::default())).await {
            Ok(body) => wire.read(&body, |body| read(route, body)).await.map_err(|error| Refusal::from(error).failure),
            Err(failure) => Err(failure),
        };
        match answered {
            Ok(Answer::Output(output)) => {
                in_flight.is_over();
                return Ok(output);
            }
            // A failed query ends nothing: sending the message again would create a second task.
            Ok(Answer::UnderWay { .. }) | Err(Failure { again: RetryDecision::Later, .. }) => {}
            Err(Failure { again: RetryDecision::After(by_agent), .. }) => wanted = by_agent,
            Err(failure) => {
                if failure.fault == CallErrorKind::Refused {
                    in_flight.is_over();
                }
                return Err(failure);
            }
        }
    }
}

fn read(route: &Route, body: &Body) -> Result<Answer, AnswerError> {
    let json = body.json().map_err(|fault| AnswerError::Invalid(fault.to_string()))?;
    if route.is_rest { answer::judge(Reply::read(json)) } else { answer::read(json) }
}

/// Finds the error text in an answer with an error status, and its code.
fn explain<'a>(route: &Route, code: &'a AtomicI32) -> impl Fn(&RawValue) -> Option<AgentError> + use<'a> {
    let is_rest = route.is_rest;
    move |body| {
        let error = if is_rest { RpcError::of_http(body) } else { RpcError::of_response(body) }?;
        code.store(error.number().unwrap_or_default(), Ordering::Relaxed);
        Some(if is_rest { error.message } else { error.to_string() }.into())
    }
}
