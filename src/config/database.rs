//! Database settings: `DATABASE_*` and `MIGRATE_ON_START`.

use std::{net::IpAddr, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{
    Reader, Section,
    database_url::{self, Server},
};

/// Database settings.
#[derive(Clone, Debug)]
pub struct Database {
    /// `DATABASE_URL`, parsed; its `Debug` would show the password.
    pub connect: ConnectOptions,
    /// `DATABASE_REPLICA_URL`: standby for lists and exports.
    pub replica: Option<ConnectOptions>,
    /// `DATABASE_POOL_SIZE`: number of connections that are kept.
    pub pool_size: u32,
    /// `DATABASE_MAX_OVERFLOW`: number of further connections that are opened under load and closed when idle.
    pub max_overflow: u32,
    /// Times of the connections.
    pub pool_times: PoolTimes,
    /// `DATABASE_ECHO`: log each statement's text and duration.
    pub echo: bool,
    /// `MIGRATE_ON_START`.
    pub migrate_on_start: bool,
}

/// Times of the connections of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolTimes {
    /// `DATABASE_ACQUIRE_TIMEOUT_MS`: time limit of a caller's wait for a connection.
    pub acquire_timeout: Duration,
    /// `DATABASE_CONNECT_TIMEOUT_MS`: time-out for opening a connection.
    pub connect_timeout: Duration,
    /// `DATABASE_MAX_CONNECTION_AGE_SECS`: older connections are replaced.
    pub max_age: Duration,
    /// `DATABASE_VALIDATE_IDLE_MS`: a connection that was idle for at least this long is pinged before use.
    pub trusted_idle: Duration,
    /// `DATABASE_HELD_WARNING_SECS`: who holds a connection for longer is logged. `None`: nobody is.
    pub held_limit: Option<Duration>,
}

impl Section for PoolTimes {
    fn read(reader: &mut Reader) -> Option<Self> {
        // Shorter than the time limit of a request, so that its caller is told the reason.
        let acquire_timeout_ms = reader.number("database_acquire_timeout_ms", 2000, 100..=8000);
        // While the server cannot be reached, an attempt begins twice a second; more than these would wait at a time.
        let connect_timeout_ms = reader.number("database_connect_timeout_ms", 4000, 100..=10_000);
        // The memory of a server process grows with its age.
        let max_age_secs = reader.number("database_max_connection_age_secs", 1800, 10..=604_800);
        // The server may have been replaced meanwhile.
        let trusted_idle_ms = reader.number("database_validate_idle_ms", 500, 0..=600_000);
        // This is longer than any request, and any batch of a loop.
        let held_secs = reader.number("database_held_warning_secs", 60, 0..=86_400);
        Some(Self {
            acquire_timeout: Duration::from_millis(acquire_timeout_ms?),
            connect_timeout: Duration::from_millis(connect_timeout_ms?),
            max_age: Duration::from_secs(max_age_secs?),
            trusted_idle: Duration::from_millis(trusted_idle_ms?),
            held_limit: held_secs.map(|secs| (secs > 0).then(|| Duration::from_secs(secs)))?,
        })
    }
}

/// How the database is connected. `Debug` shows no password.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Options for each host; at least one.
    pub hosts: Vec<PgConnectOptions>,
    /// Which of them can be used.
    pub usable: UsableHosts,
}

/// Hosts of a database that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsableHosts {
    /// Any host.
    All,
    /// Hosts that accept writes: there are several, or `target_session_attrs` says so.
    Primary,
    /// Standbys.
    Standbys,
}

impl From<PgConnectOptions> for ConnectOptions {
    fn from(options: PgConnectOptions) -> Self {
        Self { hosts: vec![options], usable: UsableHosts::All }
    }
}

impl ConnectOptions {
    /// Whether others on the network could read a connection: it leaves this host, and TLS is not required.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.hosts.iter().any(|options| {
            let host = options.get_host();
            let is_local = options.get_socket().is_some()
                || host.starts_with('/')
                || host == "localhost"
                || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            let is_encrypted =
                matches!(options.get_ssl_mode(), PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
            !is_local && !is_encrypted
        })
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
        let connect =
            reader.required("database_url").and_then(|url| match database_url::parse(&url, Server::Primary) {
                Ok(connect) => Some(connect),
                Err(problem) => reader.problem("database_url", problem),
            });
        let replica =
            reader.parsed("database_replica_url", None, |url| database_url::parse(url, Server::Replica).map(Some));
        let pool_size = reader.number("database_pool_size", 10, 1..=10_000);
        let max_overflow = reader.number("database_max_overflow", 20, 0..=10_000);
        if pool_size.zip(max_overflow) == Some((1, 0)) {
            reader.problem::<()>(
                "database_pool_size",
                "one connection is not enough: starting runs keeps one for itself",
            );
        }
        let pool_times = PoolTimes::read(reader);
        let echo = reader.boolean("database_echo", false);
        let migrate_on_start = reader.boolean("migrate_on_start", true);
        Some(Self {
            connect: connect?,
            replica: replica?,
            pool_size: pool_size?,
            max_overflow: max_overflow?,
            pool_times: pool_times?,
            echo: echo?,
            migrate_on_start: migrate_on_start?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_exposed_if_it_leaves_the_host_without_tls() {
        for (url, expected) in [
            ("postgresql://a:b@db.example.com/d", true),
            ("postgresql://a:b@10.0.0.1/d?sslmode=prefer", true),
            ("postgresql://a:b@db.example.com/d?sslmode=require", false),
            ("postgresql://a:b@db.example.com/d?sslmode=verify-full", false),
            ("postgresql://a:b@127.0.0.1/d", false),
            ("postgresql://a:b@127.0.0.1,db.example.com/d", true),
            ("postgresql://a:b@localhost/d?sslmode=disable", false),
            ("postgresql:///d?host=/var/run/postgresql", false),
        ] {
            let options = database_url::parse(url, Server::Primary).expect("a URL");
            assert_eq!(options.is_exposed(), expected, "{url}");
        }
    }
}
