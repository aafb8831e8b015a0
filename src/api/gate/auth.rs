//! Who calls. With authentication on, every route under the prefix needs a bearer token or an API key.

mod jwks;
mod key_ring;
mod organizations;
mod token;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{HeaderName, HeaderValue, StatusCode, header, request::Parts};
use uuid::Uuid;

use self::{key_ring::Holder, token::Refused};
pub use self::{
    key_ring::{KeyRing, Pace},
    organizations::Organizations,
    token::{TokenError, Tokens, issue, issue_for_key},
};
use super::rate_limit::{Applied, network};
use crate::{
    access::{Actor, Grant, OrganizationId, Permission, Role, api_key::ApiKey},
    actions::answer_callback::Answerer,
    api::{
        App,
        resources::ticket,
        vocabulary::{client::ClientAddress, error::ApiError},
    },
    config::MetricsAccess,
    db::{self, api_keys::KeyName},
    permits::{Holder as PermitHolder, Holders, Scope},
    timestamp::Timestamp,
};

/// Who a request is from. Its existence is the proof that the caller was let in.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who it is.
    pub actor: Arc<Actor>,
    /// What the caller may do; everything while authentication is off.
    pub grant: Arc<Grant>,
    /// Roles of the caller's organisation, for approvals.
    pub roles: Arc<[String]>,
    /// How the caller was told.
    pub proof: Proof,
    /// When that ends; `None`: never.
    pub ends_at: Option<Timestamp>,
}

/// How a caller was told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Proof {
    /// Not at all: authentication is off, or the route is open to all.
    Nothing,
    /// By the address of a callback, which is all that is known.
    Address,
    /// By a token, which counts until then, in seconds since the epoch.
    Token(f64),
    /// By a token that was issued for this API key, and which counts until then.
    #[expect(missing_docs, reason = "said above")]
    TokenOfApiKey { id: Uuid, until: f64 },
    /// By this API key.
    ApiKey(Uuid),
}

impl Caller {
    /// The caller of a request of whom nothing is asked, and who may do everything.
    #[must_use]
    pub fn anybody(anybody: Actor) -> Self {
        let (actor, grant) = (Arc::new(anybody), Arc::new(Grant::of(Role::Admin)));
        Self { actor, grant, roles: Arc::default(), proof: Proof::Nothing, ends_at: None }
    }

    /// Whoever has the address of a callback.
    fn nobody(anybody: Actor) -> Self {
        let actor = Arc::new(Actor { subject: Actor::CALLBACK.to_owned(), ..anybody });
        let grant = Arc::new(Grant::of(Role::Viewer));
        Self { actor, grant, roles: Arc::default(), proof: Proof::Address, ends_at: None }
    }

    /// The same, as somebody who answers a callback.
    #[must_use]
    pub fn answerer(&self) -> Answerer<'_> {
        let scopes = self.grant.scopes.as_ref();
        let is_whole = scopes.is_none_or(|scopes| scopes.contains(&Permission::RunsWrite));
        Answerer {
            actor: &self.actor,
            is_known: self.proof != Proof::Address,
            organization: Some(self.organization()).filter(|_| self.proof != Proof::Nothing),
            role: Some(self.grant.role).filter(|_| is_whole),
            roles: &self.roles,
            workflows: self.grant.workflows.as_deref(),
        }
    }

    /// Whether the caller would still be let in, for whoever serves him for longer than a request takes.
    pub async fn still_counts(&self, app: &App) -> Result<bool, Arc<db::Error>> {
        Ok(match self.proof {
            Proof::Nothing | Proof::Address => true,
            Proof::Token(until) => {
                app.clock.epoch_secs() < until && app.organizations.is_active(self.organization()).await?
            }
            Proof::TokenOfApiKey { until, .. } if app.clock.epoch_secs() >= until => false,
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => {
                app.keys.find(KeyName::Id(id), || Pace::AtOnce).await?.is_some()
            }
        })
    }

    /// Whose share of what is scarce counts. While authentication is off, an address has that of an organisation.
    #[must_use]
    pub fn holders(&self) -> Holders {
        let address = self.actor.address.map(|address| network(ClientAddress(address)));
        let organization = || Some(PermitHolder::new(Scope::Organization, self.organization()));
        match self.proof {
            Proof::Nothing => Holders::new(PermitHolder::new(Scope::Organization, address), None),
            Proof::Address => {
                let all = PermitHolder::new(Scope::Anonymous, ());
                Holders::new(all, Some(PermitHolder::new(Scope::Address, address)))
            }
            Proof::Token(_) => {
                let subject = (self.organization(), &self.actor.subject);
                Holders::new(PermitHolder::new(Scope::Caller, subject), organization())
            }
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => {
                Holders::new(PermitHolder::new(Scope::Caller, id), organization())
            }
        }
    }

    /// Whose everything is that the caller sees and makes.
    #[must_use]
    pub fn organization(&self) -> &OrganizationId {
        &self.actor.organization
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(ApiError::internal)
    }
}

