//! The schema: migrations compiled in, run under a lock that is polled.
//!
//! A blocking advisory lock held by one replica and `CREATE INDEX CONCURRENTLY` waiting in another deadlock, so the
//! lock is tried again and again instead, on a connection outside the pool.

use std::{collections::HashSet, time::Duration};

use sqlx::{
    Connection, Executor, PgConnection,
    migrate::{Migrate, MigrateError, Migrator},
};

use super::Error;
use crate::config;

/// All migrations. One that is in the database and not here belongs to a later release, on whose schema this
/// release still runs.
pub static MIGRATOR: Migrator = Migrator { ignore_missing: true, locking: false, ..sqlx::migrate!() };

/// The advisory lock's key: `wf-api` in ASCII.
const LOCK_KEY: i64 = 0x0000_7766_2d61_7069;
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Why the schema could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Error),
    /// A migration failed or differs from the one that was applied.
    #[error("the schema could not be migrated")]
    Migration(#[from] MigrateError),
}

impl From<sqlx::Error> for MigrationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// One migration and whether the database has it.
#[derive(Debug)]
pub struct MigrationState {
    /// From the file's name.
    pub version: i64,
    /// From the file's name.
    pub description: String,
    /// It has been run.
    pub applied: bool,
    /// What was run differs from what is compiled in.
    pub altered: bool,
}

/// Brings the schema to the newest version. Repeats and parallel calls are harmless: one does it, the others wait.
/// Returns how many migrations were run.
pub async fn up(settings: &config::Database) -> Result<usize, MigrationError> {
    let mut conn = lock(settings).await?;
    let before = applied(&mut conn).await?.len();
    // Hidden in the documentation; `run` has a bound that keeps the future from being spawned.
    MIGRATOR.run_direct(&mut conn).await?;
    let after = applied(&mut conn).await?.len();
    conn.close().await?;
    Ok(after - before)
}

/// Undoes the newest `count` migrations. Returns how many were undone.
pub async fn down(settings: &config::Database, count: usize) -> Result<usize, MigrationError> {
    let mut conn = lock(settings).await?;
    let mut versions: Vec<i64> = applied(&mut conn).await?.into_iter().collect();
    versions.sort_unstable();
    let keep = versions.len().saturating_sub(count);
    let target = if keep == 0 { 0 } else { versions[keep - 1] };
    MIGRATOR.undo(&mut conn, target).await?;
    conn.close().await?;
    Ok(versions.len() - keep)
}

/// All compiled-in migrations and how the database stands to them.
pub async fn status(settings: &config::Database) -> Result<Vec<MigrationState>, MigrationError> {
    let mut conn = super::connect(settings).await?;
    let rows = if table_exists(&mut conn).await? { conn.list_applied_migrations().await? } else { Vec::new() };
    conn.close().await?;
    let ups = MIGRATOR.iter().filter(|migration| !migration.migration_type.is_down_migration());
    Ok(ups
        .map(|migration| {
            let row = rows.iter().find(|row| row.version == migration.version);
            MigrationState {
                version: migration.version,
                description: migration.description.to_string(),
                applied: row.is_some(),
                altered: row.is_some_and(|row| row.checksum != migration.checksum),
            }
        })
        .collect())
}

/// Whether the schema is as new as this program needs.
pub async fn is_current(pool: &sqlx::PgPool) -> Result<bool, Error> {
    let versions: Vec<i64> =
        match sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(pool).await {
            Ok(versions) => versions,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(false),
            Err(error) => return Err(error.into()),
        };
    let versions: HashSet<i64> = versions.into_iter().collect();
    Ok(MIGRATOR.iter().all(|migration| versions.contains(&migration.version)))
}

/// A connection that holds the lock until it is closed. Migrations may take longer than other statements.
async fn lock(settings: &config::Database) -> Result<PgConnection, MigrationError> {
    let mut conn = super::connect(settings).await?;
    conn.execute("SET statement_timeout = 0").await?;
    while !sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)").bind(LOCK_KEY).fetch_one(&mut conn).await? {
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(conn)
}

async fn applied(conn: &mut PgConnection) -> Result<HashSet<i64>, MigrationError> {
    if !table_exists(conn).await? {
        return Ok(HashSet::new());
    }
    Ok(conn.list_applied_migrations().await?.into_iter().map(|migration| migration.version).collect())
}

async fn table_exists(conn: &mut PgConnection) -> Result<bool, MigrationError> {
    Ok(sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(conn).await?)
}
