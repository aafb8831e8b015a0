//! Authentication: determines the caller of a request. While it is on, every route under the prefix needs a bearer
//! token, an API key, or the session of the console that stands for one of them.

mod jwks;
pub mod token;

use std::sync::Arc;

use http::{HeaderName, StatusCode, header, request::Parts};

use self::token::InvalidToken;
use super::{
    Gate,
    rate_limit::AppliedLimits,
    rules::{Access, Rule},
};
use crate::{
    access::{Actor, Grant, api_key::ApiKey},
    api::vocabulary::{
        api_key_cache::{Lookup, ValidApiKey},
        app::App,
        caller::{Caller, Proof},
        client::ClientAddress,
        error::ApiError,
        session::{self, InvalidCookie, Secret},
        ticket,
    },
    db::{self, api_keys::KeyName},
    timestamp::Timestamp,
};

/// Reason why authentication failed.
enum Refusal {
    /// The credentials are wrong, and may be guessed.
    Wrong(ApiError),
    /// Another reason.
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

/// Authenticates a request. The error is the answer: 401, and 429 after many wrong credentials from one address.
/// Valid credentials are accepted from every address, so that a client cannot lock out its neighbours. `anonymous` is
/// the actor without credentials.
pub async fn authenticate(
    gate: &Gate,
    request: &mut Parts,
    rule: Rule,
    anonymous: &Arc<Actor>,
    limits: &mut AppliedLimits,
) -> Result<Caller, ApiError> {
    // The delivery of a webhook has credentials of its own, perhaps in the same headers.
    if rule.access == Access::Signature {
        return Ok(Caller::sender(anonymous));
    }
    if !gate.app.config.auth.enabled {
        return Ok(Caller::anonymous(Arc::clone(anonymous)));
    }
    let client = request.extensions.get::<ClientAddress>().copied();
    // The address of a callback is its permission. The step may require credentials besides; so may the handler of a
    // route at which they are optional.
    let is_optional = matches!(rule.access, Access::Address | Access::OptionalCredentials);
    let callback_caller = is_optional.then(|| Caller::denied(anonymous));
    let refusal = match identify(gate, request, rule, anonymous, client).await {
        Ok(caller) => return Ok(caller),
        Err(Refusal::Other(answer)) => answer,
        Err(Refusal::Wrong(answer)) => {
            gate.rates.count_failure(client, limits)?;
            answer
        }
    };
    callback_caller.ok_or(refusal)
}

async fn identify(
    gate: &Gate,
    request: &mut Parts,
    rule: Rule,
    anonymous: &Arc<Actor>,
    client: Option<ClientAddress>,
) -> Result<Caller, Refusal> {
    let app = &gate.app;
    // Evaluated only if the key is not in the cache.
    let lookup = || if gate.rates.is_over_failure_limit(client) { Lookup::Batched } else { Lookup::Immediate };
    if let Some(key) = single_header(request, &app.config.auth.api_key_header)? {
        return by_api_key(app, key, anonymous, lookup).await;
    }
    let token = single_header(request, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match token {
        Some(token) => by_token(gate, token, anonymous, lookup).await,
        None if rule.takes_ticket
            && let Some(text) = ticket::presented(request) =>
        {
            by_ticket(app, request, &text, anonymous, lookup).await
        }
        None if rule.takes_session
            && app.config.api.console
            && let Some(cookie) = session::presented(&request.headers) =>
        {
            by_session(gate, request, cookie, anonymous, lookup).await
        }
        None => Err(Refusal::Other(ApiError::unauthorized("A bearer token or an API key is required"))),
    }
}

/// Value of a header that may occur only once: of two values it would be undefined which one counts.
fn single_header<'a>(request: &'a Parts, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let wrong = |detail| Refusal::Wrong(ApiError::unauthorized(detail));
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| wrong("The credentials are not ASCII characters")),
        (Some(_), Some(_)) => Err(wrong("The credentials occur more than once")),
    }
}

async fn by_api_key(
    app: &App,
    key: &str,
    anonymous: &Arc<Actor>,
    lookup: impl FnOnce() -> Lookup,
) -> Result<Caller, Refusal> {
    let invalid = || Refusal::Wrong(ApiError::unauthorized("The API key is not valid"));
    let key = ApiKey::parse(key.trim()).ok_or_else(invalid)?;
    let valid_key = app.keys.find(KeyName::Hash(key.hash()), lookup).await?.ok_or_else(invalid)?;
    Ok(valid_key.caller(Proof::ApiKey(valid_key.id), anonymous, None))
}

