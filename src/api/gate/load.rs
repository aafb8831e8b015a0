//! How many requests handlers work on at a time. Above that they are refused at once: what would wait longest would be
//! answered too late for anybody, and the time spent on it would be missing elsewhere.
//!
//! Health, metrics and the documentation take no place, and who waits for a run or for an agent gives his back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::api::vocabulary::{error::ApiError, request_permit::RequestPermit};

/// How often refusals are told of.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The places.
pub struct Load {
    permits: Arc<Semaphore>,
    unreported: Mutex<(u64, Option<Instant>)>,
}

impl Load {
    /// So many places.
    #[must_use]
    pub fn new(permits: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(permits)), unreported: Mutex::default() }
    }

    /// 503 if no place is free. Costs next to nothing, so that it can be asked before anything else.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.permits.available_permits() == 0 { Err(self.refuse()) } else { Ok(()) }
    }

    /// A free place.
    pub fn acquire(&self) -> Result<RequestPermit, ApiError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| self.refuse())?;
        Ok(RequestPermit::new(permit))
    }

    fn refuse(&self) -> ApiError {
        metrics::counter!("requests_refused_total", "reason" => "overload").increment(1);
        let mut untold = self.unreported.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, told_at) = &mut *untold;
        *count += 1;
        if told_at.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            let count = std::mem::take(count);
            *told_at = Some(Instant::now());
            tracing::warn!(count, "overloaded: {count} requests were refused since this was said last");
        }
        ApiError::unavailable("overloaded", "The service has too much to do at the moment").logged_elsewhere()
    }
}
