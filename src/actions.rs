//! Writes that span tables: one function, one transaction or statement, with its audit row.

pub mod answer_callback;
pub mod api_keys;
pub mod cancel_run;
pub mod import;
pub mod organizations;
pub mod pause_run;
pub mod put_workflow;
pub mod resolve_letter;
pub mod retry_run;
pub mod rotate_keys;
pub mod save_agent;
pub mod save_workflow;
pub mod start_run;

use serde_json::{Map, Value, value::RawValue};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId, Quotas},
    db::{
        self,
        idempotency::{ClaimError, IdempotencyKey},
    },
    egress, input,
    timestamp::Timestamp,
    vault::Vault,
};

/// On whose behalf and under which settings an action runs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The caller.
    pub actor: &'a Actor,
    /// How much an organisation may have that has no quota of its own.
    pub quotas: &'a Quotas,
    /// How many steps a run may make.
    pub max_run_steps: u64,
    /// Whether audit rows are written.
    pub audit: bool,
    /// Seals the credentials of agents.
    pub vault: &'a Vault,
    /// What agents' URLs may lead to.
    pub egress: &'a egress::Allow,
    /// Whether the caller sees the credentials of agents. Who does not may send back what stands in their place.
    pub sees_secrets: bool,
    /// The only workflows that the caller has to do with; `None`: all.
    pub workflows: Option<&'a [String]>,
    /// Makes a repeat of the action find what the first one made.
    pub key: Option<&'a IdempotencyKey>,
    /// The revisions of a row under which it may be changed.
    pub if_match: Option<&'a IfMatch>,
}

/// `If-Match`: what the caller believes to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfMatch {
    /// Whatever is there.
    Any,
    /// One of these revisions.
    Revisions(Vec<String>),
}

/// What an action was done to, for its audit entry: type, id, and name, which of a run is its id.
#[derive(Clone, Copy)]
struct Entity<'a>(&'static str, Uuid, &'a str);

/// What an action changed, for its audit entry: the members that differ, without secrets.
#[derive(Clone, Copy, Default)]
struct Change<'a> {
    /// `None` if there was nothing before.
    before: Option<&'a RawValue>,
    /// `None` if there is nothing any more.
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

/// The members of two objects that differ, as each has them.
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

/// The row is not as the caller believes.
#[derive(Debug, thiserror::Error)]
#[error("the row has changed since the caller read it")]
pub struct Stale;

impl<'a> Context<'a> {
    /// Whose everything is.
    #[must_use]
    pub fn organization(self) -> &'a OrganizationId {
        &self.actor.organization
    }

    /// The same for a request with that key.
    #[must_use]
    pub fn with_key(self, key: Option<&'a IdempotencyKey>) -> Self {
        Self { key, ..self }
    }

    /// The same for a request with that condition.
    #[must_use]
    pub fn with_if_match(self, if_match: Option<&'a IfMatch>) -> Self {
        Self { if_match, ..self }
    }

    /// Makes the key, if there is one, stand for the resource. Comes first in a transaction.
    async fn claim(self, conn: &mut PgConnection, resource_id: &str) -> Result<(), ClaimError> {
        match self.key {
            Some(key) => db::idempotency::claim(conn, key, resource_id).await,
            None => Ok(()),
        }
    }

    /// Compares a row, which is locked, with what the caller believes it to be.
    fn check_revision(self, revision: &str) -> Result<(), Stale> {
        match self.if_match {
            // What stands behind a dot is not of the row: it tells answers apart, not what may be changed.
            Some(IfMatch::Revisions(revisions))
                if !revisions.iter().any(|known| known.split('.').next() == Some(revision)) =>
            {
                Err(Stale)
            }
            _ => Ok(()),
        }
    }

    /// There is no row; a caller with any belief believes in one.
    fn check_absent(self) -> Result<(), Stale> {
        if self.if_match.is_some() { Err(Stale) } else { Ok(()) }
    }

    /// Writes the audit row of an action, if they are on.
    async fn record(
        self,
        conn: &mut PgConnection,
        entity: Entity<'_>,
        action: &'static str,
        change: Change<'_>,
        at: Timestamp,
    ) -> Result<(), db::Error> {
        if !self.audit {
            return Ok(());
        }
        let Entity(entity_type, entity_id, entity_name) = entity;
        let Change { before, after } = change;
        let entry = db::audit::Entry { entity_type, entity_id, entity_name, action, before, after };
        db::audit::insert(conn, self.actor, entry, at).await
    }
}
