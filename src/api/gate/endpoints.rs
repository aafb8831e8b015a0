//! Endpoints: each route with each method, with its rule, its body policy and its metrics. A request looks up its endpoint
//! once, and the metrics have no labels to build.

use std::{
    collections::HashMap,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::extract::MatchedPath;
use http::{Method, StatusCode, request::Parts};
use metrics::{Counter, Gauge, Histogram};
use utoipa::openapi::OpenApi;

use super::{body::BodyPolicy, rules::Rule};

/// Methods by which metrics and policies differ. All others count as one.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH];
/// Route of requests that match none, in logs and metrics.
const NO_ROUTE: &str = "(none)";

/// Endpoints of the service.
pub struct Endpoints {
    prefix: String,
    by_route: HashMap<String, OfRoute>,
    without_route: OfRoute,
    active: OnceLock<Gauge>,
}

/// Endpoints of a route: one for each of [`METHODS`], and one for all others.
type OfRoute = [Endpoint; METHODS.len() + 1];

/// Route with a method.
pub struct Endpoint {
    /// Path of the route with its parameters, for logs and metrics.
    pub route: String,
    /// Rule, unless no route matches.
    rule: Rule,
    /// Policy for the body.
    pub body: BodyPolicy,
    metrics: OnceLock<Metrics>,
    method: &'static str,
}

impl Endpoints {
    /// Endpoints of the routes in the table and in the document.
    #[must_use]
    pub fn new(prefix: &str, document: &OpenApi) -> Self {
        let of_route = |route: &str| {
            let endpoint = |method: &Method| {
                let rule = Rule::of_route(method, route, prefix);
                Endpoint {
                    route: route.to_owned(),
                    rule,
                    body: if rule.ignores_body {
                        BodyPolicy::Dropped
                    } else {
                        BodyPolicy::of(document, method, route, rule.takes_any_coding())
                    },
                    metrics: OnceLock::new(),
                    method: label(method),
                }
            };
            std::array::from_fn(|index| match METHODS.get(index) {
                Some(method) => endpoint(method),
                None => endpoint(&Method::CONNECT),
            })
        };
        let routes = Rule::routes(prefix).chain(document.paths.paths.keys().cloned());
        Self {
            by_route: routes.map(|route| (route.clone(), of_route(&route))).collect(),
            without_route: of_route(NO_ROUTE),
            active: OnceLock::new(),
            prefix: prefix.to_owned(),
        }
    }

    /// Endpoint and rule of a request, whether or not there is a route for it.
    #[must_use]
    pub fn of(&self, request: &Parts) -> (&Endpoint, Rule) {
        let index = METHODS.iter().position(|method| *method == request.method).unwrap_or(METHODS.len());
        let Some(route) = request.extensions.get::<MatchedPath>() else {
            return (&self.without_route[index], Rule::without_route(request.uri.path(), &self.prefix));
        };
        match self.by_route.get(route.as_str()) {
            Some(endpoints) => (&endpoints[index], endpoints[index].rule),
            None => (&self.without_route[index], Rule::of_route(&request.method, route.as_str(), &self.prefix)),
        }
    }

    /// Counts a request as active until the guard is dropped, even if its client disconnects.
    pub fn active(&self) -> ActiveRequest {
        let gauge = self.active.get_or_init(|| metrics::gauge!("http_requests_active")).clone();
        gauge.increment(1.0);
        ActiveRequest(gauge)
    }
}

impl Endpoint {
    /// Counts an answered request.
    pub fn count(&self, status: StatusCode, duration: Duration) {
        self.metrics.get_or_init(|| Metrics::new(self.method, &self.route)).count(status, duration);
    }
}

/// Counts an answered request without an endpoint.
pub fn count(method: &Method, route: &str, status: StatusCode, duration: Duration) {
    Metrics::new(label(method), route).count(status, duration);
}

/// Method in metrics: a client could send any number of others.
fn label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// Metrics of an endpoint.
struct Metrics {
    method: &'static str,
    route: String,
    latency: Histogram,
    all: Counter,
    all_latency: Histogram,
    /// Answers by status. There are only a few.
    answers: Mutex<Vec<(StatusCode, Counter)>>,
}

impl Metrics {
    fn new(method: &'static str, route: &str) -> Self {
        let labels = [("method", method.to_owned()), ("endpoint", route.to_owned())];
        Self {
            method,
            route: route.to_owned(),
            latency: metrics::histogram!("http_request_latency_seconds", &labels),
            all: metrics::counter!("api_requests_total"),
            all_latency: metrics::histogram!("api_request_duration_seconds"),
            answers: Mutex::default(),
        }
    }

    fn count(&self, status: StatusCode, duration: Duration) {
        self.all.increment(1);
        self.latency.record(duration);
        self.all_latency.record(duration);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, counter)) = answers.iter().find(|(of, _)| *of == status) {
            counter.increment(1);
            return;
        }
        let labels = [
            ("method", self.method.to_owned()),
            ("endpoint", self.route.clone()),
            ("status", status.as_str().to_owned()),
        ];
        let counter = metrics::counter!("http_requests_total", &labels);
        counter.increment(1);
        answers.push((status, counter));
    }
}

/// Active request, see [`Endpoints::active`].
pub struct ActiveRequest(Gauge);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
