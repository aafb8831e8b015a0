//! Tickets: what a browser opens the event stream of a run with, as its `EventSource` can send no header.
//!
//! A ticket stands for the caller that it was made for, on the one route and for the one run, and is good for opening a
//! stream for a minute. The stream ends with the credentials of that caller, which are asked about again and again. It is
//! signed and not stored: nobody but the service can make one, and every replica takes it.

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use http::{Method, StatusCode, request::Parts};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::runs::not_found;
use crate::{
    access::{OrganizationId, Role},
    api::{
        App,
        gate::auth::{Caller, Proof},
        vocabulary::{
            error::{ApiError, ErrorBody},
            extract::{RunId, path_text},
            signing::SIGNATURE_BYTES,
        },
    },
    db, input,
    timestamp::Timestamp,
};

/// How long a stream can be opened with a ticket.
const LIFETIME: TimeDelta = TimeDelta::seconds(60);
/// What the signature is for.
const PURPOSE: &[u8] = b"event-stream";
/// The route, below the prefix.
const ROUTE: &str = "/runs/{run_id}/events";

/// What a ticket says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    run_id: String,
    /// Until when a stream can be opened, in seconds since the epoch.
    opens_until: i64,
    /// For whom it was made.
    #[serde(flatten)]
    pub holder: Holder,
}

/// For whom a ticket was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Holder {
    /// Whoever it was: authentication was off.
    Anybody,
    /// The holder of an API key; with a token that was issued for it, until that ends.
    #[expect(missing_docs, reason = "said above")]
    ApiKey { id: Uuid, until: Option<f64> },
    /// The subject of a token, until that ends.
    #[expect(missing_docs, reason = "said above")]
    Token { subject: String, organization: OrganizationId, role: Role, until: f64 },
}

impl Holder {
    fn of(caller: &Caller) -> Self {
        match caller.proof {
            Proof::Nothing | Proof::Address => Self::Anybody,
            Proof::ApiKey(id) => Self::ApiKey { id, until: None },
            Proof::TokenOfApiKey { id, until } => Self::ApiKey { id, until: Some(until) },
            Proof::Token(until) => Self::Token {
                subject: caller.actor.subject.clone(),
                organization: caller.organization().clone(),
                role: caller.grant.role,
                until,
            },
        }
    }
}

/// Why a ticket does not count.
pub enum Refused {
    /// It is none, or for something else.
    Invalid,
    /// It has expired.
    Expired,
    /// It cannot be told.
    Db(db::Error),
}

/// A ticket for the event stream of a run.
#[derive(Serialize, ToSchema)]
pub struct EventTicket {
    /// For the parameter `ticket` of the stream.
    ticket: String,
    /// The path of the stream with the ticket.
    #[schema(example = "/api/v1/runs/run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d/events?ticket=kx...")]
    url: String,
    /// Until when a stream can be opened with it. What is open goes on.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Create a ticket for an event stream
///
/// For browsers: their `EventSource` can send no token. The stream that is opened with the ticket is the caller's own, and
/// ends with the caller's credentials.
#[utoipa::path(
    post, path = "/runs/{run_id}/events/ticket", tag = "runs", params(("run_id" = String, Path)),
    responses((status = 201, body = EventTicket), (status = 404, body = ErrorBody)),
)]
pub async fn create_event_ticket(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<(StatusCode, Json<EventTicket>), ApiError> {
    if !db::runs::exists(&app.pool, caller.organization(), &run_id).await? {
        return Err(not_found());
    }
    let until = app.clock.now() + LIFETIME;
    let path: String = url::form_urlencoded::byte_serialize(run_id.as_bytes()).collect();
    let ticket = Ticket { run_id, opens_until: until.timestamp(), holder: Holder::of(&caller) };
    let text = input::to_raw(&ticket);
    let mut bytes = app.signing.key().await?.sign(PURPOSE, text.get().as_bytes()).to_vec();
    bytes.extend_from_slice(text.get().as_bytes());
    let ticket = URL_SAFE_NO_PAD.encode(bytes);
    // A space in a path is no plus.
    let url = format!("{}/runs/{}/events?ticket={ticket}", app.config.api.prefix, path.replace('+', "%20"));
    let expires_at = DateTime::<Utc>::from_timestamp(until.timestamp(), 0).unwrap_or(until).into();
    Ok((StatusCode::CREATED, Json(EventTicket { ticket, url, expires_at })))
}

/// The text of the ticket that a request comes with, if its route takes one.
#[must_use]
pub fn presented(app: &App, request: &Parts) -> Option<String> {
    let route = crate::api::route_below_prefix(app, request)?;
    if request.method != Method::GET || route != ROUTE {
        return None;
    }
    let mut pairs = url::form_urlencoded::parse(request.uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.into_owned())
}

/// What the ticket says, if it counts for this request.
pub async fn verify(app: &App, request: &mut Parts, text: &str) -> Result<Ticket, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Refused::Invalid)?;
    let (signature, text) = bytes.split_at_checked(SIGNATURE_BYTES).ok_or(Refused::Invalid)?;
    let key = app.signing.key().await.map_err(Refused::Db)?;
    if !key.verifies(PURPOSE, text, signature) {
        return Err(Refused::Invalid);
    }
    let ticket: Ticket = serde_json::from_slice(text).map_err(|_| Refused::Invalid)?;
    if path_text(request).await.as_deref() != Some(&ticket.run_id) {
        return Err(Refused::Invalid);
    }
    if app.clock.now().timestamp() < ticket.opens_until { Ok(ticket) } else { Err(Refused::Expired) }
}
