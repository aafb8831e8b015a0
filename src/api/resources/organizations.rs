//! Handlers of `/organizations`. Administrators of the default organisation manage all of them; other callers see
//! their own.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    access::{Countable, OrganizationId, Quotas},
    actions::organizations::{self, NewOrganization, OrganizationError, OrganizationPatch},
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        etag,
        extract::{JsonBody, Query},
        page::{self, Page},
        parameters, sets,
    },
    db::{self, organizations::OrganizationRow},
    input::{Node, Object, Patch, Read, request_object},
    retention,
    timestamp::Timestamp,
};

/// Length range of a name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// Page of the list of organisations.
pub type OrganizationPage = Page<Organization>;

/// Organisation, which owns agents, workflows, runs, API keys and audit entries.
#[derive(Serialize, ToSchema)]
pub struct Organization {
    /// Id in tokens (claim `organization_id`) and in paths; never changed.
    #[schema(example = "acme")]
    id: String,
    /// Name for people.
    #[schema(example = "Acme Ltd")]
    name: String,
    /// Whether its callers are accepted.
    #[schema(value_type = sets::OrganizationStatus)]
    status: String,
    /// Quotas; null: the value of the settings.
    quotas: Quotas,
    /// Days for which its ended runs are kept, unless a workflow has its own value. 0: for ever; null: the server's
    /// setting.
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<i32>,
    /// User who created it.
    created_by: String,
    /// User who changed it last.
    updated_by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<OrganizationRow> for Organization {
    fn from(row: OrganizationRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            status: row.status,
            quotas: row.quotas,
            retention_days: row.retention_days,
            created_by: row.created_by,
            updated_by: row.updated_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Organisation with its usage.
#[derive(Serialize, ToSchema)]
pub struct OrganizationDetail {
    #[serde(flatten)]
    organization: Organization,
    /// Current usage.
    usage: Usage,
}

/// Current usage of an organisation.
#[derive(Serialize, ToSchema)]
pub struct Usage {
    /// Number of agents that are not deleted.
    agents: i64,
    /// Number of workflow names with a version that is not deleted.
    workflows: i64,
    /// Number of API keys that are neither revoked nor expired.
    api_keys: i64,
    /// Number of runs that are accepted and not yet started.
    queued_runs: i64,
}

request_object! {
    /// Body of a create request.
    #[schema(as = CreateOrganizationRequest, example = json!({"id": "acme", "name": "Acme Ltd"}))]
    pub struct NewOrganizationBody: deny_unknown_fields {
        /// Id in tokens and in paths; never changed.
        #[schema(value_type = String, min_length = 1, max_length = 63,
            pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = "acme")]
        id: OrganizationId = required(|node| {
            node.parsed(|text| OrganizationId::parse(text).map_err(|error| error.to_string()))
        }),
        /// Name for people.
        #[schema(min_length = 1, max_length = 255, pattern = r"\S", example = "Acme Ltd")]
        name: String = required(|node| node.not_blank(NAME_CHARS)),
        /// Quotas that replace those of the settings.
        quotas: Option<QuotasBody> = nullable(|node| QuotasBody::read(&node.object()?)),
        /// Days for which its ended runs are kept, unless a workflow has its own value. 0: for ever; null: the server's
        /// setting.
        #[schema(minimum = 0, maximum = 36_500, example = 30)]
        retention_days: Option<i32> = nullable(retention::read_days),
    }
}

request_object! {
    /// Quotas in a request; absent members stay unchanged.
    #[schema(as = QuotasRequest)]
    #[derive(Default)]
    pub struct QuotasBody: deny_unknown_fields {
        /// Maximum number of agents that are not deleted.
        #[schema(value_type = Option<i32>, minimum = 0, maximum = 2_147_483_647)]
        agents: Patch<i32> = patch(read_quota),
        /// Maximum number of workflow names with a version that is not deleted.
        #[schema(value_type = Option<i32>, minimum = 0, maximum = 2_147_483_647)]
        workflows: Patch<i32> = patch(read_quota),
        /// Maximum number of API keys that are neither revoked nor expired.
        #[schema(value_type = Option<i32>, minimum = 0, maximum = 2_147_483_647)]
        api_keys: Patch<i32> = patch(read_quota),
        /// Maximum number of runs that are accepted and not yet started.
        #[schema(value_type = Option<i32>, minimum = 0, maximum = 2_147_483_647)]
        queued_runs: Patch<i32> = patch(read_quota),
    }
}

request_object! {
    /// Body of an update request; absent members stay unchanged.
    #[schema(as = UpdateOrganizationRequest, example = json!({"quotas": {"agents": 100}}))]
    pub struct OrganizationPatchBody: deny_unknown_fields {
        /// Name for people.
        #[schema(nullable = false, min_length = 1, max_length = 255, pattern = r"\S")]
        name: Option<String> = patch_not_null(|node| node.not_blank(NAME_CHARS)),
        /// Whether its callers are accepted.
        #[schema(value_type = sets::OrganizationStatus, required = false)]
        status: Option<bool> = patch_not_null(|node| {
            node.parsed(|status| match status {
                "active" => Ok(true),
                "suspended" => Ok(false),
                _ => Err("must be active or suspended".to_owned()),
            })
        }),
        /// Quotas, each changed separately; null resets one to the value of the settings.
        #[schema(nullable = false)]
        quotas: Option<QuotasBody> = patch_not_null(|node| QuotasBody::read(&node.object()?)),
        /// Days for which its ended runs are kept, unless a workflow has its own value. 0: for ever; null: the server's
        /// setting.
        #[schema(value_type = Option<i32>, minimum = 0, maximum = 36_500)]
        retention_days: Patch<i32> = patch(retention::read_days),
    }
}

fn read_quota(node: &Node<'_>) -> Read<i32> {
    // The range fits.
    node.int(0..=i64::from(i32::MAX)).map(|quota| i32::try_from(quota).unwrap_or(i32::MAX))
}

impl From<NewOrganizationBody> for NewOrganization {
    fn from(body: NewOrganizationBody) -> Self {
        let NewOrganizationBody { id, name, quotas, retention_days } = body;
        let QuotasBody { agents, workflows, api_keys, queued_runs } = quotas.unwrap_or_default();
        let quotas = Quotas {
            agents: agents.or(None),
            workflows: workflows.or(None),
            api_keys: api_keys.or(None),
            queued_runs: queued_runs.or(None),
        };
        Self { id, name, quotas, retention_days }
    }
}

impl From<OrganizationPatchBody> for OrganizationPatch {
    fn from(body: OrganizationPatchBody) -> Self {
        let OrganizationPatchBody { name, status, quotas, retention_days } = body;
        let QuotasBody { agents, workflows, api_keys, queued_runs } = quotas.unwrap_or_default();
        Self { name, is_active: status, agents, workflows, api_keys, queued_runs, retention_days }
    }
}

/// `{organization_id}` in the path.
pub struct OrganizationIdParam(OrganizationId);

impl<S: Send + Sync> FromRequestParts<S> for OrganizationIdParam {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // A text that is not an id names no organisation.
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else { return Err(not_found()) };
        OrganizationId::parse(&text).map(Self).map_err(|_| not_found())
    }
}

