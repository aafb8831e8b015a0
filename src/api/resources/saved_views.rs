//! `/views`: views of the console's lists, saved under a name.

use std::ops::RangeInclusive;

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    access::Permission,
    actions::saved_views::{self, NewView, ViewError, ViewPatch},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        etag,
        extract::{JsonBody, Query, path_uuid},
        page::Message,
    },
    db::{
        self,
        saved_views::{MAX_OF_OWNER, ViewRow, Viewer},
    },
    input::{Node, Object, request_object},
    timestamp::Timestamp,
};

/// Lengths of a screen's and of a view's name.
const SCREEN_CHARS: RangeInclusive<usize> = 1..=50;
const NAME_CHARS: RangeInclusive<usize> = 1..=100;
/// Length of a query. An address has at most 8 KiB.
const QUERY_CHARS: RangeInclusive<usize> = 0..=4096;

/// View of a list.
#[derive(Serialize, ToSchema)]
pub struct SavedView {
    /// Id of the view.
    id: Uuid,
    /// List that it is a view of.
    #[schema(example = "runs")]
    screen: String,
    /// Name for people.
    #[schema(example = "Failed today")]
    name: String,
    /// Filters, columns and order, as in the query part of an address.
    #[schema(example = "status=FAILED&columns=run_id,input.customer")]
    query: String,
    /// Whether the whole organisation sees it; otherwise only the caller does.
    shared: bool,
    /// Subject that created it.
    created_by: String,
    /// Subject that changed it last.
    updated_by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<ViewRow> for SavedView {
    fn from(row: ViewRow) -> Self {
        Self {
            id: row.id,
            screen: row.screen,
            name: row.name,
            query: row.query,
            shared: row.owner.is_none(),
            created_by: row.created_by,
            updated_by: row.updated_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Views that the caller sees.
#[derive(Serialize, ToSchema)]
pub struct SavedViews {
    /// By screen and name.
    items: Vec<SavedView>,
}

request_object! {
    /// Body of a create request.
    #[schema(as = CreateViewRequest, example = json!({"screen": "runs", "name": "Failed", "query": "status=FAILED"}))]
    pub struct NewViewBody: deny_unknown_fields {
        /// List that it is a view of.
        #[schema(min_length = 1, max_length = 50, pattern = r"\S")]
        screen: String = required(|node| node.not_blank(SCREEN_CHARS)),
        /// Name for people; unique among the caller's own, or the organisation's, views of the list.
        #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
        name: String = required(|node| node.not_blank(NAME_CHARS)),
        /// Filters, columns and order, as in the query part of an address.
        #[schema(max_length = 4096)]
        query: String = required(|node| node.string(QUERY_CHARS)),
        /// Whether the whole organisation sees it, which needs `workflows:write`. Absent is false.
        #[schema(nullable = false)]
        shared: Option<bool> = patch_not_null(Node::boolean),
    }
}

request_object! {
    /// Body of an update request; absent members stay unchanged.
    #[schema(as = UpdateViewRequest, example = json!({"name": "Failed this week"}))]
    pub struct ViewPatchBody: deny_unknown_fields {
        /// Name for people.
        #[schema(nullable = false, min_length = 1, max_length = 100, pattern = r"\S")]
        name: Option<String> = patch_not_null(|node| node.not_blank(NAME_CHARS)),
        /// Filters, columns and order, as in the query part of an address.
        #[schema(nullable = false, max_length = 4096)]
        query: Option<String> = patch_not_null(|node| node.string(QUERY_CHARS)),
    }
}

/// `{view_id}` in the path.
pub struct ViewId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for ViewId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "view_id").await.map(Self)
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("view_not_found", "View not found")
}

impl From<ViewError> for ApiError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::NotFound => not_found(),
            ViewError::Shared => Self::forbidden("What the organisation sees needs workflows:write"),
            ViewError::NameTaken(name) => {
                Self::conflict("view_name_taken", format!("There is a view {name:?} of this list already"))
            }
            ViewError::TooMany => {
                let detail = format!("There are {MAX_OF_OWNER} views already; delete one first");
                Self::conflict("too_many_views", detail)
            }
            ViewError::Db(error) => error.into(),
        }
    }
}

