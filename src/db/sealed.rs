//! Columns with encrypted secrets, of all tables that have one: for the rotation of keys, and for the check that no key is
//! missing.

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, PgExecutor, types::Json};
use uuid::Uuid;

use super::Error;

/// Column with encrypted secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Credentials of agents.
    Agents,
    /// Secrets and headers of webhooks.
    Webhooks,
    /// Secrets of webhook triggers.
    Triggers,
    /// Tokens and credentials of push notifications.
    Pushes,
}

/// Secrets as they are stored, with the id of their row.
pub type Stored = (Uuid, Json<Box<RawValue>>);

impl Column {
    /// All columns.
    pub const ALL: [Self; 4] = [Self::Agents, Self::Webhooks, Self::Triggers, Self::Pushes];

    /// Table and column, and which rows have secrets.
    fn sql(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Agents => ("agents", "auth_config", "auth_config <> 'null'"),
            // Queues of push notifications have none.
            Self::Webhooks => ("webhooks", "sealed", "lane IS NULL"),
            Self::Triggers => ("triggers", "secrets", "secrets IS NOT NULL"),
            Self::Pushes => ("task_pushes", "sealed", "true"),
        }
    }

    /// Page of rows with secrets, at most `limit`, ordered by id after `behind`.
    pub async fn page(self, db: impl PgExecutor<'_>, behind: Uuid, limit: i64) -> Result<Vec<Stored>, Error> {
        let (table, column, has_secrets) = self.sql();
        let sql = format!("SELECT id, {column} FROM {table} WHERE id > $1 AND {has_secrets} ORDER BY id LIMIT $2");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(behind).bind(limit).fetch_all(db).await?)
    }

    /// Secrets of a row, if it has any.
    pub async fn find(self, db: impl PgExecutor<'_>, id: Uuid) -> Result<Option<Stored>, Error> {
        let (table, column, has_secrets) = self.sql();
        let sql = format!("SELECT id, {column} FROM {table} WHERE id = $1 AND {has_secrets}");
        Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(db).await?)
    }

    /// Replaces the stored form of the same secrets. Returns `false` if they were changed meanwhile. The row itself counts
    /// as unchanged.
    pub async fn replace(
        self,
        db: impl PgExecutor<'_>,
        (id, then): &Stored,
        now: &Json<Box<RawValue>>,
    ) -> Result<bool, Error> {
        let (table, column, _) = self.sql();
        let sql = format!("UPDATE {table} SET {column} = $3 WHERE id = $1 AND {column} = $2");
        let query = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(then).bind(now);
        Ok(query.execute(db).await?.rows_affected() == 1)
    }

    /// Names of the keys that these secrets are encrypted with.
    pub async fn key_ids(self, db: impl PgExecutor<'_>) -> Result<Vec<String>, Error> {
        let (table, column, _) = self.sql();
        let sql = format!(
            "SELECT DISTINCT {column}->'encrypted'->>'key_id' FROM {table}
             WHERE jsonb_typeof({column}->'encrypted'->'key_id') = 'string'"
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(db).await?)
    }
}
