//! Virtual clock: its time stands still until it is moved to its next timer. Timers end in the order of their deadlines,
//! and those with the same deadline in the order of their creation.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

/// Virtual clock.
#[derive(Debug)]
pub(super) struct Simulated {
    start: (DateTime<Utc>, Instant),
    timers: Mutex<Timers>,
}

/// Deadline of a timer, and its number.
type Key = (Duration, u64);

#[derive(Debug, Default)]
struct Timers {
    elapsed: Duration,
    by_deadline: BTreeMap<Key, Waker>,
    count: u64,
}

impl Simulated {
    /// A clock that starts at this time, which is called that instant.
    pub(super) fn new(at: DateTime<Utc>, instant: Instant) -> Self {
        Self { start: (at, instant), timers: Mutex::default() }
    }

    /// Time at which it started.
    pub(super) fn start(&self) -> (DateTime<Utc>, Instant) {
        self.start
    }

    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.timers().elapsed
    }

    /// Advances to the next timer, and ends it. Returns whether there was one.
    pub(super) fn advance(&self) -> bool {
        let first = {
            let mut timers = self.timers();
            let first = timers.by_deadline.pop_first();
            if let Some(((deadline, _), _)) = &first {
                timers.elapsed = timers.elapsed.max(*deadline);
            }
            first
        };
        // Woken without the lock, since a waker may use the clock.
        first.map(|(_, waker)| waker.wake()).is_some()
    }

    /// Sleeps until that instant.
    pub(super) fn sleep_until(&self, deadline: Instant) -> Sleep<'_> {
        Sleep { clock: self, deadline: deadline.saturating_duration_since(self.start.1), key: None }
    }
}

/// Sleep on a virtual clock. Dropping it removes its timer.
pub(super) struct Sleep<'a> {
    clock: &'a Simulated,
    deadline: Duration,
    key: Option<Key>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut timers = self.clock.timers();
        if timers.elapsed >= self.deadline {
            return Poll::Ready(());
        }
        let key = self.key.unwrap_or((self.deadline, timers.count));
        timers.count += 1;
        timers.by_deadline.insert(key, context.waker().clone());
        drop(timers);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.clock.timers().by_deadline.remove(&key);
        }
    }
}
