//! The place of a request among those that are worked on.

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;

/// The place of a request; in its extensions. Given back when the handler has ended, or before by [`RequestPermit::release`].
#[derive(Clone, Default)]
pub struct RequestPermit(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl RequestPermit {
    /// With that permit.
    #[must_use]
    pub fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    /// Makes room while the handler only waits.
    pub fn release(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RequestPermit {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
