//! Handling of a request: correlation id, authentication and authorisation, body limit, time-out, errors, log line,
//! metrics.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use tower::Service;
use tracing::Instrument;

use super::{
    Gate, access, auth,
    body::{self, ReadBody},
    compression,
    endpoints::{self, Endpoints},
    load::Load,
    rate_limit::AppliedLimits,
    rules::{Names, Rule, RunsIn},
};
use crate::{
    access::Actor,
    api::{
        resources::{agent_pushes, callbacks},
        vocabulary::{
            caller::Caller,
            client::ClientAddress,
            error::{self, ApiError},
            headers::CORRELATION_ID,
            prefer::{Patience, Wait, Waited},
            request_limits::TIME_LIMIT,
            request_permit::RequestPermit,
        },
    },
    auditor::Denied,
    clock::Clock,
    db, id,
    permits::Owners,
    telemetry::spans::{self, Span},
    trace::{self, SpanContext},
};

/// Answers a request to a route or to a fallback.
///
/// The handler runs in a task of its own: if the client disconnects, only the waiting ends, and not the work. Exceptions are
/// the most frequent reads ([`RunsIn`]). A handler that takes too long is aborted, and its connection closed (see `db::pool`).
pub async fn handle<S>(gate: &Gate, endpoints: &Endpoints, request: Request, mut route: S) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>,
{
    let app = &gate.app;
    let active = endpoints.active();
    let started = app.clock.instant();
    let (mut parts, body) = request.into_parts();
    let (endpoint, rule) = endpoints.of(&parts);
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let client = ClientAddress::of(&parts.extensions, &parts.headers, &app.config.limits.trusted_proxies);
    client.map(|client| parts.extensions.insert(client));
    let given = parts.headers.get(&CORRELATION_ID).and_then(|value| value.to_str().ok());
    let is_guarded = rule.access.requires_admission();
    let (mut trace_span, traceparent) = begin_span(is_guarded, &parts, &endpoint.route);
    let anonymous = Arc::new(Actor {
        correlation_id: id::correlation_id(given),
        traceparent,
        address: client.map(|client| client.0),
        ..Actor::system()
    });
    let correlation_id = anonymous.correlation_id.as_str();
    let mut admission = Admission::default();
    // A request that waits for a run's end has this much more time.
    let wait = Wait::of(&parts.headers).time().unwrap_or_default();
    let mut deadline = started + TIME_LIMIT + wait;
    let patience = patience(rule, &mut parts);
    let decided = app.clock.timeout_at(deadline, admission.admit(gate, &mut parts, rule, &anonymous)).await;
    let refusal = decided.unwrap_or_else(|| Err(too_late())).err();
    let Admission { caller, owners, mut limits } = admission;
    let actor = caller.as_ref().map(|caller| Arc::clone(&caller.actor));
    let user_id = actor.as_ref().map_or("", |actor| actor.subject.as_str());
    // Before authentication the organisation is unknown.
    let organization_id = actor.as_ref().map(|actor| actor.organization.as_str());
    let client_ip = client.map(|client| tracing::field::display(client.0));
    let (trace_id, span_id) = ids(&trace_span, anonymous.traceparent.as_deref());
    let span =
        tracing::info_span!("http.request", correlation_id, user_id, organization_id, client_ip, trace_id, span_id);

    let owners = if refusal.is_none() { owners } else { Owners::default() };
    let limit = (endpoint.body, rule.max_body_bytes);
    let body = body::read(&parts, body, limit, &app.clock, (&app.memory.bodies, owners), refusal).await;
    let response = match body {
        Err(error) => error.into_response(),
        Ok(ReadBody { bytes, permit, sending }) => {
            deadline += sending;
            // Always set unless the request was refused: a refusal is an error.
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            let request = Request::from_parts(parts, Body::from(bytes));
            match acquire_permit(&gate.load, is_guarded, owners, request) {
                Ok((request_permit, request)) => {
                    let handler = route.call(request).instrument(span.clone());
                    // A request that waits for a run may outlast an outage of the database.
                    let watched_database = (is_guarded && wait.is_zero()).then(|| app.pool.clone());
                    let (app, is_safe) = (app.clone(), method.is_safe());
                    let answering = async move {
                        let response = handler.await.unwrap_or_else(|never| match never {});
                        request_permit.release();
                        drop(permit);
                        // Public answers come from the binary, or are small.
                        if !is_guarded {
                            return response;
                        }
                        let response = app.memory.answer(owners, is_safe, response).await;
                        response.unwrap_or_else(IntoResponse::into_response)
                    };
                    let limit = TimeLimit { clock: &gate.app.clock, deadline, patience, database: watched_database };
                    in_time(answering, rule.runs_in, limit).await
                }
                Err(refusal) => refusal.into_response(),
            }
        }
    };
    let mut response = match response.extensions().get::<error::Pending>().and_then(error::Pending::take) {
        Some(error) => {
            let error = counted(gate, client, &mut limits, error);
            if app.config.audit && error.is_denial() {
                let route = endpoint.route.clone();
                app.auditor.denied(denial(actor.as_deref(), &anonymous, method.to_string(), route, &error));
            }
            let mut rendered = error.render(uri.path(), correlation_id);
            // Header that axum has added, such as `Allow`.
            if let Some(allow) = response.headers().get(header::ALLOW) {
                rendered.headers_mut().insert(header::ALLOW, allow.clone());
            }
            rendered
        }
        None => response,
    };
    if let Ok(value) = HeaderValue::from_str(correlation_id) {
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
    endpoint.count(response.status(), latency(&response, duration));
    span.in_scope(|| log_line(&method, &endpoint.route, &response, duration));
    end_span(&mut trace_span, correlation_id, &response);
    response
}

/// Begins the span of a request, and returns the trace context of all that it causes. Health checks and the like have no
/// span.
fn begin_span(is_guarded: bool, parts: &Parts, route: &str) -> (Span, Option<Arc<str>>) {
    let given = parts.headers.get(trace::TRACEPARENT).and_then(|value| trace::valid(value.to_str().ok()?));
    if !is_guarded {
        return (Span::default(), given.map(Into::into));
    }
    let (mut span, traceparent) = spans::server(given, || format!("{} {route}", parts.method));
    span.set("http.request.method", parts.method.as_str());
    span.set("http.route", route);
    (span, traceparent.map(Into::into))
}

/// Entry of the audit trail about a refused request. Without authentication its subject is empty.
fn denial(actor: Option<&Actor>, anonymous: &Actor, method: String, route: String, error: &ApiError) -> Denied {
    let unknown = || Actor { subject: String::new(), ..anonymous.clone() };
    let actor = actor.cloned().unwrap_or_else(unknown);
    Denied { actor, method, route, status: error.status().as_u16(), code: error.code().to_owned() }
}

/// Adds the means by which a handler announces a wait, if it may wait.
fn patience(rule: Rule, parts: &mut Parts) -> Option<Patience> {
    let patience = rule.may_wait().then(Patience::default)?;
    parts.extensions.insert(patience.clone());
    Some(patience)
}

/// Ids of trace and span for the log.
fn ids<'a>(span: &Span, traceparent: Option<&'a str>) -> (Option<&'a str>, Option<&'a str>) {
    let trace_id = traceparent.and_then(SpanContext::trace_id_of);
    (trace_id, traceparent.filter(|_| span.is_recorded()).and_then(SpanContext::span_id_of))
}

