//! Database settings: `DATABASE_*` and `MIGRATE_ON_START`.

use std::net::IpAddr;

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
        let echo = reader.boolean("database_echo", false);
        let migrate_on_start = reader.boolean("migrate_on_start", true);
        Some(Self {
            connect: connect?,
            replica: replica?,
            pool_size: pool_size?,
            max_overflow: max_overflow?,
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
