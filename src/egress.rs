//! Egress control: every HTTP call to an address that an API caller has chosen goes through this module.
//!
//! Without it, an agent's URL could make the service scan its own network. Addresses are checked where the connection
//! is made. Names are checked in the client's resolver: a name that is public when it is saved and private when it is
//! called is refused. Literal addresses are checked in [`Egress::request`], since the client does not resolve them.
//! Redirects are not followed and proxies of the environment are not used: both would lead to an address other than
//! the checked one.

mod address;
mod allow;
mod body;
mod event_reader;
mod hooks;
mod tokens;

use std::{error::Error as StdError, sync::Arc, time::Duration};

use http::Method;
use reqwest::{
    Client, RequestBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect, retry,
};
use url::Url;

use self::tokens::Tokens;
pub use self::{
    address::is_loopback,
    allow::{Allow, BadEntry},
    body::{Body, BodyError, Memory, NotJson, read_body},
    event_reader::{EventReader, StreamEnd},
    hooks::{Hooks, is_public},
    tokens::NoToken,
};
use crate::{
    agent::{ClientCredentials, Credentials},
    clock::Clock,
};

/// Time-out for connecting. The caller sets the time-out of the whole call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept. Common servers close it after 5 s; a shorter time makes it unlikely that a
/// request meets a closing connection.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// Error: the URL leads to an address that is not allowed. It does not name the address: the caller must not know
/// what a name resolves to.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the address of this agent's URL is not allowed")]
pub struct NotAllowed;

/// Client for all outgoing calls. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Egress {
    client: Client,
    allow: Arc<Allow>,
    tokens: Arc<Tokens>,
}

/// Reason why a request with credentials cannot be sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// The address is not allowed.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The stored credentials lack a value, or have one that cannot be sent.
    #[error("its auth_config lacks a value, or has one that cannot be sent in a header")]
    Unusable,
    /// There is no access token.
    #[error(transparent)]
    NoToken(#[from] NoToken),
}

impl Egress {
    /// Builds a client that reaches public addresses and those of `allow`.
    pub fn new(allow: &Arc<Allow>) -> reqwest::Result<Self> {
        let client = Client::builder()
            .dns_resolver(Arc::new(Checked(Arc::clone(allow))))
            .redirect(redirect::Policy::none())
            .no_proxy()
            // The client must not retry: each attempt is recorded by the caller, with a row and an id of its own.
            .retry(retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(KEEP_IDLE)
            .user_agent(concat!("workflow-api/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, allow: Arc::clone(allow), tokens: Arc::new(Tokens::new(Clock::default())) })
    }

    /// Builds a request to the URL, to be sent once.
    pub fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, NotAllowed> {
        self.allow.check(&url).map_err(|_| NotAllowed)?;
        Ok(self.client.request(method, url))
    }

    /// Builds a request with credentials. Tokens are requested and cached.
    pub async fn request_as(
        &self,
        method: Method,
        mut url: Url,
        credentials: &Credentials,
    ) -> Result<RequestBuilder, RequestError> {
        if let Credentials::Query(name, value) = credentials {
            url.query_pairs_mut().append_pair(name, value);
        }
        let request = self.request(method, url)?;
        match credentials {
            Credentials::None | Credentials::Query(..) => Ok(request),
            Credentials::Header(name, value) => Ok(request.header(name, value)),
            Credentials::Client(client) => {
                let token = self.tokens.header(self, client).await?;
                Ok(request.header(http::header::AUTHORIZATION, token))
            }
            Credentials::Unusable => Err(RequestError::Unusable),
        }
    }

    /// Removes the access token that these credentials have led to from a text of the agent.
    #[must_use]
    pub fn mask(&self, credentials: &Credentials, text: String) -> String {
        if let Credentials::Client(client) = credentials { self.tokens.mask(client, text) } else { text }
    }

    /// Notes that an agent has refused these credentials, so that the next request gets a new token.
    pub fn refused(&self, client: &ClientCredentials) {
        self.tokens.forget(client);
    }
}

/// Resolver: the system's resolver without the addresses that are not allowed.
struct Checked(Arc<Allow>);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let allow = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed = allow.of_host(name.as_str(), found);
            if allowed.is_empty() {
                return Err(NotAllowed.into());
            }
            let allowed: Addrs = Box::new(allowed.into_iter());
            Ok(allowed)
        })
    }
}

/// Whether the request failed because the addresses of the name are not allowed.
#[must_use]
pub fn was_not_allowed(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<NotAllowed>() {
            return true;
        }
        cause = StdError::source(inner);
    }
    false
}

/// Text of a network error: that of the innermost cause, since the outer ones repeat the URL.
#[must_use]
pub fn cause_of(error: &reqwest::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(inner) = StdError::source(cause) {
        cause = inner;
    }
    Some(readable(&cause.to_string()))
}

/// Readable text of a cause: for certificate errors the TLS library gives the name of an enum value.
fn readable(cause: &str) -> String {
    const OF_CERTIFICATES: &str = "invalid peer certificate: ";
    let Some(name) = cause.strip_prefix(OF_CERTIFICATES) else { return cause.to_owned() };
    let name = name.trim_start_matches("Other(OtherError(").trim_end_matches(')');
    if !name.chars().all(|char| char.is_ascii_alphanumeric()) {
        return cause.to_owned();
    }
    let mut words = String::from(OF_CERTIFICATES.trim_end());
    for char in name.chars() {
        if char.is_ascii_uppercase() {
            words.push(' ');
        }
        words.push(char.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A name that leads to an internal address is refused where the connection is made.
    #[tokio::test]
    async fn names_are_checked_where_they_are_resolved() {
        let allow = Arc::new(Allow::default());
        let egress = Egress::new(&allow).expect("a client");
        for url in ["http://localhost:9/", "https://LOCALHOST:9/"] {
            let request = egress.request(Method::GET, Url::parse(url).expect(url)).expect("a name is not resolved yet");
            let error = request.send().await.expect_err(url);
            assert!(was_not_allowed(&error), "{url}: {error:?}");
        }
        let allow = Arc::new("localhost".parse::<Allow>().expect("a host"));
        let egress = Egress::new(&allow).expect("a client");
        let request = egress.request(Method::GET, Url::parse("http://localhost:9/").expect("a URL")).expect("a name");
        let error = request.send().await.expect_err("the port is closed");
        assert!(error.is_connect() && !was_not_allowed(&error), "{error:?}");
    }

    #[test]
    fn certificate_errors_are_readable() {
        for (cause, expected) in [
            ("invalid peer certificate: UnknownIssuer", "invalid peer certificate: unknown issuer"),
            (
                "invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))",
                "invalid peer certificate: ca used as end entity",
            ),
            (
                "invalid peer certificate: certificate expired: verified at 7",
                "invalid peer certificate: certificate expired: verified at 7",
            ),
            ("Connection refused (os error 111)", "Connection refused (os error 111)"),
        ] {
            assert_eq!(readable(cause), expected);
        }
    }

    #[test]
    fn addresses_of_a_name_that_are_not_allowed_are_left_out() {
        let allow = Allow::default();
        let found: Vec<SocketAddr> =
            ["10.0.0.1:0", "93.184.215.14:0", "[::1]:0"].map(|address| address.parse().expect(address)).into();
        let allowed = allow.of_host("mixed.example", found.into_iter());
        assert_eq!(allowed, ["93.184.215.14:0".parse().expect("it")]);
    }
}