/// Time of the service, without the time for which the client waits for a run.
fn latency(response: &Response, duration: Duration) -> Duration {
    let waited = response.extensions().get().map_or(Duration::ZERO, |Waited(time)| *time);
    duration.saturating_sub(waited)
}

/// Completes the span of a request. A refusal is the client's error, and not one of this service.
fn end_span(span: &mut Span, correlation_id: &str, response: &Response) {
    span.set("workflow_api.correlation_id", correlation_id);
    span.set_number("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
}

/// Limit of a handler's time.
struct TimeLimit<'a> {
    clock: &'a Clock,
    deadline: Instant,
    /// Wait that the handler has announced, which makes the deadline later.
    patience: Option<Patience>,
    /// Database, if the handler ends when that stops answering.
    database: Option<db::Pool>,
}

impl TimeLimit<'_> {
    /// Returns when the handler has taken too long.
    async fn passed(self) -> ApiError {
        let announced = || self.patience.as_ref().map(Patience::time).unwrap_or_default();
        let late = async {
            let mut end = self.deadline + announced();
            loop {
                self.clock.sleep_until(end).await;
                let later = self.deadline + announced();
                if later <= end {
                    return;
                }
                end = later;
            }
        };
        let silence = async {
            if let Some(pool) = &self.database {
                pool.silence().await;
            }
            // A request that waits for a run may outlast an outage of the database.
            if self.database.is_none() || !announced().is_zero() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = late => too_late(),
            () = silence => silent(),
        }
    }
}

/// Runs the handler, until it takes too long, or the database stops answering while the handler needs it.
async fn in_time(
    handler: impl Future<Output = Response> + Send + 'static,
    runs_in: RunsIn,
    limit: TimeLimit<'_>,
) -> Response {
    let refusal = limit.passed();
    // The panic hook has logged a panic itself.
    let answer = match runs_in {
        RunsIn::Connection => tokio::select! {
            biased;
            ended = AssertUnwindSafe(handler).catch_unwind() => ended.map_err(|_| ApiError::internal()),
            refusal = refusal => Err(refusal),
        },
        RunsIn::OwnTask => {
            let mut task = tokio::spawn(handler);
            tokio::select! {
                biased;
                ended = &mut task => ended.map_err(|_| ApiError::internal()),
                refusal = refusal => {
                    // Releases its resources: the permit, and its connection, which is closed.
                    task.abort();
                    Err(refusal)
                }
            }
        }
    };
    answer.unwrap_or_else(IntoResponse::into_response)
}

