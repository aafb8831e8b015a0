//! Clock for the expiry of credentials.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use chrono::{DateTime, TimeDelta, Utc};

/// The system's clock, which a test can advance. Cheap to clone; clones share the time.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_secs: Arc<AtomicI64>,
}

impl Clock {
    /// The present instant.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now() + TimeDelta::seconds(self.ahead_secs.load(Ordering::Relaxed))
    }

    /// The present instant in seconds since the epoch, as in tokens.
    #[must_use]
    pub fn epoch_secs(&self) -> f64 {
        self.now().timestamp() as f64
    }

    /// Advances the clock.
    pub fn advance(&self, secs: i64) {
        self.ahead_secs.fetch_add(secs, Ordering::Relaxed);
    }
}
