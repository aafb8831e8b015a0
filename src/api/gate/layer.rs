//! Layer around every route. It is one service, since each further layer of a router costs every request several
//! allocations.
//!
//! From the outside in: headers that every answer has; compression; CORS, so that error answers carry its headers too;
//! then [`request`] (correlation id, caller, limits, errors); then the route.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{extract::Request, response::Response};
use tower::{Layer, Service};
use utoipa::openapi::OpenApi;

use super::{
    Gate,
    compression::{Accepted, Compression},
    cors::{self, Cors, Origin},
    endpoints::Endpoints,
    headers::Headers,
    request,
};

/// State of the layer.
struct Shared {
    gate: Gate,
    endpoints: Endpoints,
    cors: Cors,
    compression: Compression,
    headers: Headers,
}

/// Layer around every route. Cheap to clone.
#[derive(Clone)]
pub struct GateLayer(Arc<Shared>);

impl GateLayer {
    /// Creates the layer around the routes of that document.
    #[must_use]
    pub fn new(gate: &Gate, document: &OpenApi) -> Self {
        let config = &gate.app.config;
        Self(Arc::new(Shared {
            endpoints: Endpoints::new(&config.api.prefix, document),
            cors: Cors::new(&config.cors),
            compression: Compression::default(),
            headers: Headers::new(config),
            gate: gate.clone(),
        }))
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<S>;

    fn layer(&self, route: S) -> Gated<S> {
        Gated { layer: Arc::clone(&self.0), route }
    }
}

/// Route with the layer around it.
#[derive(Clone)]
pub struct Gated<S> {
    layer: Arc<Shared>,
    route: S,
}

impl<S> Service<Request> for Gated<S>
where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // A route is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (layer, route) = (Arc::clone(&self.layer), self.route.clone());
        Box::pin(async move { Ok(layer.answer(request, route).await) })
    }
}

impl Shared {
    async fn answer<S>(&self, request: Request, route: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Send + 'static,
    {
        let Self { gate, endpoints, cors, compression, headers } = self;
        let has_hsts = headers.has_hsts(&request);
        let mut response = if cors::is_preflight(&request) {
            cors.answer_preflight(gate, request).await
        } else {
            let (accepted, origin) = (Accepted::of(&request), Origin::of(&request));
            let response = request::handle(gate, endpoints, request, route).await;
            compression.apply(accepted, cors.add(origin, response).await).await
        };
        headers.add(has_hsts, &mut response);
        response
    }
}
