//! Default headers of every answer, for browsers and caches.

use axum::{extract::Request, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{
    api::vocabulary::client,
    config::{Config, TrustedProxies},
};

/// Answers are data: browsers must not guess their type, frame, run or embed them from other sites. Scripts that CORS
/// allows can still read them. A UI on another port of the same host is the same site.
const ALWAYS: [(HeaderName, HeaderValue); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-site")),
];

/// Headers that depend on the settings.
pub struct Headers {
    trusted_proxies: TrustedProxies,
    /// `Strict-Transport-Security`, unless it is switched off.
    hsts: Option<HeaderValue>,
    /// `Vary` of an answer that depends on the credentials.
    vary: Option<HeaderValue>,
}

impl Headers {
    /// Reads the settings.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let limits = &config.limits;
        let cookie = if config.api.console { ", cookie" } else { "" };
        let age = Some(limits.hsts_max_age_secs).filter(|secs| *secs > 0);
        Self {
            trusted_proxies: limits.trusted_proxies.clone(),
            hsts: age.and_then(|secs| HeaderValue::from_str(&format!("max-age={secs}")).ok()),
            vary: HeaderValue::from_str(&format!("authorization, {}{cookie}", config.auth.api_key_header)).ok(),
        }
    }

    /// Whether the answer to the request has the header for HSTS.
    #[must_use]
    pub fn has_hsts(&self, request: &Request) -> bool {
        self.hsts.is_some() && client::came_by_tls(request.extensions(), request.headers(), &self.trusted_proxies)
    }

    /// Adds the headers to an answer.
    pub fn add(&self, has_hsts: bool, response: &mut Response) {
        let headers = response.headers_mut();
        if let Some(hsts) = self.hsts.as_ref().filter(|_| has_hsts) {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        // An answer with a tag may be cached and revalidated, but only for the same credentials: other callers may see
        // less of it. An immutable file is the same for everybody.
        let caching = headers.get(header::CACHE_CONTROL).map(HeaderValue::as_bytes);
        let is_for_all = caching.is_some_and(|caching| caching.ends_with(b"immutable"));
        let depends = headers.contains_key(header::ETAG) && !is_for_all;
        if let Some(vary) = self.vary.as_ref().filter(|_| depends) {
            headers.append(header::VARY, vary.clone());
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
        }
        harden(headers);
    }
}

/// Adds the headers that do not depend on the request.
pub fn harden(headers: &mut HeaderMap) {
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
