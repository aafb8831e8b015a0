//! Parser of `DATABASE_URL`. Errors that sqlx ignores or reports only by a misleading message are checked first.

use std::{fs::File, str::FromStr};

use sqlx::postgres::PgConnectOptions;

/// SSL modes as in PostgreSQL's own programs.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
/// Query parameters that name a file.
const FILES: [&str; 6] = ["sslrootcert", "ssl-root-cert", "sslcert", "ssl-cert", "sslkey", "ssl-key"];

/// Parses `postgresql://`, `postgres://` and forms with a driver, such as `postgresql+asyncpg://`. The error never
/// shows the URL, which may contain a password.
pub(super) fn parse(text: &str) -> Result<PgConnectOptions, String> {
    let form = "is not a URL of the form postgresql://user:pass@host:5432/db";
    let (scheme, rest) = text.split_once("://").ok_or(form)?;
    let scheme = scheme.split('+').next().unwrap_or(scheme);
    if !matches!(scheme, "postgresql" | "postgres") {
        return Err("must start with postgresql:// or postgres://".to_owned());
    }
    // The authority ends before the path. The host list begins after the password, which may contain commas.
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let hosts = authority.rsplit('@').next().unwrap_or_default();
    let several = "names several hosts, and just one is possible: give the name or address that leads to the primary";
    if hosts.contains(',') {
        return Err(several.to_owned());
    }
    let bare = format!("{scheme}://{rest}");
    let url = url::Url::parse(&bare).map_err(|error| format!("{form}: {error}"))?;
    for (name, value) in url.query_pairs() {
        match &*name {
            "sslmode" | "ssl-mode" if !SSL_MODES.contains(&&*value) => {
                return Err(format!("has a wrong sslmode {value:?}: it must be one of {}", SSL_MODES.join(", ")));
            }
            "host" | "hostaddr" if value.contains(',') => return Err(several.to_owned()),
            name if FILES.contains(&name) => {
                File::open(&*value).map_err(|error| format!("{name}: the file {value:?} cannot be read: {error}"))?;
            }
            _ => {}
        }
    }
    PgConnectOptions::from_str(&bare)
        .map(|options| options.application_name("workflow-api"))
        .map_err(|_| form.to_owned())
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
            ("postgresql://a:s3cret@one:5432,two:5432/db", "names several hosts"),
            ("postgresql:///db?password=s3cret&host=one,two", "names several hosts"),
            (
                "postgresql://a:s3cret@host/db?sslmode=verify_full",
                "has a wrong sslmode \"verify_full\": it must be one",
            ),
            (
                "postgresql://a:s3cret@host/db?sslmode=verify-full&sslrootcert=/no/such/ca.crt",
                "sslrootcert: the file \"/no",
            ),
            ("postgresql://a:s3cret@host:99999/db", "is not a URL of the form"),
            ("mysql://a:s3cret@host/db", "must start with"),
            ("host", "is not a URL of the form"),
        ] {
            let problem = parse(text).err().unwrap_or_default();
            assert!(problem.starts_with(expected) && problem.is_empty() == expected.is_empty(), "{text}: {problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }
}
