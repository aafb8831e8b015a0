//! Tasks of MCP servers: they are queried until they are done, get the answers that they wait for, and are cancelled
//! once they are not waited for.

use std::sync::atomic::AtomicI32;

use serde_json::value::RawValue;

use super::{
    super::{
        CallErrorKind, Failure, Request, Wire,
        background::{self, Polled, Work},
        in_flight::{Cancelled, Form, InFlight, request_cancellation},
        task_id,
    },
    CANNOT_GIVE, NEEDS_ASK, asks_back, explain, invalid, may_ask, of_error,
    output::{ToolOutput, checked, output, usage},
    post, post_to,
};
use crate::{
    a2a::{RpcError, reply::rpc_result},
    executor::{Executor, agent_question::AgentQuestion, agents::Agent, retry::RetryDecision},
    input::to_raw,
    mcp::{
        Link,
        reply::{Questions, Task, TaskStatus},
        request::{Call, Outgoing},
    },
};

/// Gives a task the answers that it waits for, and follows it.
pub(super) async fn answer(wire: &Wire<'_>, link: &Link, answered: &AgentQuestion) -> Result<Box<RawValue>, Failure> {
    let Request { attempt_id, input, conversation, .. } = wire.request;
    let id = answered.task_id.clone();
    let (task, responses, rpc_id) = (to_raw(&id), answered.input_responses(input), task_id(attempt_id));
    let params = [("taskId", &*task), ("inputResponses", &*responses)];
    let (name, key, may_ask) = (Some(id.as_str()), Some(attempt_id), may_ask(wire));
    let call = Call { id: &rpc_id, method: "tasks/update", name, params: &params, key, may_ask };
    let code = AtomicI32::default();
    let sent = wire.send_input(post(wire, call.to(link))?, explain(&code)).await.and_then(|body| {
        match body.json().map(rpc_result) {
            Ok(Ok(Err(error))) => Err(of_error(&error)),
            // What matters is the task.
            _ => Ok(()),
        }
    });
    match sent {
        // The server may have got the answers before, and the task may have gone on.
        Err(failure) if conversation.is_in_doubt && is_refusal(&failure) => {}
        sent => sent?,
    }
    let in_flight = in_flight(wire, link, id)?;
    background::follow(wire, in_flight, None, &OfServer { wire, link }).await
}

fn is_refusal(failure: &Failure) -> bool {
    matches!(failure.fault, CallErrorKind::Refused | CallErrorKind::Http4xx)
}

/// Task that is cancelled once it is not waited for.
pub(super) fn in_flight(wire: &Wire<'_>, link: &Link, id: String) -> Result<InFlight, Failure> {
    let cancel = post(wire, cancellation(&id, link))?;
    Ok(InFlight::cancelled_by(&wire.request, cancel, id))
}

/// Task of an MCP server.
pub(super) struct OfServer<'a> {
    pub(super) wire: &'a Wire<'a>,
    pub(super) link: &'a Link,
}

impl Work for OfServer<'_> {
    async fn poll(&self, id: &str) -> Result<Polled, Failure> {
        let Self { wire, link } = self;
        let query = post(wire, about(&task_id(wire.request.attempt_id), "tasks/get", id, link, may_ask(wire)))?;
        let code = AtomicI32::default();
        let body = wire.ask(query, explain(&code)).await?;
        let read = wire.read(&body, |body| match body.json() {
            Ok(json) => {
                wire.used(usage(json));
                state(json, id, wire.request.conversation.answered)
            }
            Err(fault) => Err(invalid(fault)),
        });
        match read.await? {
            TaskState::Completed(output) => Ok(Polled::Ended(checked(wire, output).await)),
            TaskState::Other(polled) => Ok(polled),
        }
    }
}

/// State of a task.
enum TaskState {
    /// Its output is to be checked.
    Completed(ToolOutput),
    Other(Polled),
}

/// State of a task in the response to a query.
fn state(response: &RawValue, id: &str, answered: Option<&AgentQuestion>) -> Result<TaskState, Failure> {
    let result = match rpc_result(response) {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => return Ok(TaskState::Other(Polled::Ended(Err(of_error(&error))))),
        Err(not_rpc) => return Err(invalid(not_rpc)),
    };
    let task = Task(result);
    let words = || task.message().map_or_else(String::new, |message| format!(": {message}"));
    let polled = match task.status().ok_or_else(|| invalid("it is no task"))? {
        TaskStatus::Working => Polled::UnderWay(task.poll_interval()),
        TaskStatus::Completed => match task.result().map_err(invalid).and_then(output) {
            Ok(output) => return Ok(TaskState::Completed(output)),
            Err(failure) => Polled::Ended(Err(failure)),
        },
        TaskStatus::Failed => {
            let error = RpcError::of_response(task.error());
            let text = error.map_or_else(|| format!("the task failed{}", words()), |error| error.to_string());
            Polled::Ended(Err(Failure::new(CallErrorKind::Refused, RetryDecision::Never, text)))
        }
        TaskStatus::Cancelled => {
            let text = format!("the task was cancelled{}", words());
            Polled::Ended(Err(Failure::new(CallErrorKind::Refused, RetryDecision::Never, text)))
        }
        TaskStatus::InputRequired => {
            let questions = Questions(result);
            let words = questions.words();
            if answered.is_some_and(|answered| answered.answers(questions)) {
                Polled::UnderWay(task.poll_interval())
            } else if let Some(question) = AgentQuestion::of_server(questions, id, answered) {
                Polled::Question(Box::new(question), asks_back(NEEDS_ASK, &words))
            } else {
                // The task is cancelled, since it would wait for ever.
                return Err(asks_back(CANNOT_GIVE, &words));
            }
        }
    };
    Ok(TaskState::Other(polled))
}

/// Request about a task.
fn about(rpc_id: &str, method: &str, id: &str, link: &Link, may_ask: bool) -> Outgoing {
    let task = to_raw(id);
    Call { id: rpc_id, method, name: Some(id), params: &[("taskId", &*task)], key: None, may_ask }.to(link)
}

/// Request that cancels a task.
fn cancellation(id: &str, link: &Link) -> Outgoing {
    about("cancel", "tasks/cancel", id, link, false)
}

/// Requests the cancellation of a task; `None`: there is no answer.
pub(in crate::executor) async fn cancel_task(
    executor: &Executor,
    agent: &Agent,
    id: &str,
    names: (&str, Option<String>),
) -> Option<Cancelled> {
    let cancel = post_to(agent.url.clone()?, cancellation(id, &Link::MODERN));
    Cancelled::read(request_cancellation(executor, agent, cancel, names).await?, Form::Mcp, &executor.clock).await
}
