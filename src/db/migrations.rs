//! Schema migrations: compiled in, and run one after the other under an advisory lock.

mod waits;

use std::{borrow::Cow, collections::HashSet, sync::LazyLock, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgExecutor, SqlStr,
    migrate::{Migrate, MigrateError, Migration, Migrator},
};

pub use self::waits::WaitLimit;
use self::waits::Waits;
use super::{Error, Pool};
use crate::config;

/// All migrations. Applied migrations that are unknown here belong to a later release, with whose schema this release
/// still works.
pub static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let published = Migrator { ignore_missing: true, locking: false, ..sqlx::migrate!() };
    let mut migrations = published.migrations.into_owned();
    for migration in migrations.iter_mut().filter(|migration| migration.migration_type.is_up_migration()) {
        if let Some((_, sql)) = REVISED.iter().find(|(version, _)| *version == migration.version) {
            migration.sql = SqlStr::from_static(sql);
        }
    }
    Migrator { migrations: Cow::Owned(migrations), ..published }
});

/// Migrations that are run with another text than the published one, which needs rights that an owner may lack. Their
/// checksums stay those of the published texts, since databases have run these. A later migration makes both equal.
const REVISED: [(i64, &str); 1] =
    [(20_261_128_000_093, include_str!("../../migrations/revised/20261128000093_cancel_sub_runs_together.up.sql"))];

/// Error of a schema change.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Error),
    /// A migration failed or differs from the one that was applied.
    #[error("the schema could not be migrated")]
    Migration(#[from] MigrateError),
    /// Other sessions held a lock for longer than the command waits.
    #[error("gave up after {} s: {reason}", limit.as_secs())]
    Locked {
        /// The command's limit.
        limit: Duration,
        /// The sessions that held it.
        reason: String,
    },
}

impl From<sqlx::Error> for MigrationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Migration and its state in the database.
#[derive(Debug)]
pub struct MigrationState {
    /// Version in the file name.
    pub version: i64,
    /// Description in the file name.
    pub description: String,
    /// Whether it has been run.
    pub applied: bool,
    /// Whether the applied migration differs from the compiled-in one.
    pub altered: bool,
}

/// Migrates the schema to the newest version, with connections of its own.
pub async fn up(settings: &config::Database, limit: &WaitLimit) -> Result<usize, MigrationError> {
    let pool = super::pool(settings);
    let result = run(&pool, limit).await;
    super::close(&pool).await;
    result
}

/// Migrates the schema to the newest version. Repeated and parallel calls are safe: one migrates, the others wait.
/// Returns the number of migrations that were run.
pub async fn run(pool: &Pool, limit: &WaitLimit) -> Result<usize, MigrationError> {
    // If there is nothing to do, no database rights are required.
    if is_unaltered(pool).await? {
        return Ok(0);
    }
    let (mut conn, mut waits) = Waits::begin(pool, limit).await?;
    let applied = applied(&mut conn).await?;
    let mut count = 0;
    for migration in ups().filter(|migration| !applied.contains(&migration.version)) {
        waits.prepare(&mut conn, migration).await?;
        while let Err(error) = apply(&mut conn, migration).await {
            waits.pause_if_locked(error, migration).await?;
        }
        tracing::info!("migration {} was run: {}", migration.version, migration.description);
        count += 1;
    }
    // Finds migrations that differ from those that were applied.
    MIGRATOR.run_direct(None, &mut *conn, false).await?;
    Ok(count)
}

/// Runs one migration, whose predecessors were run.
async fn apply(conn: &mut PgConnection, migration: &Migration) -> Result<(), MigrateError> {
    drop_invalid_indexes(conn, migration).await?;
    // This is hidden in the documentation; `run` has a bound that prevents spawning the future.
    MIGRATOR.run_direct(Some(migration.version), conn, false).await
}

/// Drops the indexes that an interrupted `CREATE INDEX CONCURRENTLY` of this migration has left: no query uses them,
/// and `IF NOT EXISTS` would keep them.
async fn drop_invalid_indexes(conn: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    let created = migration.sql.as_str().split("INDEX CONCURRENTLY IF NOT EXISTS ").skip(1);
    let names: Vec<&str> = created.filter_map(|rest| rest.split_whitespace().next()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let sql = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
               WHERE NOT i.indisvalid AND c.relname = ANY ($1) AND c.relnamespace = current_schema()::regnamespace";
    let invalid: Vec<String> = sqlx::query_scalar(sql).bind(names).fetch_all(&mut *conn).await?;
    for name in invalid {
        conn.execute(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}"))).await?;
    }
    Ok(())
}

/// The migrations that change the schema, oldest first.
fn ups() -> impl Iterator<Item = &'static Migration> {
    MIGRATOR.iter().filter(|migration| migration.migration_type.is_up_migration())
}

