//! Limits of every request: the gate holds them, and `/system/limits` tells them.

use std::time::Duration;

/// Maximum size of the request body of most routes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Maximum length of path and query.
pub const MAX_URI_BYTES: usize = 8 << 10;
/// Time-out of a request, so that it is answered within 10 s of its arrival. The time in which the client sends its
/// body, and the requested wait for a run, are not counted.
pub const TIME_LIMIT: Duration = Duration::from_millis(9500);
