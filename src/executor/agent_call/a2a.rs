//! A2A, <https://a2a-protocol.org>, in the version and binding of the agent's route. A message is not blocking: so the
//! answer has the task's id, and the task can be cancelled. While the task is not done, it is queried, or its events are
//! streamed. The truth is always the task as the agent answers it.

use std::{
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use http::StatusCode;
use serde_json::value::RawValue;

use super::{
    AgentError, CallErrorKind, Conversation, Failure, Interrupted, MAX_ANSWER_BYTES, Request, Wire,
    in_flight::InFlight, interrupted::asked, jitter, remote_task,
};
use crate::{
    a2a::{
        METHOD_NOT_FOUND, Message, Operation, PUSH_NOT_SUPPORTED, Part, Reply, RpcError, TASK_NOT_FOUND,
        UNSUPPORTED_OPERATION, VERSION_NOT_SUPPORTED, reply,
        request::{self, Outgoing, Push},
        stream::{self, ArtifactUpdate, StreamEvent},
    },
    agent::A2aConfig,
    egress::{Body, EventReader},
    executor::{
        agent_cards::{HttpRequest, Route},
        agent_question::AgentQuestion,
        answer::{self, Answer, AnswerError},
        deltas::DeltaWriter,
        pushes::{AwaitedPush, ExpectedPush},
        retry::RetryDecision,
    },
    input::{check_json, member},
    usage::Usage,
};

/// Kind of the agent at which a task is kept.
const KIND: &str = "a2a";
/// Pause before the first query of the task; later pauses grow. Many tasks are done at once, and a blocking message
/// would be answered so.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same if the agent sends push notifications: agents may give up, and their notifications may be lost.
const LONGEST_PAUSE_OF_PUSHES: Duration = Duration::from_mins(1);
const PAUSE_GROWTH: f64 = 1.5;

/// Time after which a stream counts as broken: without an event once it has named the task, since the task is queried
/// then and nothing is lost; before that, without a byte.
const MAX_SILENCE: Duration = Duration::from_secs(30);

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
    /// The agent asks. The failure is for a step that cannot answer.
    Question(Box<Interrupted>, Failure),
}

/// Sends the message and follows its task. The caller's deadline ends both. If the agent does not know the version, the
/// message is sent once more in the other one.
pub(super) async fn call(wire: &Wire<'_>, config: &A2aConfig) -> Result<Box<RawValue>, Failure> {
    let Request { executor, agent, organization, .. } = &wire.request;
    let cards = &executor.cards;
    let unusable = |text: String| Failure::new(CallErrorKind::Unusable, RetryDecision::Never, text);
    let mut route = cards.route(agent, organization, config).await.map_err(unusable)?;
    if wire.is_repeat() {
        // In a box, since it is seldom needed.
        let begun = Box::pin(begun_before(wire, config, &mut route)).await;
        if let Some(sent) = begun.map_err(|refusal| refusal.failure)? {
            let is_awaited = route.pushes && !route.streams && matches!(sent, Sent::UnderWay(..));
            let Request { attempt_id, stop, .. } = &wire.request;
            let push = if is_awaited { executor.pushes.adopt(attempt_id, stop).await } else { None };
            return end(wire, &route, sent, push).await;
        }
    }
    // Where a task is streamed, its end is seen at once.
    let may_push = route.pushes && !route.streams;
    let mut push =
        if may_push { executor.pushes.expect(wire.request.attempt_id, wire.request.stop).await } else { None };
    let mut sent = begin(wire, &route, &mut push).await;
    let falls_back = route.may_fall_back(config) && sent.as_ref().is_err_and(Refusal::is_of_version);
    if falls_back {
        route = cards.other_route(agent, config, &route).map_err(unusable)?;
        sent = begin(wire, &route, &mut push).await;
    }
    if sent.as_ref().map_or_else(Refusal::is_of_task, |_| true) {
        cards.answered(agent, organization, route.version, falls_back);
    }
    end(wire, &route, sent.map_err(|refusal| refusal.failure)?, push.map(|push| push.awaited)).await
}

