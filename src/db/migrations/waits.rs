//! Waits of migrations for other sessions: for another process that migrates, and for locks on tables.
//!
//! A blocking advisory lock of one process and `CREATE INDEX CONCURRENTLY` in another would deadlock. Therefore the
//! lock is polled, on a dedicated connection.
//!
//! A session that waits for a table lock makes all later ones wait behind it. Therefore `lock_timeout` cancels a
//! migration soon, and it is retried after a pause. The log names the sessions that hold the lock.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    AssertSqlSafe, Executor, PgConnection,
    migrate::{MigrateError, Migration},
};
use tokio_util::task::AbortOnDropHandle;

use super::MigrationError;
use crate::{
    clock::Clock,
    db::{Error, LOCK_TIMEOUT, Pool, PooledConnection},
};

/// Key of the advisory lock: `wf-api` in ASCII.
const LOCK_KEY: i64 = 0x0000_7766_2d61_7069;
const LOCK_POLL: Duration = Duration::from_millis(200);
/// First and longest pause between two attempts of a migration that finds a table locked.
const LOCKED_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Interval at which sessions that block a migration are polled.
const BLOCKED_POLL: Duration = Duration::from_millis(500);

/// How long migrations wait for other sessions, all waits together.
#[derive(Clone, Debug)]
pub struct WaitLimit {
    /// Limit; `None` waits for as long as it takes.
    pub limit: Option<Duration>,
    /// Clock of the limit and of the pauses.
    pub clock: Clock,
}

impl WaitLimit {
    /// Waits for as long as it takes.
    #[must_use]
    pub fn none() -> Self {
        Self { limit: None, clock: Clock::default() }
    }

    /// Waits for that time.
    #[must_use]
    pub fn of(limit: Duration) -> Self {
        Self { limit: Some(limit), clock: Clock::default() }
    }
}

/// Waits of one command.
pub(super) struct Waits {
    limit: WaitLimit,
    started: Instant,
    /// Attempts of the present migration that found a table locked.
    attempts: u32,
    /// Sessions that blocked the migration when it was last looked at.
    blockers: Arc<Mutex<Vec<Blocker>>>,
    _watching: AbortOnDropHandle<()>,
}

impl Waits {
    /// Connection that holds the advisory lock until it is closed, and the waits of its migrations, which may take longer
    /// than other statements.
    pub(super) async fn begin(pool: &Pool, limit: &WaitLimit) -> Result<(PooledConnection, Self), MigrationError> {
        let mut conn = pool.acquire_own().await?;
        conn.execute("SET statement_timeout = 0").await?;
        let own_pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *conn).await?;
        let blockers = Arc::default();
        let watching = tokio::spawn(watch(pool.clone(), own_pid, Arc::clone(&blockers)));
        let waits = Self {
            limit: limit.clone(),
            started: limit.clock.instant(),
            attempts: 0,
            blockers,
            _watching: AbortOnDropHandle::new(watching),
        };
        let sql = "SELECT pg_try_advisory_lock($1)";
        let mut is_told = false;
        while !sqlx::query_scalar::<_, bool>(sql).bind(LOCK_KEY).fetch_one(&mut *conn).await? {
            if !is_told || waits.left().is_some_and(|left| left.is_zero()) {
                let holder = Blocker::that_migrates(&mut conn).await?;
                let text = format!("another process migrates the schema: {}", Sessions(&holder));
                waits.check(&text)?;
                tracing::info!("{text}; waiting until it is finished");
                is_told = true;
            }
            waits.sleep(LOCK_POLL).await;
        }
        Ok((conn, waits))
    }

    /// Prepares the session for a migration. `is_concurrent`: it runs outside of a transaction.
    pub(super) async fn prepare(&mut self, conn: &mut PgConnection, is_concurrent: bool) -> Result<(), sqlx::Error> {
        self.attempts = 0;
        // Outside of a transaction indexes are created and dropped concurrently. This waits for the end of older
        // transactions, but no session waits behind it, and giving up would waste the work.
        let timeout = match (is_concurrent, self.left()) {
            (false, _) => LOCK_TIMEOUT.to_owned(),
            (true, None) => "0".to_owned(),
            (true, Some(left)) => format!("{}ms", left.as_millis().max(1)),
        };
        conn.execute(AssertSqlSafe(format!("SET lock_timeout = '{timeout}'"))).await?;
        Ok(())
    }

    /// Pauses if the migration did not get a lock in time; otherwise returns the error.
    pub(super) async fn pause_if_locked(
        &mut self,
        error: MigrateError,
        migration: &Migration,
    ) -> Result<(), MigrationError> {
        let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = &error else {
            return Err(error.into());
        };
        let code = cause.as_database_error().and_then(sqlx::error::DatabaseError::code);
        // Timed out, or given up because of a deadlock.
        if !code.is_some_and(|code| code == "55P03" || code == "40P01") {
            return Err(error.into());
        }
        let blockers = std::mem::take(&mut *self.blockers.lock().unwrap_or_else(PoisonError::into_inner));
        let text = format!("migration {} needs a lock that is held by {}", migration.version, Sessions(&blockers));
        self.check(&text)?;
        let (first, longest) = LOCKED_PAUSE;
        let pause = (first * 2_u32.pow(self.attempts.min(5))).min(longest);
        self.attempts += 1;
        tracing::warn!("{text}; it is retried in {} ms", pause.as_millis());
        self.sleep(pause).await;
        Ok(())
    }

    /// Time that is left; `None` without a limit.
    fn left(&self) -> Option<Duration> {
        self.limit.limit.map(|limit| limit.saturating_sub(self.limit.clock.since(self.started)))
    }

    /// Error if no time is left.
    fn check(&self, reason: &str) -> Result<(), MigrationError> {
        match self.limit.limit.zip(self.left()) {
            Some((limit, left)) if left.is_zero() => Err(MigrationError::Locked { limit, reason: reason.to_owned() }),
            _ => Ok(()),
        }
    }

    async fn sleep(&self, pause: Duration) {
        self.limit.clock.sleep(self.left().map_or(pause, |left| pause.min(left))).await;
    }
}

