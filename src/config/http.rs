//! Settings of the HTTP API: `API_*`, `PUBLIC_URL`, `ENABLE_DOCS`, `CONSOLE_ENABLED`, `CORS_*` and the page sizes.

use std::{net::IpAddr, time::Duration};

use super::{Reader, Section};

/// Settings of the HTTP API.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct Api {
    /// `API_TITLE`.
    pub title: String,
    /// `API_VERSION`.
    pub version: String,
    /// `API_DESCRIPTION`.
    pub description: String,
    /// `API_CONTACT`: e-mail address or URL of the operator, for the OpenAPI document.
    pub contact: Option<String>,
    /// `API_PREFIX`, empty or with a leading and without a trailing slash.
    pub prefix: String,
    /// `API_HOST`.
    pub host: IpAddr,
    /// `API_PORT`.
    pub port: u16,
    /// `API_WORKERS`: number of runtime threads.
    pub workers: usize,
    /// `API_KEEP_ALIVE_SECS`: time for which an idle connection is kept.
    pub keep_alive: Duration,
    /// `PUBLIC_URL`: base URL under which clients reach the API, without a trailing slash.
    pub public_url: String,
    /// Whether `PUBLIC_URL` is set; otherwise it is a default.
    pub has_public_url: bool,
    /// `ENABLE_DOCS`: serve the OpenAPI document and its viewers.
    pub docs: bool,
    /// `CONSOLE_ENABLED`: serve the console.
    pub console: bool,
    /// `API_RELOAD`: accepted for compatibility, without effect in a compiled service.
    pub reload: bool,
}

impl Api {
    /// Base of the addresses of webhook triggers.
    #[must_use]
    pub fn hooks_url(&self) -> String {
        format!("{}{}/hooks/", self.public_url, self.prefix)
    }

    /// Base of callback URLs.
    #[must_use]
    pub fn callbacks_url(&self) -> String {
        format!("{}{}/callbacks/", self.public_url, self.prefix)
    }

    /// Base of the addresses for push notifications of agents; `None`: it is not known where agents reach the API.
    #[must_use]
    pub fn agent_pushes_url(&self) -> Option<String> {
        self.has_public_url.then(|| format!("{}{}/agent-pushes/", self.public_url, self.prefix))
    }
}

