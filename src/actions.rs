//! Actions: writes that span tables. Each is one function with one transaction or statement, including its audit row.

pub mod answer_callback;
pub mod api_keys;
pub mod backfill;
pub mod cancel_run;
pub mod console_session;
pub mod fire_schedule;
pub mod fire_trigger;
pub mod import;
pub mod organizations;
pub mod pause_run;
pub mod put_workflow;
pub mod receive_records;
pub mod receive_webhook;
pub mod resolve_letter;
pub mod restore_runs;
pub mod retry_run;
pub mod rotate_hook_token;
pub mod rotate_keys;
pub mod save_agent;
pub mod save_trigger;
pub mod save_workflow;
pub mod saved_views;
pub mod start_run;
pub mod task_pushes;
pub mod webhooks;

use serde_json::{Map, Value, value::RawValue};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId, QuotaExceeded, Quotas},
    config::KafkaTriggers,
    db::{
        self,
        idempotency::{ClaimError, IdempotencyKey},
    },
    egress,
    input::{self, FieldError},
    timestamp::Timestamp,
    vault::Vault,
};

/// Context of an action: its actor and its settings.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The caller.
    pub actor: &'a Actor,
    /// Default quotas of organisations without quotas of their own.
    pub quotas: &'a Quotas,
    /// Maximum number of steps of a run.
    pub max_run_steps: u64,
    /// Whether audit rows are written.
    pub audit: bool,
    /// Encrypts the credentials of agents.
    pub vault: &'a Vault,
    /// Allowed destinations of agents' URLs.
    pub egress: &'a egress::Allow,
    /// Limits of triggers that read topics.
    pub kafka_triggers: &'a KafkaTriggers,
    /// Whether the caller may see the credentials of agents. A caller without this right may send back their masks.
    pub sees_secrets: bool,
    /// Workflows that the caller is restricted to; `None`: all.
    pub workflows: Option<&'a [String]>,
    /// Idempotency key: a repeat of the action finds the result of the first one.
    pub key: Option<&'a IdempotencyKey>,
    /// Precondition: revisions of a row under which it may be changed.
    pub if_match: Option<&'a IfMatch>,
}

/// `If-Match`: the revision that the caller expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// Any existing row.
    Any,
    /// One of these revisions.
    Revisions(Vec<String>),
}

/// Object of an audit entry: type, id and name (for a run its id).
#[derive(Clone, Copy)]
struct Entity<'a>(&'static str, Uuid, &'a str);

/// Change of an audit entry: the members that differ, without secrets.
#[derive(Clone, Copy, Default)]
struct Change<'a> {
    /// `None` if the object is new.
    before: Option<&'a RawValue>,
    /// `None` if the object was deleted.
    after: Option<&'a RawValue>,
}

impl<'a> Change<'a> {
    fn to(after: &'a RawValue) -> Self {
        Self { before: None, after: Some(after) }
    }

    fn between(before: &'a RawValue, after: &'a RawValue) -> Self {
        Self { before: Some(before), after: Some(after) }
    }

    fn from(before: &'a RawValue) -> Self {
        Self { before: Some(before), after: None }
    }
}

/// The differing members of two objects, with the values of each.
fn difference(before: &RawValue, after: &RawValue) -> (Box<RawValue>, Box<RawValue>) {
    let parse = |raw: &RawValue| serde_json::from_str::<Map<String, Value>>(raw.get()).unwrap_or_default();
    let (mut before, mut after) = (parse(before), parse(after));
    let same: Vec<String> = after.keys().filter(|name| before.get(*name) == after.get(*name)).cloned().collect();
    for name in same {
        before.remove(&name);
        after.remove(&name);
    }
    (input::to_raw(&before), input::to_raw(&after))
}

/// Reason why a definition was not saved. `R` has the reasons that only definitions of its kind have.
#[derive(Debug, thiserror::Error)]
pub enum SaveError<R> {
    /// There is no such definition.
    #[error("not found")]
    NotFound,
    /// The changed definition would violate a rule.
    #[error("the change is not valid")]
    Invalid(Vec<FieldError>),
    /// The definition has changed since the caller read it.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The idempotency key is taken.
    #[error(transparent)]
    Key(#[from] ClaimError),
    /// The quota of the organisation is used up.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
    /// Reason of its kind.
    #[error(transparent)]
    Other(R),
}

impl<R> From<Vec<FieldError>> for SaveError<R> {
    fn from(errors: Vec<FieldError>) -> Self {
        Self::Invalid(errors)
    }
}

/// The row differs from the revision that the caller expects.
#[derive(Debug, thiserror::Error)]
#[error("the row has changed since the caller read it")]
pub struct Stale;

impl<'a> Context<'a> {
    /// Organisation of the action.
    #[must_use]
    pub fn organization(self) -> &'a OrganizationId {
        &self.actor.organization
    }

    /// The same context with that key.
    #[must_use]
    pub fn with_key(self, key: Option<&'a IdempotencyKey>) -> Self {
        Self { key, ..self }
    }

    /// The same context with that precondition.
    #[must_use]
    pub fn with_if_match(self, if_match: Option<&'a IfMatch>) -> Self {
        Self { if_match, ..self }
    }

    /// Binds the key, if there is one, to the resource. This comes first in a transaction.
    async fn claim(self, conn: &mut PgConnection, resource_id: &str) -> Result<(), ClaimError> {
        match self.key {
            Some(key) => db::idempotency::claim(conn, key, resource_id).await,
            None => Ok(()),
        }
    }

    /// Compares a locked row with the expected revisions.
    fn check_revision(self, revision: &str) -> Result<(), Stale> {
        match self.if_match {
            // The part behind a dot does not belong to the row: it distinguishes answers, not versions.
            Some(IfMatch::Revisions(revisions))
                if !revisions.iter().any(|known| known.split('.').next() == Some(revision)) =>
            {
                Err(Stale)
            }
            _ => Ok(()),
        }
    }

    /// Checks the precondition for a missing row: any `If-Match` fails.
    fn check_absent(self) -> Result<(), Stale> {
        if self.if_match.is_some() { Err(Stale) } else { Ok(()) }
    }

    /// Writes the audit row of an action, if auditing is on.
    async fn record(
        self,
        conn: &mut PgConnection,
        entity: Entity<'_>,
        action: &'static str,
        change: Change<'_>,
        at: Timestamp,
    ) -> Result<(), db::Error> {
        record(conn, (self.actor, self.audit), entity, action, change, at).await
    }
}

/// Writes the audit row of an action by that actor, if auditing is on.
async fn record(
    conn: &mut PgConnection,
    (actor, audit): (&Actor, bool),
    entity: Entity<'_>,
    action: &'static str,
    change: Change<'_>,
    at: Timestamp,
) -> Result<(), db::Error> {
    if !audit {
        return Ok(());
    }
    let Entity(entity_type, entity_id, entity_name) = entity;
    let Change { before, after } = change;
    let entry = db::audit::Entry { entity_type, entity_id, entity_name, action, before, after };
    db::audit::insert(conn, actor, entry, at).await
}
