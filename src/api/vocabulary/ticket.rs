//! Tickets: credentials by which a browser opens the event stream of a run, as its `EventSource` can send no header.
//!
//! A ticket represents the caller that created it, for one route and one run, and can open a stream for a minute. The
//! stream ends with the credentials of that caller, which are checked repeatedly. A ticket is signed and not stored:
//! only the service can create one, and every replica accepts it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, TimeDelta, Utc};
use http::request::Parts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    app::App,
    caller::{Caller, Proof},
    error::ApiError,
    extract::path_text,
    signing::SIGNATURE_BYTES,
};
use crate::{
    access::{OrganizationId, Role},
    db, input,
};

/// Time within which a ticket can open a stream.
pub const LIFETIME: TimeDelta = TimeDelta::seconds(60);
/// Purpose of the signature.
const PURPOSE: &[u8] = b"event-stream";

/// Content of a ticket.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    run_id: String,
    /// Expiry for opening a stream, in seconds since the epoch.
    opens_until: i64,
    /// Caller that the ticket represents.
    #[serde(flatten)]
    pub holder: TicketOwner,
}

/// Caller that created a ticket.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum TicketOwner {
    /// Any caller: authentication was off.
    Anybody,
    /// API key; with a token that was issued for it, until the token ends.
    #[expect(missing_docs, reason = "documented above")]
    ApiKey { id: Uuid, until: Option<f64> },
    /// Subject of a token, until the token ends.
    #[expect(missing_docs, reason = "documented above")]
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

/// Reason why a ticket is not valid.
pub enum InvalidTicket {
    /// Not a ticket, or one for another run or route.
    Invalid,
    /// It has expired.
    Expired,
    /// The database could not be queried.
    Db(db::Error),
}

/// Creates a ticket for the event stream of that run. It is valid at most as long as the caller's credentials.
pub async fn sign(app: &App, run_id: String, until: DateTime<Utc>, caller: &Caller) -> Result<String, ApiError> {
    let ticket = Ticket { run_id, opens_until: until.timestamp(), holder: TicketOwner::of(caller) };
    let text = input::to_raw(&ticket);
    let mut bytes = app.signing.key().await?.sign(PURPOSE, text.get().as_bytes()).to_vec();
    bytes.extend_from_slice(text.get().as_bytes());
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The ticket in the request.
#[must_use]
pub fn presented(request: &Parts) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(request.uri.query()?.as_bytes());
    pairs.find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.into_owned())
}

/// Verifies a ticket for this request, and returns its content.
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
