//! `/audit-logs`: who did what, and the proof that nobody has changed it since.

pub mod export;
pub mod verification;

use std::borrow::Cow;

use axum::{extract::State, response::Response};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::ListRequest,
        error::{ApiError, ErrorBody},
        extract::Query,
        page::{self, Page},
        parameters, sets,
    },
    db::audit::{self, AuditRow, Filter},
    id,
    timestamp::Timestamp,
    visible,
};

/// The parameters that a cursor of the list is bound to.
const FILTERS: [&str; 9] = [
    "user_id",
    "action",
    "entity_type",
    "entity_id",
    "outcome",
    "correlation_id",
    "created_after",
    "created_before",
    "sort_order",
];

/// A part of the audit trail.
pub type AuditEntryPage = Page<AuditEntry>;

/// An entry of the audit trail.
#[derive(Serialize, ToSchema)]
pub struct AuditEntry {
    /// Made with the entry.
    id: Uuid,
    /// When it was done.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Who did it: the token's subject, or `api-key:` and the name of an API key; null if nobody knows.
    user_id: Option<String>,
    /// The API key, if it was one.
    key_id: Option<Uuid>,
    /// Where the request came from.
    address: Option<String>,
    /// Of the request: the same in its log lines.
    correlation_id: Option<String>,
    /// `create`, `update`, `delete`, `execute`, `retry`, `cancel`, `pause`, `resume`, `answer_callback`, `redrive`, `discard`, `expire`,
    /// `revoke`; of a denied attempt the HTTP method, of many `omitted`.
    #[schema(example = "update", max_length = 50)]
    action: String,
    /// What kind of object it is about.
    #[schema(value_type = sets::AuditEntityType)]
    entity_type: String,
    /// The object; of a run the UUID in its id, and for what has none one that is derived from its id.
    entity_id: Uuid,
    /// Its name; of a run its id; of a denied attempt the route.
    entity_name: Option<String>,
    /// Whether it was done.
    #[schema(value_type = sets::AuditOutcome)]
    outcome: String,
    /// What the members of `after` were before; null if there was nothing, or if that is not kept.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    before: Option<Box<RawValue>>,
    /// What they are since; secrets are redacted, and bodies have `bytes` and `sha256`. Null if there is nothing any more.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    after: Option<Box<RawValue>>,
    /// Whose entry it is.
    organization_id: String,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            created_at: row.created_at,
            user_id: row.user_id.map(|text| visible::escaped(&text).into_owned()),
            key_id: row.key_id,
            address: row.address,
            correlation_id: row.correlation_id,
            action: row.action,
            entity_type: row.entity_type,
            entity_id: row.entity_id,
            entity_name: row.entity_name.map(|text| visible::escaped(&text).into_owned()),
            outcome: row.outcome,
            before: row.previous.map(|json| shown(json.0)),
            after: row.changes.map(|json| shown(json.0)).filter(|json| json.get() != "null"),
            organization_id: row.organization_id,
        }
    }
}

/// The same JSON, in which nothing hides.
fn shown(json: Box<RawValue>) -> Box<RawValue> {
    match visible::json(json.get()) {
        Cow::Borrowed(_) => json,
        // Escapes in strings are JSON as well.
        Cow::Owned(text) => RawValue::from_string(text).unwrap_or(json),
    }
}

/// Which entries are wanted. What has several values, has commas between them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `filter` reads")]
pub struct AuditQuery {
    /// Any of these subjects.
    #[param(explode = false)]
    user_id: Option<Vec<String>>,
    /// Any of these actions.
    #[param(explode = false)]
    action: Option<Vec<String>>,
    /// Any of these kinds of objects.
    #[param(explode = false)]
    entity_type: Option<Vec<sets::AuditEntityType>>,
    /// Exactly this object: `entity_id`, or the id of a run or an organization.
    entity_id: Option<String>,
    /// Any of these.
    #[param(explode = false)]
    outcome: Option<Vec<sets::AuditOutcome>>,
    /// Exactly this request.
    correlation_id: Option<String>,
}

fn filter(caller: &Caller, query: &Query) -> Result<Filter, ApiError> {
    // A UUID, or the id of something that has none.
    let entity_id = query.text("entity_id");
    let entity_id = entity_id.map(|id| Uuid::try_parse(id).unwrap_or_else(|_| id::run_entity_id(id)));
    Ok(Filter {
        organization: caller.organization().clone(),
        users: query.several("user_id"),
        actions: query.several("action"),
        entity_types: query.several("entity_type"),
        entity_id,
        outcomes: query.several("outcome"),
        correlation_id: query.text("correlation_id").map(str::to_owned),
        created: query.span("created")?,
    })
}

/// List audit entries
///
/// What was done, and what was tried and denied, the latest first.
#[utoipa::path(
    get, path = "/audit-logs", tag = "access",
    params(
        parameters::Paging,
        AuditQuery,
        parameters::Created,
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = AuditEntryPage), (status = 400, description = "The cursor is not one of this query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_audit_logs(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let filter = filter(&caller, &query)?;
    let order = audit::order(query.is_ascending());
    let list = ListRequest::read(&app, &query, "audit-logs", &FILTERS).await?;
    let page = audit::list(&mut *app.pool.acquire().await?, &filter, order, &list.page).await?;
    Ok(page::answer(app, caller, &list, page, AuditEntry::from))
}
