//! `/api-keys`, and `/auth/token`.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::organizations;
use crate::{
    access::{Grant, OrganizationId, Permission, Role, api_key},
    actions::api_keys::{self, ApiKeyError, NewApiKey},
    api::vocabulary::{
        app::App,
        caller::{Caller, Proof},
        cursor::ListRequest,
        error::{ApiError, ErrorBody},
        etag,
        extract::{JsonBody, Query, path_uuid},
        page::{self, Page},
        parameters, sets, token,
    },
    db::{self, api_keys::ApiKeyRow},
    input::{self, FieldError, Node, Object, Read},
    timestamp::Timestamp,
};

/// Length of a key's name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=100;
/// Workflows that a key may be bound to.
const MAX_WORKFLOWS: usize = 100;
/// Length of a workflow's name.
const WORKFLOW_NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// A part of the list of API keys.
pub type ApiKeyPage = Page<ApiKey>;

/// An API key, as far as it is shown after its creation.
#[derive(Serialize, ToSchema)]
pub struct ApiKey {
    /// Made at creation.
    id: Uuid,
    /// Unique among the keys that are not revoked. Logs and audit entries name the caller `api-key:` and this.
    #[schema(example = "ci")]
    name: String,
    /// The key's beginning.
    #[schema(example = "wf_live")]
    prefix: String,
    /// The key's end.
    #[schema(example = "x7Qa")]
    last_four: String,
    /// What it may do at most.
    #[schema(value_type = sets::Role)]
    role: String,
    /// Of the role's permissions only these; null: all of them.
    #[schema(value_type = Option<Vec<sets::Permission>>)]
    scopes: Option<Vec<String>>,
    /// Only for workflows of these names and their runs; null: for all.
    workflows: Option<Vec<String>>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Who made it.
    created_by: String,
    /// From then on it does not count; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[schema(value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
    /// Who revoked it.
    revoked_by: Option<String>,
    /// When it was used last, to a minute or two.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
    /// Whose key it is.
    organization_id: String,
    /// The key that made it, itself or by a token, and that it falls with; null: no key did.
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

/// A key that was made just now.
#[derive(Serialize, ToSchema)]
pub struct CreatedApiKey {
    /// What is shown of it from now on.
    #[serde(flatten)]
    shown: ApiKey,
    /// The key itself. It is not stored, and shown only here.
    #[schema(example = "wf_live_…")]
    key: String,
}

/// The body of a create request.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateApiKeyRequest, example = json!({"name": "ci", "role": "operator"}))]
#[expect(dead_code, reason = "describes what `parse` reads")]
pub struct NewApiKeyBody {
    /// Unique among the keys that are not revoked.
    #[schema(min_length = 1, max_length = 100, pattern = r"^[ -~]*[!-~][ -~]*$", example = "ci")]
    name: String,
    /// What it may do at most.
    role: sets::Role,
    /// Of the role's permissions only these; null: all of them.
    #[schema(min_items = 1, example = json!(["runs:read"]))]
    scopes: Option<Vec<sets::Permission>>,
    /// Only for workflows of these names and their runs; null: for all. Such a key can use the routes that name a
    /// workflow or a run, and no others.
    #[schema(min_items = 1, max_items = 100, example = json!(["nightly"]))]
    workflows: Option<Vec<String>>,
    /// From then on it does not count. No later than what the caller proves who he is with; null: when that ends, and never
    /// if it does not.
    #[schema(value_type = Option<String>, format = DateTime, example = json!(null))]
    expires_at: Option<String>,
    /// Whose key it is to be; null: the caller's. Another one than that only an administrator of the default
    /// organisation can name.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = json!(null))]
    organization_id: Option<String>,
}

/// Reads the body of a create request.
fn parse(body: &RawValue, own: &OrganizationId) -> Read<NewApiKey> {
    let body = Object::body(body)?;
    let mut errors = Vec::new();
    body.only(&["name", "role", "scopes", "workflows", "expires_at", "organization_id"], &mut errors);
    let name = body.required("name", &mut errors, |node| {
        let name = node.not_blank(NAME_CHARS)?;
        if api_key::is_name(&name) {
            return Ok(name);
        }
        Err(vec![FieldError::rule(node.path(), "must consist of ASCII characters")])
    });
    let role = body.required("role", &mut errors, |node| {
        node.parsed(|name| name.parse::<Role>().map_err(|error| error.to_string()))
    });
    let scopes = body.nullable("scopes", &mut errors, |node| {
        let scopes = some_of(node, Permission::ALL.len())?;
        scopes.iter().map(|scope| scope.parsed(read_scope)).collect::<Read<Vec<_>>>()
    });
    let workflows = body.nullable("workflows", &mut errors, |node| {
        some_of(node, MAX_WORKFLOWS)?.iter().map(|name| name.string(WORKFLOW_NAME_CHARS)).collect::<Read<Vec<_>>>()
    });
    let expires_at = body.nullable("expires_at", &mut errors, |node| {
        let at = input::query_datetime("expires_at", &node.string(input::ANY_LENGTH)?);
        let at = at.map(Timestamp::from).map_err(|error| vec![FieldError { field: node.path(), ..error }])?;
        if at > Timestamp::now() { Ok(at) } else { Err(vec![FieldError::rule(node.path(), "must be in the future")]) }
    });
    let organization = body.nullable("organization_id", &mut errors, |node| {
        node.parsed(|text| OrganizationId::parse(text).map_err(|error| error.to_string()))
    });
    if let (Some(role), Some(scopes)) = (role, &scopes)
        && let Some(scope) = scopes.iter().find(|scope| !role.permissions().contains(scope))
    {
        let text = format!("the role {role} does not have {}", scope.as_str());
        errors.push(FieldError::rule("body.scopes", text));
    }
    match (name, role) {
        (Some(name), Some(role)) if errors.is_empty() => {
            let organization = organization.unwrap_or_else(|| own.clone());
            let grant = Grant { role, scopes, workflows };
            Ok(NewApiKey { name, organization, grant, expires_at, parent_id: None })
        }
        _ => Err(errors),
    }
}

fn read_scope(name: &str) -> Result<Permission, String> {
    Permission::parse(name).ok_or_else(|| {
        let names: Vec<_> = Permission::ALL.into_iter().map(Permission::as_str).collect();
        format!("must be one of {}", names.join(", "))
    })
}

/// A list that is not empty: it would allow nothing, and could be meant to allow all.
fn some_of<'a>(node: &Node<'a>, at_most: usize) -> Read<Vec<Node<'a>>> {
    let nodes = node.list()?;
    if nodes.is_empty() || nodes.len() > at_most {
        return Err(vec![FieldError::rule(node.path(), format!("must have 1 to {at_most} entries; null is for all"))]);
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
            error @ ApiKeyError::LineTooLong => {
                let detail = format!("{error}; make this one by a key that is nearer to the first one");
                Self::conflict("key_line_too_long", detail)
            }
            ApiKeyError::LastWayIn => {
                let detail = "No other key would let an administrator in for a day, and no tokens are verified; make one \
                              first, by `workflow-api api-key --name NAME`";
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
/// It allows no more than the caller may do, and ends no later than the caller's credentials. A key that a key has made
/// is revoked with it. A key that stands alone is made by `workflow-api api-key`. The key is in this answer and can never
/// be seen again.
/// `Idempotency-Key` has no meaning here, as a secret that was shown once cannot be shown again: what keeps a repeat
/// from making a second key is its name.
#[utoipa::path(
    post, path = "/api-keys", tag = "access", request_body = NewApiKeyBody,
    responses(
        (status = 201, body = CreatedApiKey, headers(("Location" = String, description = "The path of the key"))),
        (status = 403, description = "The caller may not make keys, or may not do what the key would allow", body = ErrorBody),
        (status = 404, description = "There is no such organisation", body = ErrorBody),
        (status = 409, description = "A key of that name is in use, or too many keys have made each other", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_api_key(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Response, ApiError> {
    let mut new = parse(body.raw(), caller.organization())?;
    if new.organization != *caller.organization() && !caller.organization().is_default() {
        return Err(organizations::not_found());
    }
    let exceeds = |permission: &Permission| new.grant.allows(*permission) && !caller.may(*permission);
    if let Some(permission) = Permission::ALL.iter().find(|permission| exceeds(permission)) {
        let detail = format!("The key would allow {}, which the caller may not do", permission.as_str());
        return Err(ApiError::new(StatusCode::FORBIDDEN, "exceeds_own_rights", detail));
    }
    new.parent_id = caller.actor.key_id;
    if let Some(end) = caller.ends_at {
        if end <= Timestamp::now() || new.expires_at.is_some_and(|list| list > end) {
            let detail = format!(
                "The key would live longer than what it is made with, which ends at {end}; one that stands alone is made \
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

/// What no cache between here and the client may keep.
fn secret(status: StatusCode, body: impl Serialize) -> Response {
    (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response()
}

/// List API keys
///
/// In the order of their creation, revoked ones too, without the keys themselves.
#[utoipa::path(
    get, path = "/api-keys", tag = "access",
    params(
        parameters::Paging,
    ),
    responses(
        (status = 200, body = ApiKeyPage), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_api_keys(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let list = ListRequest::read(&app, &query, "api-keys", &[]).await?;
    let page = db::api_keys::list(&mut *app.pool.acquire().await?, caller.organization(), &list.page).await?;
    Ok(page::answer(app, caller, &list, page, ApiKey::from))
}

/// Get an API key
///
/// Revoked ones too, without the key itself.
#[utoipa::path(
    get, path = "/api-keys/{key_id}", tag = "access", params(("key_id" = Uuid, Path)),
    responses((status = 200, body = ApiKey), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_api_key(State(app): State<App>, caller: Caller, KeyId(id): KeyId) -> Result<Json<ApiKey>, ApiError> {
    Ok(Json(db::api_keys::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?.into()))
}

/// Revoke an API key
///
/// For good, and with it the tokens that were issued for it and the keys that were made by any of them. Every process
/// knows within 5 seconds.
#[utoipa::path(
    delete, path = "/api-keys/{key_id}", tag = "access", params(("key_id" = Uuid, Path)),
    responses(
        (status = 200, body = ApiKey), (status = 404, body = ErrorBody),
        (status = 409, description = "No other key would let an administrator in, and no tokens are verified", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn revoke_api_key(
    State(app): State<App>,
    caller: Caller,
    KeyId(id): KeyId,
) -> Result<Json<ApiKey>, ApiError> {
    let auth = &app.config.auth;
    let needs_way_in = auth.enabled && !auth.verifies_tokens();
    let (row, revoked) = api_keys::revoke(&app.pool, caller.context(&app), id, needs_way_in).await?;
    app.keys.invalidate(&revoked);
    tracing::info!(target: "api.routes.api_keys", key_id = %id, keys = revoked.len(), "API key revoked");
    Ok(Json(row.into()))
}

/// A token.
#[derive(Serialize, ToSchema)]
pub struct IssuedToken {
    /// For `Authorization: Bearer`.
    access_token: String,
    /// How it is sent.
    #[schema(value_type = sets::TokenType)]
    token_type: &'static str,
    /// Seconds; `JWT_EXPIRATION_MINUTES`, or until the key ends.
    expires_in: u64,
}

/// Issue a token
///
/// For the API key that the request comes with. The token allows what the key allows, for as long as the key counts,
/// and ends after `JWT_EXPIRATION_MINUTES`.
#[utoipa::path(
    post, path = "/auth/token", tag = "access",
    responses(
        (status = 200, body = IssuedToken),
        (status = 403, description = "The request does not come with an API key", body = ErrorBody),
        (status = 409, description = "There is no JWT_SECRET to sign a token with", body = ErrorBody),
    ),
)]
pub async fn issue_token(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    let settings = &app.config.auth;
    // A token must not be exchanged for a later one, again and again.
    let Proof::ApiKey(key_id) = caller.proof else {
        let detail = format!("A token is issued for an API key, in the header {}", settings.api_key_header_text);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "api_key_required", detail));
    };
    if settings.jwt_secret.is_none() {
        let detail = "JWT_SECRET is not set, so there is nothing to sign a token with; use the API key itself";
        return Err(ApiError::conflict("no_signing_key", detail));
    }
    let issued = token::issue_for_key(settings, &caller.actor, caller.grant.role, key_id, caller.ends_at);
    let (access_token, expires_in) = issued.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "no token was issued: {error}");
        ApiError::internal()
    })?;
    Ok(secret(StatusCode::OK, IssuedToken { access_token, token_type: "Bearer", expires_in }))
}
