//! Cancellation of a task that an agent works on, once its result is not needed any more.

use std::{mem, sync::Arc, time::Duration};

use http::StatusCode;
use reqwest::Response;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Request, prepare};
use crate::{
    a2a::{
        METHOD_NOT_FOUND, Operation, RpcError, TASK_NOT_CANCELABLE, TASK_NOT_FOUND, UNSUPPORTED_OPERATION,
        VERSION_NOT_SUPPORTED, reply::rpc_result, request,
    },
    clock::Clock,
    db,
    egress::{self, BodyError, EventReader, StreamEnd},
    executor::{
        Executor,
        agent_cards::{HttpRequest, Route},
        agents::Agent,
    },
    input::{check_json, member},
};

/// Time-out for the cancellation. Its result makes no difference to the run.
const CANCEL_TIME: Duration = Duration::from_secs(2);

/// Maximum size of an answer to a cancellation. A larger one is a task, and no error.
const MAX_CANCEL_BYTES: usize = 256 << 10;

/// Error code of an MCP server for a task that it does not know.
const INVALID_PARAMS: i32 = -32602;

/// Form of an answer to a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Of an A2A agent, by JSON-RPC.
    JsonRpc,
    /// Of an A2A agent, by HTTP+JSON.
    HttpJson,
    /// Of an MCP server.
    Mcp,
    /// Of the Responses API, where only the status counts.
    Responses,
}

/// What an agent has answered to a cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::executor) enum Cancelled {
    /// The task is cancelled, or there is nothing to cancel any more.
    Done,
    /// The agent does not know the method or the version.
    UnknownVersion,
    /// It refuses for another reason, which may pass.
    Refused,
}

impl Cancelled {
    /// Reads an answer. The status counts only if there is no code.
    fn of(status: StatusCode, answer: Option<&RawValue>, form: Form) -> Self {
        let is_rest = form == Form::HttpJson;
        let error = match answer {
            _ if form == Form::Responses => None,
            Some(json) if is_rest => RpcError::of_http(json).filter(|_| !status.is_success()),
            Some(json) => RpcError::of_response(json),
            None => None,
        };
        let of_status = || {
            matches!(status, StatusCode::NOT_FOUND | StatusCode::CONFLICT | StatusCode::BAD_REQUEST | StatusCode::GONE)
        };
        match error.as_ref().and_then(RpcError::number) {
            // A server that does not know the method has nothing that could be cancelled.
            Some(INVALID_PARAMS | METHOD_NOT_FOUND) if form == Form::Mcp => Self::Done,
            Some(TASK_NOT_FOUND | TASK_NOT_CANCELABLE | UNSUPPORTED_OPERATION) => Self::Done,
            Some(METHOD_NOT_FOUND | VERSION_NOT_SUPPORTED) => Self::UnknownVersion,
            // By HTTP+JSON the code is the status.
            Some(_) if !is_rest => Self::Refused,
            _ if status.is_success() => {
                let is_result = is_rest
                    || form == Form::Responses
                    || answer.is_some_and(|json| matches!(rpc_result(json), Ok(Ok(_))));
                if is_result { Self::Done } else { Self::Refused }
            }
            _ if of_status() => Self::Done,
            _ => Self::Refused,
        }
    }

    /// Reads the answer of an agent; `None`: it cannot be read.
    pub(super) async fn read(response: Response, form: Form, clock: &Clock) -> Option<Self> {
        let status = response.status();
        if EventReader::is_stream(&response) {
            return Self::read_stream(response, form, clock).await;
        }
        match egress::read_body(response, MAX_CANCEL_BYTES, None).await {
            Ok(body) => Some(Self::of(status, body.json().ok(), form)),
            Err(BodyError::TooLarge(_)) => Some(if status.is_success() { Self::Done } else { Self::Refused }),
            Err(_) => None,
        }
    }

    /// Reads an event stream, in which an MCP server may answer too.
    async fn read_stream(response: Response, form: Form, clock: &Clock) -> Option<Self> {
        let status = response.status();
        let mut events = EventReader::new(response, clock, MAX_CANCEL_BYTES);
        loop {
            match events.next().await {
                Ok(event) => match check_json(event.data.as_bytes()) {
                    // Notifications come before the answer.
                    Ok(json) if member(json, "method").is_none() => return Some(Self::of(status, Some(json), form)),
                    _ => {}
                },
                Err(StreamEnd::TooLarge) => return Some(Self::Done),
                Err(_) => return None,
            }
        }
    }
}