/// 404: the organisation does not exist.
#[must_use]
pub fn not_found() -> ApiError {
    ApiError::not_found("organization_not_found", "Organisation not found")
}

impl From<OrganizationError> for ApiError {
    fn from(error: OrganizationError) -> Self {
        match error {
            OrganizationError::NotFound => not_found(),
            OrganizationError::IdTaken(id) => {
                Self::conflict("organization_id_taken", format!("There is an organisation {id} already"))
            }
            OrganizationError::DefaultStaysActive => {
                let detail = "The default organisation cannot be suspended";
                Self::conflict("default_organization", detail)
            }
            OrganizationError::Db(error) => error.into(),
        }
    }
}

/// 404 for members of organisations other than this one and the default one.
fn must_see(caller: &Caller, id: &OrganizationId) -> Result<(), ApiError> {
    if caller.organization().is_default() || caller.organization() == id { Ok(()) } else { Err(not_found()) }
}

/// 403 for members of organisations other than the default one.
fn must_manage(caller: &Caller) -> Result<(), ApiError> {
    if caller.organization().is_default() {
        return Ok(());
    }
    let detail = "Organisations are managed by administrators of the default organisation";
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", detail))
}

/// List organisations
///
/// In the order of their creation. Members of organisations other than the default one get only their own.
#[utoipa::path(
    get, path = "/organizations", tag = "access",
    params(
        parameters::Paging,
    ),
    responses(
        (status = 200, body = OrganizationPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_organizations(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let list = ListRequest::read(&app, &ListQuery::new(&query), "organizations").await?;
    let own = Some(caller.organization()).filter(|own| !own.is_default());
    let page = &list.page;
    let page = app.reads.read(|mut conn| async move { db::organizations::list(&mut conn, own, page).await }).await?;
    Ok(page::answer(app, caller, &list, page, Organization::from))
}

/// Create an organisation
///
/// Its data is created with its API keys, the first of which an administrator of the default organisation creates
/// (`POST /api-keys` with `organization_id`), or with tokens that name it.
#[utoipa::path(
    post, path = "/organizations", tag = "access", request_body = NewOrganizationBody,
    responses(
        (status = 201, body = Organization, headers(("Location" = String, description = "Its path"))),
        (status = 409, description = "The id is taken", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_organization(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Response, ApiError> {
    must_manage(&caller)?;
    let new = NewOrganizationBody::read(&Object::body(body.raw())?)?;
    let row = organizations::create(&app.pool, caller.context(&app), new.into()).await?;
    tracing::info!(target: "api.routes.organizations", organization_id = row.id, "Organisation created");
    app.organizations.invalidate(&OrganizationId::stored(&row.id));
    let path = format!("/organizations/{}", row.id);
    Ok(etag::located(&app, &path, (StatusCode::CREATED, Json(Organization::from(row)))))
}

/// Get an organisation
///
/// Includes its current usage of the quotas.
#[utoipa::path(
    get, path = "/organizations/{organization_id}", tag = "access", params(("organization_id" = String, Path)),
    responses((status = 200, body = OrganizationDetail), (status = 404, body = ErrorBody)),
)]
pub async fn get_organization(
    State(app): State<App>,
    caller: Caller,
    OrganizationIdParam(id): OrganizationIdParam,
) -> Result<Json<OrganizationDetail>, ApiError> {
    must_see(&caller, &id)?;
    let id = &id;
    let found = app.reads.read(|mut conn| async move {
        let Some(row) = db::organizations::find(&mut *conn, id).await? else { return Ok(None) };
        let mut count = async |what| db::organizations::count(&mut *conn, id, what, i64::MAX).await;
        let usage = Usage {
            agents: count(Countable::Agents).await?,
            workflows: count(Countable::Workflows).await?,
            api_keys: count(Countable::ApiKeys).await?,
            queued_runs: count(Countable::QueuedRuns).await?,
        };
        Ok(Some(OrganizationDetail { organization: row.into(), usage }))
    });
    Ok(Json(found.await?.ok_or_else(not_found)?))
}

/// Update an organisation
///
/// Changes the given members. A suspension takes effect in every process within 5 seconds.
#[utoipa::path(
    put, path = "/organizations/{organization_id}", tag = "access", params(("organization_id" = String, Path)),
    request_body = OrganizationPatchBody,
    responses(
        (status = 200, body = Organization),
        (status = 404, body = ErrorBody),
        (status = 409, description = "The default organisation cannot be suspended", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn update_organization(
    State(app): State<App>,
    caller: Caller,
    OrganizationIdParam(id): OrganizationIdParam,
    body: JsonBody,
) -> Result<Json<Organization>, ApiError> {
    must_see(&caller, &id)?;
    must_manage(&caller)?;
    let patch = OrganizationPatchBody::read(&Object::body(body.raw())?)?;
    let row = organizations::update(&app.pool, caller.context(&app), &id, patch.into()).await?;
    app.organizations.invalidate(&id);
    tracing::info!(target: "api.routes.organizations", organization_id = %id, "Organisation updated");
    Ok(Json(row.into()))
}