impl Section for Api {
    fn read(reader: &mut Reader) -> Option<Self> {
        let host = reader.parsed("api_host", IpAddr::from([0, 0, 0, 0]), |value| {
            let bare = value.trim_start_matches('[').trim_end_matches(']');
            if bare.eq_ignore_ascii_case("localhost") {
                return Ok(IpAddr::from([127, 0, 0, 1]));
            }
            bare.parse().map_err(|_| format!("must be an IP address, not {value:?}"))
        });
        let console = reader.boolean("console_enabled", true);
        let prefix = reader.parsed("api_prefix", "/api/v1".to_owned(), |value| {
            let path = value.trim_matches('/');
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
            let is_step = |segment: &str| segment == "." || segment == "..";
            if !path.chars().all(plain) || path.contains("//") || path.split('/').any(is_step) {
                return Err(format!("must be a plain URL path, not {value:?}"));
            }
            // Paths below these two need no credentials.
            if matches!(path.split('/').next(), Some("docs" | "redoc")) {
                return Err(format!("must not lie below the documentation, as {value:?} does"));
            }
            if matches!(path.split('/').next(), Some("a2a" | "mcp")) {
                return Err(format!(
                    "must not lie below /a2a and /mcp, which have routes of their own, as {value:?} does"
                ));
            }
            if console == Some(true) && path.split('/').next() == Some("console") {
                return Err(format!("must not lie below /console unless CONSOLE_ENABLED is false, as {value:?} does"));
            }
            Ok(if path.is_empty() { String::new() } else { format!("/{path}") })
        });
        let port = reader.number("api_port", 8000, 1..=u16::MAX);
        let public_url = reader.parsed("public_url", format!("http://localhost:{}", port.unwrap_or(8000)), |value| {
            let url = url::Url::parse(value).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
            let is_plain =
                |url: &url::Url| url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
            match url.filter(is_plain) {
                Some(url) => Ok(url.as_str().trim_end_matches('/').to_owned()),
                None => Err("must be an http or https URL without user, query and fragment".to_owned()),
            }
        });
        let contact = reader.parsed("api_contact", None, |value| {
            let is_url = url::Url::parse(value).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
            let is_email = value
                .split_once('@')
                .is_some_and(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'))
                && !value.contains(char::is_whitespace);
            let problem = "must be an e-mail address, or an http or https URL";
            if is_url || is_email { Ok(Some(value.to_owned())) } else { Err(problem.to_owned()) }
        });
        let workers = reader.number("api_workers", 1, 1..=1024);
        // Longer than the 60 s for which load balancers keep idle connections.
        let keep_alive_secs = reader.number("api_keep_alive_secs", 75, 10..=7200);
        let docs = reader.boolean("enable_docs", true);
        let reload = reader.boolean("api_reload", false);
        Some(Self {
            title: reader.text("api_title", "Workflow Management API"),
            version: reader.text("api_version", "1.0.0"),
            description: reader.text("api_description", "REST API for managing workflow orchestration"),
            contact: contact?,
            prefix: prefix?,
            host: host?,
            port: port?,
            workers: workers?,
            keep_alive: Duration::from_secs(keep_alive_secs?),
            public_url: public_url?,
            has_public_url: reader.has("public_url"),
            docs: docs?,
            console: console?,
            reload: reload?,
        })
    }
}

/// CORS settings.
#[derive(Clone, Debug)]
pub struct Cors {
    /// `CORS_ORIGINS`.
    pub origins: AllowList<http::HeaderValue>,
    /// `CORS_ALLOW_CREDENTIALS`.
    pub credentials: bool,
    /// `CORS_ALLOW_METHODS`.
    pub methods: AllowList<http::Method>,
    /// `CORS_ALLOW_HEADERS`.
    pub headers: AllowList<http::HeaderName>,
}

/// Allow list that may be `*`.
#[derive(Clone, Debug)]
pub enum AllowList<T> {
    /// All values (`*`).
    Any,
    /// The listed values only.
    These(Vec<T>),
}

impl Section for Cors {
    fn read(reader: &mut Reader) -> Option<Self> {
        let origins = listed(reader, "cors_origins", "http://localhost:3000", parse_origin);
        let credentials = reader.boolean("cors_allow_credentials", true);
        let methods = listed(reader, "cors_allow_methods", "*", |method| method.parse().ok());
        let headers = listed(reader, "cors_allow_headers", "*", |header| header.parse().ok());
        Some(Self { origins: origins?, credentials: credentials?, methods: methods?, headers: headers? })
    }
}

/// Parses a comma-separated list. One `*` makes it a wildcard.
fn listed<T>(
    reader: &mut Reader,
    name: &str,
    default: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<AllowList<T>> {
    let text = reader.text(name, default);
    if text.split(',').any(|item| item.trim() == "*") {
        return Some(AllowList::Any);
    }
    let mut items = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match parse(item) {
            Some(item) => items.push(item),
            None => return reader.problem(name, format!("has an entry that cannot be used: {item:?}")),
        }
    }
    Some(AllowList::These(items))
}

/// Parses an origin as browsers send it: scheme, host and optional port.
fn parse_origin(text: &str) -> Option<http::HeaderValue> {
    let origin = url::Url::parse(text).ok()?.origin();
    (origin.is_tuple() && origin.ascii_serialization() == text.trim_end_matches('/').to_ascii_lowercase())
        .then(|| origin.ascii_serialization().parse().ok())?
}

/// Page sizes of lists: `DEFAULT_PAGE_SIZE` and `MAX_PAGE_SIZE`.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Size if the caller names none.
    pub default_size: i64,
    /// Maximum size; larger requests are reduced to it.
    pub max_size: i64,
}

impl Section for Pages {
    fn read(reader: &mut Reader) -> Option<Self> {
        let max_size = reader.number("max_page_size", 100, 1..=10_000);
        let default_size = reader.number("default_page_size", 20, 1..=10_000);
        let (max_size, default_size) = (max_size?, default_size?);
        if default_size > max_size {
            return reader.problem("default_page_size", format!("must not be above MAX_PAGE_SIZE ({max_size})"));
        }
        Some(Self { default_size, max_size })
    }
}