fn viewer(caller: &Caller) -> Viewer<'_> {
    Viewer { organization: caller.organization(), subject: &caller.actor.subject }
}

fn may_share(caller: &Caller) -> bool {
    caller.may(Permission::WorkflowsWrite)
}

/// List saved views
///
/// The caller's own ones and those of the organisation, 200 at most.
#[utoipa::path(
    get, path = "/views", tag = "console",
    params(("screen" = Option<String>, Query, description = "Views of this list")),
    responses((status = 200, body = SavedViews), (status = 422, body = ErrorBody)),
)]
pub async fn list_views(State(app): State<App>, caller: Caller, query: Query) -> Result<Json<SavedViews>, ApiError> {
    let (viewer, screen) = (viewer(&caller), query.text("screen"));
    let rows = app.reads.read(|mut conn| async move { db::saved_views::list(&mut conn, viewer, screen).await }).await?;
    Ok(Json(SavedViews { items: rows.into_iter().map(SavedView::from).collect() }))
}

/// Save a view
///
/// `Idempotency-Key` has no effect here: a repeat saves no second view because its name is in use.
#[utoipa::path(
    post, path = "/views", tag = "console", request_body = NewViewBody,
    responses(
        (status = 201, body = SavedView, headers(("Location" = String, description = "Its path"))),
        (status = 403, description = "The caller may not save views, or none for the organisation", body = ErrorBody),
        (status = 409, description = "The name is taken, or there are 100 views already", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn create_view(State(app): State<App>, caller: Caller, body: JsonBody) -> Result<Response, ApiError> {
    let NewViewBody { screen, name, query, shared } = NewViewBody::read(&Object::body(body.raw())?)?;
    let new = NewView { screen, name, query, is_shared: shared.unwrap_or_default() };
    let row = saved_views::create(&app.pool, caller.context(&app), may_share(&caller), new).await?;
    let path = format!("/views/{}", row.id);
    Ok(etag::located(&app, &path, (StatusCode::CREATED, Json(SavedView::from(row)))))
}

/// Get a saved view
#[utoipa::path(
    get, path = "/views/{view_id}", tag = "console", params(("view_id" = Uuid, Path)),
    responses((status = 200, body = SavedView), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_view(State(app): State<App>, caller: Caller, ViewId(id): ViewId) -> Result<Json<SavedView>, ApiError> {
    let row = db::saved_views::find(&app.pool, viewer(&caller), id).await?.ok_or_else(not_found)?;
    Ok(Json(row.into()))
}

/// Update a saved view
///
/// Changes the given members.
#[utoipa::path(
    put, path = "/views/{view_id}", tag = "console", params(("view_id" = Uuid, Path)), request_body = ViewPatchBody,
    responses(
        (status = 200, body = SavedView),
        (status = 404, body = ErrorBody),
        (status = 409, description = "The name is taken", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn update_view(
    State(app): State<App>,
    caller: Caller,
    ViewId(id): ViewId,
    body: JsonBody,
) -> Result<Json<SavedView>, ApiError> {
    let ViewPatchBody { name, query } = ViewPatchBody::read(&Object::body(body.raw())?)?;
    let patch = ViewPatch { name, query };
    let row = saved_views::update(&app.pool, caller.context(&app), may_share(&caller), id, patch).await?;
    Ok(Json(row.into()))
}

/// Delete a saved view
#[utoipa::path(
    delete, path = "/views/{view_id}", tag = "console", params(("view_id" = Uuid, Path)),
    responses((status = 200, body = Message), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn delete_view(
    State(app): State<App>,
    caller: Caller,
    ViewId(id): ViewId,
) -> Result<Json<Message>, ApiError> {
    saved_views::delete(&app.pool, caller.context(&app), may_share(&caller), id).await?;
    Ok(Json(Message::new("View deleted")))
}