/// Session that holds a lock. What the database shows to nobody but its role and superusers may be missing.
#[derive(sqlx::FromRow)]
struct Blocker {
    /// Process id; 0 for a prepared transaction.
    pid: i32,
    usename: Option<String>,
    application_name: Option<String>,
    state: Option<String>,
    secs: Option<f64>,
}

impl Blocker {
    /// Sessions for which that process waits.
    async fn all_of(pool: &Pool, pid: i32) -> Result<Vec<Self>, sqlx::Error> {
        let sql = "SELECT b.pid, a.usename::text, nullif(a.application_name, '') AS application_name, a.state,
                       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS secs
                   FROM unnest(pg_blocking_pids($1)) AS b (pid) LEFT JOIN pg_stat_activity a USING (pid)";
        sqlx::query_as(sql).bind(pid).fetch_all(pool).await
    }

    /// Session that holds the advisory lock.
    async fn that_migrates(conn: &mut PgConnection) -> Result<Vec<Self>, sqlx::Error> {
        let sql = "SELECT l.pid, a.usename::text, nullif(a.application_name, '') AS application_name, a.state,
                       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS secs
                   FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                       AND l.classid::bigint << 32 | l.objid::bigint = $1
                       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        sqlx::query_as(sql).bind(LOCK_KEY).fetch_all(conn).await
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("a prepared transaction (see pg_prepared_xacts)");
        }
        write!(f, "session {}", self.pid)?;
        let quoted = |label: &str, text: &Option<String>| text.as_ref().map(|text| format!("{label} {text:?}"));
        let age = self.secs.map(|secs| format!("in its transaction for {secs:.0} s"));
        let details =
            [quoted("user", &self.usename), quoted("application", &self.application_name), self.state.clone(), age];
        let details: Vec<String> = details.into_iter().flatten().collect();
        if details.is_empty() { Ok(()) } else { write!(f, " ({})", details.join(", ")) }
    }
}

/// List of sessions in a message.
struct Sessions<'a>(&'a [Blocker]);

impl fmt::Display for Sessions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, blocker) in self.0.iter().enumerate() {
            write!(f, "{}{blocker}", if index > 0 { ", " } else { "" })?;
        }
        // It may have ended since.
        if self.0.is_empty() { f.write_str("another session") } else { Ok(()) }
    }
}

/// Polls the sessions that block the process, and logs each of them once.
async fn watch(pool: Pool, own_pid: i32, latest: Arc<Mutex<Vec<Blocker>>>) {
    let mut logged = HashSet::new();
    loop {
        tokio::time::sleep(BLOCKED_POLL).await;
        match Blocker::all_of(&pool, own_pid).await {
            Ok(blockers) if blockers.is_empty() => {}
            Ok(blockers) => {
                for blocker in blockers.iter().filter(|blocker| logged.insert(blocker.pid)) {
                    tracing::warn!("a migration waits for a lock that is held by {blocker}");
                }
                *latest.lock().unwrap_or_else(PoisonError::into_inner) = blockers;
            }
            Err(error) => {
                let error = Error::from(error);
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "blocking sessions could not be polled: {error}"
                );
            }
        }
    }
}
