//! Schema migrations: compiled in, and run under a lock that is polled.
//!
//! A blocking advisory lock of one replica and `CREATE INDEX CONCURRENTLY` in another would deadlock. Therefore the
//! lock is polled, on a dedicated connection.
//!
//! A migration that waits too long for a table lock is cancelled, so that it blocks no other session, and retried. The
//! log names the sessions that hold the lock.

use std::{borrow::Cow, collections::HashSet, sync::LazyLock, time::Duration};

use sqlx::{
    Connection, Executor, PgConnection, PgExecutor, SqlStr,
    migrate::{Migrate, MigrateError, Migrator},
};

use super::{Error, Pool, PooledConnection};
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

/// Key of the advisory lock: `wf-api` in ASCII.
const LOCK_KEY: i64 = 0x0000_7766_2d61_7069;
const LOCK_POLL: Duration = Duration::from_millis(200);
/// Maximum number of attempts of a migration that finds a table locked: about two minutes, with growing pauses.
const LOCKED_ATTEMPTS: u32 = 12;
/// First and longest of these pauses.
const LOCKED_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Interval at which sessions that block a migration are polled.
const BLOCKED_POLL: Duration = Duration::from_millis(500);

/// Error of a schema change.
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
pub async fn up(settings: &config::Database) -> Result<usize, MigrationError> {
    let pool = super::pool(settings);
    let result = run(&pool).await;
    super::close(&pool).await;
    result
}

/// Migrates the schema to the newest version. Repeated and parallel calls are safe: one migrates, the others wait.
/// Returns the number of migrations that were run.
pub async fn run(pool: &Pool) -> Result<usize, MigrationError> {
    // If there is nothing to do, no database rights are required.
    if is_unaltered(pool).await? {
        return Ok(0);
    }
    let mut conn = lock(pool).await?;
    let before = applied(&mut conn).await?.len();
    let mut attempt = 0;
    loop {
        let _watching = watch_blockers(pool, &mut conn).await?;
        // This is hidden in the documentation; `run` has a bound that prevents spawning the future.
        match MIGRATOR.run_direct(None, &mut *conn, false).await {
            Ok(()) => break,
            Err(error) => pause_if_locked(error, &mut attempt).await?,
        }
    }
    let after = applied(&mut conn).await?.len();
    Ok(after - before)
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
pub async fn down(settings: &config::Database, count: usize) -> Result<usize, MigrationError> {
    let pool = super::pool(settings);
    let result = undo(&pool, count).await;
    super::close(&pool).await;
    result
}

async fn undo(pool: &Pool, count: usize) -> Result<usize, MigrationError> {
    let mut conn = lock(pool).await?;
    let mut versions: Vec<i64> = applied(&mut conn).await?.into_iter().collect();
    versions.sort_unstable();
    let keep = versions.len().saturating_sub(count);
    let target = if keep == 0 { 0 } else { versions[keep - 1] };
    let mut attempt = 0;
    loop {
        let _watching = watch_blockers(pool, &mut conn).await?;
        match MIGRATOR.undo(&mut *conn, target).await {
            Ok(()) => return Ok(versions.len() - keep),
            Err(error) => pause_if_locked(error, &mut attempt).await?,
        }
    }
}

/// Pauses if the migration did not get a lock in time and has attempts left; otherwise returns the error.
async fn pause_if_locked(error: MigrateError, attempt: &mut u32) -> Result<(), MigrationError> {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = &error else {
        return Err(error.into());
    };
    let is_locked =
        cause.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03");
    *attempt += 1;
    if !is_locked || *attempt >= LOCKED_ATTEMPTS {
        return Err(error.into());
    }
    let (first, longest) = LOCKED_PAUSE;
    let pause = (first * 2_u32.pow(*attempt - 1)).min(longest);
    tracing::warn!("a migration found a table locked and is retried in {} ms", pause.as_millis());
    tokio::time::sleep(pause).await;
    Ok(())
}

/// Session that holds a lock.
#[derive(sqlx::FromRow)]
struct Blocker {
    pid: i32,
    usename: String,
    application_name: String,
    state: String,
    secs: f64,
}

/// Logs the sessions that block `conn`, until it is dropped.
async fn watch_blockers(
    pool: &Pool,
    conn: &mut PgConnection,
) -> Result<tokio_util::task::AbortOnDropHandle<()>, Error> {
    let own_pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(conn).await?;
    let pool = pool.clone();
    let watching = async move {
        let mut logged = HashSet::new();
        loop {
            tokio::time::sleep(BLOCKED_POLL).await;
            let sql = "SELECT a.pid, coalesce(a.usename::text, '?') AS usename,
                           coalesce(a.application_name, '?') AS application_name, coalesce(a.state, '?') AS state,
                           coalesce(extract(epoch FROM now() - a.xact_start), 0)::float8 AS secs
                       FROM unnest(pg_blocking_pids($1)) AS b (pid) JOIN pg_stat_activity a USING (pid)";
            let blockers: Vec<Blocker> = match sqlx::query_as(sql).bind(own_pid).fetch_all(&pool).await {
                Ok(blockers) => blockers,
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "blocking sessions could not be polled: {error}"
                    );
                    continue;
                }
            };
            for Blocker { pid, usename, application_name, state, secs } in blockers {
                if logged.insert(pid) {
                    tracing::warn!(
                        "a migration waits for a lock that session {pid} holds: user {usename:?}, application \
                         {application_name:?}, {state}, in its transaction for {secs:.0} s"
                    );
                }
            }
        }
    };
    Ok(tokio_util::task::AbortOnDropHandle::new(tokio::spawn(watching)))
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
    let ups = MIGRATOR.iter().filter(|migration| !migration.migration_type.is_down_migration());
    Ok(ups.map(|migration| (migration.version, migration.checksum.to_vec())).all(|row| rows.contains(&row)))
}

/// Connection that holds the lock until it is closed. Migrations may take longer than other statements.
async fn lock(pool: &Pool) -> Result<PooledConnection, MigrationError> {
    let mut conn = pool.acquire_own().await?;
    conn.execute("SET statement_timeout = 0").await?;
    let sql = "SELECT pg_try_advisory_lock($1)";
    let mut is_told = false;
    while !sqlx::query_scalar::<_, bool>(sql).bind(LOCK_KEY).fetch_one(&mut *conn).await? {
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!("waiting for another process that migrates the schema");
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(conn)
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
