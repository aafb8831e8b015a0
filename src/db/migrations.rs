//! Schema migrations: compiled in, and run one after the other under an advisory lock.

mod waits;

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt::Write as _,
    sync::LazyLock,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgExecutor, SqlStr,
    migrate::{Migrate, MigrateError, Migration, Migrator},
};
use tracing::{Dispatch, instrument::WithSubscriber as _};

pub use self::waits::WaitLimit;
use self::waits::Waits;
use super::{Error, Pool};
use crate::{config, trace};

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
    /// An index is invalid, and could not be built again.
    #[error("the index {name} is invalid; as the owner of its table run: REINDEX INDEX CONCURRENTLY {name}")]
    InvalidIndex {
        /// Name of the index.
        name: String,
        /// Why this program could not do it.
        source: Error,
    },
    /// A migration that only the program of a later release can revert.
    #[error("migration {0} is of a later release, and only the program of that release can revert it")]
    OfLaterRelease(i64),
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
    /// SHA-384 of the compiled-in migration, in hexadecimal.
    pub checksum: String,
    /// Whether it has been run.
    pub applied: bool,
    /// Whether the applied migration differs from the compiled-in one.
    pub altered: bool,
    /// Whether an index of the migration is there and invalid, so that no query uses it.
    pub has_invalid_index: bool,
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
    let is_migrated = is_unaltered(pool).await?;
    if is_migrated && invalid_indexes(&mut *pool.acquire().await?, &indexes()).await?.is_empty() {
        return Ok(0);
    }
    let (mut conn, mut waits) = Waits::begin(pool, limit).await?;
    let count = if is_migrated { 0 } else { migrate(&mut conn, &mut waits).await? };
    rebuild_indexes(&mut conn, &mut waits).await?;
    Ok(count)
}

/// Runs the missing migrations. Returns their number.
async fn migrate(conn: &mut PgConnection, waits: &mut Waits) -> Result<usize, MigrationError> {
    let applied = applied(conn).await?;
    let mut count = 0;
    for migration in ups().filter(|migration| !applied.contains(&migration.version)) {
        waits.prepare(conn, migration.no_tx).await?;
        let started = Instant::now();
        while let Err(error) = apply(conn, migration).await {
            waits.pause_if_locked(error, migration).await?;
        }
        let duration_ms = started.elapsed().as_secs_f64() * 1000.0;
        tracing::info!(duration_ms, "migration {} was run: {}", migration.version, migration.description);
        count += 1;
    }
    // Finds migrations that differ from those that were applied.
    MIGRATOR.run_direct(None, conn, false).await?;
    Ok(count)
}

/// Runs one migration, whose predecessors were run.
async fn apply(conn: &mut PgConnection, migration: &Migration) -> Result<(), MigrateError> {
    drop_invalid_indexes(conn, migration).await?;
    // This is hidden in the documentation; `run` has a bound that prevents spawning the future.
    without_statements(MIGRATOR.run_direct(Some(migration.version), conn, false)).await
}

/// Logs no statement of a migration: a slow one would be logged with its whole text.
async fn without_statements<T>(migrating: impl Future<Output = T>) -> T {
    migrating.with_subscriber(Dispatch::none()).await
}

/// Indexes that a migration creates concurrently.
fn created(migration: &Migration) -> impl Iterator<Item = &str> {
    let statements = migration.sql.as_str().split("INDEX CONCURRENTLY IF NOT EXISTS ").skip(1);
    statements.filter_map(|rest| rest.split_whitespace().next())
}

/// Indexes that any of the migrations creates concurrently.
fn indexes() -> Vec<&'static str> {
    ups().flat_map(created).collect()
}

/// Which of these indexes an interrupted `CREATE INDEX CONCURRENTLY` has left: no query uses them.
async fn invalid_indexes(db: impl PgExecutor<'_>, names: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    let sql = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
               WHERE NOT i.indisvalid AND c.relname = ANY ($1) AND c.relnamespace = current_schema()::regnamespace";
    sqlx::query_scalar(sql).bind(names).fetch_all(db).await
}

/// Builds invalid indexes of migrations that were run. Earlier releases kept them, because of `IF NOT EXISTS`.
async fn rebuild_indexes(conn: &mut PgConnection, waits: &mut Waits) -> Result<(), MigrationError> {
    waits.prepare(conn, true).await?;
    for name in invalid_indexes(&mut *conn, &indexes()).await? {
        tracing::info!("the index {name} is invalid, and is built again");
        if let Err(error) = conn.execute(AssertSqlSafe(format!("REINDEX INDEX CONCURRENTLY {name}"))).await {
            return Err(MigrationError::InvalidIndex { name, source: error.into() });
        }
    }
    Ok(())
}

