//! What happens around every request: correlation id, caller, body limit, time-out, errors, log line, metrics.

use std::time::{Duration, Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, Uri, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tracing::Instrument;

use super::{App, CORRELATION_ID, auth, error, prefer::Wait};
use crate::{api::error::ApiError, id};

/// Largest request body.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest path with query.
const MAX_URI_BYTES: usize = 8 << 10;
/// A body has to be complete after this.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// A handler has to have answered after this, and what the client asked to wait for a run.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(10);

/// Of the request in hand; in the request's extensions.
#[derive(Clone, Debug)]
pub struct CorrelationId(pub String);

/// Surrounds every route and the fallbacks.
///
/// The handler runs in a task of its own: a client that hangs up, or the time-out, ends the waiting and not the
/// work, so that no database write is ever torn apart (see `db`).
pub async fn surround(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let active = Active::start();
    let given = request.headers().get(&CORRELATION_ID).and_then(|value| value.to_str().ok());
    let correlation_id = id::correlation_id(given);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("(none)".to_owned(), |path| path.as_str().to_owned());
    let caller = auth::authenticate(&app, &request);
    let user_id = caller.as_ref().map_or("", |caller| caller.subject.as_str()).to_owned();
    // Who asks to wait for a run's end may wait that much longer.
    let time_limit = HANDLER_TIMEOUT + Wait::of(request.headers()).time();
    let span = tracing::info_span!("http.request", correlation_id, user_id);

    let response = match caller {
        Err(error) => error.into_response(),
        Ok(caller) => {
            let (mut parts, body) = request.into_parts();
            match read_body(&parts.uri, &parts.headers, body).await {
                Err(error) => error.into_response(),
                Ok(body) => {
                    parts.extensions.insert(caller);
                    parts.extensions.insert(CorrelationId(correlation_id.clone()));
                    let request = Request::from_parts(parts, axum::body::Body::from(body));
                    let handler = tokio::spawn(next.run(request).instrument(span.clone()));
                    match tokio::time::timeout(time_limit, handler).await {
                        Ok(Ok(response)) => response,
                        // The panic itself was logged by the panic hook.
                        Ok(Err(_)) => ApiError::internal().into_response(),
                        Err(_) => ApiError::unavailable("timeout", "The request took too long").into_response(),
                    }
                }
            }
        }
    };
    let mut response = match response.extensions().get::<error::Pending>().and_then(error::Pending::take) {
        Some(error) => {
            let mut rendered = error.render(&path, &correlation_id);
            // What axum has put on the answer already, such as Allow.
            if let Some(allow) = response.headers().get(header::ALLOW) {
                rendered.headers_mut().insert(header::ALLOW, allow.clone());
            }
            rendered
        }
        None => response,
    };
    if let Ok(value) = HeaderValue::from_str(&correlation_id) {
        response.headers_mut().insert(CORRELATION_ID, value);
    }
    drop(active);
    let duration = started.elapsed();
    record(method.as_str(), &route, response.status(), duration);
    span.in_scope(|| log_line(method.as_str(), &route, &response, duration));
    response
}

/// The whole body, within limits.
async fn read_body(uri: &Uri, headers: &http::HeaderMap, body: axum::body::Body) -> Result<Bytes, ApiError> {
    if uri.path_and_query().map_or(0, |uri| uri.as_str().len()) > MAX_URI_BYTES {
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", "The request's URI is longer than 8 KiB"));
    }
    let too_large =
        || ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "The request body is larger than 1 MiB");
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::bad_request("incomplete_body", "The request body could not be read to its end")),
        Err(_) => {
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The request body did not arrive in time"))
        }
    }
}

/// One line a request. Its fields are an interface, listed in the docs.
fn log_line(method: &str, route: &str, response: &Response, duration: Duration) {
    let status = response.status();
    let duration_ms = (duration.as_secs_f64() * 100_000.0).round() / 100.0;
    if let Some(error::Cause(cause)) = response.extensions().get::<error::Cause>()
        && status.is_server_error()
    {
        tracing::error!(
            target: "api.request", method, route, status = status.as_u16(), duration_ms,
            error = &**cause as &dyn std::error::Error,
            "{method} {route} {}: {cause}", status.as_u16()
        );
    } else {
        tracing::info!(
            target: "api.request", method, route, status = status.as_u16(), duration_ms,
            "{method} {route} {}", status.as_u16()
        );
    }
}

fn record(method: &str, route: &str, status: StatusCode, duration: Duration) {
    let method = match method {
        "GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "OPTIONS" | "PATCH" => method.to_owned(),
        _ => "other".to_owned(),
    };
    let route = route.to_owned();
    let labels = [("method", method.clone()), ("endpoint", route.clone()), ("status", status.as_str().to_owned())];
    metrics::counter!("http_requests_total", &labels).increment(1);
    metrics::counter!("api_requests_total").increment(1);
    let labels = [("method", method), ("endpoint", route)];
    metrics::histogram!("http_request_latency_seconds", &labels).record(duration);
    metrics::histogram!("api_request_duration_seconds").record(duration);
}

/// Counts a request as active for as long as it lives, also if its client hangs up.
struct Active(metrics::Gauge);

impl Active {
    fn start() -> Self {
        let gauge = metrics::gauge!("http_requests_active");
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// 404, or 307 to the path without its trailing slash.
pub async fn no_such_route(uri: Uri) -> Response {
    let path = uri.path();
    // Not `//host`, nor `/\host`, which a browser would read as another site.
    if path.len() > 1 && path.ends_with('/') && !path[1..].starts_with(['/', '\\']) {
        let bare = path.trim_end_matches('/');
        let target = uri.query().map_or_else(|| bare.to_owned(), |query| format!("{bare}?{query}"));
        if let Ok(location) = HeaderValue::from_str(&target) {
            return (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
        }
    }
    ApiError::not_found("not_found", "Not Found").into_response()
}

/// 405; axum adds `Allow`.
pub async fn no_such_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed")
}
