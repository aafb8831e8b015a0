//! Health status of an executor.

use super::Executor;

/// Handle for the health of an executor. Cheap to clone.
#[derive(Clone)]
pub struct Status(pub(super) Executor);

/// Health of an executor.
#[derive(Clone, Copy, Debug)]
pub struct HealthStatus {
    /// Whether it may own runs: the database has received a heartbeat lately.
    pub database: bool,
    /// Whether Kafka answered the last check. There is a check every second.
    pub kafka: bool,
    /// Whether it takes no new runs, because it stops.
    pub draining: bool,
    /// Number of runs that it drives.
    pub runs: usize,
}

impl Status {
    /// The current health.
    #[must_use]
    pub fn health_status(&self) -> HealthStatus {
        let Self(executor) = self;
        HealthStatus {
            database: executor.registration.current().is_some(),
            kafka: executor.kafka.is_up(),
            draining: executor.soft_stop.is_cancelled(),
            runs: executor.active.leases(None).0.len(),
        }
    }
}
