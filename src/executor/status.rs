//! What an executor knows of itself.

use super::Executor;

/// Follows an executor. Cheap to clone.
#[derive(Clone)]
pub struct Status(pub(super) Executor);

/// How an executor is.
#[derive(Clone, Copy, Debug)]
pub struct HealthStatus {
    /// It may own runs: the database has heard of it lately.
    pub database: bool,
    /// Kafka answered when it was last asked, which is every second.
    pub kafka: bool,
    /// It takes no new runs, and ends.
    pub draining: bool,
    /// Runs that it drives.
    pub runs: usize,
}

impl Status {
    /// How it is now.
    #[must_use]
    pub fn findings(&self) -> HealthStatus {
        let Self(executor) = self;
        HealthStatus {
            database: executor.registration.current().is_some(),
            kafka: executor.kafka.is_up(),
            draining: executor.soft_stop.is_cancelled(),
            runs: executor.active.leases(None).0.len(),
        }
    }
}
