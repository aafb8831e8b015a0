//! `/hooks/…`, where other services deliver what starts runs of webhook triggers.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequestParts, Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use serde::Serialize;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use crate::{
    access::OrganizationId,
    actions::{
        fire_trigger::Firer,
        receive_webhook::{self, Arrival, Parcel, ReceiveError, Received, Receiver},
        start_run::StartRunError,
    },
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::Query,
        idempotency::replayed,
        prefer::{Patience, Waited},
        sets,
    },
    db::triggers::TriggerRow,
    event,
    inbound::{Greeting, Unreadable},
    input::{FieldError, query_int},
    run::RunStatus,
};

/// Maximum wait for the end of the run, in seconds.
const MAX_WAIT_SECS: i64 = 10;
/// Maximum length of a part of the path.
const MAX_PART_CHARS: usize = 300;
/// Header with the number of runs that have led to a delivery of this service.
const DEPTH: HeaderName = HeaderName::from_static(event::DEPTH_HEADER);
/// `Retry-After` of a paused trigger, in seconds.
const PAUSED_RETRY_SECS: HeaderValue = HeaderValue::from_static("60");

/// Answer to a delivery. It has a run, started now or before, unless the delivery only tries the address.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = WebhookAnswer)]
pub struct Answer {
    /// Id of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    run_id: Option<String>,
    /// Status of the run; only with `wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = sets::RunStatus, required = false)]
    status: Option<String>,
    /// What a delivery of Slack that tries the address wants to be repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    challenge: Option<String>,
}

/// Answers that both routes have.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what `deliver` answers")]
enum Delivered {
    /// A delivery with the same id has started the run before, the run has ended (`wait`), or the delivery only tries the address
    #[response(status = 200, headers(("Idempotency-Replayed" = String, description = "`true`: a repeat")))]
    Known(Answer),
    /// The filter of the trigger does not want it
    #[response(status = 204)]
    Filtered,
    #[response(status = 413)]
    TooLarge(ErrorBody),
    #[response(status = 415)]
    Unsupported(ErrorBody),
    /// The body cannot be read, or no run can be started with it
    #[response(status = 422)]
    Unreadable(ErrorBody),
    /// The trigger is paused, or the service is overloaded
    #[response(status = 503)]
    Paused(ErrorBody),
}

/// Query that both routes have.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `deliver` reads")]
struct Wait {
    /// Seconds to wait for the end of the run
    #[param(minimum = 0, maximum = 10)]
    wait: Option<i64>,
}

/// `{hook_token}` in the path.
pub struct HookToken(String);

impl<S: Send + Sync> FromRequestParts<S> for HookToken {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // A path that is not UTF-8 has no token.
        let token = Path::<String>::from_request_parts(parts, state).await.map(|Path(token)| token);
        Ok(Self(token.unwrap_or_default()).shortened())
    }
}

impl HookToken {
    fn shortened(self) -> Self {
        if self.0.len() > MAX_PART_CHARS { Self(String::new()) } else { self }
    }
}

/// `{organization}` and `{trigger_name}` in the path.
pub struct HookName(Option<(OrganizationId, String)>);

impl<S: Send + Sync> FromRequestParts<S> for HookName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await.ok();
        Ok(Self(path.and_then(|Path((organization, name))| {
            let is_name = name.len() <= 4 * MAX_PART_CHARS && !name.contains('\0');
            Some((OrganizationId::parse(&organization).ok()?, name)).filter(|_| is_name)
        })))
    }
}

/// Deliver to a webhook trigger by its token
///
/// Starts a run of the trigger's workflow. The token in the path is shown once, when the trigger is created or its token
/// is rotated. No credentials of this service are needed; what the trigger requires besides is verified over the bytes
/// of the body as they are received.
#[utoipa::path(
    post, path = "/hooks/{hook_token}", tag = "triggers",
    params(
        ("hook_token" = String, Path, description = "Token of the trigger"),
        Wait,
    ),
    request_body(content = Option<Object>, description = "What the provider sends: JSON, a form or text, perhaps compressed \
        by gzip"),
    responses(
        Delivered,
        (status = 202, description = "The run is started", body = Answer),
        (status = 401, description = "The delivery is not signed as the trigger requires", body = ErrorBody),
        (status = 404, description = "There is no such address", body = ErrorBody),
    ),
)]
pub async fn deliver_by_token(
    State(app): State<App>,
    caller: Caller,
    HookToken(token): HookToken,
    query: Query,
    patience: Patience,
    request: Request,
) -> Result<Response, ApiError> {
    let found = receive_webhook::by_token(&app.pool, &token).await?;
    let unknown = || ApiError::not_found("hook_not_found", "There is no webhook trigger at this address").wrong_proof();
    deliver(&app, &caller, found, &query, &patience, request, unknown).await
}

