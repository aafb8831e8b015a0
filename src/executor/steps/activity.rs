//! Activity of a run: whether it has anything to do, or only waits for something external, and until when.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use crate::clock::Clock;

/// Minimum wait for which a run is parked. For less, two writes and a poll would take as long.
const WORTH_PARKING: Duration = Duration::from_millis(500);
/// Longest sleep at once, below what the runtime's clock can.
const LONGEST_SLEEP: Duration = Duration::from_hours(24);

/// Activity: the number of busy branches of a run, and the deadlines of the idle ones.
pub(super) struct Activity {
    clock: Clock,
    busy: AtomicUsize,
    at_rest: Notify,
    deadlines: Mutex<Deadlines>,
}

#[derive(Default)]
struct Deadlines {
    by_number: BTreeMap<u64, DateTime<Utc>>,
    count: u64,
}

impl Activity {
    /// Activity of a run that has begun: its main chain is busy.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, busy: AtomicUsize::new(1), at_rest: Notify::new(), deadlines: Mutex::default() }
    }

    fn deadlines(&self) -> MutexGuard<'_, Deadlines> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a branch as begun, until the result is dropped.
    pub(super) fn begin(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Busy(self)
    }

    /// Marks the calling branch as idle, until the result is dropped.
    pub(super) fn idle(&self) -> Idle<'_> {
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.at_rest.notify_one();
        }
        Idle(self)
    }

    /// Whether no branch is busy.
    pub(super) fn is_idle(&self) -> bool {
        self.busy.load(Ordering::SeqCst) == 0
    }

    /// Adds a deadline, until the result is dropped.
    pub(super) fn due(&self, at: DateTime<Utc>) -> Due<'_> {
        let mut deadlines = self.deadlines();
        let number = deadlines.count;
        deadlines.count += 1;
        deadlines.by_number.insert(number, at);
        Due { activity: self, number }
    }

    /// Waits until no branch is busy and no deadline is near. Returns the next deadline, if there is one.
    pub(super) async fn reached(&self) -> Option<DateTime<Utc>> {
        loop {
            if self.busy.load(Ordering::SeqCst) > 0 {
                self.at_rest.notified().await;
                continue;
            }
            let next = self.deadlines().by_number.values().min().copied();
            match next.map(|at| self.time_until(at)) {
                // The branch with this deadline is about to continue.
                Some(left) if left < WORTH_PARKING => {
                    self.clock.sleep(left.max(Duration::from_millis(1))).await;
                }
                _ => return next,
            }
        }
    }

    /// Time until that instant; zero if it is past.
    fn time_until(&self, at: DateTime<Utc>) -> Duration {
        (at - self.clock.now()).to_std().unwrap_or_default()
    }

    /// Sleeps until that instant, however far it is, by this host's clock.
    pub(super) async fn sleep_until(&self, at: DateTime<Utc>) {
        loop {
            let left = self.time_until(at);
            if left.is_zero() {
                return;
            }
            self.clock.sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}

/// The instant that much later than `now`, or the latest possible one.
pub(super) fn later(now: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    let by = chrono::TimeDelta::from_std(by).unwrap_or(chrono::TimeDelta::MAX);
    now.checked_add_signed(by).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Guard of a busy branch; see [`Activity::begin`].
pub(super) struct Busy<'a>(&'a Activity);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.0.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.at_rest.notify_one();
        }
    }
}

/// Guard of an idle branch; see [`Activity::idle`].
pub(super) struct Idle<'a>(&'a Activity);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_add(1, Ordering::SeqCst);
    }
}

/// Guard of a deadline; see [`Activity::due`].
pub(super) struct Due<'a> {
    activity: &'a Activity,
    number: u64,
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        self.activity.deadlines().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_run_is_idle_when_no_branch_of_it_is_busy() {
        let clock = Clock::stopped();
        let activity = Activity::new(clock.clone());
        let mut reached = std::pin::pin!(activity.reached());
        let block = activity.idle();
        let (first, second) = (activity.begin(), activity.begin());
        let waiting = activity.idle();
        assert!(poll!(&mut reached).is_pending());
        drop(second);
        let far = later(clock.now(), Duration::from_mins(1));
        let due = activity.due(far);
        let _farther = activity.due(later(clock.now(), Duration::from_hours(1)));
        assert_eq!(activity.reached().await, Some(far));
        drop(due);
        assert!(activity.reached().await > Some(far));
        drop((waiting, first, block));
        assert!(poll!(std::pin::pin!(activity.reached())).is_pending(), "the main chain goes on");
    }

    #[tokio::test]
    async fn a_run_is_not_parked_for_what_is_due_soon() {
        let clock = Clock::stopped();
        let activity = Activity::new(clock.clone());
        let _idle = activity.idle();
        let at = later(clock.now(), WORTH_PARKING);
        let _due = activity.due(at);
        assert_eq!(activity.reached().await, Some(at));
        clock.advance(Duration::from_millis(1));
        assert!(poll!(std::pin::pin!(activity.reached())).is_pending());
    }

    #[tokio::test]
    async fn a_sleep_lasts_for_days() {
        let clock = Clock::stopped();
        let activity = Activity::new(clock.clone());
        let mut sleep = std::pin::pin!(activity.sleep_until(later(clock.now(), Duration::from_hours(72))));
        for _ in 0..3 {
            assert!(poll!(&mut sleep).is_pending());
            clock.advance(Duration::from_hours(24));
        }
        assert!(poll!(&mut sleep).is_ready());
    }
}
