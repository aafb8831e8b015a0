//! Clock for the present time, timers and time limits. Tests advance it, or stop it; a simulation has a virtual one.

mod simulated;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

use self::simulated::Simulated;

/// Clock of the system, unless a test or a simulation has made another one. Cheap to clone; clones share the time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

/// Source of a clock's time.
#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Adjusted(Arc<Adjusted>),
    Simulated(Arc<Simulated>),
}

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
        Self(Source::Adjusted(Arc::new(Adjusted { stopped_at: None, ahead: watch::Sender::default() })))
    }

    /// Creates a stopped clock. Only [`Self::advance`] changes its time.
    #[must_use]
    pub fn stopped() -> Self {
        let stopped_at = Some((system_time(), Instant::now()));
        Self(Source::Adjusted(Arc::new(Adjusted { stopped_at, ahead: watch::Sender::default() })))
    }

    /// Creates a virtual clock that is stopped at that time. Only [`Self::advance_to_next_timer`] changes its time.
    #[must_use]
    pub fn simulated(at: DateTime<Utc>) -> Self {
        Self(Source::Simulated(Arc::new(Simulated::new(at, Instant::now()))))
    }

    /// Whether this is the system's clock, which cannot be advanced.
    #[must_use]
    pub fn is_systems(&self) -> bool {
        matches!(self.0, Source::System)
    }

    /// Present date and time.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        let (start, ahead) = match &self.0 {
            Source::System => return system_time(),
            Source::Adjusted(clock) => (clock.stopped_at.map_or_else(system_time, |(at, _)| at), clock.ahead()),
            Source::Simulated(clock) => (clock.start().0, clock.elapsed()),
        };
        TimeDelta::from_std(ahead).ok().and_then(|ahead| start.checked_add_signed(ahead)).unwrap_or(start)
    }

    /// Time by which the clock is ahead of the system's, which is none outside of tests. Added to the database's time, it
    /// gives what the clock shows.
    #[must_use]
    pub fn lead(&self) -> Duration {
        match &self.0 {
            Source::System => Duration::ZERO,
            Source::Adjusted(clock) => clock.ahead(),
            Source::Simulated(clock) => clock.elapsed(),
        }
    }

    /// Present instant, for durations.
    #[must_use]
    pub fn instant(&self) -> Instant {
        match &self.0 {
            Source::System => Instant::now(),
            Source::Adjusted(clock) => clock.stopped_at.map_or_else(Instant::now, |(_, at)| at) + clock.ahead(),
            Source::Simulated(clock) => clock.start().1 + clock.elapsed(),
        }
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
        let adjusted = match &self.0 {
            Source::System => return tokio::time::sleep_until(deadline.into()).await,
            Source::Simulated(clock) => return clock.sleep_until(deadline).await,
            Source::Adjusted(clock) => clock,
        };
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

    /// Advances the clock of a test. It has no effect on other clocks.
    pub fn advance(&self, time: Duration) {
        if let Source::Adjusted(clock) = &self.0 {
            clock.ahead.send_modify(|ahead| *ahead += time);
        }
    }

    /// Advances a virtual clock to its next timer, and ends that timer. Returns whether there was one.
    #[must_use]
    pub fn advance_to_next_timer(&self) -> bool {
        if let Source::Simulated(clock) = &self.0 { clock.advance() } else { false }
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

    fn is_ready(sleep: &mut std::pin::Pin<Box<impl Future>>) -> bool {
        sleep.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn a_virtual_clock_ends_its_timers_in_the_order_of_their_deadlines() {
        let at = system_time();
        let clock = Clock::simulated(at);
        let sleep = |secs| Box::pin(clock.sleep(Duration::from_secs(secs)));
        let (mut long, mut short, mut dropped) = (sleep(86_400), sleep(5), Some(sleep(1)));
        assert!(!is_ready(&mut long) && !is_ready(&mut short));
        assert!(!is_ready(dropped.as_mut().expect("a sleep")));
        drop(dropped.take());
        assert!(clock.advance_to_next_timer());
        assert_eq!(clock.now() - at, TimeDelta::seconds(5), "a dropped sleep has no timer");
        assert!(is_ready(&mut short) && !is_ready(&mut long));
        assert!(clock.advance_to_next_timer());
        assert!(is_ready(&mut long));
        assert_eq!(clock.now() - at, TimeDelta::days(1));
        assert!(!clock.advance_to_next_timer());
    }

    #[tokio::test]
    async fn a_future_that_is_ready_is_in_time() {
        let clock = Clock::stopped();
        assert_eq!(clock.timeout_at(clock.instant(), async { 1 }).await, Some(1));
        assert_eq!(clock.timeout_at(clock.instant(), std::future::pending::<()>()).await, None);
    }
}
