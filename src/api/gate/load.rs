//! Admission control: concurrent requests. Above the maximum, requests are refused at once: a queued request would be
//! answered too late, and its work would delay the others.
//!
//! Health, metrics and the documentation need no permit. A request that waits for a run or for an agent releases its
//! permit.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::{
    api::vocabulary::{error::ApiError, request_permit::RequestPermit},
    clock::Clock,
};

/// Interval at which refusals are logged.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Permits for concurrent requests.
pub struct Load {
    permits: Arc<Semaphore>,
    unreported: Mutex<(u64, Option<Instant>)>,
    clock: Clock,
}

impl Load {
    /// Creates this number of permits.
    #[must_use]
    pub fn new(permits: usize, clock: Clock) -> Self {
        Self { permits: Arc::new(Semaphore::new(permits)), unreported: Mutex::default(), clock }
    }

    /// 503 if no permit is free. The check costs almost nothing, so that it can come first.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.permits.available_permits() == 0 { Err(self.refuse()) } else { Ok(()) }
    }

    /// Acquires a free permit.
    pub fn acquire(&self) -> Result<RequestPermit, ApiError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| self.refuse())?;
        Ok(RequestPermit::new(permit))
    }

    fn refuse(&self) -> ApiError {
        metrics::counter!("requests_refused_total", "reason" => "overload").increment(1);
        let mut unreported = self.unreported.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, reported_at) = &mut *unreported;
        *count += 1;
        if reported_at.is_none_or(|at| self.clock.since(at) >= REPORT_EVERY) {
            let count = std::mem::take(count);
            *reported_at = Some(self.clock.instant());
            tracing::warn!(count, "overloaded: {count} requests were refused since the last report");
        }
        ApiError::unavailable("overloaded", "The service is overloaded at the moment").logged_elsewhere()
    }
}
