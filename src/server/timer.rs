//! Timer of hyper that uses the clock of the service.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

use crate::clock::Clock;

/// Timer that uses that clock.
pub(super) enum ClockTimer {
    /// Timer of hyper itself, which resets a sleep in place.
    System(TokioTimer),
    /// Clock of a test.
    Adjusted(Clock),
}

impl ClockTimer {
    pub(super) fn new(clock: Clock) -> Self {
        if clock.is_systems() { Self::System(TokioTimer::new()) } else { Self::Adjusted(clock) }
    }
}

impl Timer for ClockTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        match self {
            Self::System(timer) => timer.sleep_until(deadline),
            Self::Adjusted(clock) => {
                let clock = clock.clone();
                Box::pin(ClockSleep(Box::pin(async move { clock.sleep_until(deadline).await })))
            }
        }
    }

    fn now(&self) -> Instant {
        match self {
            Self::System(timer) => timer.now(),
            Self::Adjusted(clock) => clock.instant(),
        }
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, new_deadline: Instant) {
        match self {
            Self::System(timer) => timer.reset(sleep, new_deadline),
            Self::Adjusted(_) => *sleep = self.sleep_until(new_deadline),
        }
    }
}

/// Sleep by the clock of a test.
struct ClockSleep(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl Future for ClockSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(context)
    }
}

impl Sleep for ClockSleep {}
