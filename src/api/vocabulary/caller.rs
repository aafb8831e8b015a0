//! Caller: identity, kind of credentials, and permissions.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::extract::FromRequestParts;
use http::request::Parts;
use uuid::Uuid;

use super::{api_key_cache::Lookup, app::App, client::ClientAddress, error::ApiError};
use crate::{
    access::{Actor, Grant, OrganizationId, Permission, Role},
    actions::{Context, answer_callback::CallbackCaller},
    db::{self, api_keys::KeyName},
    permits::{Owner as PermitHolder, Owners, Scope},
    timestamp::Timestamp,
};

/// Interval at which the credentials of the caller of a long request are checked again. Together with the lifetime of
/// cached keys, a revoked key becomes invalid within the required 5 s.
pub const RECHECK_CALLER: Duration = Duration::from_secs(1);

/// Caller of a request. A value exists only after successful authentication.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Identity of the caller.
    pub actor: Arc<Actor>,
    /// Rights of the caller; all rights while authentication is off.
    pub grant: Arc<Grant>,
    /// Roles that the caller's organisation assigned, for approvals.
    pub roles: Arc<[String]>,
    /// Kind of credentials.
    pub proof: Proof,
    /// Expiry of the credentials; `None`: never.
    pub ends_at: Option<Timestamp>,
    /// Hash of the secret of the console's session by which the caller is known. The session stands for the credentials.
    pub session: Option<[u8; 32]>,
}

/// Kind of credentials.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Proof {
    /// None: authentication is off, or the route is public.
    Nothing,
    /// The address of a callback, and nothing else.
    Address,
    /// Token, with its expiry in seconds since the epoch.
    Token(f64),
    /// Token that was issued for this API key, with its expiry.
    #[expect(missing_docs, reason = "documented above")]
    TokenOfApiKey { id: Uuid, until: f64 },
    /// API key with this id.
    ApiKey(Uuid),
}

impl Caller {
    /// Caller without authentication, who has all rights.
    #[must_use]
    pub fn anonymous(actor: Arc<Actor>) -> Self {
        static ALL: LazyLock<Arc<Grant>> = LazyLock::new(|| Arc::new(Grant::of(Role::Admin)));
        let grant = Arc::clone(&ALL);
        Self { actor, grant, roles: Arc::default(), proof: Proof::Nothing, ends_at: None, session: None }
    }

    /// Caller that is known only by the address of a callback.
    #[must_use]
    pub fn denied(actor: &Actor) -> Self {
        let actor = Arc::new(Actor { subject: Actor::CALLBACK.to_owned(), ..actor.clone() });
        let grant = Arc::new(Grant::of(Role::Viewer));
        Self { actor, grant, roles: Arc::default(), proof: Proof::Address, ends_at: None, session: None }
    }

    /// Sender of a webhook, who is known only by what the trigger requires.
    #[must_use]
    pub fn sender(actor: &Actor) -> Self {
        let unnamed = Arc::new(Actor { subject: String::new(), ..actor.clone() });
        Self { actor: unnamed, ..Self::denied(actor) }
    }

    /// The caller, in the form that answering a callback needs.
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

    /// Whether the caller's credentials are still valid, for requests that last longer.
    pub async fn is_still_valid(&self, app: &App) -> Result<bool, Arc<db::Error>> {
        if let Some(hash) = self.session
            && app.sessions.find(hash).await?.is_none()
        {
            return Ok(false);
        }
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

    /// Returns when the caller's credentials are no longer valid.
    pub async fn ended(&self, app: &App) {
        // An unavailable database does not invalidate the credentials.
        while !matches!(self.is_still_valid(app).await, Ok(false)) {
            app.clock.sleep(RECHECK_CALLER).await;
        }
    }

    /// Owners whose shares of limited resources the request counts against. While authentication is off, an address
    /// has the share of an organisation.
    #[must_use]
    pub fn owners(&self) -> Owners {
        let address = self.actor.address.map(|address| ClientAddress(address).network());
        let organization = || Some(PermitHolder::new(Scope::Organization, self.organization()));
        match self.proof {
            Proof::Nothing => Owners::new(PermitHolder::new(Scope::Organization, address), None),
            Proof::Address => {
                let all = PermitHolder::new(Scope::Anonymous, ());
                Owners::new(all, Some(PermitHolder::new(Scope::Address, address)))
            }
            Proof::Token(_) => {
                let subject = (self.organization(), &self.actor.subject);
                Owners::new(PermitHolder::new(Scope::Caller, subject), organization())
            }
            Proof::TokenOfApiKey { id, .. } | Proof::ApiKey(id) => {
                Owners::new(PermitHolder::new(Scope::Caller, id), organization())
            }
        }
    }

    /// Whether the caller has the permission.
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        self.grant.allows(permission)
    }

    /// 403 unless the caller has the permission.
    pub fn must(&self, permission: Permission) -> Result<(), ApiError> {
        if self.may(permission) {
            return Ok(());
        }
        let detail = format!("The caller may not do this: it needs {}", permission.as_str());
        Err(ApiError::forbidden(detail))
    }

    /// 404 unless the caller's organisation has the run.
    pub async fn must_see_run(&self, app: &App, run_id: &str) -> Result<(), ApiError> {
        if db::runs::exists(&app.pool, self.organization(), run_id).await? {
            Ok(())
        } else {
            Err(ApiError::run_not_found())
        }
    }

    /// Whether the caller may see the credentials of agents.
    #[must_use]
    pub fn sees_secrets(&self) -> bool {
        self.may(Permission::AgentsSecrets)
    }

    /// Context of an action on behalf of the caller.
    #[must_use]
    pub fn context<'a>(&'a self, app: &'a App) -> Context<'a> {
        Context {
            actor: &self.actor,
            quotas: &app.config.quotas,
            max_run_steps: app.config.executor.run_budget.steps,
            audit: app.config.audit,
            vault: &app.config.vault,
            egress: &app.config.egress,
            kafka_triggers: &app.config.kafka.triggers,
            sees_secrets: self.sees_secrets(),
            workflows: self.grant.workflows.as_deref(),
            key: None,
            if_match: None,
        }
    }

    /// Organisation of the caller.
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
