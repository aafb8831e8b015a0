//! `/console/session`: signing in to the console, and signing out.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    access::Permission,
    actions::console_session,
    api::vocabulary::{
        app::App,
        caller::{Caller, Proof},
        error::{ApiError, ErrorBody},
        session::{self, Secret},
        sets,
    },
    db::console_sessions::SessionRow,
    timestamp::Timestamp,
};

/// Who uses the console.
#[derive(Serialize, ToSchema)]
pub struct ConsoleSession {
    /// Whether authentication is on. While it is off, every caller has all rights, without signing in.
    authentication: bool,
    /// Whether requests of the console's pages are answered for a caller.
    signed_in: bool,
    /// Subject of the token, or `api-key:` and the name of the API key.
    #[schema(example = "api-key:ops")]
    subject: Option<String>,
    /// Organisation of the caller.
    organization_id: Option<String>,
    /// Role of the caller.
    #[schema(value_type = Option<sets::Role>)]
    role: Option<&'static str>,
    /// Further roles for approvals: the texts in the `roles` of the token.
    #[schema(example = json!(["manager"]))]
    roles: Vec<String>,
    /// What the caller has signed in with, or sends; null while authentication is off.
    #[schema(value_type = Option<sets::Credential>)]
    credential: Option<&'static str>,
    /// What the caller may do: the permissions of the role, or those of them that the API key has.
    #[schema(value_type = Vec<sets::Permission>)]
    permissions: Vec<&'static str>,
    /// Names of the workflows that the API key is bound to; null if it is bound to none.
    workflows: Option<Vec<String>>,
    /// Id of the session; null without one. A request that names another one in the header `Console-Session` is 401
    /// `session_changed`: all tabs of a browser share a cookie.
    id: Option<Uuid>,
    /// Time at which the session ends. It ends earlier with its API key or its token.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Header that carries an API key.
    #[schema(example = "X-API-Key")]
    api_key_header: String,
    /// `API_VERSION`.
    version: String,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    server_time: Timestamp,
}

impl ConsoleSession {
    fn of(app: &App, caller: &Caller, row: Option<&SessionRow>) -> Self {
        let is_known = caller.proof != Proof::Address;
        let permissions = Permission::ALL.into_iter().filter(|permission| is_known && caller.may(*permission));
        Self {
            authentication: app.config.auth.enabled,
            signed_in: is_known,
            subject: is_known.then(|| caller.actor.subject.clone()),
            organization_id: is_known.then(|| caller.organization().to_string()),
            role: is_known.then(|| caller.grant.role.as_str()),
            roles: caller.roles.to_vec(),
            credential: match caller.proof {
                Proof::Nothing | Proof::Address => None,
                Proof::Token(_) | Proof::TokenOfApiKey { .. } => Some("token"),
                Proof::ApiKey(_) => Some("api_key"),
            },
            permissions: permissions.map(Permission::as_str).collect(),
            workflows: caller.grant.workflows.clone().filter(|_| is_known),
            id: row.map(|row| row.id),
            expires_at: row.map(|row| row.expires_at),
            api_key_header: app.config.auth.api_key_header_text.clone(),
            version: app.config.api.version.clone(),
            server_time: app.clock.now().into(),
        }
    }
}

/// Session of the caller.
async fn find(app: &App, caller: &Caller) -> Result<Option<Arc<SessionRow>>, ApiError> {
    Ok(match caller.session {
        Some(hash) => app.sessions.find(hash).await?,
        None => None,
    })
}

fn must_be_same_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    if session::is_same_origin(headers, &app.config.api.public_url) {
        return Ok(());
    }
    let detail = "Only a page of the console can do this. Browsers say so of a page over HTTPS, or on a loopback address; \
                  behind a proxy that changes Host, PUBLIC_URL has to be the address of the console";
    Err(ApiError::new(StatusCode::FORBIDDEN, "cross_site", detail))
}

/// Get the session of the console
///
/// Session of the caller, if there is one. The cookie counts only for requests of the console's own pages.
#[utoipa::path(
    get, path = "/console/session", tag = "console", security(()),
    responses((status = 200, body = ConsoleSession)),
)]
pub async fn get_session(State(app): State<App>, caller: Caller) -> Result<Json<ConsoleSession>, ApiError> {
    let row = find(&app, &caller).await?;
    Ok(Json(ConsoleSession::of(&app, &caller, row.as_deref())))
}

/// Sign in to the console
///
/// Exchanges the API key or the token of the request for a cookie, which pages of the console then use instead. The session
/// has the rights of these credentials, and ends with them, or after 12 hours. Of more than 20 sessions of the same
/// caller the oldest end. Only a page of the console can sign in.
#[utoipa::path(
    post, path = "/console/session", tag = "console",
    responses(
        (status = 201, body = ConsoleSession, headers(("Set-Cookie" = String, description = "The session"))),
        (status = 403, description = "No page of the console has sent the request", body = ErrorBody),
        (status = 409, description = "Authentication is off", body = ErrorBody),
    ),
)]
pub async fn create_session(State(app): State<App>, caller: Caller, headers: HeaderMap) -> Result<Response, ApiError> {
    if !app.config.auth.enabled {
        return Err(ApiError::conflict("authentication_off", "Authentication is off, so that a session is not needed"));
    }
    must_be_same_origin(&app, &headers)?;
    let secret = Secret::generate();
    let cookie = secret.cookie(&app).await?;
    let created_at = Timestamp::from(app.clock.now());
    let latest = Timestamp::from(app.clock.now() + session::LIFETIME);
    let (api_key_id, sealed_token) = if let Proof::ApiKey(id) = caller.proof {
        (Some(id), None)
    } else {
        let token = bearer(&headers).ok_or_else(ApiError::internal)?;
        (None, Some(secret.seal(token)))
    };
    let row = SessionRow {
        id: Uuid::now_v7(),
        organization_id: caller.organization().to_string(),
        subject: caller.actor.subject.clone(),
        api_key_id,
        sealed_token,
        created_at,
        expires_at: caller.ends_at.map_or(latest, |end| end.min(latest)),
    };
    console_session::begin(&app.pool, caller.context(&app), &row, &secret.hash()).await?;
    let cookie = HeaderValue::from_str(&session::set_cookie(&headers, &cookie)).map_err(|_| ApiError::internal())?;
    let body = Json(ConsoleSession::of(&app, &caller, Some(&row)));
    Ok((StatusCode::CREATED, [(header::SET_COOKIE, cookie)], body).into_response())
}

/// The token of a request that was authenticated by it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ').map(|(_, token)| token.trim())
}

/// Sign out of the console
///
/// Ends the session, if there is one, and deletes the cookie. It takes effect in every process within 5 seconds.
#[utoipa::path(
    delete, path = "/console/session", tag = "console", security(()),
    responses(
        (status = 204, description = "The session has ended"),
        (status = 403, description = "No page of the console has sent the request", body = ErrorBody),
    ),
)]
pub async fn delete_session(State(app): State<App>, caller: Caller, headers: HeaderMap) -> Result<Response, ApiError> {
    must_be_same_origin(&app, &headers)?;
    if let Some(row) = find(&app, &caller).await? {
        console_session::end(&app.pool, caller.context(&app), &row).await?;
    }
    if let Some(hash) = &caller.session {
        app.sessions.invalidate(hash);
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    for cleared in session::CLEARED {
        response.headers_mut().append(header::SET_COOKIE, cleared);
    }
    Ok(response)
}