async fn by_token(
    gate: &Gate,
    token: &str,
    anonymous: &Arc<Actor>,
    lookup: impl FnOnce() -> Lookup,
) -> Result<Caller, Refusal> {
    let invalid = || ApiError::unauthorized("The bearer token is not valid");
    let claims = gate.tokens.verify(token).await.map_err(|refused| match refused {
        InvalidToken::Invalid => Refusal::Wrong(invalid()),
        // Not counted as a guess: an expired token cannot be guessed.
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
        let actor = Arc::new(anonymous.identified(&claims.subject, &claims.organization, None));
        let (grant, roles) = (Arc::clone(&claims.grant), Arc::clone(&claims.roles));
        let proof = Proof::Token(claims.counts_until());
        return Ok(Caller { actor, grant, roles, proof, ends_at: Some(claims.ends_at()), session: None });
    };
    let valid_key = gate.app.keys.find(KeyName::Id(key_id), lookup).await?.ok_or_else(|| Refusal::Other(invalid()))?;
    let proof = Proof::TokenOfApiKey { id: key_id, until: claims.counts_until() };
    Ok(valid_key.caller(proof, anonymous, Some(claims.ends_at())))
}

async fn by_ticket(
    app: &App,
    request: &mut Parts,
    text: &str,
    anonymous: &Arc<Actor>,
    lookup: impl FnOnce() -> Lookup,
) -> Result<Caller, Refusal> {
    let invalid = || ApiError::unauthorized("The ticket is not valid, or has expired");
    let ticket = ticket::verify(app, request, text).await.map_err(|refused| match refused {
        ticket::InvalidTicket::Invalid => Refusal::Wrong(invalid()),
        // Not counted as a guess: an expired ticket cannot be guessed.
        ticket::InvalidTicket::Expired => Refusal::Other(invalid()),
        ticket::InvalidTicket::Db(error) => error.into(),
    })?;
    let caller = match ticket.holder {
        // Created while authentication was off.
        ticket::TicketOwner::Anybody => return Err(Refusal::Other(invalid())),
        ticket::TicketOwner::ApiKey { id, until } => {
            let proof = until.map_or(Proof::ApiKey(id), |until| Proof::TokenOfApiKey { id, until });
            let valid_key = app.keys.find(KeyName::Id(id), lookup).await?;
            let valid_key = valid_key.ok_or_else(|| Refusal::Other(invalid()))?;
            valid_key.caller(proof, anonymous, until.map(token::at))
        }
        ticket::TicketOwner::Token { subject, organization, role, until } => {
            let actor = Arc::new(anonymous.identified(&subject, &organization, None));
            let (grant, ends_at) = (Arc::new(Grant::of(role)), Some(token::at(until)));
            Caller { actor, grant, roles: Arc::default(), proof: Proof::Token(until), ends_at, session: None }
        }
    };
    if caller.is_still_valid(app).await? { Ok(caller) } else { Err(Refusal::Other(invalid())) }
}

/// Caller of a page of the console, with the rights of the credentials by which its session began.
async fn by_session(
    gate: &Gate,
    request: &Parts,
    cookie: &str,
    anonymous: &Arc<Actor>,
    lookup: impl FnOnce() -> Lookup,
) -> Result<Caller, Refusal> {
    let app = &gate.app;
    let ended = || Refusal::Other(ApiError::unauthorized("The session of the console has ended"));
    if !session::is_same_origin(&request.headers, &app.config.api.public_url) {
        let detail = "The session of the console counts only for requests of its own pages";
        return Err(Refusal::Other(ApiError::unauthorized(detail)));
    }
    let secret = Secret::verify(app, cookie).await.map_err(|refused| match refused {
        InvalidCookie::Invalid => Refusal::Wrong(ApiError::unauthorized("The session cookie is not valid")),
        InvalidCookie::Db(error) => error.into(),
    })?;
    let row = app.sessions.find(secret.hash()).await?.ok_or_else(ended)?;
    if let Some(expected) = single_header(request, &session::CONSOLE_SESSION)?
        && expected.parse() != Ok(row.id)
    {
        let detail = "The page was drawn for another session of the console";
        return Err(Refusal::Other(ApiError::new(StatusCode::UNAUTHORIZED, "session_changed", detail)));
    }
    let caller = match (row.api_key_id, &row.sealed_token) {
        (Some(id), _) => {
            let valid_key = app.keys.find(KeyName::Id(id), lookup).await?.ok_or_else(ended)?;
            valid_key.caller(Proof::ApiKey(id), anonymous, None)
        }
        (None, Some(sealed)) => {
            let token = secret.open(sealed).ok_or_else(ended)?;
            by_token(gate, &token, anonymous, lookup).await.map_err(|refused| match refused {
                // It was valid when the session began.
                Refusal::Wrong(_) => ended(),
                Refusal::Other(answer) => Refusal::Other(answer),
            })?
        }
        (None, None) => return Err(ended()),
    };
    Ok(Caller { session: Some(secret.hash()), ..caller })
}

impl ValidApiKey {
    /// Caller with this API key; `token_ends_at` is the expiry of the key's token, if there is one.
    fn caller(&self, proof: Proof, anonymous: &Arc<Actor>, token_ends_at: Option<Timestamp>) -> Caller {
        let actor = Arc::new(anonymous.identified(&self.subject, &self.organization, Some(self.id)));
        let ends_at = token_ends_at.into_iter().chain(self.expires_at).min();
        let grant = Arc::clone(&self.grant);
        Caller { actor, grant, roles: Arc::default(), proof, ends_at, session: None }
    }
}
