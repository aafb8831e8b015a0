//! `/dead-letters`: records that no executor could use, or that could start no run of a trigger.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{StatusCode, request::Parts};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    access::Permission,
    actions::{
        fire_trigger::Firer,
        resolve_letter::{self, ResolveError},
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::{ListQuery, ListRequest},
        error::{ApiError, ErrorBody},
        extract::{OptionalJsonBody, Query, path_uuid},
        page::{self, Page},
        parameters, sets,
    },
    db::dead_letters::{self, Content, Filter, LetterRow},
    input::{FieldError, Node, Object, request_object},
    timestamp::Timestamp,
};

/// Maximum number of bytes of a value or key in an answer.
const MAX_SHOWN_BYTES: i32 = 1 << 20;

/// Page of the list of dead letters.
pub type DeadLetterPage = Page<DeadLetter>;

/// Dead letter: a record that no executor could use, or that could start no run of a trigger.
#[derive(Serialize, ToSchema)]
pub struct DeadLetter {
    /// Id of the dead letter.
    id: Uuid,
    /// Id of the run, as the record or its key names it.
    run_id: Option<String>,
    /// Trigger that could not use the record; null: executors could not.
    trigger_id: Option<Uuid>,
    /// Topic of the record.
    #[schema(example = "workflow.execution.requests")]
    topic: String,
    /// Partition of the record.
    partition: i32,
    /// Offset of the record in the partition.
    offset: i64,
    /// Time when the record was sent.
    #[schema(value_type = Option<String>, format = DateTime)]
    sent_at: Option<Timestamp>,
    /// Size of the record's value.
    bytes: i64,
    /// Reason why it could not be used.
    #[schema(value_type = sets::DeadLetterReason)]
    reason: String,
    /// Details of the reason; may repeat a part of the record.
    detail: String,
    /// Status of the dead letter.
    #[schema(value_type = sets::DeadLetterStatus)]
    status: String,
    /// User who decided.
    resolved_by: Option<String>,
    /// Time of the decision.
    #[schema(value_type = Option<String>, format = DateTime)]
    resolved_at: Option<Timestamp>,
    /// Time when the dead letter was stored.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Organisation that owns the letter: that of the run, if it is known.
    organization_id: String,
}

impl From<LetterRow> for DeadLetter {
    fn from(row: LetterRow) -> Self {
        Self {
            id: row.id,
            run_id: row.run_id,
            trigger_id: row.trigger_id,
            topic: row.topic,
            partition: row.partition,
            offset: row.record_offset,
            sent_at: row.sent_at,
            bytes: row.bytes,
            reason: row.reason,
            detail: row.detail,
            status: row.status,
            resolved_by: row.resolved_by,
            resolved_at: row.resolved_at,
            created_at: row.created_at,
            organization_id: row.organization_id,
        }
    }
}

/// Bytes: as text if they are UTF-8, otherwise in base64.
#[derive(Serialize, ToSchema)]
pub struct Octets {
    /// Encoding of the bytes.
    #[schema(value_type = sets::OctetEncoding)]
    encoding: &'static str,
    /// The bytes in that encoding.
    content: String,
}

impl Octets {
    fn new(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(content) => Self { encoding: "text", content },
            Err(error) => Self { encoding: "base64", content: STANDARD.encode(error.as_bytes()) },
        }
    }
}

/// Header of a record.
#[derive(Serialize, ToSchema)]
pub struct LetterHeader {
    name: String,
    value: Option<Octets>,
}

/// Dead letter with the content of its record.
#[derive(Serialize, ToSchema)]
pub struct DeadLetterDetail {
    #[serde(flatten)]
    letter: DeadLetter,
    /// Key of the record; null if it has none, or was discarded.
    key: Option<Octets>,
    /// Value of the record, its first 1 048 576 bytes; null if it has none, or was discarded.
    value: Option<Octets>,
    /// Whether the value is longer than what is shown.
    is_truncated: bool,
    /// Headers of the record, in their order.
    headers: Vec<LetterHeader>,
    /// Value that was sent instead of the original one.
    corrected: Option<Octets>,
}

impl DeadLetterDetail {
    fn new(row: LetterRow, content: Content) -> Self {
        let header = |(name, value): (String, Option<String>)| {
            let value = value.and_then(|value| STANDARD.decode(value).ok()).map(Octets::new);
            LetterHeader { name, value }
        };
        Self {
            is_truncated: content.value.is_some() && row.bytes > i64::from(MAX_SHOWN_BYTES),
            letter: row.into(),
            key: content.key.map(Octets::new),
            value: content.value.map(Octets::new),
            headers: content.headers.0.into_iter().map(header).collect(),
            corrected: content.corrected.map(Octets::new),
        }
    }
}

request_object! {
    /// Body of a redrive request.
    #[schema(as = RedriveRequest, example = json!({"value": {
        "run_id": "run-1", "cancelled_by": "me", "message_type": "cancellation_request",
    }}))]
    pub struct RedriveBody: deny_unknown_fields {
        /// Replaces the record's value, unchanged as text: a request to execute or to cancel a run; of a trigger's record,
        /// any object.
        #[schema(value_type = Option<HashMap<String, Value>>)]
        value: Option<Box<RawValue>> = nullable(Node::free_object),
    }
}

/// `{dead_letter_id}` in the path.
pub struct LetterId(Uuid);

impl<S: Send + Sync> FromRequestParts<S> for LetterId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_uuid(parts, state, "dead_letter_id").await.map(Self)
    }
}

fn not_found() -> ApiError {
    ApiError::not_found("dead_letter_not_found", "Dead letter not found")
}

