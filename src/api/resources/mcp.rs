//! Workflows as MCP tools: `/mcp`, revision 2026-07-28 and older ones, without sessions.
//!
//! Errors of the request itself (credentials, limits, an unavailable database) have their own HTTP status and the body of
//! every error; errors of the protocol are JSON-RPC errors; what a model can react to is the result of its tool. So is
//! what the caller may not do: to clients, a status of HTTP is the end of the connection.

mod elicitation;
mod fixed;
mod outcome;
mod protocol;
mod tasks;
mod tools;

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode};
use serde_json::{json, value::RawValue};

use self::{
    outcome::{output_of, refused_result},
    protocol::{Client, Refusal, check_origin, refused},
};
use crate::{
    access::{Actor, Permission},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        headers::IDEMPOTENCY_KEY,
        json_rpc::{self, Call, INVALID_PARAMS, METHOD_NOT_FOUND, RpcBody, RpcError},
        prefer::{Patience, Waited},
    },
    input::{member, object_of, shorten, text, to_raw},
    mcp::{LEGACY, MODERN, TASKS, own_info},
    trace,
};

/// What models read about the server.
const INSTRUCTIONS: &str = "Each tool with the name of a workflow starts a run of that workflow and returns its output. \
    Other workflows are found by workflows_search and started by run_start. A run that takes longer is awaited by \
    run_await. A run may wait for the decision of a person: ask the user, and give the answer by approval_answer; never \
    decide on your own.";

/// Reason why a call has no result.
enum Failure {
    /// Error of the protocol, with the status of its answer.
    Rpc(Refusal),
    /// Error of the request.
    Http(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Http(error)
    }
}

impl From<Arc<crate::db::Error>> for Failure {
    fn from(error: Arc<crate::db::Error>) -> Self {
        Self::Http(error.into())
    }
}

impl From<crate::db::Error> for Failure {
    fn from(error: crate::db::Error) -> Self {
        Self::Http(error.into())
    }
}

/// Parameters that are not valid.
fn invalid(text: impl Into<String>) -> Failure {
    Failure::Rpc((StatusCode::OK, RpcError::new(INVALID_PARAMS, text)))
}

/// Call of a method of the server.
struct McpCall {
    app: App,
    caller: Caller,
    client: Client,
    patience: Patience,
    /// Header by which a client makes its request safe to repeat.
    idempotency_key: Option<String>,
    call: Call,
    /// Time for which the call has waited for a run.
    waited: Duration,
}

/// Call the MCP server
///
/// One JSON-RPC request of the Model Context Protocol, of revision 2026-07-28 or an older one (2025-03-26 to 2025-11-25).
/// There are no sessions, and no stream by GET. Workflows with `expose.mcp` are tools, besides seven that are always there.
#[utoipa::path(
    post, path = "/mcp", tag = "agents of workflows",
    params(
        ("MCP-Protocol-Version" = Option<String>, Header, description = "Revision of the protocol", example = "2025-11-25"),
        ("Mcp-Method" = Option<String>, Header, description = "The method of the body; required from 2026-07-28 on"),
        ("Mcp-Name" = Option<String>, Header, description = "The tool, the resource or the task of the body; required from \
            2026-07-28 on"),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a tool call safe to repeat"),
    ),
    request_body(content = HashMap<String, Value>, description = "A JSON-RPC request or notification",
        example = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})),
    responses(
        (status = 200, description = "A JSON-RPC response", body = HashMap<String, Value>),
        (status = 202, description = "The notification was accepted"),
        (status = 400, description = "The request breaks a rule of the protocol", body = HashMap<String, Value>),
        (status = 403, description = "A page of another origin sends the request", body = ErrorBody),
        (status = 404, description = "The revision has no such method", body = HashMap<String, Value>),
        (status = 409, description = "A request with this key is under way", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, description = "The body is no JSON", body = ErrorBody),
    ),
)]
pub async fn call_mcp(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    patience: Patience,
    body: RpcBody,
) -> Result<Response, ApiError> {
    check_origin(&app.config, &headers)?;
    let call = match body.0 {
        Ok(call) => call,
        Err(mut answer) => {
            *answer.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(answer);
        }
    };
    let Some(id) = call.id.clone() else {
        // No notification of a client changes anything here.
        return Ok(StatusCode::ACCEPTED.into_response());
    };
    let client = match Client::read(&headers, &call) {
        Ok(client) => client,
        Err(refusal) => return Ok(refused(Some(&id), &refusal)),
    };
    let caller = traced(caller, &call);
    let idempotency_key = headers.get(&IDEMPOTENCY_KEY).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut call = McpCall { app, caller, client, patience, idempotency_key, call, waited: Duration::ZERO };
    match call.answer().await {
        Ok(result) => {
            let mut response = json_rpc::succeeded(Some(&id), &result);
            if !call.waited.is_zero() {
                response.extensions_mut().insert(Waited(call.waited));
            }
            Ok(response)
        }
        Err(Failure::Rpc(refusal)) => Ok(refused(Some(&id), &refusal)),
        Err(Failure::Http(error)) if error.status() == StatusCode::FORBIDDEN => {
            Ok(refused(Some(&id), &(StatusCode::OK, RpcError::new(INVALID_PARAMS, error.detail()))))
        }
        Err(Failure::Http(error)) => Err(error),
    }
}

