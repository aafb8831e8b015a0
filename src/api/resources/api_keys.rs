//! Handlers of `/api-keys` and `/auth/token`.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::organizations;
use crate::{
    access::{Grant, OrganizationId, Permission, Role, api_key},
    actions::api_keys::{self, ApiKeyError, NewApiKey},
    api::vocabulary::{
        app::App,
        caller::{Caller, Proof},
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag,
        extract::{JsonBody, Query, path_uuid},
        page::{self, Page},
        parameters, sets, token,
    },
    db::{self, api_keys::ApiKeyRow},
    input::{self, FieldError, Node, Object, Read, request_object},
    timestamp::Timestamp,
};

/// Length range of a key's name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=100;
/// Maximum number of workflows that a key is bound to.
const MAX_WORKFLOWS: usize = 100;
/// Length range of a workflow's name.
const WORKFLOW_NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// Page of the list of API keys.
pub type ApiKeyPage = Page<ApiKey>;

/// API key without its secret.
#[derive(Serialize, ToSchema)]
pub struct ApiKey {
    /// Id of the key.
    id: Uuid,
    /// Name, unique among the keys that are not revoked. Logs and audit entries name the caller `api-key:` and this.
    #[schema(example = "ci")]
    name: String,
    /// Prefix of the key.
    #[schema(example = "wf_live")]
    prefix: String,
    /// Last characters of the key.
    #[schema(example = "x7Qa")]
    last_four: String,
    /// Role that limits its permissions.
    #[schema(value_type = sets::Role)]
    role: String,
    /// Restriction to these permissions of the role; null: all of them.
    #[schema(value_type = Option<Vec<sets::Permission>>)]
    scopes: Option<Vec<String>>,
    /// Restriction to workflows of these names and their runs; null: all workflows.
    workflows: Option<Vec<String>>,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// User who created it.
    created_by: String,
    /// Expiry: from then on the key is invalid; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Time of the revocation.
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
    /// User who revoked it.
    revoked_by: Option<String>,
    /// Time of the last use, accurate to a minute or two.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
    /// Organisation of the key.
    organization_id: String,
    /// Id of the key that created this one, directly or by a token; this one is revoked with it. Null: none.
    parent_key_id: Option<Uuid>,
}

impl From<ApiKeyRow> for ApiKey {
    fn from(row: ApiKeyRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            prefix: row.prefix,
            last_four: row.last_four,
            role: row.role,
            scopes: row.scopes,
            workflows: row.workflows,
            created_at: row.created_at,
            created_by: row.created_by,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
            revoked_by: row.revoked_by,
            last_used_at: row.last_used_at,
            organization_id: row.organization_id,
            parent_key_id: row.parent_id,
        }
    }
}

/// API key that was just created, with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedApiKey {
    /// The key as later answers show it.
    #[serde(flatten)]
    shown: ApiKey,
    /// The secret key. It is not stored, and shown only here.
    #[schema(example = "wf_live_…")]
    key: String,
}

request_object! {
    /// Body of a create request.
    #[schema(as = CreateApiKeyRequest, example = json!({"name": "ci", "role": "operator"}))]
    pub struct NewApiKeyBody: deny_unknown_fields, with now: Timestamp {
        /// Name, unique among the keys that are not revoked.
        #[schema(min_length = 1, max_length = 100, pattern = r"^[ -~]*[!-~][ -~]*$", example = "ci")]
        name: String = required(|node| {
            let name = node.not_blank(NAME_CHARS)?;
            if api_key::is_name(&name) {
                return Ok(name);
            }
            Err(vec![FieldError::rule(node.path(), "must consist of ASCII characters")])
        }),
        /// Role that limits its permissions.
        #[schema(value_type = sets::Role)]
        role: Role = required(|node| node.parsed(|name| name.parse::<Role>().map_err(|error| error.to_string()))),
        /// Restriction to these permissions of the role; null: all of them.
        #[schema(value_type = Option<Vec<sets::Permission>>, min_items = 1, example = json!(["runs:read"]))]
        scopes: Option<Vec<Permission>> = nullable(|node| read_scopes(node, role)),
        /// Restriction to workflows of these names and their runs; null: all workflows. A restricted key can only use the
        /// routes that name a workflow or a run.
        #[schema(min_items = 1, max_items = 100, example = json!(["nightly"]))]
        workflows: Option<Vec<String>> = nullable(|node| {
            let names = non_empty_list(node, MAX_WORKFLOWS)?;
            names.iter().map(|name| name.string(WORKFLOW_NAME_CHARS)).collect()
        }),
        /// Expiry of the key, not later than that of the caller's credentials; null: the same as the caller's
        /// credentials, or never.
        #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
        expires_at: Option<Timestamp> = nullable(|node| {
            let at = input::query_datetime("expires_at", &node.string(input::ANY_LENGTH)?);
            let at = at.map(Timestamp::from).map_err(|error| vec![FieldError { field: node.path(), ..error }])?;
            if at > now { Ok(at) } else { Err(vec![FieldError::rule(node.path(), "must be in the future")]) }
        }),
        /// Organisation of the key; null: that of the caller. Only an administrator of the default organisation can name
        /// another one.
        #[schema(value_type = Option<String>, min_length = 1, max_length = 63,
            pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = json!(null))]
        organization_id: Option<OrganizationId> = nullable(|node| {
            node.parsed(|text| OrganizationId::parse(text).map_err(|error| error.to_string()))
        }),
    }
}