/// Task under way. Dropped before the task is over, it cancels the task: the deadline has passed, or the branch,
/// the block or the run was abandoned or cancelled. If another executor continues the run, the task is left to it.
pub(super) struct InFlight {
    executor: Executor,
    stop: CancellationToken,
    /// Task id; empty: there is nothing to cancel any more.
    task: String,
    agent: Arc<Agent>,
    /// Request that cancels the task.
    cancel: HttpRequest,
    run_id: String,
    /// Attempt at which the task is kept.
    attempt_id: String,
    lease_token: Uuid,
    correlation_id: String,
    traceparent: Option<String>,
    /// Whether the task is left to what is recorded of its questions.
    is_recorded: bool,
}

impl InFlight {
    /// Task of an A2A agent.
    pub(super) fn new(request: &Request<'_>, route: &Route, task: String) -> Self {
        Self::cancelled_by(request, cancellation(route, &task), task)
    }

    /// Task that this request cancels.
    pub(super) fn cancelled_by(request: &Request<'_>, cancel: HttpRequest, task: String) -> Self {
        Self {
            executor: request.executor.clone(),
            stop: request.stop.clone(),
            task,
            agent: Arc::clone(request.agent),
            cancel,
            run_id: request.run_id.to_owned(),
            attempt_id: request.attempt_id.to_owned(),
            lease_token: request.lease_token,
            correlation_id: request.correlation_id.to_owned(),
            traceparent: request.trace.outgoing(request.span),
            is_recorded: request.conversation.answered.is_some(),
        }
    }

    /// The same task by another route.
    pub(super) fn by(mut self, route: &Route) -> Self {
        self.cancel = cancellation(route, &self.task);
        self
    }

    /// The agent's id of the task.
    pub(super) fn task(&self) -> &str {
        &self.task
    }

    /// Marks the task as ended.
    pub(super) fn is_over(&mut self) {
        self.task.clear();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.task.is_empty() || self.is_recorded || self.executor.give_up.is_cancelled() {
            return;
        }
        self.task.clear();
        let (executor, agent, cancel) = (self.executor.clone(), Arc::clone(&self.agent), self.cancel.clone());
        let (run_id, correlation_id) = (mem::take(&mut self.run_id), mem::take(&mut self.correlation_id));
        let attempt_id = mem::take(&mut self.attempt_id);
        let traceparent = self.traceparent.take();
        // A run whose driver was stopped belongs to another executor, or will soon, unless it was cancelled.
        let own_lease = Some(self.lease_token).filter(|_| !self.stop.is_cancelled());
        self.executor.spawn_after(async move {
            let cancelling = async {
                if goes_on(&executor, &run_id, own_lease).await {
                    return;
                }
                let names = (correlation_id.as_str(), traceparent);
                let answer = request_cancellation(&executor, &agent, cancel, names).await;
                let outcome = match &answer {
                    Some(answer) => answer.status().as_u16().to_string(),
                    None => "no answer".to_owned(),
                };
                tracing::debug!(run_id, correlation_id, agent = agent.name, outcome, "a task was cancelled");
                if own_lease.is_none() && answer.is_some_and(|answer| answer.status().is_success()) {
                    no_more_given_up(&executor, attempt_id).await;
                }
            };
            if tokio::time::timeout(CANCEL_TIME, cancelling).await.is_err() {
                tracing::debug!(
                    run_id,
                    correlation_id,
                    agent = agent.name,
                    "the agent could not be notified of a cancelled task"
                );
            }
        });
    }
}

/// Request that cancels a task of an A2A agent.
fn cancellation(route: &Route, task: &str) -> HttpRequest {
    let params = request::about(route.version, Operation::Cancel, Some(task), route.tenant.as_deref());
    route.request(&format!("cancel-{task}"), Operation::Cancel, &params, Some(task))
}

/// Requests the cancellation of a task of an A2A agent; `None`: there is no answer.
pub(in crate::executor) async fn cancel_task(
    executor: &Executor,
    agent: &Agent,
    route: &Route,
    task: &str,
    names: (&str, Option<String>),
) -> Option<Cancelled> {
    let answer = request_cancellation(executor, agent, cancellation(route, task), names).await?;
    Cancelled::read(answer, if route.is_rest { Form::HttpJson } else { Form::JsonRpc }, &executor.clock).await
}

pub(super) async fn request_cancellation(
    executor: &Executor,
    agent: &Agent,
    cancel: HttpRequest,
    names: (&str, Option<String>),
) -> Option<Response> {
    let request = prepare(&executor.egress, agent, cancel, names).await.ok()?;
    request.send().await.ok()
}