/// The caller with the trace context of the call, unless the request has one in its headers.
fn traced(caller: Caller, call: &Call) -> Caller {
    let given = member(&call.params, "_meta").and_then(|meta| member(meta, "traceparent")).and_then(text);
    match given.as_deref().and_then(trace::valid) {
        Some(given) if caller.actor.traceparent.is_none() => {
            let actor = Arc::new(Actor { traceparent: Some(given.into()), ..Actor::clone(&caller.actor) });
            Caller { actor, ..caller }
        }
        _ => caller,
    }
}

impl McpCall {
    async fn answer(&mut self) -> Result<Box<RawValue>, Failure> {
        match self.call.method.clone().as_str() {
            "initialize" if !self.client.is_modern => Ok(self.initialize()),
            "server/discover" if self.client.is_modern => Ok(self.discover()),
            "ping" => Ok(self.client.result("complete", &[])),
            "tools/list" => self.list_tools().await,
            "tools/call" => match self.call_tool().await {
                Err(Failure::Http(error)) => refused_result(self.client, error),
                answer => answer,
            },
            "resources/list" => Ok(self.client.cacheable(&[("resources", &to_raw(&[(); 0]))])),
            "resources/templates/list" => {
                let template = json!([{
                    "uriTemplate": format!("{OUTPUT_URI_START}{{run_id}}{OUTPUT_URI_END}"), "name": "output",
                    "description": "Output of a completed run", "mimeType": "application/json",
                }]);
                Ok(self.client.cacheable(&[("resourceTemplates", &to_raw(&template))]))
            }
            "resources/read" => self.read_resource().await,
            "tasks/get" if self.client.is_modern => self.get_task().await,
            "tasks/update" if self.client.is_modern => self.update_task().await,
            "tasks/cancel" if self.client.is_modern => self.cancel_task().await,
            other => {
                let status = if self.client.is_modern { StatusCode::NOT_FOUND } else { StatusCode::OK };
                let text = format!("There is no method {:?}", shorten(other));
                Err(Failure::Rpc((status, RpcError::new(METHOD_NOT_FOUND, text))))
            }
        }
    }

    fn initialize(&self) -> Box<RawValue> {
        let wanted = member(&self.call.params, "protocolVersion").and_then(text);
        let version = LEGACY.into_iter().find(|version| Some(*version) == wanted.as_deref()).unwrap_or(LEGACY[0]);
        to_raw(&json!({
            "protocolVersion": version, "capabilities": {"tools": {}, "resources": {}}, "serverInfo": own_info(),
            "instructions": INSTRUCTIONS,
        }))
    }

    fn discover(&self) -> Box<RawValue> {
        let versions: Vec<_> = [MODERN].into_iter().chain(LEGACY).collect();
        let capabilities = to_raw(&json!({"tools": {}, "resources": {}, "extensions": {TASKS: {}}}));
        let (versions, instructions) = (to_raw(&versions), to_raw(INSTRUCTIONS));
        self.client.cacheable(&[
            ("supportedVersions", &versions),
            ("capabilities", &capabilities),
            ("instructions", &instructions),
        ])
    }

    /// Reads the output of a run, which the result of a tool has named.
    async fn read_resource(&self) -> Result<Box<RawValue>, Failure> {
        self.caller.must(Permission::RunsRead)?;
        let uri = member(&self.call.params, "uri").and_then(text).unwrap_or_default();
        let run_id = uri.strip_prefix(OUTPUT_URI_START).and_then(|rest| rest.strip_suffix(OUTPUT_URI_END));
        let output = match run_id {
            Some(run_id) => output_of(&self.app, &self.caller, run_id).await?,
            None => None,
        };
        let Some(output) = output else {
            // Older revisions have a code of their own.
            let code = if self.client.is_modern { INVALID_PARAMS } else { -32002 };
            return Err(Failure::Rpc((StatusCode::OK, RpcError::new(code, "Resource not found"))));
        };
        let (uri, kind, text) = (to_raw(&uri), to_raw("application/json"), to_raw(output.get()));
        let contents = object_of([("uri", &*uri), ("mimeType", &*kind), ("text", &*text)]);
        Ok(self.client.cacheable(&[("contents", &to_raw(&[contents]))]))
    }
}

/// Beginning of the address of an output.
const OUTPUT_URI_START: &str = "workflow-api://runs/";
/// End of the address of an output.
const OUTPUT_URI_END: &str = "/output";