/// Reads scopes; all must be permissions of the role, unless that has an error.
fn read_scopes(node: &Node<'_>, role: Option<Role>) -> Read<Vec<Permission>> {
    let scopes = non_empty_list(node, Permission::ALL.len())?;
    let scopes = scopes.iter().map(|scope| scope.parsed(read_scope)).collect::<Read<Vec<_>>>()?;
    let exceeding = role.and_then(|role| Some((role, scopes.iter().find(|of| !role.permissions().contains(of))?)));
    if let Some((role, scope)) = exceeding {
        let text = format!("the role {role} does not have {}", scope.as_str());
        return Err(vec![FieldError::rule(node.path(), text)]);
    }
    Ok(scopes)
}

fn read_scope(name: &str) -> Result<Permission, String> {
    Permission::parse(name).ok_or_else(|| {
        let names: Vec<_> = Permission::ALL.into_iter().map(Permission::as_str).collect();
        format!("must be one of {}", names.join(", "))
    })
}

/// A list that is not empty: an empty one would allow nothing, but could be meant to allow all.
fn non_empty_list<'a>(node: &Node<'a>, at_most: usize) -> Read<Vec<Node<'a>>> {
    let nodes = node.list()?;
    if nodes.is_empty() || nodes.len() > at_most {
        return Err(vec![FieldError::rule(node.path(), format!("must have 1 to {at_most} entries; null means all"))]);
    }
    Ok(nodes)
}

/// `{key_id}` in the path.
pub struct KeyId(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for KeyId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "key_id").await.map(Self)
    }
}

