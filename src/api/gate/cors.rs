//! CORS: which browser pages may call the API.

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use tower::{Layer as _, ServiceExt as _};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{Gate, answered, rate_limit, request};
use crate::{
    api::vocabulary::{
        client::ClientAddress,
        headers::{CORRELATION_ID, IDEMPOTENCY_REPLAYED, PREFERENCE_APPLIED},
    },
    config::{self, AllowList},
};

/// Settings for CORS.
pub struct Cors {
    layer: CorsLayer,
    /// Headers of an answer to a request without an origin, which no page of another site sends.
    without_origin: HeaderMap,
}

/// Origin of a request, which decides on the headers of its answer.
pub enum Origin {
    /// The request names it.
    Named(HeaderValue),
    /// The request names none.
    Absent,
    /// The request is an OPTIONS request other than a preflight request: its answer has no headers.
    Ignored,
}

impl Origin {
    /// Reads the request.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        match request.headers().get(header::ORIGIN) {
            _ if request.method() == Method::OPTIONS => Self::Ignored,
            Some(origin) => Self::Named(origin.clone()),
            None => Self::Absent,
        }
    }
}

impl Cors {
    /// Reads the settings.
    #[must_use]
    pub fn new(settings: &config::Cors) -> Self {
        let layer = layer(settings);
        let answer = apply(&layer, Request::default(), Response::default()).now_or_never();
        let without_origin = answer.expect("the layer waits for nothing").headers().clone();
        Self { layer, without_origin }
    }

    /// Adds the headers to an answer.
    pub async fn add(&self, origin: Origin, mut response: Response) -> Response {
        match origin {
            Origin::Ignored => response,
            Origin::Named(origin) => {
                let mut request = Request::default();
                request.headers_mut().insert(header::ORIGIN, origin);
                apply(&self.layer, request, response).await
            }
            Origin::Absent => {
                let headers = response.headers_mut();
                for (name, value) in &self.without_origin {
                    if name == header::VARY {
                        headers.append(name, value.clone());
                    } else {
                        headers.insert(name, value.clone());
                    }
                }
                response
            }
        }
    }

    /// Answers a preflight request. It does not reach the request log otherwise.
    pub async fn answer_preflight(&self, gate: &Gate, request: Request) -> Response {
        let clock = &gate.app.clock;
        let started = clock.instant();
        let client =
            ClientAddress::of(request.extensions(), request.headers(), &gate.app.config.limits.trusted_proxies);
        let response = finish_preflight(&apply(&self.layer, request, Response::default()).await);
        let client_ip = client.map(|client| tracing::field::display(client.0));
        let span = tracing::info_span!("http.request", client_ip);
        span.in_scope(|| request::note(&Method::OPTIONS, "(preflight)", &response, clock.since(started)));
        response
    }
}

async fn apply(layer: &CorsLayer, request: Request, response: Response) -> Response {
    layer.layer(answered(response)).oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// Whether a browser asks whether it may send the request.
#[must_use]
pub fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// 400 if the layer has left out the origin, which means that it is not allowed.
fn finish_preflight(response: &Response) -> Response {
    let (status, text) = if response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        (StatusCode::OK, "OK")
    } else {
        (StatusCode::BAD_REQUEST, "This origin may not call")
    };
    let mut headers = response.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    (status, headers, text).into_response()
}

/// The settings as a layer. Wildcards are mirrored if credentials are allowed, as browsers demand.
fn layer(settings: &config::Cors) -> CorsLayer {
    let origin = match &settings.origins {
        AllowList::Any if settings.credentials => AllowOrigin::mirror_request(),
        AllowList::Any => AllowOrigin::any(),
        AllowList::These(origins) => AllowOrigin::list(origins.iter().cloned()),
    };
    let methods = match &settings.methods {
        AllowList::Any => AllowMethods::list([
            Method::DELETE,
            Method::GET,
            Method::HEAD,
            Method::OPTIONS,
            Method::PATCH,
            Method::POST,
            Method::PUT,
        ]),
        AllowList::These(methods) => AllowMethods::list(methods.iter().cloned()),
    };
    let headers = match &settings.headers {
        AllowList::Any => AllowHeaders::mirror_request(),
        AllowList::These(headers) => AllowHeaders::list(headers.iter().cloned()),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(methods)
        .allow_headers(headers)
        .allow_credentials(settings.credentials)
        .expose_headers(ExposeHeaders::list(rate_limit::header_names().chain([
            CORRELATION_ID,
            IDEMPOTENCY_REPLAYED,
            PREFERENCE_APPLIED,
            header::ETAG,
            header::LINK,
            header::LOCATION,
            header::RETRY_AFTER,
        ])))
        .max_age(std::time::Duration::from_mins(10))
}
