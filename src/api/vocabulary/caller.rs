//! Who calls, how that was told, and what the caller may do.

use std::{sync::Arc, time::Duration};

use axum::extract::FromRequestParts;
use http::request::Parts;
use uuid::Uuid;

use super::{api_key_cache::Lookup, app::App, client::ClientAddress, error::ApiError};
use crate::{
    access::{Actor, Grant, OrganizationId, Permission, Role},
    actions::{Context, answer_callback::CallbackCaller},
    db::{self, api_keys::KeyName},
    permits::{Holder as PermitHolder, Holders, Scope},
    timestamp::Timestamp,
};

/// How often it is asked whether a caller who is served for long would still be let in. With what is remembered of keys,
/// that ends within the 5 s after which a revoked key must be useless.
pub const RECHECK_CALLER: Duration = Duration::from_secs(1);

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
    pub fn anonymous(anybody: Actor) -> Self {
        let (actor, grant) = (Arc::new(anybody), Arc::new(Grant::of(Role::Admin)));
        Self { actor, grant, roles: Arc::default(), proof: Proof::Nothing, ends_at: None }
    }

    /// Whoever has the address of a callback.
    #[must_use]
    pub fn denied(anybody: Actor) -> Self {
        let actor = Arc::new(Actor { subject: Actor::CALLBACK.to_owned(), ..anybody });
        let grant = Arc::new(Grant::of(Role::Viewer));
        Self { actor, grant, roles: Arc::default(), proof: Proof::Address, ends_at: None }
    }

    /// The same, as somebody who answers a callback.
    #[must_use]
    pub fn callback_caller(&self) -> CallbackCaller<'_> {
        let scopes = self.grant.scopes.as_ref();
        let is_whole = scopes.is_none_or(|scopes| scopes.contains(&Permission::RunsWrite));
        CallbackCaller {
            actor: &self.actor,
            is_known: self.proof != Proof::Address,
            organization: Some(self.organization()).filter(|_| self.proof != Proof::Nothing),
            role: Some(self.grant.role).filter(|_| is_whole),
            roles: &self.roles,
            workflows: self.grant.workflows.as_deref(),
        }
    }

    /// Whether the caller would still be let in, for whoever serves him for longer than a request takes.
    pub async fn is_still_valid(&self, app: &App) -> Result<bool, Arc<db::Error>> {
        Ok(match self.proof {
            Proof::Nothing | Proof::Address => true,
            Proof::Token(until) => {
                app.clock.epoch_secs() < until && app.organizations.is_active(self.organization()).await?
            }
            Proof::TokenOfApiKey { until, .. } if app.clock.epoch_secs() >= until => false,
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => {
                app.keys.find(KeyName::Id(id), || Lookup::Immediate).await?.is_some()
            }
        })
    }

    /// Returns when the caller would not be let in any more.
    pub async fn ended(&self, app: &App) {
        // A database that is away says nothing about the caller.
        while !matches!(self.is_still_valid(app).await, Ok(false)) {
            tokio::time::sleep(RECHECK_CALLER).await;
        }
    }

    /// Whose share of what is scarce counts. While authentication is off, an address has that of an organisation.
    #[must_use]
    pub fn holders(&self) -> Holders {
        let address = self.actor.address.map(|address| ClientAddress(address).network());
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

    /// Whether the caller may do that.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.grant.allows(permission)
    }

    /// 403 unless the caller may do that.
    pub fn must(&self, permission: Permission) -> Result<(), ApiError> {
        if self.may(permission) {
            return Ok(());
        }
        let detail = format!("The caller may not do this: it needs {}", permission.as_str());
        Err(ApiError::forbidden(detail))
    }

    /// Whether the caller sees the credentials of agents.
    #[must_use]
    pub fn sees_secrets(&self) -> bool {
        self.may(Permission::AgentsSecrets)
    }

    /// The caller, as the one on whose behalf an action runs.
    #[must_use]
    pub fn context<'a>(&'a self, app: &'a App) -> Context<'a> {
        Context {
            actor: &self.actor,
            quotas: &app.config.quotas,
            max_run_steps: app.config.executor.run_budget.steps,
            audit: app.config.audit,
            vault: &app.config.vault,
            egress: &app.config.egress,
            sees_secrets: self.sees_secrets(),
            workflows: self.grant.workflows.as_deref(),
            key: None,
            if_match: None,
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