/// Drops invalid indexes of this migration: `IF NOT EXISTS` would keep them.
async fn drop_invalid_indexes(conn: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    let names: Vec<&str> = created(migration).collect();
    if names.is_empty() {
        return Ok(());
    }
    for name in invalid_indexes(&mut *conn, &names).await? {
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
    let Some(newest) = versions.get(..count) else { return Ok(None) };
    let names = newest.iter().map(|version| Ok(format!("{version} {}", reversal(*version)?.description)));
    Ok(Some(RevertPlan { names: names.collect::<Result<_, MigrationError>>()?, loses_data }))
}

/// The migration that reverts this one.
fn reversal(version: i64) -> Result<&'static Migration, MigrationError> {
    let mut downs = MIGRATOR.iter().filter(|migration| migration.migration_type.is_down_migration());
    downs.find(|migration| migration.version == version).ok_or(MigrationError::OfLaterRelease(version))
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
    // Nothing is reverted below a migration that cannot be reverted.
    let reversals = versions[keep..].iter().map(|version| reversal(*version)).collect::<Result<Vec<_>, _>>()?;
    for (index, migration) in reversals.iter().enumerate().rev() {
        let target = (keep + index).checked_sub(1).map_or(0, |below| versions[below]);
        waits.prepare(&mut conn, migration.no_tx).await?;
        while let Err(error) = without_statements(MIGRATOR.undo(&mut *conn, target)).await {
            waits.pause_if_locked(error, migration).await?;
        }
        tracing::info!("migration {} was reverted: {}", migration.version, migration.description);
    }
    Ok(reversals.len())
}

/// All compiled-in migrations and their state in the database.
pub async fn status(settings: &config::Database) -> Result<Vec<MigrationState>, MigrationError> {
    let mut conn = super::connect(settings).await?;
    let rows = if table_exists(&mut conn).await? {
        conn.list_applied_migrations(&MIGRATOR.table_name).await?
    } else {
        Vec::new()
    };
    let invalid = invalid_indexes(&mut conn, &indexes()).await?;
    conn.close().await?;
    Ok(ups()
        .map(|migration| {
            let row = rows.iter().find(|row| row.version == migration.version);
            MigrationState {
                version: migration.version,
                description: migration.description.to_string(),
                checksum: trace::hex(&migration.checksum),
                applied: row.is_some(),
                altered: row.is_some_and(|row| row.checksum != migration.checksum),
                has_invalid_index: created(migration).any(|name| invalid.iter().any(|invalid| invalid == name)),
            }
        })
        .collect())
}

/// The migrations behind that version as a script for psql. It also records that they were run.
#[must_use]
pub fn sql(after: i64) -> String {
    let mut script = format!("\\set ON_ERROR_STOP on\nSET TimeZone = 'UTC';\n{BOOKKEEPING}\n");
    for migration in ups().filter(|migration| migration.version > after) {
        let (version, sql) = (migration.version, migration.sql.as_str().trim_end());
        let (begin, commit) = if migration.no_tx { ("", "") } else { ("BEGIN;\n", "COMMIT;\n") };
        let description = migration.description.replace('\'', "''");
        let checksum = trace::hex(&migration.checksum);
        // Writing to a string cannot fail.
        let _ = writeln!(
            script,
            "\n{begin}{sql}\nINSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)\n    \
             VALUES ({version}, '{description}', true, '\\x{checksum}', -1);\n{commit}"
        );
    }
    script
}

/// Table of the migrations that were run, as sqlx creates it.
const BOOKKEEPING: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version bigint PRIMARY KEY,
    description text NOT NULL,
    installed_on timestamptz NOT NULL DEFAULT now(),
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);";

/// When the server of the database was started. It differs from that of every other server, and of the same one before a
/// restart.
pub async fn server_start(db: impl PgExecutor<'_>) -> Result<DateTime<Utc>, Error> {
    Ok(sqlx::query_scalar("SELECT pg_postmaster_start_time()").fetch_one(db).await?)
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

/// State of the schema, as this program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaState {
    /// Number of the latest migration that was run.
    pub version: Option<i64>,
    /// When the last one was run.
    pub changed_at: Option<DateTime<Utc>>,
    /// Migrations of this program that were not run.
    pub pending: usize,
    /// Migrations that were run and that this program does not have: those of a newer one.
    pub unknown: usize,
}

/// State of the schema.
pub async fn state(db: impl PgExecutor<'_>) -> Result<SchemaState, Error> {
    let sql = "SELECT version, installed_on FROM _sqlx_migrations WHERE success";
    let rows: Vec<(i64, DateTime<Utc>)> = sqlx::query_as(sql).fetch_all(db).await?;
    let applied: HashSet<i64> = rows.iter().map(|(version, _)| *version).collect();
    let known: HashSet<i64> = ups().map(|migration| migration.version).collect();
    Ok(SchemaState {
        version: applied.iter().copied().max(),
        changed_at: rows.iter().map(|(_, at)| *at).max(),
        pending: known.difference(&applied).count(),
        unknown: applied.difference(&known).count(),
    })
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
