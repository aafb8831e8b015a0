//! What an executor knows of itself.

use std::sync::atomic::Ordering;

use super::Executor;

/// Follows an executor. Cheap to clone.
#[derive(Clone)]
pub struct Status(pub(super) Executor);

/// How an executor is.
#[derive(Clone, Copy, Debug)]
pub struct Findings {
    /// It may own runs: the database has heard of it lately.
    pub database: bool,
    /// It has not failed to read from Kafka since it last could.
    pub kafka: bool,
    /// It takes no new runs, and ends.
    pub draining: bool,
    /// Runs that it drives.
    pub runs: usize,
}

impl Status {
    /// How it is now.
    #[must_use]
    pub fn findings(&self) -> Findings {
        let Self(executor) = self;
        Findings {
            database: executor.registration.current().is_some(),
            kafka: !executor.is_cut_off.load(Ordering::Relaxed),
            draining: executor.soft_stop.is_cancelled(),
            runs: executor.active.leases(None).0.len(),
        }
    }
}
