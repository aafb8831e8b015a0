//! Health status of an executor.

use super::Executor;
use crate::{
    health::{self, Components, HealthComponent, PoolUse},
    telemetry,
};

/// Handle for the health of an executor. Cheap to clone.
#[derive(Clone)]
pub struct Status(pub(super) Executor);

/// Health of an executor.
#[derive(Clone, Debug)]
pub struct HealthStatus {
    /// Whether it may own runs: the database has received a heartbeat lately.
    pub database: bool,
    /// Whether Kafka answered the last check. There is a check every second.
    pub kafka: bool,
    /// Problems with Kafka that an operator has to solve.
    pub kafka_problems: Vec<&'static str>,
    /// Whether it takes no new runs, because it stops.
    pub draining: bool,
    /// Number of runs that it drives.
    pub runs: usize,
}

impl HealthStatus {
    /// Whether it may take runs. Without Kafka, runs under way and parked runs continue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.database && !self.draining
    }

    /// Status in one word.
    #[must_use]
    pub fn readiness(&self) -> &'static str {
        health::readiness(self.is_ready(), self.kafka && self.kafka_problems.is_empty())
    }
}

impl Status {
    /// Sets the metrics of the executor's state to the present one.
    pub fn report(&self) {
        let Self(executor) = self;
        let health = self.health_status();
        let checks = [("database", health.database), ("schema", true), ("kafka", health.kafka)];
        telemetry::ready(health.is_ready(), &checks);
        executor.pool.report();
        telemetry::report_runtime(&tokio::runtime::Handle::current());
        metrics::gauge!("executor_memory_bytes").set(executor.memory.held() as f64);
    }

    /// The components with their states and figures.
    #[must_use]
    pub fn components(&self) -> Components {
        let Self(executor) = self;
        let found = self.health_status();
        let database = HealthComponent::new(health::connected(found.database))
            .answered_within(executor.registration.response())
            .with_pool(PoolUse::new(executor.pool.size(), executor.pool.max()));
        let kafka = HealthComponent::new(health::connected(found.kafka))
            .answered_within(executor.kafka.response())
            .with_lag(executor.lag.total());
        let process = HealthComponent::new(health::running(found.draining)).with_runs(found.runs);
        Components::from([("database", database), ("kafka", kafka), ("process", process)])
    }

    /// The current health.
    #[must_use]
    pub fn health_status(&self) -> HealthStatus {
        let Self(executor) = self;
        HealthStatus {
            database: executor.registration.current().is_some(),
            kafka: executor.kafka.is_up(),
            kafka_problems: executor.kafka.problems(),
            draining: executor.soft_stop.is_cancelled(),
            runs: executor.active.leases(None).0.len(),
        }
    }
}
