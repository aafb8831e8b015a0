//! Database settings: `DATABASE_*` and `MIGRATE_ON_START`.

use sqlx::postgres::PgConnectOptions;

use super::{Reader, Section, database_url};

/// Database settings.
#[derive(Clone, Debug)]
pub struct Database {
    /// `DATABASE_URL`, parsed; its `Debug` would show the password.
    pub connect: ConnectOptions,
    /// `DATABASE_POOL_SIZE`: number of connections that are kept.
    pub pool_size: u32,
    /// `DATABASE_MAX_OVERFLOW`: number of further connections that are opened under load and closed when idle.
    pub max_overflow: u32,
    /// `DATABASE_ECHO`: log each statement's text and duration.
    pub echo: bool,
    /// `MIGRATE_ON_START`.
    pub migrate_on_start: bool,
}

/// How the database is connected. `Debug` shows no password.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Options for each host; at least one.
    pub hosts: Vec<PgConnectOptions>,
    /// Whether a host is used only while it accepts writes: there are several, or `target_session_attrs` says so.
    pub must_accept_writes: bool,
}

impl From<PgConnectOptions> for ConnectOptions {
    fn from(options: PgConnectOptions) -> Self {
        Self { hosts: vec![options], must_accept_writes: false }
    }
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts = self.hosts.iter().map(|host| format!("{}:{}", host.get_host(), host.get_port()));
        write!(f, "postgresql://{}", hosts.collect::<Vec<_>>().join(","))
    }
}

impl Section for Database {
    fn read(reader: &mut Reader) -> Option<Self> {
        let connect = reader.required("database_url").and_then(|url| match database_url::parse(&url) {
            Ok(connect) => Some(connect),
            Err(problem) => reader.problem("database_url", problem),
        });
        let pool_size = reader.number("database_pool_size", 10, 1..=10_000);
        let max_overflow = reader.number("database_max_overflow", 20, 0..=10_000);
        if pool_size.zip(max_overflow) == Some((1, 0)) {
            reader.problem::<()>(
                "database_pool_size",
                "one connection is not enough: starting runs keeps one for itself",
            );
        }
        let echo = reader.boolean("database_echo", false);
        let migrate_on_start = reader.boolean("migrate_on_start", true);
        Some(Self {
            connect: connect?,
            pool_size: pool_size?,
            max_overflow: max_overflow?,
            echo: echo?,
            migrate_on_start: migrate_on_start?,
        })
    }
}
