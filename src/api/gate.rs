//! What surrounds every request: admission control, rate limits, authentication, permissions, bodies, headers; and the
//! documentation.

pub mod access;
pub mod auth;
pub mod body;
pub mod compression;
pub mod cors;
pub mod docs;
pub mod headers;
pub mod load;
pub mod rate_limit;
pub mod request;

use std::{ops::Deref, sync::Arc};

use self::{auth::token::Tokens, load::Load, rate_limit::RateLimits};
use super::vocabulary::app::App;
use crate::lifecycle::Lifecycle;

/// What requests are let in by. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Parts>);

/// The parts of [`Gate`].
pub struct Parts {
    /// What handlers work with.
    pub app: App,
    /// Verifies tokens.
    pub tokens: Tokens,
    /// How much one may ask for.
    pub rates: RateLimits,
    /// Places of requests.
    pub load: Load,
}

impl Gate {
    /// Starts to read the keys that tokens are verified with.
    pub fn start(app: App, lifecycle: &Lifecycle) -> anyhow::Result<Self> {
        // Key sets are the operator's to choose, wherever they are; their hosts' redirects are not.
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let tokens = Tokens::start(&app.config.auth, &http, app.clock.clone(), lifecycle);
        let rates = RateLimits::new(&app.config.limits);
        let load = Load::new(app.config.limits.max_concurrent_requests);
        Ok(Self(Arc::new(Parts { app, tokens, rates, load })))
    }
}

impl Deref for Gate {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
