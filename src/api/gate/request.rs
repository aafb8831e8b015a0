//! Request middleware: correlation id, authentication and authorisation, body limit, time-out, errors, log line,
//! metrics.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts};
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{
    Gate, access, auth,
    body::{self, BodyRoutes, ReadBody},
    compression,
    load::Load,
    rate_limit::AppliedLimits,
    rules::{Names, Rule},
};
use crate::{
    access::Actor,
    api::{
        resources::callbacks,
        vocabulary::{
            caller::Caller,
            client::ClientAddress,
            error::{self, ApiError},
            headers::CORRELATION_ID,
            prefer::Wait,
            request_permit::RequestPermit,
        },
    },
    auditor::Denied,
    clock::Clock,
    db, id, trace,
};

/// Time-out of a request, so that it is answered within 10 s of its arrival. The time in which the client sends its
/// body, and the requested wait for a run, are not counted.
const TIME_LIMIT: Duration = Duration::from_millis(9500);

/// Middleware of every route and of the fallbacks.
///
/// The handler runs in a task of its own: if the client disconnects, only the waiting ends, and not the work. A
/// handler that takes too long is aborted, and its connection closed (see `db::pool`).
pub async fn handle_request(
    State((gate, bodies)): State<(Gate, Arc<BodyRoutes>)>,
    request: Request,
    next: Next,
) -> Response {
    let active = ActiveRequest::start();
    let app = &gate.app;
    let started = app.clock.instant();
    let given = request.headers().get(&CORRELATION_ID).and_then(|value| value.to_str().ok());
    let correlation_id = id::correlation_id(given);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("(none)".to_owned(), |path| path.as_str().to_owned());
    let (mut parts, body) = request.into_parts();
    let client = ClientAddress::of(&parts.extensions, &parts.headers, &app.config.limits.trusted_proxies);
    client.map(|client| parts.extensions.insert(client));
    let (address, traceparent) = (client.map(|client| client.0), traceparent(&parts.headers));
    let anonymous = Actor { correlation_id: correlation_id.clone(), traceparent, address, ..Actor::system() };
    let rule = Rule::of(&parts, &app.config.api.prefix);
    let is_guarded = rule.access.requires_admission();
    let mut admission = Admission::of(Actor { subject: String::new(), ..anonymous.clone() });
    // A request that waits for a run's end has this much more time.
    let wait = Wait::of(&parts.headers).time().unwrap_or_default();
    let mut deadline = started + TIME_LIMIT + wait;
    let decided = app.clock.timeout_at(deadline, admission.admit(&gate, &mut parts, rule, anonymous)).await;
    let caller = decided.unwrap_or_else(|| Err(too_late()));
    let Admission { actor, limits } = admission;
    let user_id = actor.subject.as_str();
    // Before authentication the organisation is unknown.
    let organization_id = Some(actor.organization.as_str()).filter(|_| !user_id.is_empty());
    let client_ip = client.map(|client| tracing::field::display(client.0));
    let span = tracing::info_span!("http.request", correlation_id, user_id, organization_id, client_ip);

    let owners = caller.as_ref().map(Caller::owners).unwrap_or_default();
    let (caller, refusal) = match caller {
        Ok(caller) => (Some(caller), None),
        Err(error) => (None, Some(error)),
    };
    let used = bodies.use_of(&method, &route);
    let body =
        body::read(&parts, body, (used, rule.max_body_bytes), &app.clock, (&app.memory.bodies, owners), refusal).await;
    let response = match body {
        Err(error) => error.into_response(),
        Ok(ReadBody { bytes, permit, sending }) => {
            deadline += sending;
            // Always set unless the request was refused: a refusal is an error.
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            let request = Request::from_parts(parts, axum::body::Body::from(bytes));
            match acquire_permit(&gate.load, is_guarded, request) {
                Ok((request_permit, request)) => {
                    let handler = next.run(request).instrument(span.clone());
                    // A request that waits for a run may outlast an outage of the database.
                    let watched_database = (is_guarded && wait.is_zero()).then(|| app.pool.clone());
                    let (app, is_safe) = (app.clone(), method.is_safe());
                    let handler = tokio::spawn(async move {
                        let response = handler.await;
                        request_permit.release();
                        drop(permit);
                        // Public answers come from the binary, or are small.
                        if !is_guarded {
                            return response;
                        }
                        let response = app.memory.answer(owners, is_safe, response).await;
                        response.unwrap_or_else(IntoResponse::into_response)
                    });
                    in_time(handler, &gate.app.clock, deadline, watched_database).await
                }
                Err(refusal) => refusal.into_response(),
            }
        }
    };
    let mut response = match response.extensions().get::<error::Pending>().and_then(error::Pending::take) {
        Some(error) => {
            if app.config.audit && error.is_denial() {
                let (method, route, status) = (method.to_string(), route.clone(), error.status().as_u16());
                app.auditor.denied(Denied { actor, method, route, status, code: error.code().to_owned() });
            }
            let mut rendered = error.render(&path, &correlation_id);
            // Header that axum has added, such as `Allow`.
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
    if rule.has_secrets {
        response.extensions_mut().insert(compression::Secret);
    }
    limits.show(response.headers_mut());
    if app.config.audit && !method.is_safe() && response.status().is_success() {
        app.auditor.wake();
    }
    drop(active);
    let duration = app.clock.since(started);
    span.in_scope(|| note(method.as_str(), &route, &response, duration));
    response
}

/// Returns the answer of the handler, unless it takes too long, or the database stops answering while the handler
/// needs it.
async fn in_time(
    mut handler: JoinHandle<Response>,
    clock: &Clock,
    deadline: Instant,
    database: Option<db::Pool>,
) -> Response {
    let silence = async {
        match database {
            Some(pool) => pool.silence().await,
            None => std::future::pending().await,
        }
    };
    let refusal = tokio::select! {
        biased;
        // The panic hook has logged the panic itself.
        ended = &mut handler => return ended.unwrap_or_else(|_| ApiError::internal().into_response()),
        () = clock.sleep_until(deadline) => too_late(),
        () = silence => silent(),
    };
    // Releases its resources: the permit, and its connection, which is closed.
    handler.abort();
    refusal.into_response()
}

fn silent() -> ApiError {
    ApiError::unavailable("database_unavailable", "The database does not answer")
}

fn too_late() -> ApiError {
    ApiError::unavailable("timeout", "The request took too long")
}

/// Trace context of the caller's request.
fn traceparent(headers: &HeaderMap) -> Option<Arc<str>> {
    headers.get(trace::TRACEPARENT).and_then(|value| trace::valid(value.to_str().ok()?)).map(Into::into)
}

/// Admission decision for a request.
struct Admission {
    /// Actor of the request; without a subject if it is unknown.
    actor: Actor,
    limits: AppliedLimits,
}

impl Admission {
    fn of(actor: Actor) -> Self {
        Self { actor, limits: AppliedLimits::default() }
    }

    /// Decides on the admission: the caller, or the answer to send instead. The cheapest checks come first.
    async fn admit(
        &mut self,
        gate: &Gate,
        parts: &mut Parts,
        rule: Rule,
        anonymous: Actor,
    ) -> Result<Caller, ApiError> {
        let app = &gate.app;
        if rule.access.requires_admission() {
            gate.load.check()?;
            gate.rates.count_address(parts.extensions.get().copied(), &mut self.limits)?;
        }
        let caller = if rule.access.wants_caller(app.config.metrics.access) {
            auth::authenticate(gate, parts, rule, anonymous, &mut self.limits).await?
        } else {
            Caller::anonymous(anonymous)
        };
        self.actor = Actor::clone(&caller.actor);
        gate.rates.count_principal(&caller, &mut self.limits)?;
        access::authorize(app, parts, rule, &caller).await?;
        // Before the body is read, so that a caller without a valid address cannot cause that.
        if rule.names == Names::Callback {
            callbacks::find(app, parts).await?;
        }
        if rule.access.requires_admission() && parts.method.is_safe() {
            app.memory.check_answer(caller.owners())?;
        }
        Ok(caller)
    }
}

/// Acquires a permit, if the request needs one, for the request and its handler.
fn acquire_permit(load: &Load, is_guarded: bool, mut request: Request) -> Result<(RequestPermit, Request), ApiError> {
    let request_permit = if is_guarded { load.acquire()? } else { RequestPermit::default() };
    request.extensions_mut().insert(request_permit.clone());
    Ok((request_permit, request))
}

/// Counts an answered request, and logs it.
pub fn note(method: &str, route: &str, response: &Response, duration: Duration) {
    record(method, route, response.status(), duration);
    log_line(method, route, response, duration);
}

/// Writes one log line for a request. Its fields are an interface, documented in the docs.
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
    } else if response.extensions().get::<error::LoggedElsewhere>().is_some() {
        // Under overload there can be thousands of these per second; `load` reports them.
        tracing::debug!(target: "api.request", method, route, "{method} {route} 503");
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

/// Counts a request as active until it is dropped, even if its client disconnects.
struct ActiveRequest(metrics::Gauge);

impl ActiveRequest {
    fn start() -> Self {
        let gauge = metrics::gauge!("http_requests_active");
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// 404, or 307 to the path without its trailing slash.
pub async fn no_such_route(uri: Uri) -> Response {
    let path = uri.path();
    // Not `//host`, nor `/\host`, which a browser would take as another site.
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
