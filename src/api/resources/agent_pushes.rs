//! `/agent-pushes/{push_id}`, where A2A agents report that a task of an agent step has changed. The executor that waits
//! for the task queries it: nothing of a notification is read but its token.

use axum::extract::{FromRequestParts as _, Path, State};
use http::{HeaderMap, HeaderName, StatusCode, header, request::Parts};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    api::vocabulary::{
        app::App,
        error::{ApiError, ErrorBody},
    },
    db::{self, agent_pushes},
};

/// Header with the token.
const TOKEN: HeaderName = HeaderName::from_static("x-a2a-notification-token");
/// Maximum length of a token.
const MAX_TOKEN_BYTES: usize = 128;

/// Whether the request has an address that an agent was given, and its token.
pub async fn is_expected(app: &App, request: &mut Parts) -> Result<bool, ApiError> {
    let Ok(Path(id)) = Path::<Uuid>::from_request_parts(request, &()).await else { return Ok(false) };
    let Some(token) = token(&request.headers).filter(|token| token.len() <= MAX_TOKEN_BYTES) else { return Ok(false) };
    let (pool, hash) = (app.pool.clone(), Sha256::digest(token));
    Ok(db::bounded(async move { agent_pushes::is_expected(&pool, id, &hash).await }).await?)
}

/// The token, in its own header or as a bearer token: agents send either or both.
fn token(headers: &HeaderMap) -> Option<&str> {
    let own = headers.get(&TOKEN).and_then(|value| value.to_str().ok());
    own.or_else(|| {
        let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    })
}

/// The answer to everything that is not expected, which does not say why.
#[must_use]
pub fn refused() -> ApiError {
    ApiError::not_found("agent_push_not_found", "No agent is expected to report here, or its token is wrong")
}

/// Receive a push notification of an agent
///
/// A2A agents that offer push notifications get the address and a token with each message, if `PUBLIC_URL` is set. The
/// body is not read: the service asks the agent for the task. Needs no other credentials.
#[utoipa::path(
    post, path = "/agent-pushes/{push_id}", tag = "agents",
    params(
        ("push_id" = Uuid, Path),
        ("X-A2A-Notification-Token" = Option<String>, Header,
            description = "The token, unless it is sent as a bearer token"),
    ),
    request_body(content = Option<Object>, description = "A notification of either version of A2A, which is not read"),
    responses(
        (status = 204),
        (status = 404, description = "No such address, a wrong token, or the task has ended", body = ErrorBody),
    ),
)]
pub async fn receive_push(State(app): State<App>, Path(id): Path<Uuid>) -> Result<StatusCode, ApiError> {
    agent_pushes::notify(&app.pool, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
