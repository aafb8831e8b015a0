//! Connections to the hosts of a database: one, or several of which the one that accepts writes is used, or standbys.
//!
//! A host that has been demoted may keep its sessions, and a standby accepts new ones. Therefore each new connection is
//! asked once for the state of its host, by the statement that sets the parameters of the session.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::config::UsableHosts;

/// The host that was used last has this time before the others are tried too.
const HEAD_START: Duration = Duration::from_millis(500);

/// State of the host of a connection: `standby`, or whether transactions are read-only.
const STATE: &str =
    "SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE current_setting('transaction_read_only') END";

/// Hosts of `DATABASE_URL` or `DATABASE_REPLICA_URL`. Cheap to clone; clones share what is known about the hosts.
#[derive(Clone)]
pub(super) struct Hosts(Arc<Inner>);

struct Inner {
    options: Vec<PgConnectOptions>,
    /// Which of them are used.
    usable: UsableHosts,
    /// Statements that set the parameters of a session.
    settings: String,
    /// Index of the host that was connected last.
    current: AtomicUsize,
    /// Whether connections are known to be sessions. A pooler in transaction mode shares sessions between connections.
    has_sessions: AtomicBool,
    /// Held while two connections are compared.
    comparing: Mutex<()>,
}

impl Hosts {
    /// `options` has an entry for each host, and at least one.
    pub(super) fn new(options: Vec<PgConnectOptions>, usable: UsableHosts, settings: &[(&str, &str)]) -> Self {
        let set = |(name, value): &(&str, &str)| format!("SET {name} = '{value}';");
        Self(Arc::new(Inner {
            options,
            usable,
            settings: settings.iter().map(set).collect(),
            current: AtomicUsize::new(0),
            has_sessions: AtomicBool::new(false),
            comparing: Mutex::default(),
        }))
    }

    /// Which hosts are used.
    pub(super) fn usable(&self) -> UsableHosts {
        self.0.usable
    }

    /// Whether connections are known to be sessions. Until then a second one is opened beside each.
    pub(super) fn has_sessions(&self) -> bool {
        self.0.has_sessions.load(Ordering::Relaxed)
    }

    /// Opens a connection. The caller bounds the time.
    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let (mut connection, session) = self.connect_to_any().await?;
        if self.has_sessions() {
            return Ok(connection);
        }
        let _comparing = self.0.comparing.lock().await;
        if self.has_sessions() {
            return Ok(connection);
        }
        // Each connection has set the marker of its session. If both have one session, the marker is that of the second.
        let Ok((other, _)) = self.connect_to_any().await else {
            // There may be no room for a second one; then the next connection is compared.
            return Ok(connection);
        };
        let found = sqlx::raw_sql("SHOW workflow_api.session").fetch_optional(&mut connection).await;
        other.close().await?;
        let marker = |row: PgRow| row.try_get::<String, _>(0).ok();
        if found.ok().flatten().and_then(marker) != Some(session.to_string()) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, self.no_sessions()).into());
        }
        self.0.has_sessions.store(true, Ordering::Relaxed);
        Ok(connection)
    }

    /// Opens a connection to the host that was used last, or to the first other one that can be used. Returns it with the
    /// marker of its session.
    async fn connect_to_any(&self) -> Result<(PgConnection, Uuid), sqlx::Error> {
        let current = self.0.current.load(Ordering::Relaxed);
        let mut others = (0..self.0.options.len()).filter(|index| *index != current).peekable();
        let mut attempts = FuturesUnordered::from_iter([self.attempt(current)]);
        let mut failures = Vec::new();
        let mut head_start = std::pin::pin!(tokio::time::sleep(HEAD_START));
        loop {
            tokio::select! {
                biased;
                Some((index, result)) = attempts.next() => match result {
                    Ok(connected) => {
                        if self.0.current.swap(index, Ordering::Relaxed) != index {
                            self.log_host(index);
                        }
                        return Ok(connected);
                    }
                    Err(error) => failures.push((index, error)),
                },
                () = &mut head_start, if others.peek().is_some() => {}
            }
            attempts.extend(others.by_ref().map(|index| self.attempt(index)));
            if attempts.is_empty() {
                return Err(self.failure(failures));
            }
        }
    }

    async fn attempt(&self, index: usize) -> (usize, Result<(PgConnection, Uuid), sqlx::Error>) {
        (index, self.connect_to(&self.0.options[index]).await)
    }

    #[expect(clippy::disallowed_methods, reason = "the time-out is in the callers of `connect`")]
    async fn connect_to(&self, options: &PgConnectOptions) -> Result<(PgConnection, Uuid), sqlx::Error> {
        let mut connection = options.connect().await?;
        let session = Uuid::new_v4();
        // Not parameters of the connection's start, because poolers refuse these.
        let set = format!("{} SET workflow_api.session = '{session}'; {STATE}", self.0.settings);
        let row = sqlx::raw_sql(AssertSqlSafe(set)).fetch_one(&mut connection).await?;
        let problem = match (self.0.usable, row.try_get::<&str, _>(0)?) {
            (UsableHosts::Primary, "standby" | "on") => (io::ErrorKind::ReadOnlyFilesystem, "it accepts no writes"),
            (UsableHosts::Standbys, "off" | "on") => (io::ErrorKind::Unsupported, "it is no standby"),
            _ => return Ok((connection, session)),
        };
        connection.close().await?;
        Err(io::Error::new(problem.0, problem.1).into())
    }

    /// Prefers the next of several hosts for connections that are opened from now on. Returns whether there is one.
    pub(super) fn prefer_next(&self) -> bool {
        let count = self.0.options.len();
        let next = (self.0.current.load(Ordering::Relaxed) + 1) % count;
        self.0.current.store(next, Ordering::Relaxed);
        count > 1
    }

    fn log_host(&self, index: usize) {
        let (host, port) = (self.0.options[index].get_host(), self.0.options[index].get_port());
        if self.0.usable == UsableHosts::Standbys {
            tracing::info!("the host of the replica is {host}:{port} now");
        } else {
            tracing::info!("the host of the database is {host}:{port} now");
        }
    }

    /// Error if connections are no sessions.
    fn no_sessions(&self) -> String {
        let name = if self.0.usable == UsableHosts::Standbys { "DATABASE_REPLICA_URL" } else { "DATABASE_URL" };
        format!(
            "{name} leads to a connection pooler in transaction or statement mode, but sessions are needed: set pool_mode = \
             session for this database, or connect to PostgreSQL itself"
        )
    }

    /// Error of a single host, or what is wrong with each of several.
    fn failure(&self, mut failures: Vec<(usize, sqlx::Error)>) -> sqlx::Error {
        if self.0.options.len() == 1
            && let Some((_, error)) = failures.pop()
        {
            return error;
        }
        failures.sort_by_key(|(index, _)| *index);
        let texts = failures.into_iter().map(|(index, error)| {
            let options = &self.0.options[index];
            let text = match &error {
                sqlx::Error::Database(error) => error.message().to_owned(),
                sqlx::Error::Io(error) => error.to_string(),
                error => error.to_string(),
            };
            format!("{}:{}: {text}", options.get_host(), options.get_port())
        });
        let text = texts.collect::<Vec<_>>().join("; ");
        io::Error::new(io::ErrorKind::NotConnected, format!("no host of the database can be used: {text}")).into()
    }
}
