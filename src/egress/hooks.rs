//! Client for the deliveries of webhooks. Names are checked where they are resolved, as for all calls; plain `http` leads
//! only to addresses that `EGRESS_ALLOW` lists.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Method;
use reqwest::{
    Client, RequestBuilder,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect, retry,
};
use url::Url;

use super::{Allow, KEEP_IDLE, NotAllowed, address};

/// Time-out for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Client for deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Hooks {
    secure: Client,
    plain: Client,
    allow: Arc<Allow>,
}

impl Hooks {
    /// Builds a client that reaches public addresses with TLS, and those of `allow` with and without.
    pub fn new(allow: &Arc<Allow>) -> reqwest::Result<Self> {
        Self::with(allow, &(Arc::new(System) as Arc<dyn Resolve>))
    }

    /// As [`Hooks::new`], with another way to find the addresses of a name. What it finds is checked all the same.
    pub fn with(allow: &Arc<Allow>, names: &Arc<dyn Resolve>) -> reqwest::Result<Self> {
        let client = |only_listed| {
            let (names, allow) = (Arc::clone(names), Arc::clone(allow));
            Client::builder()
                .dns_resolver(Arc::new(Checked { names, allow, only_listed }))
                .redirect(redirect::Policy::none())
                .no_proxy()
                .no_gzip()
                .no_deflate()
                .http1_only()
                // Each attempt is recorded by the caller.
                .retry(retry::never())
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(KEEP_IDLE)
                .user_agent(concat!("workflow-api/", env!("CARGO_PKG_VERSION")))
                .build()
        };
        Ok(Self { secure: client(false)?, plain: client(true)?, allow: Arc::clone(allow) })
    }

    /// Builds a request to the URL, to be sent once.
    pub fn post(&self, url: Url) -> Result<RequestBuilder, NotAllowed> {
        self.allow.check_hook(&url).map_err(|_| NotAllowed)?;
        let client = if url.scheme() == "https" { &self.secure } else { &self.plain };
        Ok(client.request(Method::POST, url))
    }
}

/// Whether the address is one of the internet, that no entry of `EGRESS_ALLOW` is needed for.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    let behind = address::behind(address);
    address::special(behind).is_none() && !address::is_metadata(behind)
}

/// The system's resolver.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let found: Addrs = Box::new(found.into_iter());
            Ok(found)
        })
    }
}

/// Resolver: another one without the addresses that are not allowed.
struct Checked {
    names: Arc<dyn Resolve>,
    allow: Arc<Allow>,
    only_listed: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (allow, only_listed) = (Arc::clone(&self.allow), self.only_listed);
        let (host, found) = (name.as_str().to_owned(), self.names.resolve(name));
        Box::pin(async move {
            let mut allowed = allow.of_host(&host, found.await?);
            if only_listed {
                allowed.retain(|address| allow.lists(&host, address.ip()));
            }
            if allowed.is_empty() {
                return Err(NotAllowed.into());
            }
            let allowed: Addrs = Box::new(allowed.into_iter());
            Ok(allowed)
        })
    }
}
