//! PostgreSQL access: connections and errors. All SQL of the service is in the submodules.
//!
//! Statements are checked by the tests that run them, not by macros, so that a build needs neither a database nor
//! generated files. `statement_timeout` bounds statements. If the server does not answer at all, the statement is
//! abandoned and its connection closed (see [`mod@pool`]).

pub mod agent_cards;
pub mod agent_health;
pub mod agent_hours;
pub mod agent_pushes;
pub mod agents;
pub mod api_keys;
pub mod audit;
pub mod breakers;
pub mod callbacks;
pub mod console_sessions;
pub mod dead_letters;
pub mod deltas;
pub mod events;
pub mod executions;
pub mod exposed;
mod family;
pub mod flow;
mod hosts;
pub mod idempotency;
pub mod inbound;
pub mod invariants;
pub mod kafka_triggers;
pub mod list;
pub mod migrations;
pub mod monitoring;
pub mod organizations;
pub mod outbox;
pub mod pool;
pub mod processes;
pub mod questions;
pub mod replica;
pub mod retention;
pub mod run_counts;
pub mod runs;
pub mod saved_views;
pub mod schedules;
pub mod sealed;
pub mod service_keys;
pub mod storage;
pub mod triggers;
pub mod usage;
pub mod waits;
pub mod watches;
pub mod webhook_events;
pub mod webhooks;
pub mod workflows;

use std::{io, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use sqlx::{ConnectOptions as _, PgConnection};
use tokio::sync::oneshot;

use self::hosts::Hosts;
pub use self::{
    pool::{Pool, PooledConnection, Transaction},
    replica::Reads,
};
use crate::{config, lifecycle};

/// Database error, classified by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, is starting or stopping, lacks resources, or took too long. The statement may be
    /// retried later.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A unique or other constraint would be violated.
    #[error("constraint {constraint} would be violated")]
    Conflict {
        /// Name of the constraint or unique index.
        constraint: String,
        /// Error of the driver.
        #[source]
        source: sqlx::Error,
    },
    /// A value that the column's type or a check rejects.
    #[error("the database rejects a value")]
    Refused(#[source] sqlx::Error),
    /// Serialization failure or deadlock: the same statement may succeed at once.
    #[error("the statement collided with another one")]
    Collision(#[source] sqlx::Error),
    /// Anything else: a bug or a damaged row.
    #[error("unexpected database error")]
    Bug(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            // For example, a connection that is closed in the middle of its first exchange.
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => return Self::Unavailable(error),
            _ => {}
        }
        let Some(database) = error.as_database_error() else { return Self::Bug(error) };
        let code = database.code().unwrap_or_default().into_owned();
        let constraint = database.constraint().unwrap_or_default().to_owned();
        match (database.kind(), code.as_str()) {
            (ErrorKind::UniqueViolation, _) => Self::Conflict { constraint, source: error },
            (_, "40001" | "40P01") => Self::Collision(error),
            // Locked, timed out, not accepting connections, or a standby before its failover is complete.
            (_, "55P03" | "57014" | "55000" | READ_ONLY) => Self::Unavailable(error),
            (_, "23503" | "23514" | "54000") => Self::Refused(error),
            // 3D000, 28xxx: the database does not exist or denies access. An operator can fix this without a restart.
            (_, code) if ["08", "53", "57P", "28", "3D"].iter().any(|class| code.starts_with(class)) => {
                Self::Unavailable(error)
            }
            // 42P01, 42703: a table or column is missing, so the schema is not migrated yet.
            (_, "42P01" | "42703") => Self::Unavailable(error),
            (_, code) if code.starts_with("22") => Self::Refused(error),
            _ => Self::Bug(error),
        }
    }
}

impl Error {
    /// Whether the statement timed out while it waited for a lock.
    #[must_use]
    pub fn is_lock_timeout(&self) -> bool {
        let Self::Unavailable(source) = self else { return false };
        source.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
    }

    /// Whether the statement exceeded its time-out.
    #[must_use]
    pub fn is_statement_timeout(&self) -> bool {
        let Self::Unavailable(source) = self else { return false };
        source.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "57014")
    }

    /// Whether the host of the connection accepts no writes.
    fn is_read_only(&self) -> bool {
        let Self::Unavailable(source) = self else { return false };
        source.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == READ_ONLY)
    }

    /// Whether the connection was lost, so that the statement may succeed at once on another one.
    #[must_use]
    pub fn is_connection_lost(&self) -> bool {
        let Self::Unavailable(source) = self else { return false };
        match source {
            // After a time-out this is not known.
            sqlx::Error::Io(error) => error.kind() != io::ErrorKind::TimedOut,
            sqlx::Error::Protocol(_) => true,
            source => {
                let code = source.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default();
                code.starts_with("57P") || code.starts_with("08")
            }
        }
    }

    /// Whether the same statement may succeed when it is run again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Collision(_))
    }
}

/// First statement of a transaction that sees one snapshot.
const SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";
/// SQLSTATE of a write to a host that accepts none, such as a standby.
const READ_ONLY: &str = "25006";
/// Time-out after which the server cancels a statement.
const STATEMENT_TIMEOUT: &str = "5s";
/// Maximum wait of a statement for a lock.
const LOCK_TIMEOUT: &str = "2s";
/// Time-out after which the server ends an idle transaction.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "10s";
/// Statements slower than this are logged as warnings.
const SLOW_STATEMENT: Duration = Duration::from_millis(500);

/// Maximum duration of a statement including the wait for its connection. Without this limit, a peer that vanished
/// silently would block it until TCP times out after a quarter of an hour.
pub const LONGEST_STATEMENT: Duration = Duration::from_secs(8);

