//! Writes that span tables: one function, one transaction or statement, with its audit row.

pub mod cancel_run;
pub mod import;
pub mod put_workflow;
pub mod retry_run;
pub mod save_agent;
pub mod save_workflow;
pub mod start_run;

use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{db, timestamp::Timestamp};

/// On whose behalf and under which settings an action runs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The caller, for audit rows and `…_by` columns.
    pub user_id: &'a str,
    /// Whether audit rows are written.
    pub audit: bool,
}

impl Context<'_> {
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