impl From<ApiKeyError> for ApiError {
    fn from(error: ApiKeyError) -> Self {
        match error {
            ApiKeyError::NotFound => not_found(),
            ApiKeyError::NameTaken(name) => {
                Self::conflict("api_key_name_taken", format!("An API key named {name:?} is in use"))
            }
            ApiKeyError::ParentRevoked => ApiError::unauthorized("The API key is not valid"),
            error @ ApiKeyError::ChainTooLong => {
                let detail = format!("{error}; create this one with a key that is nearer to the first one");
                Self::conflict("key_line_too_long", detail)
            }
            ApiKeyError::LastAdminKey => {
                let detail = "No other administrator key is valid for at least a day, and no tokens are verified; create \
                              one first, by `workflow-api api-key --name NAME`";
                Self::conflict("last_admin_key", detail)
            }
            ApiKeyError::OrganizationNotFound => organizations::not_found(),
            ApiKeyError::Quota(exceeded) => exceeded.into(),
            ApiKeyError::Db(error) => error.into(),
        }
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("api_key_not_found", "API key not found")
}

/// Create an API key
///
/// The key allows no more than the caller's own permissions, and ends no later than the caller's credentials. A key
/// that was created with another key is revoked with it; `workflow-api api-key` creates independent keys. The secret
/// key is only in this answer and cannot be shown again. `Idempotency-Key` has no effect here, since a secret cannot
/// be shown again: a repeat creates no second key because its name is in use.
#[utoipa::path(
    post, path = "/api-keys", tag = "access", request_body = NewApiKeyBody,
    responses(
        (status = 201, body = CreatedApiKey, headers(("Location" = String, description = "The path of the key"))),
        (status = 403, description = "The caller may not create keys, or lacks a permission of the key", body = ErrorBody),
        (status = 404, description = "There is no such organisation", body = ErrorBody),
        (status = 409, description = "A key of that name is in use, or the chain of keys that created each other is too long", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_api_key(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Response, ApiError> {
    let now = Timestamp::from(app.clock.now());
    let body = NewApiKeyBody::read(&Object::body(body.raw())?, now)?;
    let NewApiKeyBody { name, role, scopes, workflows, expires_at, organization_id } = body;
    let organization = organization_id.unwrap_or_else(|| caller.organization().clone());
    let grant = Grant { role, scopes, workflows };
    let mut new = NewApiKey { name, organization, grant, expires_at, parent_id: caller.actor.key_id };
    if new.organization != *caller.organization() && !caller.organization().is_default() {
        return Err(organizations::not_found());
    }
    let exceeds = |permission: &Permission| new.grant.allows(*permission) && !caller.may(*permission);
    if let Some(permission) = Permission::ALL.iter().find(|permission| exceeds(permission)) {
        let detail = format!("The key would allow {}, which the caller lacks", permission.as_str());
        return Err(ApiError::new(StatusCode::FORBIDDEN, "exceeds_own_rights", detail));
    }
    if let Some(end) = caller.ends_at {
        if end <= now || new.expires_at.is_some_and(|expires_at| expires_at > end) {
            let detail = format!(
                "The key would outlive the caller's credentials, which end at {end}; an independent key is created \
                 by `workflow-api api-key`"
            );
            return Err(ApiError::new(StatusCode::FORBIDDEN, "exceeds_own_rights", detail));
        }
        new.expires_at = new.expires_at.or(Some(end));
    }
    let environment = &app.config.auth.api_key_environment;
    let (key, row) = api_keys::create(&app.pool, caller.context(&app), environment, new).await?;
    tracing::info!(target: "api.routes.api_keys", key_id = %row.id, "API key created");
    let path = format!("/api-keys/{}", row.id);
    let created = CreatedApiKey { shown: row.into(), key: key.expose().to_owned() };
    Ok(etag::located(&app, &path, secret(StatusCode::CREATED, created)))
}

/// Answer with a secret, which no cache may store.
fn secret(status: StatusCode, body: impl Serialize) -> Response {
    (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

/// List API keys
///
/// In the order of their creation, without the secret keys. Revoked keys are included.
#[utoipa::path(
    get, path = "/api-keys", tag = "access",
    params(
        parameters::Paging,
    ),
    responses(
        (status = 200, body = ApiKeyPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_api_keys(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let list = ListRequest::read(&app, &ListQuery::new(&query), "api-keys").await?;
    let (organization, page) = (caller.organization(), &list.page);
    let page =
        app.reads.read(|mut conn| async move { db::api_keys::list(&mut conn, organization, page).await }).await?;
    Ok(page::answer(app, caller, &list, page, ApiKey::from))
}

/// Get an API key
///
/// Without the secret key. Revoked keys are included.
#[utoipa::path(
    get, path = "/api-keys/{key_id}", tag = "access", params(("key_id" = Uuid, Path)),
    responses((status = 200, body = ApiKey), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_api_key(State(app): State<App>, caller: Caller, KeyId(id): KeyId) -> Result<Json<ApiKey>, ApiError> {
    Ok(Json(db::api_keys::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?.into()))
}

/// Revoke an API key
///
/// Revokes the key permanently, with the tokens that were issued for it and the keys that were created with any of
/// them. It takes effect in every process within 5 seconds.
#[utoipa::path(
    delete, path = "/api-keys/{key_id}", tag = "access", params(("key_id" = Uuid, Path)),
    responses(
        (status = 200, body = ApiKey), (status = 404, body = ErrorBody),
        (status = 409, description = "No other administrator key is valid for at least a day, and no tokens are verified", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn revoke_api_key(
    State(app): State<App>,
    caller: Caller,
    KeyId(id): KeyId,
) -> Result<Json<ApiKey>, ApiError> {
    let auth = &app.config.auth;
    let must_keep_admin_key = auth.enabled && !auth.verifies_tokens();
    let (row, revoked) = api_keys::revoke(&app.pool, caller.context(&app), id, must_keep_admin_key).await?;
    app.keys.invalidate(&revoked);
    tracing::info!(target: "api.routes.api_keys", key_id = %id, keys = revoked.len(), "API key revoked");
    Ok(Json(row.into()))
}

/// Issued token.
#[derive(Serialize, ToSchema)]
pub struct IssuedToken {
    /// Token for `Authorization: Bearer`.
    access_token: String,
    /// Authentication scheme of the token.
    #[schema(value_type = sets::TokenType)]
    token_type: &'static str,
    /// Lifetime in seconds: `JWT_EXPIRATION_MINUTES`, or until the key expires.
    expires_in: u64,
}

/// Issue a token
///
/// Issues a token for the API key of the request. The token has the permissions of the key, is valid as long as the
/// key, and ends after `JWT_EXPIRATION_MINUTES`.
#[utoipa::path(
    post, path = "/auth/token", tag = "access",
    responses(
        (status = 200, body = IssuedToken),
        (status = 403, description = "The request has no API key", body = ErrorBody),
        (status = 409, description = "There is no JWT_SECRET to sign a token with", body = ErrorBody),
    ),
)]
pub async fn issue_token(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let settings = &app.config.auth;
    // A token must not be exchanged for a later one, which would extend it without end.
    // Neither must a session of the console, which would outlive itself.
    let key_id =
        if let Proof::ApiKey(id) = caller.proof { Some(id).filter(|_| caller.session.is_none()) } else { None };
    let Some(key_id) = key_id else {
        let detail = format!("A token is issued for an API key, in the header {}", settings.api_key_header_text);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "api_key_required", detail));
    };
    if settings.keys.current().secret.is_none() {
        let detail = "JWT_SECRET is not set, so there is nothing to sign a token with; use the API key itself";
        return Err(ApiError::conflict("no_signing_key", detail));
    }
    let issued =
        token::issue_for_key(settings, &caller.actor, caller.grant.role, key_id, caller.ends_at, app.clock.now());
    let (access_token, expires_in) = issued.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "no token was issued: {error}");
        ApiError::internal()
    })?;
    Ok(secret(StatusCode::OK, IssuedToken { access_token, token_type: "Bearer", expires_in }))
}