fn silent() -> ApiError {
    ApiError::unavailable("database_unavailable", "The database does not answer")
}

fn too_late() -> ApiError {
    ApiError::unavailable("timeout", "The request took too long")
}

/// Admission decision for a request.
#[derive(Default)]
struct Admission {
    /// Caller, once it is known.
    caller: Option<Caller>,
    /// Owners of what the request uses, once the caller is known.
    owners: Owners,
    limits: AppliedLimits,
}

impl Admission {
    /// Decides on the admission: nothing, or the answer to send instead. The cheapest checks come first.
    async fn admit(
        &mut self,
        gate: &Gate,
        parts: &mut Parts,
        rule: Rule,
        anonymous: &Arc<Actor>,
    ) -> Result<(), ApiError> {
        let app = &gate.app;
        if rule.access.requires_admission() {
            gate.load.check(Owners::default())?;
            gate.rates.count_address(parts.extensions.get().copied(), &mut self.limits)?;
        }
        let caller = if rule.access.wants_caller(app.config.metrics.access) {
            auth::authenticate(gate, parts, rule, anonymous, &mut self.limits).await?
        } else {
            Caller::anonymous(Arc::clone(anonymous))
        };
        let caller = self.caller.insert(caller);
        self.owners = caller.owners();
        if rule.access.requires_admission() {
            gate.load.check(self.owners)?;
        }
        gate.rates.count_principal(caller, &mut self.limits)?;
        access::authorize(app, parts, rule, caller).await?;
        // Before the body is read, so that a caller without a valid address cannot cause that.
        if rule.names == Names::Callback {
            callbacks::find(app, parts).await?;
        }
        if rule.names == Names::AgentPush && !agent_pushes::is_expected(app, parts).await? {
            // A token may be guessed.
            gate.rates.count_failure(parts.extensions.get().copied(), &mut self.limits)?;
            return Err(agent_pushes::refused());
        }
        if rule.access.requires_admission() && parts.method.is_safe() {
            app.memory.check_answer(self.owners)?;
        }
        Ok(())
    }
}

/// Acquires a permit, if the request needs one, for the request and its handler.
fn acquire_permit(
    load: &Load,
    is_guarded: bool,
    owners: Owners,
    mut request: Request,
) -> Result<(RequestPermit, Request), ApiError> {
    let request_permit = if is_guarded { load.acquire(owners)? } else { RequestPermit::default() };
    request.extensions_mut().insert(request_permit.clone());
    Ok((request_permit, request))
}

/// Counts an answered request without an endpoint, and logs it.
pub fn note(method: &Method, route: &str, response: &Response, duration: Duration) {
    endpoints::count(method, route, response.status(), duration);
    log_line(method, route, response, duration);
}

/// Counts an error for a wrong token or signature like wrong credentials: after many from one address, the answer is 429.
fn counted(gate: &Gate, client: Option<ClientAddress>, limits: &mut AppliedLimits, error: ApiError) -> ApiError {
    if error.is_wrong_proof() { gate.rates.count_failure(client, limits).err().unwrap_or(error) } else { error }
}

/// Writes one log line for a request. Its fields are an interface, documented in the docs.
fn log_line(method: &Method, route: &str, response: &Response, duration: Duration) {
    let (method, status) = (method.as_str(), response.status());
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
        tracing::debug!(target: "api.request", method, route, "{method} {route} {}", status.as_u16());
    } else {
        tracing::info!(
            target: "api.request", method, route, status = status.as_u16(), duration_ms,
            "{method} {route} {}", status.as_u16()
        );
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    async fn answer(handler: impl Future<Output = Response> + Send + 'static, runs_in: RunsIn) -> Response {
        let clock = Clock::default();
        let limit = TimeLimit { clock: &clock, deadline: clock.instant() + TIME_LIMIT, patience: None, database: None };
        in_time(handler, runs_in, limit).await
    }

    #[tokio::test]
    async fn only_a_handler_in_a_task_of_its_own_continues_when_its_client_disconnects() {
        for (runs_in, continues) in [(RunsIn::OwnTask, true), (RunsIn::Connection, false)] {
            let (begin, begun) = oneshot::channel();
            let (proceed, may_proceed) = oneshot::channel::<()>();
            let (end, ended) = oneshot::channel();
            let handler = async move {
                let _ = begin.send(());
                drop(may_proceed.await);
                let _ = end.send(());
                Response::default()
            };
            tokio::select! {
                _ = answer(handler, runs_in) => panic!("the handler has not ended"),
                begun = begun => begun.expect("the handler begins"),
            }
            let _ = proceed.send(());
            assert_eq!(ended.await.is_ok(), continues, "{runs_in:?}");
        }
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_500() {
        for runs_in in [RunsIn::OwnTask, RunsIn::Connection] {
            assert_eq!(answer(async { panic!("a test") }, runs_in).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        }
    }
}
