//! Headers of the API's own.

use http::HeaderName;

/// The header that carries the correlation id in both directions.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");
/// Makes a repeated request answer with what the first one made.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On the answer to such a repeat.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// `wait=N`: the client is ready to wait for the end of the run.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Says that and how the preference was honoured.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
