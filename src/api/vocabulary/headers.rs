//! Header names of the API.

use http::HeaderName;

/// The header that carries the correlation id in both directions.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// Idempotency key: a repeated request gets the answer of the first one.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks the answer to a repeated request.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// `wait=N`: the client is ready to wait for the end of the run.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Names the preference that was applied.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
