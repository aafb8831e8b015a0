//! Parser of `DATABASE_URL` and `DATABASE_REPLICA_URL`. Errors that sqlx ignores or reports only by a misleading message are checked first.

use std::{fs::File, str::FromStr};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::{ConnectOptions, UsableHosts};

/// SSL modes as in PostgreSQL's own programs.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
/// Query parameters that name a file.
const FILES: [&str; 6] = ["sslrootcert", "ssl-root-cert", "sslcert", "ssl-cert", "sslkey", "ssl-key"];
/// Form of the URL, for messages.
const FORM: &str = "is not a URL of the form postgresql://user:pass@host:5432/db";

/// Server that a URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// Server that accepts writes.
    Primary,
    /// Standby.
    Replica,
}

/// Parses `postgresql://`, `postgres://` and forms with a driver, such as `postgresql+asyncpg://`. The error never
/// shows the URL, which may contain a password.
pub(super) fn parse(text: &str, server: Server) -> Result<ConnectOptions, String> {
    let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
    let scheme = scheme.split('+').next().unwrap_or(scheme);
    if !matches!(scheme, "postgresql" | "postgres") {
        return Err("must start with postgresql:// or postgres://".to_owned());
    }
    // The authority ends before the path. The host list begins after the password, which may contain commas.
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let mut options = Vec::new();
    let mut usable = server.usable_hosts();
    for host in hosts.split(',') {
        let url = format!("{scheme}://{user}{host}{tail}");
        let url = Url::parse(&url).map_err(|error| format!("{FORM}: {error}"))?;
        let is_required = server.is_required_by(&url)?;
        if is_required && server == Server::Primary {
            usable = UsableHosts::Primary;
        }
        check(&url)?;
        for url in by_host(&url)? {
            let options_of_host = PgConnectOptions::from_str(url.as_str()).map_err(|_| FORM)?;
            options.push(with_checked_authority(options_of_host, &url).application_name("workflow-api"));
        }
    }
    if options.len() > 1 && server == Server::Primary {
        usable = UsableHosts::Primary;
    }
    Ok(ConnectOptions { hosts: options, usable })
}

/// Checks the values of the query parameters.
fn check(url: &Url) -> Result<(), String> {
    let mut has_pair = (false, false);
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" | "ssl-mode" if !SSL_MODES.contains(&&*value) => {
                return Err(format!("has a wrong sslmode {value:?}: it must be one of {}", SSL_MODES.join(", ")));
            }
            name if FILES.contains(&name) => {
                File::open(&*value).map_err(|error| format!("{name}: the file {value:?} cannot be read: {error}"))?;
                has_pair.0 |= matches!(name, "sslcert" | "ssl-cert");
                has_pair.1 |= matches!(name, "sslkey" | "ssl-key");
            }
            _ => {}
        }
    }
    if has_pair.0 == has_pair.1 { Ok(()) } else { Err("sslcert and sslkey must be given together".to_owned()) }
}

impl Server {
    /// Hosts that can be used if the URL says nothing about them.
    fn usable_hosts(self) -> UsableHosts {
        match self {
            Self::Primary => UsableHosts::All,
            Self::Replica => UsableHosts::Standbys,
        }
    }

    /// Whether `target_session_attrs` of the URL asks for such a server.
    fn is_required_by(self, url: &Url) -> Result<bool, String> {
        let attributes = url.query_pairs().find(|(name, _)| name == "target_session_attrs");
        let Some((_, value)) = attributes else { return Ok(false) };
        let (names, expected): (&[&str], _) = match self {
            Self::Primary => (&["read-write", "primary"], "read-write, because the service writes"),
            Self::Replica => {
                (&["standby", "prefer-standby", "read-only", "any"], "standby, because only standbys are used")
            }
        };
        if names.contains(&&*value) {
            Ok(true)
        } else {
            Err(format!("has target_session_attrs={value:?}: it must be {expected}"))
        }
    }
}