/// 401.
pub fn unauthorized(detail: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

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

/// A path that is for those alone who are let in, and under the limits: all below the prefix.
#[must_use]
pub fn is_guarded(app: &App, path: &str) -> bool {
    let is_business = path.strip_prefix(&app.config.api.prefix).is_some_and(|rest| rest.starts_with('/'));
    is_business && !super::docs::is_public(path) && !crate::api::resources::system::is_public(path)
}

/// A path that is for those alone who are let in, and under no limits.
#[must_use]
pub fn needs_credentials(app: &App, path: &str) -> bool {
    path == crate::api::resources::system::METRICS && app.config.metrics.access == MetricsAccess::Credentials
}

/// The caller of a request, or the answer to give instead: 401, and 429 after many wrong credentials from one address.
/// Right ones are let in from everywhere, so that nobody can lock out his neighbours. What is known of everybody is in
/// `anybody`.
pub async fn authenticate(
    app: &App,
    request: &mut Parts,
    anybody: Actor,
    limits: &mut Applied,
) -> Result<Caller, ApiError> {
    if !app.config.auth.enabled {
        return Ok(Caller::anybody(anybody));
    }
    let client = request.extensions.get::<ClientAddress>().copied();
    // The address of a callback is its permission. Who else somebody is may be asked for there.
    let below = request.uri.path().strip_prefix(&app.config.api.prefix).unwrap_or_default();
    let nobody = below.starts_with("/callbacks/").then(|| Caller::nobody(anybody.clone()));
    let refusal = match identify(app, request, anybody, client).await {
        Ok(caller) => return Ok(caller),
        Err(Refusal::Other(answer)) => answer,
        Err(Refusal::Wrong(answer)) => {
            app.rates.count_failure(client, limits)?;
            answer
        }
    };
    nobody.ok_or(refusal)
}

async fn identify(
    app: &App,
    request: &mut Parts,
    anybody: Actor,
    client: Option<ClientAddress>,
) -> Result<Caller, Refusal> {
    // Asked for only if the key is not known yet.
    let pace = || if app.rates.suspects(client) { Pace::Gathered } else { Pace::AtOnce };
    if let Some(key) = only(request, &app.config.auth.api_key_header)? {
        return by_api_key(app, key, anybody, pace).await;
    }
    let token = only(request, &header::AUTHORIZATION)?.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match token {
        Some(token) => by_token(app, token, anybody, pace).await,
        None if let Some(text) = ticket::presented(app, request) => by_ticket(app, request, &text, anybody, pace).await,
        None => Err(Refusal::Other(unauthorized("A bearer token or an API key is required"))),
    }
}

/// The value of a header that may be there once: which of two would count, nobody could tell.
fn only<'a>(request: &'a Parts, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let wrong = |detail| Refusal::Wrong(unauthorized(detail));
    let mut values = request.headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| wrong("The credentials are not ASCII characters")),
        (Some(_), Some(_)) => Err(wrong("The credentials are there more than once")),
    }
}