/// Follows the task to its end, or to a question.
async fn end(wire: &Wire<'_>, route: &Route, sent: Sent, push: Option<AwaitedPush>) -> Result<Box<RawValue>, Failure> {
    match sent {
        Sent::Output(output) => Ok(output),
        Sent::UnderWay(in_flight, pause) => follow(wire, route, *in_flight, (pause, push)).await,
        Sent::Question(interrupted, failure) => asked(wire, *interrupted, failure),
    }
}

/// Sends the message, streamed if the route says so and the agent can.
async fn begin(wire: &Wire<'_>, route: &Route, push: &mut Option<ExpectedPush>) -> Result<Sent, Refusal> {
    if route.streams {
        match stream(wire, route).await {
            // Nothing was done.
            Err(refusal) if refusal.is(&[METHOD_NOT_FOUND, UNSUPPORTED_OPERATION]) => {}
            sent => return sent,
        }
    }
    match send(wire, route, push.as_ref()).await {
        // Nothing was done.
        Err(refusal) if push.is_some() && refusal.is(&[PUSH_NOT_SUPPORTED]) => {
            *push = None;
            send(wire, route, None).await
        }
        sent => sent,
    }
}

async fn send(wire: &Wire<'_>, route: &Route, push: Option<&ExpectedPush>) -> Result<Sent, Refusal> {
    let code = AtomicI32::default();
    let body = wire.send_input(message(wire, route, Operation::Send, push), explain(route, &code)).await;
    let body = body.map_err(|failure| Refusal::with(failure, &code))?;
    let answer = wire.read(&body, |body| read(wire, route, body)).await?;
    begun(wire, route, answer).await
}

/// What the answer to the message means. The id of a task that is not done yet is kept.
async fn begun(wire: &Wire<'_>, route: &Route, answer: Answer) -> Result<Sent, Refusal> {
    let sent = sent(wire, route, answer);
    if let Sent::UnderWay(in_flight, _) = &sent {
        keep(wire, in_flight).await?;
    }
    Ok(sent)
}

/// Keeps the id of the task, so that it is followed if this executor dies. The task of an answer to a question is recorded
/// with the question.
async fn keep(wire: &Wire<'_>, in_flight: &InFlight) -> Result<(), Failure> {
    let task = in_flight.task();
    if wire.request.conversation.answered.is_some() || !remote_task::is_fit(task) {
        return Ok(());
    }
    Box::pin(remote_task::keep(wire, KIND, task)).await
}

fn sent(wire: &Wire<'_>, route: &Route, answer: Answer) -> Sent {
    match answer {
        Answer::Output(output) => Sent::Output(output),
        Answer::UnderWay { task } => Sent::UnderWay(Box::new(InFlight::new(&wire.request, route, task)), FIRST_PAUSE),
        Answer::Question { question, error } => {
            let in_flight = InFlight::new(&wire.request, route, question.task_id.clone());
            Sent::Question(Box::new(Interrupted::new(*question, in_flight)), Refusal::from(error).failure)
        }
    }
}

/// Request that sends the message.
fn message(wire: &Wire<'_>, route: &Route, operation: Operation, push: Option<&ExpectedPush>) -> HttpRequest {
    let rpc_id = super::task_id(wire.request.attempt_id);
    let Conversation { task_id, context_id, answered, .. } = wire.request.conversation;
    let outgoing = Outgoing {
        message_id: &format!("msg-{rpc_id}"),
        input: wire.request.input,
        accepts_json: route.accepts_json,
        is_data: answered.is_some_and(|question| question.answer_schema.is_some()),
        task_id,
        context_id,
        tenant: route.tenant.as_deref(),
        push: push.map(|ExpectedPush { url, token, .. }| Push { url, token }),
    };
    route.request(&rpc_id, operation, &request::send(route.version, &outgoing), None)
}

