//! Handlers of `/organizations`. Administrators of the default organisation manage all of them; other callers see
//! their own.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
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
    input::{FieldError, Node, Object, Patch, Read},
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
    #[schema(value_type = QuotasBody)]
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

/// Quotas of an organisation; null: the value of the settings.
#[derive(ToSchema)]
#[schema(as = Quotas)]
#[expect(dead_code, reason = "describes `access::Quotas`, which is independent of OpenAPI")]
pub struct QuotasBody {
    /// Maximum number of agents that are not deleted.
    #[schema(minimum = 0)]
    agents: Option<i32>,
    /// Maximum number of workflow names with a version that is not deleted.
    #[schema(minimum = 0)]
    workflows: Option<i32>,
    /// Maximum number of API keys that are neither revoked nor expired.
    #[schema(minimum = 0)]
    api_keys: Option<i32>,
    /// Maximum number of runs that are accepted and not yet started.
    #[schema(minimum = 0)]
    queued_runs: Option<i32>,
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

/// Body of a create request.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateOrganizationRequest, example = json!({"id": "acme", "name": "Acme Ltd"}))]
#[expect(dead_code, reason = "describes what `parse_new` reads")]
pub struct NewOrganizationBody {
    /// Id in tokens and in paths; never changed.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", example = "acme")]
    id: String,
    /// Name for people.
    #[schema(min_length = 1, max_length = 255, pattern = r"\S", example = "Acme Ltd")]
    name: String,
    /// Quotas that replace those of the settings.
    quotas: Option<NewQuotasBody>,
    /// Days for which its ended runs are kept, unless a workflow has its own value. 0: for ever; null: the server's
    /// setting.
    #[schema(minimum = 0, maximum = 36_500, example = 30)]
    retention_days: Option<i32>,
}

/// Quotas in a request; absent members stay unchanged.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = QuotasRequest)]
#[expect(dead_code, reason = "describes what `parse_quotas` reads")]
pub struct NewQuotasBody {
    /// Maximum number of agents that are not deleted.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    agents: Option<i32>,
    /// Maximum number of workflow names with a version that is not deleted.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    workflows: Option<i32>,
    /// Maximum number of API keys that are neither revoked nor expired.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    api_keys: Option<i32>,
    /// Maximum number of runs that are accepted and not yet started.
    #[schema(minimum = 0, maximum = 2_147_483_647)]
    queued_runs: Option<i32>,
}

/// Body of an update request; absent members stay unchanged.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = UpdateOrganizationRequest, example = json!({"quotas": {"agents": 100}}))]
#[expect(dead_code, reason = "describes what `parse_patch` reads")]
pub struct OrganizationPatchBody {
    /// Name for people.
    #[schema(nullable = false, min_length = 1, max_length = 255, pattern = r"\S")]
    name: Option<String>,
    /// Whether its callers are accepted.
    #[schema(required = false)]
    status: sets::OrganizationStatus,
    /// Quotas, each changed separately; null resets one to the value of the settings.
    #[schema(nullable = false)]
    quotas: Option<NewQuotasBody>,
    /// Days for which its ended runs are kept, unless a workflow has its own value. 0: for ever; null: the server's
    /// setting.
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<i32>,
}

fn parse_new(body: &RawValue) -> Read<NewOrganization> {
    let body = Object::body(body)?;
    let mut errors = Vec::new();
    body.only(&["id", "name", "quotas", "retention_days"], &mut errors);
    let id = body.required("id", &mut errors, |node| {
        node.parsed(|text| OrganizationId::parse(text).map_err(|error| error.to_string()))
    });
    let name = body.required("name", &mut errors, |node| node.not_blank(NAME_CHARS));
    let quotas = body.nullable("quotas", &mut errors, |node| parse_quotas(node)).unwrap_or_default();
    let retention_days = body.nullable("retention_days", &mut errors, retention::read_days);
    match (id, name) {
        (Some(id), Some(name)) if errors.is_empty() => {
            let [agents, workflows, api_keys, queued_runs] = quotas.map(|quota| quota.or(None));
            let quotas = Quotas { agents, workflows, api_keys, queued_runs };
            Ok(NewOrganization { id, name, quotas, retention_days })
        }
        _ => Err(errors),
    }
}

fn parse_patch(body: &RawValue) -> Read<OrganizationPatch> {
    let body = Object::body(body)?;
    let mut errors = Vec::new();
    body.only(&["name", "status", "quotas", "retention_days"], &mut errors);
    let name = body.patch_not_null("name", &mut errors, |node| node.not_blank(NAME_CHARS));
    let is_active = body.patch_not_null("status", &mut errors, |node| {
        node.parsed(|status| match status {
            "active" => Ok(true),
            "suspended" => Ok(false),
            _ => Err("must be active or suspended".to_owned()),
        })
    });
    let quotas = body.patch_not_null("quotas", &mut errors, |node| parse_quotas(node)).unwrap_or_default();
    let retention_days = body.patch("retention_days", &mut errors, retention::read_days);
    if !errors.is_empty() {
        return Err(errors);
    }
    let [agents, workflows, api_keys, queued_runs] = quotas;
    Ok(OrganizationPatch { name, is_active, agents, workflows, api_keys, queued_runs, retention_days })
}

/// Parses the quotas: agents, workflows, API keys, queued runs.
fn parse_quotas(node: &Node<'_>) -> Read<[Patch<i32>; 4]> {
    const MEMBERS: [&str; 4] = ["agents", "workflows", "api_keys", "queued_runs"];
    let object = node.object()?;
    let mut errors = Vec::new();
    object.only(&MEMBERS, &mut errors);
    let quotas = MEMBERS.map(|name| {
        object.patch(name, &mut errors, |node| {
            let quota = node.int(0..=i64::from(i32::MAX))?;
            i32::try_from(quota).map_err(|_| vec![FieldError::rule(node.path(), "is too large")])
        })
    });
    if errors.is_empty() { Ok(quotas) } else { Err(errors) }
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
    let page = db::organizations::list(&mut *app.pool.acquire().await?, own, &list.page).await?;
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
    let new = parse_new(body.raw())?;
    let row = organizations::create(&app.pool, caller.context(&app), new).await?;
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
    let row = db::organizations::find(&app.pool, &id).await?.ok_or_else(not_found)?;
    let count = async |what| db::organizations::count(&app.pool, &id, what, i64::MAX).await;
    let usage = Usage {
        agents: count(Countable::Agents).await?,
        workflows: count(Countable::Workflows).await?,
        api_keys: count(Countable::ApiKeys).await?,
        queued_runs: count(Countable::QueuedRuns).await?,
    };
    Ok(Json(OrganizationDetail { organization: row.into(), usage }))
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
    let patch = parse_patch(body.raw())?;
    let row = organizations::update(&app.pool, caller.context(&app), &id, patch).await?;
    app.organizations.invalidate(&id);
    tracing::info!(target: "api.routes.organizations", organization_id = %id, "Organisation updated");
    Ok(Json(row.into()))
}
