//! Gates: conditions for the begin of a step and for the pause or the end of a run's execution.

use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

use super::Run;

impl Run {
    /// Waits until new steps may begin: not while the run is paused. Once the process stops, it never returns, and the
    /// run is released.
    pub(super) async fn gate(&self) {
        // The sender lives as long as the claim.
        self.signals.paused.clone().wait_for(|is_paused| !is_paused).await.ok();
        self.gate_of_process().await;
    }

    /// Returns unless the process stops.
    pub(super) async fn gate_of_process(&self) {
        if self.executor.soft_stop.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the run is to be paused and no step is under way that must end before.
    pub(in crate::executor) async fn at_pause(&self) {
        let mut paused = self.signals.paused.clone();
        loop {
            if paused.wait_for(|is_paused| *is_paused).await.is_err() {
                std::future::pending::<()>().await;
            }
            self.leaves.none().await;
            if *paused.borrow() {
                return;
            }
        }
    }

    /// Waits until all branches of the run only wait for something external. Returns the next due time, if there is
    /// one.
    pub(in crate::executor) async fn waits_only(&self) -> Option<DateTime<Utc>> {
        self.activity.reached().await
    }

    /// Whether all branches of the run only wait for something external.
    pub(in crate::executor) fn is_waiting(&self) -> bool {
        self.activity.is_idle()
    }

    /// Waits for the process's soft stop and then until no call is under way.
    pub(in crate::executor) async fn at_rest(&self) {
        self.executor.soft_stop.cancelled().await;
        self.calls.none().await;
    }
}

#[derive(Default)]
pub(super) struct Calls {
    count: AtomicUsize,
    ended: Notify,
}

impl Calls {
    /// Counts one more, until the result is dropped.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        self.count.fetch_add(1, Ordering::SeqCst);
        UnderWay(self)
    }

    pub(super) async fn none(&self) {
        while self.count.load(Ordering::SeqCst) > 0 {
            self.ended.notified().await;
        }
    }
}

pub(super) struct UnderWay<'a>(&'a Calls);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_one();
    }
}
