//! Authentication: the caller of a request. With it on, every route under the prefix needs a bearer token or an API key.

mod jwks;
pub mod token;

use std::sync::Arc;

use http::{HeaderName, header, request::Parts};

use self::token::InvalidToken;
use super::{Gate, access::Access, rate_limit::AppliedLimits};
use crate::{
    access::{Actor, Grant, api_key::ApiKey},
    api::vocabulary::{
        api_key_cache::{Lookup, ValidApiKey},
        app::App,
        caller::{Caller, Proof},
        client::ClientAddress,
        error::ApiError,
        ticket,
    },
    db::{self, api_keys::KeyName},
    timestamp::Timestamp,
};

/// Why a request is not let in.
enum Refusal {
    /// Its credentials are wrong, perhaps guessed.
    Wrong(ApiError),
    /// For another reason.
    Other(ApiError),
}

impl From<db::Error> for Refusal {
    fn from(error: db::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<Arc<db::Error>> for Refusal {
    fn from(error: Arc<db::Error>) -> Self {
        Self::Other(error.into())
    }
}

/// The caller of a request, or the answer to give instead: 401, and 429 after many wrong credentials from one address.
/// Right ones are let in from everywhere, so that nobody can lock out his neighbours. What is known of everybody is in
/// `anybody`.
pub async fn authenticate(
    gate: &Gate,
    request: &mut Parts,
    access: Access,
    anybody: Actor,
    limits: &mut AppliedLimits,
) -> Result<Caller, ApiError> {
    if !gate.app.config.auth.enabled {
        return Ok(Caller::anonymous(anybody));
    }
    let client = request.extensions.get::<ClientAddress>().copied();
    // The address of a callback is its permission. Who else somebody is may be asked for there.
    let nobody = (access == Access::Address).then(|| Caller::denied(anybody.clone()));
    let refusal = match identify(gate, request, anybody, client).await {
        Ok(caller) => return Ok(caller),
        Err(Refusal::Other(answer)) => answer,
        Err(Refusal::Wrong(answer)) => {
            gate.rates.count_failure(client, limits)?;
            answer
        }
    };
    nobody.ok_or(refusal)
}

async fn identify(
    gate: &Gate,
    request: &mut Parts,
    anybody: Actor,
    client: Option<ClientAddress>,
) -> Result<Caller, Refusal> {
    let app = &gate.app;
    // Asked for only if the key is not known yet.
    let pace = || if gate.rates.is_over_failure_limit(client) { Lookup::Batched } else { Lookup::Immediate };
    if let Some(key) = single_header(request, &app.config.auth.api_key_header)? {
        return by_api_key(app, key, anybody, pace).await;
    }
    let token = single_header(request, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match token {
        Some(token) => by_token(gate, token, anybody, pace).await,
        None if let Some(text) = ticket::presented(app, request) => by_ticket(app, request, &text, anybody, pace).await,
        None => Err(Refusal::Other(ApiError::unauthorized("A bearer token or an API key is required"))),
    }
}

/// The value of a header that may be there once: which of two would count, nobody could tell.
fn single_header<'a>(request: &'a Parts, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let wrong = |detail| Refusal::Wrong(ApiError::unauthorized(detail));
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| wrong("The credentials are not ASCII characters")),
        (Some(_), Some(_)) => Err(wrong("The credentials are there more than once")),
    }
}

async fn by_api_key(app: &App, key: &str, anybody: Actor, pace: impl FnOnce() -> Lookup) -> Result<Caller, Refusal> {
    let invalid = || Refusal::Wrong(ApiError::unauthorized("The API key is not valid"));
    let key = ApiKey::parse(key.trim()).ok_or_else(invalid)?;
    let holder = app.keys.find(KeyName::Hash(key.hash()), pace).await?.ok_or_else(invalid)?;
    Ok(holder.caller(Proof::ApiKey(holder.id), anybody, None))
}

async fn by_token(gate: &Gate, token: &str, anybody: Actor, pace: impl FnOnce() -> Lookup) -> Result<Caller, Refusal> {
    let invalid = || ApiError::unauthorized("The bearer token is not valid");
    let claims = gate.tokens.verify(token).await.map_err(|refused| match refused {
        InvalidToken::Invalid => Refusal::Wrong(invalid()),
        // Nobody guesses one.
        InvalidToken::Expired => Refusal::Other(invalid()),
        InvalidToken::WithoutKeys => {
            let detail = "The keys that tokens are verified with are not available";
            Refusal::Other(ApiError::unavailable("keys_unavailable", detail))
        }
    })?;
    let Some(key_id) = claims.key_id else {
        if !gate.app.organizations.is_active(&claims.organization).await? {
            return Err(Refusal::Other(invalid()));
        }
        let (subject, organization) = (claims.subject.clone(), claims.organization.clone());
        let actor = Arc::new(Actor { subject, organization, ..anybody });
        let (grant, roles) = (Arc::clone(&claims.grant), Arc::clone(&claims.roles));
        let proof = Proof::Token(claims.counts_until());
        return Ok(Caller { actor, grant, roles, proof, ends_at: Some(claims.ends_at()) });
    };
    let holder = gate.app.keys.find(KeyName::Id(key_id), pace).await?.ok_or_else(|| Refusal::Other(invalid()))?;
    let proof = Proof::TokenOfApiKey { id: key_id, until: claims.counts_until() };
    Ok(holder.caller(proof, anybody, Some(claims.ends_at())))
}

async fn by_ticket(
    app: &App,
    request: &mut Parts,
    text: &str,
    anybody: Actor,
    pace: impl FnOnce() -> Lookup,
) -> Result<Caller, Refusal> {
    let invalid = || ApiError::unauthorized("The ticket is not valid, or has expired");
    let ticket = ticket::verify(app, request, text).await.map_err(|refused| match refused {
        ticket::InvalidTicket::Invalid => Refusal::Wrong(invalid()),
        // Nobody guesses one.
        ticket::InvalidTicket::Expired => Refusal::Other(invalid()),
        ticket::InvalidTicket::Db(error) => error.into(),
    })?;
    let caller = match ticket.holder {
        // From a time when authentication was off.
        ticket::TicketOwner::Anybody => return Err(Refusal::Other(invalid())),
        ticket::TicketOwner::ApiKey { id, until } => {
            let proof = until.map_or(Proof::ApiKey(id), |until| Proof::TokenOfApiKey { id, until });
            let holder = app.keys.find(KeyName::Id(id), pace).await?;
            let holder = holder.ok_or_else(|| Refusal::Other(invalid()))?;
            holder.caller(proof, anybody, until.map(token::at))
        }
        ticket::TicketOwner::Token { subject, organization, role, until } => {
            let actor = Arc::new(Actor { subject, organization, ..anybody });
            let (grant, ends_at) = (Arc::new(Grant::of(role)), Some(token::at(until)));
            Caller { actor, grant, roles: Arc::default(), proof: Proof::Token(until), ends_at }
        }
    };
    if caller.is_still_valid(app).await? { Ok(caller) } else { Err(Refusal::Other(invalid())) }
}

impl ValidApiKey {
    /// `token_ends_at` if it is a token of the key.
    fn caller(&self, proof: Proof, anybody: Actor, token_ends_at: Option<Timestamp>) -> Caller {
        let (subject, organization) = (self.subject.clone(), self.organization.clone());
        let actor = Arc::new(Actor { subject, organization, key_id: Some(self.id), ..anybody });
        let ends_at = token_ends_at.into_iter().chain(self.expires_at).min();
        Caller { actor, grant: Arc::clone(&self.grant), roles: Arc::default(), proof, ends_at }
    }
}
