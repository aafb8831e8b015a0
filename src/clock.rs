//! Clock for the present time, timers and time limits. Tests advance it, or stop it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

/// Clock of the system, unless a test has made another one. Cheap to clone; clones share the time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Adjusted>>);

/// Clock of a test.
#[derive(Debug)]
struct Adjusted {
    /// The time at which it was stopped; `None` if it runs.
    stopped_at: Option<(DateTime<Utc>, Instant)>,
    /// Time by which it was advanced.
    ahead: watch::Sender<Duration>,
}

impl Clock {
    /// Creates a clock that runs and can be advanced.
    #[must_use]
    pub fn adjustable() -> Self {
        Self(Some(Arc::new(Adjusted { stopped_at: None, ahead: watch::Sender::default() })))
    }

    /// Creates a stopped clock. Only [`Self::advance`] changes its time.
    #[must_use]
    pub fn stopped() -> Self {
        let stopped_at = Some((system_time(), Instant::now()));
        Self(Some(Arc::new(Adjusted { stopped_at, ahead: watch::Sender::default() })))
    }

    /// Whether this is the system's clock, which cannot be advanced.
    #[must_use]
    pub fn is_systems(&self) -> bool {
        self.0.is_none()
    }

    /// Present date and time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        let Some(adjusted) = &self.0 else { return system_time() };
        let now = adjusted.stopped_at.map_or_else(system_time, |(at, _)| at);
        TimeDelta::from_std(adjusted.ahead()).ok().and_then(|ahead| now.checked_add_signed(ahead)).unwrap_or(now)
    }

    /// Present instant, for durations.
    #[must_use]
    pub fn instant(&self) -> Instant {
        let Some(adjusted) = &self.0 else { return Instant::now() };
        adjusted.stopped_at.map_or_else(Instant::now, |(_, at)| at) + adjusted.ahead()
    }

    /// Time since that instant.
    #[must_use]
    pub fn since(&self, then: Instant) -> Duration {
        self.instant().saturating_duration_since(then)
    }

    /// Present time in seconds since the epoch, as in tokens.
    #[must_use]
    pub fn epoch_secs(&self) -> f64 {
        self.now().timestamp() as f64
    }

    /// Sleeps for that time.
    pub async fn sleep(&self, time: Duration) {
        match self.instant().checked_add(time) {
            Some(deadline) => self.sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    /// Sleeps until that instant.
    pub async fn sleep_until(&self, deadline: Instant) {
        let Some(adjusted) = &self.0 else { return tokio::time::sleep_until(deadline.into()).await };
        // Subscribes before the time is read, so that no change is missed.
        let mut changes = adjusted.ahead.subscribe();
        loop {
            let left = deadline.saturating_duration_since(self.instant());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left), if adjusted.stopped_at.is_none() => {}
                // Never fails: `self` holds the sender.
                _ = changes.changed() => {}
            }
        }
    }

    /// Output of the future; `None` if it takes longer.
    pub async fn timeout<F: Future>(&self, time: Duration, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep(time) => None,
        }
    }

    /// Output of the future; `None` if it is not ready by then.
    pub async fn timeout_at<F: Future>(&self, deadline: Instant, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.sleep_until(deadline) => None,
        }
    }

    /// Advances the clock. It has no effect on the system's clock.
    pub fn advance(&self, time: Duration) {
        if let Some(adjusted) = &self.0 {
            adjusted.ahead.send_modify(|ahead| *ahead += time);
        }
    }
}

impl Adjusted {
    fn ahead(&self) -> Duration {
        *self.ahead.borrow()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock")]
fn system_time() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_stopped_clock_ends_a_sleep_when_it_is_advanced_by_that_time() {
        let clock = Clock::stopped();
        let (date, instant) = (clock.now(), clock.instant());
        let mut sleep = Box::pin(clock.sleep(Duration::from_mins(1)));
        assert!(poll!(&mut sleep).is_pending());
        clock.advance(Duration::from_secs(59));
        assert!(poll!(&mut sleep).is_pending());
        clock.advance(Duration::from_secs(1));
        assert!(poll!(&mut sleep).is_ready());
        assert_eq!((clock.now() - date, clock.since(instant)), (TimeDelta::minutes(1), Duration::from_mins(1)));
    }

    #[tokio::test]
    async fn a_future_that_is_ready_is_in_time() {
        let clock = Clock::stopped();
        assert_eq!(clock.timeout_at(clock.instant(), async { 1 }).await, Some(1));
        assert_eq!(clock.timeout_at(clock.instant(), std::future::pending::<()>()).await, None);
    }
}
