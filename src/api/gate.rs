//! Request gate: admission control, rate limits, authentication, authorisation, bodies, headers; and the
//! documentation.

pub mod access;
pub mod auth;
pub mod body;
pub mod compression;
pub mod console;
pub mod cors;
pub mod docs;
pub mod endpoints;
pub mod headers;
pub mod layer;
pub mod load;
pub mod rate_limit;
pub mod request;
pub mod rules;

use std::{convert::Infallible, future::ready, ops::Deref, sync::Arc};

use axum::{extract::Request, response::Response};
use tower::{Service, service_fn};

use self::{auth::token::Tokens, load::Load, rate_limit::RateLimits};
use super::vocabulary::app::App;
use crate::lifecycle::Lifecycle;

/// State of the gate. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Parts>);

/// Fields of [`Gate`].
pub struct Parts {
    /// Application state.
    pub app: App,
    /// Verifier of tokens.
    pub tokens: Tokens,
    /// Rate limits.
    pub rates: RateLimits,
    /// Permits for concurrent requests.
    pub load: Load,
}

impl Gate {
    /// Creates the gate, and starts to read the keys for the verification of tokens.
    pub fn start(app: App, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        // The operator chooses the address of a key set, wherever it is; redirects are not followed.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let tokens = Tokens::start(&app.config.auth, &http, app.clock.clone(), lifecycle);
        let rates = RateLimits::new(&app.config.limits, app.clock.clone());
        let load = Load::new(app.config.limits.max_concurrent_requests, app.clock.clone());
        Ok(Self(Arc::new(Parts { app, tokens, rates, load })))
    }
}

impl Deref for Gate {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Service that has this answer, for a layer that is needed only sometimes.
fn answered(response: Response) -> impl Service<Request, Response = Response, Error = Infallible, Future: Send> + Send {
    let mut response = Some(response);
    service_fn(move |_| ready(Ok(response.take().unwrap_or_default())))
}