/// The URL for each host of the parameters `host`, `hostaddr` and `port`, without what sqlx does not know.
fn by_host(url: &Url) -> Result<Vec<Url>, String> {
    let lists: Vec<(String, Vec<String>)> = url
        .query_pairs()
        .filter(|(name, _)| name != "target_session_attrs")
        .map(|(name, value)| {
            let is_list = matches!(&*name, "host" | "hostaddr" | "port");
            let values = if is_list { value.split(',').map(str::to_owned).collect() } else { vec![value.into_owned()] };
            (name.into_owned(), values)
        })
        .collect();
    let count = lists.iter().map(|(_, values)| values.len()).max().unwrap_or(1);
    if lists.iter().any(|(_, values)| values.len() != 1 && values.len() != count) {
        return Err("has lists of hosts and ports of different lengths".to_owned());
    }
    let of_host = |index: usize| {
        let mut url = url.clone();
        url.set_query(None);
        if !lists.is_empty() {
            let pairs = lists.iter().map(|(name, values)| (name, values.get(index).unwrap_or(&values[0])));
            url.query_pairs_mut().extend_pairs(pairs);
        }
        url
    };
    Ok((0..count).map(of_host).collect())
}

/// As in PostgreSQL's own programs, `require` checks the certificate if there is an authority to check it with.
fn with_checked_authority(options: PgConnectOptions, url: &Url) -> PgConnectOptions {
    let has_authority = url.query_pairs().any(|(name, _)| matches!(&*name, "sslrootcert" | "ssl-root-cert"));
    match options.get_ssl_mode() {
        PgSslMode::Require if has_authority => options.ssl_mode(PgSslMode::VerifyCa),
        _ => options,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_a_url_are_reported_without_its_password() {
        for (text, expected) in [
            ("postgresql://a:pass,word@host:5432/db?sslmode=require", ""),
            ("postgresql+asyncpg://host/db", ""),
            ("postgresql:///db?host=/var/run/postgresql", ""),
            (
                "postgresql://a:s3cret@one,two/db?target_session_attrs=any",
                "has target_session_attrs=\"any\": it must be read-write",
            ),
            ("postgresql:///db?password=s3cret&host=one,two,three&port=1,2", "has lists of hosts and ports"),
            ("postgresql://a:s3cret@one:5432,two:x/db", "is not a URL of the form"),
            (
                "postgresql://a:s3cret@host/db?sslmode=verify_full",
                "has a wrong sslmode \"verify_full\": it must be one",
            ),
            (
                "postgresql://a:s3cret@host/db?sslmode=verify-full&sslrootcert=/no/such/ca.crt",
                "sslrootcert: the file \"/no",
            ),
            ("postgresql://a:s3cret@host/db?sslcert=/dev/null", "sslcert and sslkey must be given together"),
            ("postgresql://a:s3cret@host:99999/db", "is not a URL of the form"),
            ("mysql://a:s3cret@host/db", "must start with"),
            ("host", "is not a URL of the form"),
        ] {
            let problem = parse(text, Server::Primary).err().unwrap_or_default();
            assert!(problem.starts_with(expected) && problem.is_empty() == expected.is_empty(), "{text}: {problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn each_host_of_a_list_has_all_other_parameters() {
        use UsableHosts::{All, Primary};
        for (text, expected, usable) in [
            ("postgresql://a:b,c@one/db", "one:5432", All),
            ("postgresql://a:b@one/db?target_session_attrs=read-write", "one:5432", Primary),
            ("postgresql://a:b,c@one:1,two,[::1]:3/db?target_session_attrs=primary", "one:1,two:5432,[::1]:3", Primary),
            ("postgresql:///db?host=one,two&user=a&port=1,2", "one:1,two:2", Primary),
            ("postgresql:///db?host=one,two&user=a&port=7", "one:7,two:7", Primary),
        ] {
            let connect = parse(text, Server::Primary).expect(text);
            let hosts = connect.hosts.iter().map(|host| format!("{}:{}", host.get_host(), host.get_port()));
            assert_eq!(hosts.collect::<Vec<_>>().join(","), expected, "{text}");
            assert_eq!(connect.usable, usable, "{text}");
            assert!(connect.hosts.iter().all(|host| host.get_username() == "a" && host.get_database() == Some("db")));
        }
    }
    #[test]
    fn of_the_hosts_of_a_replica_only_standbys_are_used() {
        for attributes in ["", "?target_session_attrs=standby", "?target_session_attrs=any"] {
            let connect = parse(&format!("postgresql://a@one,two/db{attributes}"), Server::Replica).expect("a URL");
            assert_eq!((connect.hosts.len(), connect.usable), (2, UsableHosts::Standbys), "{attributes}");
        }
        let problem =
            parse("postgresql://a@one/db?target_session_attrs=read-write", Server::Replica).expect_err("wrong");
        assert!(problem.ends_with("it must be standby, because only standbys are used"), "{problem}");
    }
}
