//! A2A by JSON-RPC 2.0, <https://a2a-protocol.org/v0.3.0/specification>. `message/send` is not blocking: so the answer
//! has the task's id, and the task can be cancelled. While the task is not done, `tasks/get` queries it.

use std::time::Duration;

use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::{AgentError, CallErrorKind, Failure, Wire, in_flight::InFlight, jitter, rpc::Rpc, task_id};
use crate::{
    egress::Body,
    executor::{
        answer::{self, Answer, AnswerError},
        retry::RetryDecision,
    },
    mapping,
};

/// Pause before the first query of the task; later pauses grow. Many tasks are done at once, and a blocking message
/// would be answered so.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PAUSE_GROWTH: f64 = 1.5;

#[derive(Serialize)]
struct Message<'a> {
    message: MessageBody<'a>,
    configuration: Configuration,
}

#[derive(Serialize)]
struct MessageBody<'a> {
    kind: &'static str,
    role: &'static str,
    #[serde(rename = "messageId")]
    id: String,
    parts: [Part<'a>; 1],
}

#[derive(Serialize)]
struct Configuration {
    /// Empty: all modes of the agent. Servers of 0.2 require the member.
    #[serde(rename = "acceptedOutputModes")]
    accepted_output_modes: [&'static str; 0],
    blocking: bool,
}

#[derive(Serialize)]
struct Part<'a> {
    kind: &'static str,
    text: &'a str,
}

/// Sends the message and polls its task. The caller's deadline ends both.
pub(super) async fn call(wire: &Wire<'_>) -> Result<Box<RawValue>, Failure> {
    let (url, request) = (wire.url()?, &wire.request);
    let task_id = task_id(request.attempt_id);
    let text = mapping::message_text(request.input);
    let parts = [Part { kind: "text", text: &text }];
    let message = MessageBody { kind: "message", role: "user", id: format!("msg-{task_id}"), parts };
    let configuration = Configuration { accepted_output_modes: [], blocking: false };
    let body = Rpc::body(&task_id, "message/send", Message { message, configuration });
    let body = wire.post(url.clone(), body, explain).await?;
    let task = match wire.read(&body, read).await? {
        Answer::Output(output) => return Ok(output),
        Answer::UnderWay { task } => task,
    };
    let mut in_flight = InFlight::new(request, task);
    let (mut pause, mut wanted) = (FIRST_PAUSE, Duration::ZERO);
    loop {
        request.executor.clock.sleep(jitter(pause).max(wanted)).await;
        pause = pause.mul_f64(PAUSE_GROWTH).min(LONGEST_PAUSE);
        wanted = Duration::ZERO;
        let body = Rpc::body(&task_id, "tasks/get", json!({"id": in_flight.task()}));
        let answered = match wire.ask(url.clone(), body, explain).await {
            Ok(body) => wire.read(&body, read).await,
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

fn read(body: &Body) -> Result<Answer, Failure> {
    let answer = body.json().map_err(|fault| AnswerError::Invalid(fault.to_string())).and_then(answer::read);
    answer.map_err(|error| failure(&error))
}

fn failure(error: &AnswerError) -> Failure {
    let fault = if matches!(error, AnswerError::Invalid(_)) { CallErrorKind::Invalid } else { CallErrorKind::Refused };
    Failure::new(fault, RetryDecision::Never, error.to_string())
}

fn explain(body: &RawValue) -> Option<AgentError> {
    answer::rpc_error(body).map(|error| error.to_string().into())
}