/// Notes that the agent has heard that a task of a cancelled run is not needed any more.
pub(in crate::executor) async fn no_more_given_up(executor: &Executor, attempt_id: String) {
    let pool = executor.pool.clone();
    let noted = db::bounded(async move { db::executions::task_cancelled(&pool, &attempt_id).await });
    if let Err(error) = noted.await {
        // It is cancelled once more, which changes nothing.
        tracing::debug!(error = &error as &dyn std::error::Error, "a cancellation is not noted: {error}");
    }
}

/// Whether the run continues under another lease. If the database is down this is unknown, and the task is left alone.
async fn goes_on(executor: &Executor, run_id: &str, own_lease: Option<Uuid>) -> bool {
    let (pool, run_id) = (executor.pool.clone(), run_id.to_owned());
    db::bounded(async move { db::executions::is_held_by_others(&pool, &run_id, own_lease).await }).await.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn an_answer_to_a_cancellation_is_judged_by_its_code_and_else_by_its_status() {
        let error = |code: i32| format!(r#"{{"jsonrpc":"2.0","error":{{"code":{code},"message":"no"}}}}"#);
        let reason = |reason: &str| format!(r#"{{"error":{{"code":400,"details":[{{"reason":"{reason}"}}]}}}}"#);
        let result = r#"{"jsonrpc":"2.0","result":{"id":"t","status":{"state":"canceled"}}}"#.to_owned();
        for (status, body, form, expected) in [
            (200, result.clone(), Form::JsonRpc, Cancelled::Done),
            (200, error(-32001), Form::JsonRpc, Cancelled::Done),
            (200, error(-32002), Form::JsonRpc, Cancelled::Done),
            (200, error(-32004), Form::JsonRpc, Cancelled::Done),
            (400, error(-32002), Form::JsonRpc, Cancelled::Done),
            (200, error(-32601), Form::JsonRpc, Cancelled::UnknownVersion),
            (404, error(-32601), Form::JsonRpc, Cancelled::UnknownVersion),
            (400, error(-32009), Form::JsonRpc, Cancelled::UnknownVersion),
            (200, error(-32603), Form::JsonRpc, Cancelled::Refused),
            (400, error(-32600), Form::JsonRpc, Cancelled::Refused),
            (500, error(-32603), Form::JsonRpc, Cancelled::Refused),
            (200, "<html>".to_owned(), Form::JsonRpc, Cancelled::Refused),
            (200, "{}".to_owned(), Form::JsonRpc, Cancelled::Refused),
            (404, String::new(), Form::JsonRpc, Cancelled::Done),
            (409, "no".to_owned(), Form::JsonRpc, Cancelled::Done),
            (401, String::new(), Form::JsonRpc, Cancelled::Refused),
            (503, String::new(), Form::JsonRpc, Cancelled::Refused),
            // By HTTP+JSON.
            (200, r#"{"id":"t","status":{"state":"TASK_STATE_CANCELED"}}"#.to_owned(), Form::HttpJson, Cancelled::Done),
            (200, String::new(), Form::HttpJson, Cancelled::Done),
            (400, reason("TASK_NOT_CANCELABLE"), Form::HttpJson, Cancelled::Done),
            (400, reason("VERSION_NOT_SUPPORTED"), Form::HttpJson, Cancelled::UnknownVersion),
            (404, reason("TASK_NOT_FOUND"), Form::HttpJson, Cancelled::Done),
            (409, reason("OTHER"), Form::HttpJson, Cancelled::Done),
            (500, reason("OTHER"), Form::HttpJson, Cancelled::Refused),
            // Of the Responses API.
            (200, r#"{"id":"r","status":"cancelled","error":null}"#.to_owned(), Form::Responses, Cancelled::Done),
            (400, r#"{"error":{"message":"it has ended"}}"#.to_owned(), Form::Responses, Cancelled::Done),
            (503, String::new(), Form::Responses, Cancelled::Refused),
            // Of an MCP server.
            (200, result.clone(), Form::Mcp, Cancelled::Done),
            (200, error(-32602), Form::Mcp, Cancelled::Done),
            (404, error(-32601), Form::Mcp, Cancelled::Done),
            (200, error(-32603), Form::Mcp, Cancelled::Refused),
            (400, error(-32022), Form::Mcp, Cancelled::Refused),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let found = Cancelled::of(status, check_json(body.as_bytes()).ok(), form);
            assert_eq!(found, expected, "{form:?} {status} {body}");
        }
    }
}