/// Plan of [`down`].
#[derive(Debug)]
pub struct RevertPlan {
    /// Names of the migrations, newest first.
    pub names: Vec<String>,
    /// Whether tables with definitions and runs would be dropped that contain rows.
    pub loses_data: bool,
}

/// Plan for reverting the newest `count` migrations; `None` if there are fewer.
pub async fn plan_down(settings: &config::Database, count: usize) -> Result<Option<RevertPlan>, MigrationError> {
    let mut conn = super::connect(settings).await?;
    let mut versions: Vec<i64> = applied(&mut conn).await?.into_iter().collect();
    versions.sort_unstable_by_key(|version| std::cmp::Reverse(*version));
    let loses_data = count >= versions.len() && !versions.is_empty() && has_data_to_lose(&mut conn).await?;
    conn.close().await?;
    let name = |version: &i64| {
        let known = MIGRATOR.iter().find(|migration| migration.version == *version);
        format!("{version} {}", known.map_or("of a later release", |migration| &migration.description))
    };
    Ok((count <= versions.len())
        .then(|| RevertPlan { names: versions[..count].iter().map(name).collect(), loses_data }))
}

/// Whether the tables of the first migration, which its reversal drops, have rows.
async fn has_data_to_lose(conn: &mut PgConnection) -> Result<bool, MigrationError> {
    let sql = "SELECT to_regclass('alembic_version') IS NULL AND (EXISTS (SELECT FROM agents)
                   OR EXISTS (SELECT FROM workflow_definitions) OR EXISTS (SELECT FROM workflow_runs))";
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}

/// Reverts the newest `count` migrations. Returns how many were reverted.
pub async fn down(settings: &config::Database, count: usize, limit: &WaitLimit) -> Result<usize, MigrationError> {
    let pool = super::pool(settings);
    let result = undo(&pool, count, limit).await;
    super::close(&pool).await;
    result
}

async fn undo(pool: &Pool, count: usize, limit: &WaitLimit) -> Result<usize, MigrationError> {
    let (mut conn, mut waits) = Waits::begin(pool, limit).await?;
    let mut versions: Vec<i64> = applied(&mut conn).await?.into_iter().collect();
    versions.sort_unstable();
    let keep = versions.len().saturating_sub(count);
    for (index, version) in versions.iter().enumerate().skip(keep).rev() {
        let target = if index == 0 { 0 } else { versions[index - 1] };
        let is_down = |migration: &&Migration| migration.migration_type.is_down_migration();
        // One of a later release is unknown here, and stays.
        let Some(migration) = MIGRATOR.iter().filter(is_down).find(|migration| migration.version == *version) else {
            continue;
        };
        waits.prepare(&mut conn, migration).await?;
        while let Err(error) = MIGRATOR.undo(&mut *conn, target).await {
            waits.pause_if_locked(error, migration).await?;
        }
        tracing::info!("migration {version} was reverted: {}", migration.description);
    }
    Ok(versions.len() - keep)
}

/// All compiled-in migrations and their state in the database.
pub async fn status(settings: &config::Database) -> Result<Vec<MigrationState>, MigrationError> {
    let mut conn = super::connect(settings).await?;
    let rows = if table_exists(&mut conn).await? {
        conn.list_applied_migrations(&MIGRATOR.table_name).await?
    } else {
        Vec::new()
    };
    conn.close().await?;
    Ok(ups()
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

/// Whether the schema is as new as this program requires.
pub async fn is_current(db: impl PgExecutor<'_>) -> Result<bool, Error> {
    let versions: Vec<i64> =
        match sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(db).await {
            Ok(versions) => versions,
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => return Ok(false),
            Err(error) => return Err(error.into()),
        };
    let versions: HashSet<i64> = versions.into_iter().collect();
    Ok(MIGRATOR.iter().all(|migration| versions.contains(&migration.version)))
}

/// Whether all migrations were run and match the compiled-in ones.
async fn is_unaltered(pool: &Pool) -> Result<bool, MigrationError> {
    let mut conn = pool.acquire().await?;
    if !table_exists(&mut conn).await? {
        return Ok(false);
    }
    let sql = "SELECT version, checksum FROM _sqlx_migrations WHERE success";
    let rows: HashSet<(i64, Vec<u8>)> = sqlx::query_as(sql).fetch_all(&mut *conn).await?.into_iter().collect();
    Ok(ups().map(|migration| (migration.version, migration.checksum.to_vec())).all(|row| rows.contains(&row)))
}

async fn applied(conn: &mut PgConnection) -> Result<HashSet<i64>, MigrationError> {
    if !table_exists(conn).await? {
        return Ok(HashSet::new());
    }
    Ok(conn
        .list_applied_migrations(&MIGRATOR.table_name)
        .await?
        .into_iter()
        .map(|migration| migration.version)
        .collect())
}

async fn table_exists(conn: &mut PgConnection) -> Result<bool, MigrationError> {
    Ok(sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(conn).await?)
}
