//! Writes that span tables: one function, one transaction or statement, with its audit row.

pub mod answer_callback;
pub mod api_keys;
pub mod cancel_run;
pub mod import;
pub mod pause_run;
pub mod put_workflow;
pub mod retry_run;
pub mod save_agent;
pub mod save_workflow;
pub mod start_run;

use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    db::{
        self,
        idempotency::{ClaimError, IdempotencyKey},
    },
    timestamp::Timestamp,
};

/// On whose behalf and under which settings an action runs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The caller, for audit rows and `…_by` columns.
    pub user_id: &'a str,
    /// Whether audit rows are written.
    pub audit: bool,
    /// Whether the caller sees the credentials of agents. Who does not may send back what stands in their place.
    pub sees_secrets: bool,
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

/// The row is not as the caller believes.
#[derive(Debug, thiserror::Error)]
#[error("the row has changed since the caller read it")]
pub struct Stale;

impl<'a> Context<'a> {
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
            Some(IfMatch::Revisions(revisions)) if !revisions.iter().any(|known| known == revision) => Err(Stale),
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
        (entity_type, entity_id): (&'static str, Uuid),
        action: &'static str,
        changes: Option<&RawValue>,
        at: Timestamp,
    ) -> Result<(), db::Error> {
        if !self.audit {
            return Ok(());
        }
        let entry = db::audit::Entry { entity_type, entity_id, action, user_id: self.user_id, changes };
        db::audit::insert(conn, entry, at).await
    }
}