/// Runs statements in a task of their own, and waits no longer than any statement takes. Then the task is abandoned
/// with its connection; the statements may still be committed.
pub async fn bounded<T, F>(statements: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    bounded_by(LONGEST_STATEMENT, statements).await
}

/// As [`bounded`], with another limit.
pub async fn bounded_by<T, F>(limit: Duration, statements: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (sender, mut result) = oneshot::channel();
    // The receiver lives longer than the task, except when the limit is reached.
    ended(limit, async move { drop(sender.send(statements.await)) }.boxed()).await?;
    result.try_recv().unwrap_or_else(|_| Err(crashed()))
}

/// Waits for the end of statements in a task of their own. The task has the same type for all of them, because each type of
/// task is code of its own.
async fn ended(limit: Duration, statements: BoxFuture<'static, ()>) -> Result<(), Error> {
    let mut task = tokio::spawn(statements);
    match tokio::time::timeout(limit, &mut task).await {
        Ok(Ok(())) => Ok(()),
        // The panic itself was logged by the panic hook.
        Ok(Err(_)) => Err(crashed()),
        Err(_) => {
            task.abort();
            Err(no_answer())
        }
    }
}

fn crashed() -> Error {
    Error::Bug(sqlx::Error::WorkerCrashed)
}

/// Begins a transaction on a connection of its own.
#[track_caller]
pub fn begin(pool: &Pool) -> impl Future<Output = Result<Transaction, Error>> + Send {
    let begun = pool.begin();
    async move { Ok(begun.await?) }
}

/// Commits a transaction.
pub async fn commit(transaction: Transaction) -> Result<(), Error> {
    Ok(transaction.commit().await?)
}

/// Executes work in a transaction, which is committed if the work succeeds and rolled back if it fails.
#[track_caller]
pub fn in_transaction<T, E: From<Error>>(
    pool: &Pool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> impl Future<Output = Result<T, E>> {
    let begun = begin(pool);
    async move {
        let mut transaction = begun.await?;
        let result = work(&mut transaction).await?;
        commit(transaction).await?;
        Ok(result)
    }
}

/// Read-only transaction that sees one snapshot.
#[track_caller]
pub fn snapshot(pool: &Pool) -> impl Future<Output = Result<Transaction, Error>> + Send {
    let begun = pool.begin();
    async move {
        let mut transaction = begun.await?;
        sqlx::query(SNAPSHOT).execute(&mut *transaction).await?;
        Ok(transaction)
    }
}

/// Closes the pool, unless the database does not answer in time.
pub async fn close(pool: &Pool) {
    if tokio::time::timeout(lifecycle::CLOSE, pool.close()).await.is_err() {
        tracing::warn!("some database connections could not be closed");
    }
}

fn no_answer() -> Error {
    Error::Unavailable(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))
}

/// Parameters of every session.
const SESSION: [(&str, &str); 10] = [
    ("TimeZone", "UTC"),
    ("statement_timeout", STATEMENT_TIMEOUT),
    ("lock_timeout", LOCK_TIMEOUT),
    ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
    // Compiling takes longer than any of these statements.
    ("jit", "off"),
    // Lets the server free connection, locks and transaction of a client that vanished silently. Time-outs protect this
    // side.
    ("tcp_user_timeout", "15s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("client_connection_check_interval", "5s"),
];

/// Hosts of a database, with the settings of every connection. `echo`: statements are logged.
fn hosts(connect: &config::ConnectOptions, echo: bool) -> Hosts {
    let level = if echo { log::LevelFilter::Info } else { log::LevelFilter::Trace };
    let options = connect.hosts.iter().map(|options| {
        // Poolers refuse the parameter, and its value is the default.
        let options = options.clone().extra_float_digits(None);
        options.log_statements(level).log_slow_statements(log::LevelFilter::Warn, SLOW_STATEMENT)
    });
    Hosts::new(options.collect(), connect.usable, &SESSION)
}

/// Connection pool of a process. It opens no connection yet; the first statement reports an unavailable database.
#[must_use]
pub fn pool(settings: &config::Database) -> Pool {
    pool_of(&settings.connect, settings)
}

/// Pool for these hosts, with the size and the options of the settings.
fn pool_of(connect: &config::ConnectOptions, settings: &config::Database) -> Pool {
    let (size, overflow) = (settings.pool_size as usize, settings.max_overflow as usize);
    Pool::new(hosts(connect, settings.echo), size, size + overflow, settings.pool_times)
}

/// Connection outside of any pool, for the commands.
pub async fn connect(settings: &config::Database) -> Result<PgConnection, Error> {
    connect_to(&settings.connect, settings).await
}

/// As [`connect`], to the replica.
pub async fn connect_to_replica(settings: &config::Database) -> Option<Result<PgConnection, Error>> {
    Some(connect_to(settings.replica.as_ref()?, settings).await)
}

async fn connect_to(connect: &config::ConnectOptions, settings: &config::Database) -> Result<PgConnection, Error> {
    let limit = settings.pool_times.connect_timeout;
    match tokio::time::timeout(limit, hosts(connect, settings.echo).connect()).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(not_connected_within(limit).into()),
    }
}

fn not_connected_within(limit: Duration) -> sqlx::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} ms", limit.as_millis())).into()
}

/// Version of the server, and whether the connection is encrypted.
pub async fn server(conn: &mut PgConnection) -> Result<(String, bool), Error> {
    let sql = "SELECT current_setting('server_version'),
                   coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)";
    Ok(sqlx::query_as(sql).fetch_one(conn).await?)
}