/// Deliver to a webhook trigger by its name
///
/// As by the token, for triggers that require a signature or credentials; others do not accept deliveries by name.
#[utoipa::path(
    post, path = "/hooks/{organization}/{trigger_name}", tag = "triggers",
    params(
        ("organization" = String, Path, description = "Organisation of the trigger"),
        ("trigger_name" = String, Path, description = "Name of the trigger"),
        Wait,
    ),
    request_body(content = Option<Object>, description = "What the provider sends: JSON, a form or text, perhaps compressed \
        by gzip"),
    responses(
        Delivered,
        (status = 202, description = "The run is started", body = Answer),
        (status = 401, description = "There is no such trigger, or the delivery is not signed as it requires",
            body = ErrorBody),
    ),
)]
pub async fn deliver_by_name(
    State(app): State<App>,
    caller: Caller,
    HookName(name): HookName,
    query: Query,
    patience: Patience,
    request: Request,
) -> Result<Response, ApiError> {
    let found = match name {
        Some((organization, name)) => receive_webhook::by_name(&app.pool, &organization, &name).await?,
        None => None,
    };
    // Names could be guessed: a trigger that does not exist looks like one that refuses the signature.
    deliver(&app, &caller, found, &query, &patience, request, refused).await
}

async fn deliver(
    app: &App,
    caller: &Caller,
    found: Option<TriggerRow>,
    query: &Query,
    patience: &Patience,
    request: Request,
    unknown: impl Fn() -> ApiError,
) -> Result<Response, ApiError> {
    let wait = query.text("wait").map(|text| query_int("wait", text, 0..=MAX_WAIT_SECS)).transpose()?;
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| ApiError::internal())?.to_bytes();
    let depth = depth(&parts.headers)?;
    let trigger = match found {
        Some(row) if app.organizations.is_active(&row.organization()).await? => Some(row),
        _ => None,
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let parcel = Parcel { method: parts.method, query, headers: parts.headers, body };
    let arrival = Arrival { at: app.clock.now(), correlation_id: &caller.actor.correlation_id, depth };
    let firer = Firer {
        definitions: &app.definitions,
        offload: &app.offload,
        quotas: &app.config.quotas,
        audit: app.config.audit,
    };
    let receiver = Receiver {
        pool: &app.pool,
        vault: &app.config.vault,
        offload: &app.offload,
        firer,
        key_header: &app.config.auth.api_key_header,
        is_backlog_full: app.relay.is_full(),
    };
    let received = receive_webhook::receive(receiver, trigger.as_ref(), parcel, arrival).await;
    count(&received);
    let received = match received {
        Err(ReceiveError::NotFound) => return Err(unknown()),
        other => other?,
    };
    let (run_id, is_repeat) = match received {
        Received::Filtered => return Ok(StatusCode::NO_CONTENT.into_response()),
        Received::Greeting(Greeting::Ping) => return Ok(Json(Answer::default()).into_response()),
        Received::Greeting(Greeting::Challenge(text)) => {
            return Ok(Json(Answer { challenge: Some(text), ..Answer::default() }).into_response());
        }
        Received::Started(run_id) => {
            app.relay.sweep_soon();
            (run_id, false)
        }
        Received::Repeated(run_id) => (run_id, true),
    };
    let row = trigger.as_ref().ok_or_else(ApiError::internal)?;
    tracing::info!(
        target: "api.routes.hooks", trigger_id = %row.id, run_id, is_repeat, "Webhook delivery received"
    );
    let wait = wait.and_then(|secs| u64::try_from(secs).ok()).filter(|secs| *secs > 0).map(Duration::from_secs);
    let (status, waited) = match wait {
        Some(wait) => until_ended(app, caller, row, &run_id, (wait, patience)).await,
        None => (None, Duration::ZERO),
    };
    let has_ended = status.as_deref().and_then(RunStatus::parse).is_some_and(RunStatus::is_terminal);
    let code = if is_repeat || has_ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (code, Json(Answer { run_id: Some(run_id), status, challenge: None })).into_response();
    response.extensions_mut().insert(Waited(waited));
    Ok(if is_repeat { replayed(response) } else { response })
}

