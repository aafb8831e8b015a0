//! Tickets: what a browser opens the event stream of a run with, as its `EventSource` can send no header.
//!
//! A ticket stands for the caller that it was made for, on the one route and for the one run, and is good for opening a
//! stream for a minute. The stream ends with the credentials of that caller, which are asked about again and again. It is
//! signed and not stored: nobody but the service can make one, and every replica takes it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use http::{Method, request::Parts};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    app::App,
    caller::{Caller, Proof},
    error::ApiError,
    extract::{path_text, route_below_prefix},
    signing::SIGNATURE_BYTES,
};
use crate::{
    access::{OrganizationId, Role},
    db, input,
};

/// How long a stream can be opened with a ticket.
pub const LIFETIME: TimeDelta = TimeDelta::seconds(60);
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
    pub holder: TicketOwner,
}

/// For whom a ticket was made.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum TicketOwner {
    /// Whoever it was: authentication was off.
    Anybody,
    /// The holder of an API key; with a token that was issued for it, until that ends.
    #[expect(missing_docs, reason = "said above")]
    ApiKey { id: Uuid, until: Option<f64> },
    /// The subject of a token, until that ends.
    #[expect(missing_docs, reason = "said above")]
    Token { subject: String, organization: OrganizationId, role: Role, until: f64 },
}

impl TicketOwner {
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
pub enum InvalidTicket {
    /// It is none, or for something else.
    Invalid,
    /// It has expired.
    Expired,
    /// It cannot be told.
    Db(db::Error),
}

/// The text of a ticket for the event stream of that run, as long as the caller counts.
pub async fn sign(app: &App, run_id: String, until: DateTime<Utc>, caller: &Caller) -> Result<String, ApiError> {
    let ticket = Ticket { run_id, opens_until: until.timestamp(), holder: TicketOwner::of(caller) };
    let text = input::to_raw(&ticket);
    let mut bytes = app.signing.key().await?.sign(PURPOSE, text.get().as_bytes()).to_vec();
    bytes.extend_from_slice(text.get().as_bytes());
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The text of the ticket that a request comes with, if its route takes one.
#[must_use]
pub fn presented(app: &App, request: &Parts) -> Option<String> {
    let route = route_below_prefix(app, request)?;
    if request.method != Method::GET || route != ROUTE {
        return None;
    }
    let mut pairs = url::form_urlencoded::parse(request.uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.into_owned())
}

/// What the ticket says, if it counts for this request.
pub async fn verify(app: &App, request: &mut Parts, text: &str) -> Result<Ticket, InvalidTicket> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidTicket::Invalid)?;
    let (signature, text) = bytes.split_at_checked(SIGNATURE_BYTES).ok_or(InvalidTicket::Invalid)?;
    let key = app.signing.key().await.map_err(InvalidTicket::Db)?;
    if !key.verifies(PURPOSE, text, signature) {
        return Err(InvalidTicket::Invalid);
    }
    let ticket: Ticket = serde_json::from_slice(text).map_err(|_| InvalidTicket::Invalid)?;
    if path_text(request).await.as_deref() != Some(&ticket.run_id) {
        return Err(InvalidTicket::Invalid);
    }
    if app.clock.now().timestamp() < ticket.opens_until { Ok(ticket) } else { Err(InvalidTicket::Expired) }
}