/// Sends the message and reads the events of its task until it is done, or the stream ends for another reason. Then the
/// task is queried.
async fn stream(wire: &Wire<'_>, route: &Route) -> Result<Sent, Refusal> {
    let code = AtomicI32::default();
    let opened = wire.open_stream(message(wire, route, Operation::Stream, None), explain(route, &code)).await;
    let (response, _span) = opened.map_err(|failure| Refusal::with(failure, &code))?;
    if !EventReader::is_stream(&response) {
        let body = wire.read_answer(response).await?;
        let answer = wire.read(&body, |body| read(wire, route, body)).await?;
        return begun(wire, route, answer).await;
    }
    let clock = &wire.request.executor.clock;
    let mut events = EventReader::new(response, clock, MAX_ANSWER_BYTES).broken_by_silence(MAX_SILENCE);
    let mut deltas = wire.deltas();
    let (mut under_way, mut is_kept): (Option<InFlight>, bool) = (None, false);
    let note = |under_way: &mut Option<InFlight>, task: Option<String>| {
        if let (None, Some(task)) = (&under_way, task) {
            *under_way = Some(InFlight::new(&wire.request, route, task));
        }
    };
    loop {
        let silence = async {
            match under_way {
                Some(_) => clock.sleep(MAX_SILENCE).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = events.next() => event,
            () = silence => break,
        };
        let Ok(event) = event else { break };
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
            StreamEvent::Reply(reply) => match answer::judge(reply).map(|answer| settle(wire, answer)) {
                Ok(Answer::UnderWay { task }) => note(&mut under_way, Some(task)),
                ended => {
                    note_usage(wire, result);
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
        if let (Some(in_flight), false) = (&under_way, is_kept) {
            keep(wire, in_flight).await?;
            is_kept = true;
        }
    }
    let lost = "the event stream ended before it named a task";
    let in_flight = under_way.ok_or_else(|| Failure::new(CallErrorKind::Network, RetryDecision::Later, lost))?;
    if !is_kept {
        keep(wire, &in_flight).await?;
    }
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
    (first, push): (Duration, Option<AwaitedPush>),
) -> Result<Box<RawValue>, Failure> {
    let clock = &wire.request.executor.clock;
    let longest = if push.is_some() { LONGEST_PAUSE_OF_PUSHES } else { LONGEST_PAUSE };
    let (mut pause, mut wanted) = (first, Duration::ZERO);
    loop {
        let wait = jitter(pause).max(wanted);
        if !wait.is_zero() {
            let pushed = async {
                match &push {
                    // What the notification says does not matter: the task is queried.
                    Some(push) => push.arrived().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = clock.sleep(wait) => {}
                () = pushed => {}
            }
        }
        pause = pause.mul_f64(PAUSE_GROWTH).clamp(FIRST_PAUSE, longest);
        wanted = Duration::ZERO;
        let answer = query(wire, route, in_flight.task()).await;
        match answer.map(|answer| settle(wire, answer)).map_err(|refusal| refusal.failure) {
            Ok(Answer::Output(output)) => {
                in_flight.is_over();
                return Ok(output);
            }
            Ok(Answer::Question { question, error }) => {
                return asked(wire, Interrupted::new(*question, in_flight), Refusal::from(error).failure);
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

/// Asks for the task, which may still show the question that the message answers.
async fn query(wire: &Wire<'_>, route: &Route, task: &str) -> Result<Answer, Refusal> {
    let rpc_id = super::task_id(wire.request.attempt_id);
    let params = request::about(route.version, Operation::Get, Some(task), route.tenant.as_deref());
    let request = route.request(&rpc_id, Operation::Get, &params, Some(task));
    let code = AtomicI32::default();
    let body = wire.ask(request, explain(route, &code)).await;
    let body = body.map_err(|failure| Refusal::with(failure, &code))?;
    Ok(wire.read(&body, |body| read_raw(wire, route, body)).await?)
}

/// What the task is doing, if the agent has got the message already, or may have; `None`: it has to be sent.
async fn begun_before(wire: &Wire<'_>, config: &A2aConfig, route: &mut Route) -> Result<Option<Sent>, Refusal> {
    match wire.request.conversation.answered {
        Some(answered) => answered_before(wire, route, answered).await,
        None => match remote_task::of_interrupted(wire, KIND).await? {
            Some(task) => taken_over(wire, config, route, task).await,
            None => Ok(None),
        },
    }
}

/// What the task of an interrupted attempt is doing; `None`: the agent does not know it any more, and the message has to be
/// sent. A task that cannot be queried now is not begun again: the query is repeated.
async fn taken_over(
    wire: &Wire<'_>,
    config: &A2aConfig,
    route: &mut Route,
    task: String,
) -> Result<Option<Sent>, Refusal> {
    let Request { executor, agent, organization, .. } = &wire.request;
    // From here on the task is cancelled with the attempt.
    let mut in_flight = InFlight::new(&wire.request, route, task);
    let (mut pause, mut falls_back) = (FIRST_PAUSE, false);
    loop {
        let refusal = match query(wire, route, in_flight.task()).await {
            Ok(answer) => {
                in_flight.is_over();
                executor.cards.answered(agent, organization, route.version, falls_back);
                return Ok(Some(sent(wire, route, answer)));
            }
            Err(refusal) => refusal,
        };
        let wait = match refusal.failure.again {
            RetryDecision::Later => jitter(pause),
            RetryDecision::After(by_agent) => by_agent.max(jitter(pause)),
            RetryDecision::Never if is_unknown_task(wire, route, &refusal) => {
                in_flight.is_over();
                return Ok(None);
            }
            RetryDecision::Never if refusal.is_of_version() && !falls_back && route.may_fall_back(config) => {
                let other = executor.cards.other_route(agent, config, route);
                *route = other.map_err(|text| Failure::new(CallErrorKind::Unusable, RetryDecision::Never, text))?;
                in_flight = in_flight.by(route);
                falls_back = true;
                continue;
            }
            RetryDecision::Never => {
                if refusal.failure.fault == CallErrorKind::Refused {
                    in_flight.is_over();
                }
                return Err(refusal);
            }
        };
        pause = pause.mul_f64(PAUSE_GROWTH).min(LONGEST_PAUSE);
        executor.clock.sleep(wait).await;
    }
}

/// Whether the agent knows no such task. By HTTP+JSON the status says so too.
fn is_unknown_task(wire: &Wire<'_>, route: &Route, refusal: &Refusal) -> bool {
    let is_missing = || wire.http_status.load(Ordering::Relaxed) == StatusCode::NOT_FOUND.as_u16();
    refusal.is(&[TASK_NOT_FOUND]) || (route.is_rest && refusal.failure.fault == CallErrorKind::Http4xx && is_missing())
}

/// What the task of an answered question is doing, if the agent may have got the answer already.
async fn answered_before(wire: &Wire<'_>, route: &Route, answered: &AgentQuestion) -> Result<Option<Sent>, Refusal> {
    let answer = match query(wire, route, &answered.task_id).await {
        Ok(answer) => answer,
        // The agent cannot be asked; it may recognise the message.
        Err(refusal) if refusal.is(&[METHOD_NOT_FOUND, UNSUPPORTED_OPERATION, VERSION_NOT_SUPPORTED]) => {
            return Ok(None);
        }
        Err(refusal) => return Err(refusal),
    };
    match answer {
        Answer::Question { question, .. } if question.is_open(answered) => Ok(None),
        answer => Ok(Some(sent(wire, route, answer))),
    }
}

fn read(wire: &Wire<'_>, route: &Route, body: &Body) -> Result<Answer, AnswerError> {
    Ok(settle(wire, read_raw(wire, route, body)?))
}

fn read_raw(wire: &Wire<'_>, route: &Route, body: &Body) -> Result<Answer, AnswerError> {
    let json = body.json().map_err(|fault| AnswerError::Invalid(fault.to_string()))?;
    note_usage(wire, member(json, "result").unwrap_or(json));
    if route.is_rest { answer::judge(Reply::read(json)) } else { answer::read(json) }
}

/// Notes the tokens that a task or message tells. What its task had told when it asked was counted then.
fn note_usage(wire: &Wire<'_>, result: &RawValue) {
    let before = wire.request.conversation.answered.and_then(|answered| {
        let Reply::Task(task) = Reply::read(result) else { return None };
        answered.used.filter(|_| task.id().as_ref() == Some(&answered.task_id))
    });
    wire.used(match before {
        Some(before) => Usage::of_a2a_since(result, before),
        None => Usage::of_a2a(result),
    });
}

/// An answer that still shows the question to which the message is the answer says nothing new.
fn settle(wire: &Wire<'_>, answer: Answer) -> Answer {
    match (answer, wire.request.conversation.answered) {
        (Answer::Question { question, .. }, Some(answered)) if question.is_left_over(answered) => {
            Answer::UnderWay { task: question.task_id }
        }
        (answer, _) => answer,
    }
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
