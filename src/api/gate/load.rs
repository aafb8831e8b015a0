//! Admission control: concurrent requests. Above the maximum, requests are refused at once: a queued request would be
//! answered too late, and its work would delay the others.
//!
//! An organisation may have three times as many requests as there are free permits: alone three quarters of all. So one
//! that floods the service leaves permits for the others.
//!
//! Health, metrics and the documentation need no permit. A request that waits for a run or for an agent releases its
//! permit.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    api::vocabulary::{error::ApiError, request_permit::RequestPermit},
    clock::Clock,
    permits::{Exhausted, Limit, Owners, Permits, Scope},
};

/// Requests of an organisation for each free permit.
const TIMES_FREE: u64 = 3;
/// Interval at which refusals are logged.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Permits for concurrent requests.
pub struct Load {
    permits: Permits,
    unreported: Mutex<(u64, Option<Instant>)>,
    clock: Clock,
}

impl Load {
    /// Creates this number of permits.
    #[must_use]
    pub fn new(permits: usize, clock: Clock) -> Self {
        let most = [(Scope::Organization, Limit::TimesFree(TIMES_FREE))];
        Self { permits: Permits::with_limits(permits as u64, most), unreported: Mutex::default(), clock }
    }

    /// 503 if no permit is free, and 429 if the organisation has used its part. The check costs almost nothing, so that
    /// it can come first, and again when the caller is known.
    pub fn check(&self, owners: Owners) -> Result<(), ApiError> {
        self.permits.check(owners, 1).map_err(|limit| self.refuse(limit))
    }

    /// Acquires a free permit.
    pub fn acquire(&self, owners: Owners) -> Result<RequestPermit, ApiError> {
        let permit = self.permits.try_take(owners, 1).map_err(|limit| self.refuse(limit))?;
        Ok(RequestPermit::new(permit))
    }

    fn refuse(&self, limit: Exhausted) -> ApiError {
        let mut unreported = self.unreported.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, reported_at) = &mut *unreported;
        *count += 1;
        if reported_at.is_none_or(|at| self.clock.since(at) >= REPORT_EVERY) {
            let count = std::mem::take(count);
            *reported_at = Some(self.clock.instant());
            tracing::warn!(count, "overloaded: {count} requests were refused since the last report");
        }
        let refusal = match limit {
            Exhausted::All => {
                metrics::counter!("requests_refused_total", "reason" => "overload").increment(1);
                ApiError::unavailable("overloaded", "The service is overloaded at the moment")
            }
            Exhausted::Owner(_) => ApiError::exhausted(limit, "too_many_concurrent_requests", "requests at a time"),
        };
        refusal.logged_elsewhere()
    }
}
