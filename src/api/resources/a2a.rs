//! Workflows as A2A agents: `/a2a/{organization}/{workflow}`, JSON-RPC, versions 1.0 and 0.3.
//!
//! A task is a run of the workflow. Errors of the request itself (credentials, permissions, limits, an unavailable database)
//! have their own HTTP status and the body of every error; errors of the protocol are JSON-RPC errors with status 200.

pub mod card;
mod errors;
mod message;
mod pushes;
mod stream;
mod tasks;
mod version;

use axum::{
    extract::{FromRequestParts, Path, State},
    response::Response,
};
use http::{HeaderMap, Uri, request::Parts};

use self::{
    errors::{A2aError, Failure},
    version::Method,
};
use crate::{
    a2a::Version,
    access::Permission,
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        json_rpc::{self, Call, METHOD_NOT_FOUND, RpcBody, RpcError},
        parameters,
        prefer::{Patience, Waited},
    },
    db::{self, exposed::ExposedWorkflow},
    input::shorten,
};

/// `{organization}` and `{workflow}` in the path.
pub struct AgentPath {
    /// Id of an organisation, whether or not there is one.
    organization: String,
    /// Name of a workflow.
    workflow: String,
}

impl<S: Send + Sync> FromRequestParts<S> for AgentPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((organization, workflow)) = path.map_err(|_| ApiError::workflow_not_found())?;
        // No row can have such a name, and the database would return an error.
        let is_possible = !workflow.contains('\0');
        if is_possible { Ok(Self { organization, workflow }) } else { Err(ApiError::workflow_not_found()) }
    }
}

/// The agent that the path names, if the caller may see it.
async fn find_agent(app: &App, caller: &Caller, path: &AgentPath) -> Result<ExposedWorkflow, ApiError> {
    let is_own = path.organization == caller.organization().as_str();
    let is_bound = caller.grant.workflows.as_ref().is_none_or(|bound| bound.contains(&path.workflow));
    if !is_own || !is_bound {
        return Err(ApiError::workflow_not_found());
    }
    let found = db::exposed::agent(&app.pool, caller.organization(), &path.workflow).await?;
    found.ok_or_else(ApiError::workflow_not_found)
}

/// Call of a method of an agent.
struct AgentCall {
    app: App,
    caller: Caller,
    workflow: ExposedWorkflow,
    version: Version,
    patience: Patience,
    call: Call,
}

/// Call a workflow as an A2A agent
///
/// One JSON-RPC request of A2A 1.0 or 0.3: sending a message starts a run or answers a question of one; tasks are runs.
/// The header `A2A-Version` names the version; without it the name of the method does. Streaming methods are answered with
/// `text/event-stream`. Errors of the protocol have the status 200.
#[utoipa::path(
    post, path = "/a2a/{organization}/{workflow}", tag = "agents of workflows",
    params(
        parameters::ExposedAgent,
        ("A2A-Version" = Option<String>, Header, description = "Version of the protocol", example = "1.0"),
    ),
    request_body(content = HashMap<String, Value>, description = "A JSON-RPC request", example = json!({
        "jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": {
            "messageId": "4f8b2a52-6c3e-4a39-8d0e-0b8a3c7d9e11", "role": "ROLE_USER", "parts": [{"text": "hello"}],
        }, "configuration": {"returnImmediately": true}},
    })),
    responses(
        (status = 200, description = "A JSON-RPC response, or a stream of them", content(
            (HashMap<String, Value> = "application/json"), (String = "text/event-stream"),
        )),
        (status = 404, description = "There is no such agent for the caller", body = ErrorBody),
        (status = 409, description = "A message with this `messageId` is under way", body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, description = "The body is no JSON", body = ErrorBody),
        (status = 503, description = "The database is unavailable, or too many runs are waiting", body = ErrorBody),
    ),
)]
pub async fn call_agent(
    State(app): State<App>,
    caller: Caller,
    path: AgentPath,
    uri: Uri,
    headers: HeaderMap,
    patience: Patience,
    body: RpcBody,
) -> Result<Response, ApiError> {
    let workflow = find_agent(&app, &caller, &path).await?;
    let call = match body.0 {
        Ok(call) => call,
        Err(answer) => return Ok(answer),
    };
    if call.id.is_none() {
        let error = RpcError::new(json_rpc::INVALID_REQUEST, "The request needs an id");
        return Ok(json_rpc::failed(None, &error));
    }
    let id = call.id.clone();
    let (version, method) = match version::method(&headers, uri.query(), &call.method) {
        Ok(Some(found)) => found,
        Ok(None) => {
            let text = format!("There is no method {:?}", shorten(&call.method));
            return Ok(json_rpc::failed(id.as_deref(), &RpcError::new(METHOD_NOT_FOUND, text)));
        }
        Err(error) => return Ok(json_rpc::failed(id.as_deref(), &error)),
    };
    let call = AgentCall { app, caller, workflow, version, patience, call };
    Ok(call.answer(method).await.unwrap_or_else(|failure| failure.answer(id.as_deref())))
}

impl AgentCall {
    async fn answer(self, method: Method) -> Result<Response, Failure> {
        let needs = match method {
            Method::Send | Method::Stream | Method::Cancel | Method::CreatePush | Method::DeletePush => {
                Permission::RunsWrite
            }
            Method::Get | Method::List | Method::Subscribe | Method::GetPush | Method::ListPushes => {
                Permission::RunsRead
            }
            Method::ExtendedCard => {
                let (error, text) = match self.version {
                    Version::V03 => (A2aError::ExtendedCardNotConfigured, "There is no extended agent card"),
                    Version::V1 => (A2aError::UnsupportedOperation, "Extended agent cards are not supported"),
                };
                return Err(error.with(text, &[]).into());
            }
        };
        self.caller.must(needs)?;
        let id = self.call.id.clone();
        let mut waited = None;
        let result = match method {
            Method::Stream => return self.stream().await,
            Method::Subscribe => return self.subscribe().await,
            Method::Send => {
                let (result, time) = self.send().await?;
                waited = Some(Waited(time));
                result
            }
            Method::Get => self.get().await?,
            Method::List => self.list().await?,
            Method::CreatePush => self.create_push().await?,
            Method::GetPush => self.get_push().await?,
            Method::ListPushes => self.list_pushes().await?,
            Method::DeletePush => self.delete_push().await?,
            Method::Cancel | Method::ExtendedCard => self.cancel().await?,
        };
        let mut response = json_rpc::succeeded(id.as_deref(), &result);
        waited.map(|waited| response.extensions_mut().insert(waited));
        Ok(response)
    }
}
