//! CORS: which browser pages may call the API.

use std::{convert::Infallible, time::Instant};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header};
use tower::{ServiceExt, service_fn};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};

use super::{rate_limit, request};
use crate::{
    api::vocabulary::{
        app::App,
        client::ClientAddress,
        headers::{CORRELATION_ID, IDEMPOTENCY_REPLAYED, PREFERENCE_APPLIED},
    },
    config::{self, AllowList},
};

/// Answers preflight requests, and adds the CORS headers to all other answers.
pub fn around(service: Router, app: &App) -> Router {
    let with_cors = service.clone().layer(layer(&app.config.cors));
    let app = app.clone();
    Router::new().fallback_service(service_fn(move |request: Request| {
        let started = Instant::now();
        let is_preflight = is_preflight(&request);
        // The layer would treat every OPTIONS request as a preflight and answer it itself.
        let is_other_options = request.method() == Method::OPTIONS && !is_preflight;
        let trusted = &app.config.limits.trusted_proxies;
        let client = || ClientAddress::of(request.extensions(), request.headers(), trusted);
        let client = is_preflight.then(client).flatten();
        let router = if is_other_options { service.clone() } else { with_cors.clone() };
        async move {
            let response = router.oneshot(request).await?;
            if !is_preflight {
                return Ok::<_, Infallible>(response);
            }
            let response = finish_preflight(&response);
            let client_ip = client.map(|client| tracing::field::display(client.0));
            let span = tracing::info_span!("http.request", client_ip);
            span.in_scope(|| request::note("OPTIONS", "(preflight)", &response, started.elapsed()));
            Ok(response)
        }
    }))
}

fn is_preflight(request: &Request) -> bool {
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
