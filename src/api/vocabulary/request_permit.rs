//! Permit of a request for concurrent execution.

use std::sync::{Arc, Mutex, PoisonError};

use super::error::ApiError;
use crate::permits::Permit;
use axum::extract::FromRequestParts;
use http::request::Parts;

/// Permit of a request; in its extensions. It is released when the handler has ended, or earlier by
/// [`RequestPermit::release`].
#[derive(Clone, Default)]
pub struct RequestPermit(Arc<Mutex<Option<Permit>>>);

impl RequestPermit {
    /// Wraps the permit.
    #[must_use]
    pub fn new(permit: Permit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    /// Releases the permit early, while the handler only waits.
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
