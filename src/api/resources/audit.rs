//! `/audit-logs`: the audit trail and its verification.

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
        cursor::{ListQuery, ListRequest},
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

/// Page of the audit trail.
pub type AuditEntryPage = Page<AuditEntry>;

/// Entry of the audit trail.
#[derive(Serialize, ToSchema)]
pub struct AuditEntry {
    /// Id of the entry.
    id: Uuid,
    /// Time of the action.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// User: the token's subject, or `api-key:` and the name of an API key; null if unknown.
    user_id: Option<String>,
    /// Id of the API key, if one was used.
    key_id: Option<Uuid>,
    /// Address of the client.
    address: Option<String>,
    /// Correlation id of the request, as in its log lines.
    correlation_id: Option<String>,
    /// Action: `create`, `update`, `delete`, `execute`, `retry`, `cancel`, `pause`, `resume`, `answer_callback`,
    /// `redrive`, `discard`, `expire`, `revoke`, `fire`, `backfill`, `stop_backfill`, `sign_in`, `sign_out`; for a denied attempt the HTTP method, and `omitted` for many of
    /// them.
    #[schema(example = "update", max_length = 50)]
    action: String,
    /// Kind of the object.
    #[schema(value_type = sets::AuditEntityType)]
    entity_type: String,
    /// Id of the object; for a run the UUID in its id, and for an object without a UUID one that is derived from its
    /// id.
    entity_id: Uuid,
    /// Name of the object; for a run its id, and for a denied attempt the route.
    entity_name: Option<String>,
    /// Whether the action was performed.
    #[schema(value_type = sets::AuditOutcome)]
    outcome: String,
    /// Previous values of the members of `after`; null if there were none, or if they are not kept.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    before: Option<Box<RawValue>>,
    /// New values; secrets are redacted, and bodies are given by `bytes` and `sha256`. Null if the object no longer
    /// exists.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    after: Option<Box<RawValue>>,
    /// Organisation of the entry.
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

/// Escapes hidden characters in the JSON.
fn shown(json: Box<RawValue>) -> Box<RawValue> {
    match visible::json(json.get()) {
        Cow::Borrowed(_) => json,
        // The escaped text is JSON too, since hidden characters occur only in strings.
        Cow::Owned(text) => RawValue::from_string(text).unwrap_or(json),
    }
}

/// Filter of audit entries. Several values are separated by commas.
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
    /// Exactly this object: `entity_id`, or the id of a run or an organisation.
    entity_id: Option<String>,
    /// Any of these outcomes.
    #[param(explode = false)]
    outcome: Option<Vec<sets::AuditOutcome>>,
    /// Exactly this request.
    correlation_id: Option<String>,
}

fn filter(caller: &Caller, parameters: &mut ListQuery<'_>) -> Result<Filter, ApiError> {
    // A UUID, or the id of an object without a UUID.
    let entity_id = |id| Uuid::try_parse(id).unwrap_or_else(|_| id::run_entity_id(id));
    Ok(Filter {
        organization: caller.organization().clone(),
        users: parameters.several("user_id"),
        actions: parameters.several("action"),
        entity_types: parameters.several("entity_type"),
        entity_id: parameters.text("entity_id").map(entity_id),
        outcomes: parameters.several("outcome"),
        correlation_id: parameters.text("correlation_id").map(str::to_owned),
        created: parameters.span("created")?,
    })
}

/// List audit entries
///
/// Performed and denied actions, the latest first.
#[utoipa::path(
    get, path = "/audit-logs", tag = "access",
    params(
        parameters::Paging,
        AuditQuery,
        parameters::Created,
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = AuditEntryPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_audit_logs(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let filter = filter(&caller, &mut parameters)?;
    let order = audit::order(parameters.is_ascending());
    let list = ListRequest::read(&app, &parameters, "audit-logs").await?;
    let (filter, page) = (&filter, &list.page);
    let page = app.reads.read(|mut conn| async move { audit::list(&mut conn, filter, order, page).await }).await?;
    Ok(page::answer(app, caller, &list, page, AuditEntry::from))
}