async fn by_api_key(app: &App, key: &str, anybody: Actor, pace: impl FnOnce() -> Pace) -> Result<Caller, Refusal> {
    let invalid = || Refusal::Wrong(unauthorized("The API key is not valid"));
    let key = ApiKey::parse(key.trim()).ok_or_else(invalid)?;
    let holder = app.keys.find(KeyName::Hash(key.hash()), pace).await?.ok_or_else(invalid)?;
    Ok(holder.caller(Proof::ApiKey(holder.id), anybody, None))
}

async fn by_token(app: &App, token: &str, anybody: Actor, pace: impl FnOnce() -> Pace) -> Result<Caller, Refusal> {
    let invalid = || unauthorized("The bearer token is not valid");
    let claims = app.tokens.verify(token).await.map_err(|refused| match refused {
        Refused::Invalid => Refusal::Wrong(invalid()),
        // Nobody guesses one.
        Refused::Expired => Refusal::Other(invalid()),
        Refused::WithoutKeys => {
            let detail = "The keys that tokens are verified with are not available";
            Refusal::Other(ApiError::unavailable("keys_unavailable", detail))
        }
    })?;
    let Some(key_id) = claims.key_id else {
        if !app.organizations.is_active(&claims.organization).await? {
            return Err(Refusal::Other(invalid()));
        }
        let (subject, organization) = (claims.subject.clone(), claims.organization.clone());
        let actor = Arc::new(Actor { subject, organization, ..anybody });
        let (grant, roles) = (Arc::clone(&claims.grant), Arc::clone(&claims.roles));
        let proof = Proof::Token(claims.counts_until());
        return Ok(Caller { actor, grant, roles, proof, ends_at: Some(claims.ends_at()) });
    };
    let holder = app.keys.find(KeyName::Id(key_id), pace).await?.ok_or_else(|| Refusal::Other(invalid()))?;
    let proof = Proof::TokenOfApiKey { id: key_id, until: claims.counts_until() };
    Ok(holder.caller(proof, anybody, Some(claims.ends_at())))
}

async fn by_ticket(
    app: &App,
    request: &mut Parts,
    text: &str,
    anybody: Actor,
    pace: impl FnOnce() -> Pace,
) -> Result<Caller, Refusal> {
    let invalid = || unauthorized("The ticket is not valid, or has expired");
    let ticket = ticket::verify(app, request, text).await.map_err(|refused| match refused {
        ticket::Refused::Invalid => Refusal::Wrong(invalid()),
        // Nobody guesses one.
        ticket::Refused::Expired => Refusal::Other(invalid()),
        ticket::Refused::Db(error) => error.into(),
    })?;
    let caller = match ticket.holder {
        // From a time when authentication was off.
        ticket::Holder::Anybody => return Err(Refusal::Other(invalid())),
        ticket::Holder::ApiKey { id, until } => {
            let proof = until.map_or(Proof::ApiKey(id), |until| Proof::TokenOfApiKey { id, until });
            let holder = app.keys.find(KeyName::Id(id), pace).await?;
            let holder = holder.ok_or_else(|| Refusal::Other(invalid()))?;
            holder.caller(proof, anybody, until.map(token::at))
        }
        ticket::Holder::Token { subject, organization, role, until } => {
            let actor = Arc::new(Actor { subject, organization, ..anybody });
            let (grant, ends_at) = (Arc::new(Grant::of(role)), Some(token::at(until)));
            Caller { actor, grant, roles: Arc::default(), proof: Proof::Token(until), ends_at }
        }
    };
    if caller.still_counts(app).await? { Ok(caller) } else { Err(Refusal::Other(invalid())) }
}

impl Holder {
    /// `token_ends_at` if it is a token of the key.
    fn caller(&self, proof: Proof, anybody: Actor, token_ends_at: Option<Timestamp>) -> Caller {
        let (subject, organization) = (self.subject.clone(), self.organization.clone());
        let actor = Arc::new(Actor { subject, organization, key_id: Some(self.id), ..anybody });
        let ends_at = token_ends_at.into_iter().chain(self.expires_at).min();
        Caller { actor, grant: Arc::clone(&self.grant), roles: Arc::default(), proof, ends_at }
    }
}