impl From<ResolveError> for ApiError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotFound => not_found(),
            ResolveError::WrongState(status) => {
                Self::conflict("dead_letter_resolved", format!("The dead letter is {status}"))
            }
            ResolveError::Unreadable(error) => {
                FieldError::rule("body.value", format!("must be a message that executors can read: {error}")).into()
            }
            ResolveError::OtherRun => {
                FieldError::rule("body.value.run_id", "must be the run of the dead letter").into()
            }
            ResolveError::NoTrigger => {
                Self::conflict("trigger_deleted", "The trigger of the dead letter is deleted; discard the dead letter")
            }
            ResolveError::NotStarted(why) => {
                FieldError::rule("body.value", format!("still starts no run ({}): {}", why.reason, why.detail)).into()
            }
            ResolveError::Busy => Self::unavailable("overloaded", "Too many requests are waiting already"),
            ResolveError::TooLarge => FieldError::rule("body.value", "is larger than a record may be").into(),
            ResolveError::Db(error) => error.into(),
        }
    }
}

/// List dead letters
///
/// Records that no executor could use, or that could start no run of a Kafka trigger, the latest first.
#[utoipa::path(
    get, path = "/dead-letters", tag = "runs",
    params(
        parameters::Paging,
        ("topic" = Option<Vec<String>>, Query, explode = false, description = "Any of these topics"),
        ("reason" = Option<Vec<sets::DeadLetterReason>>, Query, explode = false, description = "Any of these"),
        ("status" = Option<Vec<sets::DeadLetterStatus>>, Query, explode = false, description = "Any of these"),
        ("run_id" = Option<String>, Query, description = "Exactly this run"),
        parameters::Created,
        ("sort_order" = Option<sets::SortOrder>, Query, description = "Ascending or descending (the default)"),
    ),
    responses(
        (status = 200, body = DeadLetterPage), (status = 400, description = "The cursor belongs to another query", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn list_dead_letters(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(&query);
    let filter = Filter {
        organization: caller.organization().clone(),
        topics: parameters.several("topic"),
        reasons: parameters.several("reason"),
        statuses: parameters.several("status"),
        run_id: parameters.text("run_id").map(str::to_owned),
        created: parameters.span("created")?,
    };
    let order = dead_letters::order(parameters.is_ascending());
    let list = ListRequest::read(&app, &parameters, "dead-letters").await?;
    let (filter, page) = (&filter, &list.page);
    let read = app.reads.read(|mut conn| async move { dead_letters::list(&mut conn, filter, order, page).await });
    let page = read.await?;
    Ok(page::answer(app, caller, &list, page, DeadLetter::from))
}

/// Get a dead letter
///
/// Includes the content of the record, which can be arbitrary.
#[utoipa::path(
    get, path = "/dead-letters/{dead_letter_id}", tag = "runs", params(("dead_letter_id" = Uuid, Path)),
    responses((status = 200, body = DeadLetterDetail), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_dead_letter(
    State(app): State<App>,
    caller: Caller,
    LetterId(id): LetterId,
) -> Result<Json<DeadLetterDetail>, ApiError> {
    let row = dead_letters::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let content = dead_letters::content(&app.pool, id, MAX_SHOWN_BYTES).await?.ok_or_else(not_found)?;
    Ok(Json(DeadLetterDetail::new(row, content)))
}

/// Redrive a dead letter
///
/// Sends the record again to its topic, unchanged or with another value. The value must be a message that executors
/// can read, about the same run; another value also needs `workflows:write`. It is sent within seconds, or as soon as
/// Kafka is available. A repeat of the request changes nothing. A run that has failed because of the record is not
/// started by this, but by its retry.
///
/// The record of a Kafka trigger is not sent: it starts its run at once, whatever the filter of the trigger says, and the
/// dead letter is `redriven`.
#[utoipa::path(
    post, path = "/dead-letters/{dead_letter_id}/redrive", tag = "runs", params(("dead_letter_id" = Uuid, Path)),
    request_body(content = Option<RedriveBody>),
    responses(
        (status = 202, body = DeadLetter),
        (status = 404, body = ErrorBody),
        (status = 409, description = "It was discarded, or sent again with another value, or its trigger is deleted", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn redrive_dead_letter(
    State(app): State<App>,
    caller: Caller,
    LetterId(id): LetterId,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<(StatusCode, Json<DeadLetter>), ApiError> {
    let value = match &body {
        Some(body) => RedriveBody::read(&Object::body(body)?)?.value,
        None => None,
    };
    if value.is_some() {
        // A request to execute contains a plan of its own.
        caller.must(Permission::WorkflowsWrite)?;
    }
    let firer = Firer {
        definitions: &app.definitions,
        offload: &app.offload,
        quotas: &app.config.quotas,
        audit: app.config.audit,
    };
    let row = resolve_letter::redrive(&app.pool, caller.context(&app), firer, id, value.as_deref()).await?;
    tracing::info!(target: "api.routes.dead_letters", dead_letter_id = %id, "Dead letter redriven");
    Ok((StatusCode::ACCEPTED, Json(row.into())))
}

/// Discard a dead letter
///
/// Deletes the content of the record, and keeps the entry. The copy in the dead-letter topic stays.
#[utoipa::path(
    delete, path = "/dead-letters/{dead_letter_id}", tag = "runs", params(("dead_letter_id" = Uuid, Path)),
    responses(
        (status = 200, body = DeadLetter),
        (status = 404, body = ErrorBody),
        (status = 409, description = "The dead letter is being sent again", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn discard_dead_letter(
    State(app): State<App>,
    caller: Caller,
    LetterId(id): LetterId,
) -> Result<Json<DeadLetter>, ApiError> {
    let row = resolve_letter::discard(&app.pool, caller.context(&app), id).await?;
    tracing::info!(target: "api.routes.dead_letters", dead_letter_id = %id, "Dead letter discarded");
    Ok(Json(row.into()))
}
