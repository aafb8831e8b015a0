//! Default headers of every answer, for browsers and caches.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::api::vocabulary::{app::App, client};

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

/// Middleware that adds the headers to every answer.
pub async fn add(State(app): State<App>, request: Request, next: Next) -> Response {
    let limits = &app.config.limits;
    let by_tls = client::came_by_tls(request.extensions(), request.headers(), &limits.trusted_proxies);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if by_tls
        && limits.hsts_max_age_secs > 0
        && let Ok(age) = HeaderValue::from_str(&format!("max-age={}", limits.hsts_max_age_secs))
    {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, age);
    }
    // An answer with a tag may be cached and revalidated, but only for the same credentials: other callers may see
    // less of it.
    if headers.contains_key(header::ETAG)
        && let Ok(credentials) = HeaderValue::from_str(&format!("authorization, {}", app.config.auth.api_key_header))
    {
        headers.append(header::VARY, credentials);
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("private, no-cache"));
    }
    harden(headers);
    response
}

/// Adds the headers that do not depend on the request.
pub fn harden(headers: &mut HeaderMap) {
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