/// Waits for the end of the run. Returns its status, unless it cannot be read, and the time that was waited.
async fn until_ended(
    app: &App,
    caller: &Caller,
    row: &TriggerRow,
    run_id: &str,
    (wait, patience): (Duration, &Patience),
) -> (Option<String>, Duration) {
    patience.announce(wait);
    let began = app.clock.instant();
    app.waiting.until_ended(run_id, wait, caller.owners()).await;
    let waited = app.clock.since(began);
    // The delivery is accepted in any case.
    let status = match app.runs.find(&row.organization(), run_id).await {
        Ok(run) => run.map(|found| found.run.status.clone()),
        Err(error) => {
            tracing::debug!(error = &*error as &dyn std::error::Error, "the awaited run cannot be read: {error}");
            None
        }
    };
    (status, waited)
}

/// Number of runs that have led to the delivery.
fn depth(headers: &HeaderMap) -> Result<i16, ApiError> {
    let Some(value) = headers.get(DEPTH) else { return Ok(0) };
    let number = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.ok_or_else(|| FieldError::rule("header.webhook-depth", "must be a number"))?;
    // The run is one more. A number that is too large is beyond every limit.
    Ok(number.parse::<i16>().unwrap_or(i16::MAX).saturating_add(1))
}

fn count(received: &Result<Received, ReceiveError>) {
    let outcome = match received {
        Ok(Received::Started(_)) => "started",
        Ok(Received::Repeated(_)) => "repeated",
        Ok(Received::Filtered) => "filtered",
        Ok(Received::Greeting(_)) => "greeting",
        Err(ReceiveError::NotFound) => "not_found",
        Err(ReceiveError::Refused(_)) => "refused",
        Err(ReceiveError::Paused) => "paused",
        Err(ReceiveError::Unreadable(_) | ReceiveError::Expression { .. }) => "unreadable",
        Err(ReceiveError::NotStarted(_)) => "failed_to_start",
        Err(_) => "error",
    };
    metrics::counter!("webhook_deliveries_received_total", "outcome" => outcome).increment(1);
}

/// 401, with one text for all causes: the reason is for the owner of the trigger.
fn refused() -> ApiError {
    let detail = "The delivery is not signed as the trigger requires";
    ApiError::new(StatusCode::UNAUTHORIZED, "delivery_refused", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Signature"))
        .wrong_proof()
}

impl From<ReceiveError> for ApiError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::NotFound | ReceiveError::Refused(_) => refused(),
            ReceiveError::Paused => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "trigger_paused",
                "The trigger is paused; Retry-After says when to retry",
            )
            .with_header(header::RETRY_AFTER, PAUSED_RETRY_SECS),
            ReceiveError::Unreadable(unreadable) => match unreadable {
                Unreadable::Coding => Self::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_content_encoding",
                    unreadable.to_string(),
                )
                .with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, identity")),
                Unreadable::TooLarge => {
                    Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", unreadable.to_string())
                }
                Unreadable::Json(fault) => FieldError::from(fault).into(),
                Unreadable::Compressed | Unreadable::NotText => {
                    FieldError::new("body", "unreadable", unreadable.to_string()).into()
                }
            },
            // What the expressions are is not for the sender.
            ReceiveError::Expression { member, .. } => {
                FieldError::new("body", "value_error", format!("The {member} of the trigger has no value for this"))
                    .into()
            }
            ReceiveError::NotStarted(failure) if failure.reason == "quota_exceeded" => {
                let detail = "The organisation of the trigger has as many queued runs as it may have";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail)
                    .with_header(header::RETRY_AFTER, HeaderValue::from_static("5"))
            }
            ReceiveError::NotStarted(failure) => {
                let detail = "The trigger cannot start a run with this delivery; its owner sees the reason";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, failure.reason, detail)
            }
            ReceiveError::BacklogFull => StartRunError::BacklogFull.into(),
            ReceiveError::Busy => Self::unavailable("overloaded", "Too many requests are waiting already"),
            ReceiveError::Db(error) => error.into(),
            error @ (ReceiveError::Sealed(_) | ReceiveError::Unknown) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a webhook trigger cannot be used: {error}");
                Self::internal()
            }
        }
    }
}
