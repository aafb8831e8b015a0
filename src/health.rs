//! Health of a process in words and figures, for API and executor.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use utoipa::ToSchema;

/// Status of a process in one word. It can work without Kafka, but is degraded.
#[must_use]
pub fn readiness(can_work: bool, has_kafka: bool) -> &'static str {
    match (can_work, has_kafka) {
        (false, _) => "not_ready",
        (true, false) => "degraded",
        (true, true) => "ready",
    }
}

/// State of a connection in one word.
#[must_use]
pub fn connected(is_connected: bool) -> &'static str {
    if is_connected { "connected" } else { "disconnected" }
}

/// State of the process itself in one word.
#[must_use]
pub fn running(is_stopping: bool) -> &'static str {
    if is_stopping { "stopping" } else { "running" }
}

/// State of the database's schema in one word.
#[must_use]
pub fn current(is_current: bool) -> &'static str {
    if is_current { "current" } else { "outdated" }
}

/// Components of a process by name.
pub type Components = BTreeMap<&'static str, HealthComponent>;

/// Component of a process: its state, and the figures that it has.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct HealthComponent {
    /// State in one word.
    #[schema(value_type = String)]
    status: &'static str,
    /// Milliseconds until the last check was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    response_ms: Option<f64>,
    /// Connections of the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pool: Option<PoolUse>,
    /// Messages that Kafka has not acknowledged yet, counted up to 100000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pending: Option<i64>,
    /// Age in seconds of the oldest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    lag_seconds: Option<f64>,
    /// Records in the partitions of the process that it has not processed yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    consumer_lag: Option<i64>,
    /// Runs that the process drives.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    active: Option<usize>,
}

/// Use of a pool of connections.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct PoolUse {
    /// Open connections.
    size: usize,
    /// Open connections that are in use.
    in_use: usize,
    /// Connections that may be open at a time.
    max: usize,
}

impl PoolUse {
    /// Of a pool with so many open and idle connections.
    #[must_use]
    pub fn new((size, idle): (usize, usize), max: usize) -> Self {
        Self { size, in_use: size.saturating_sub(idle), max }
    }
}

impl HealthComponent {
    /// Component in that state.
    #[must_use]
    pub fn new(status: &'static str) -> Self {
        Self { status, ..Self::default() }
    }

    /// With the time until its last answer.
    #[must_use]
    pub fn answered_within(self, response: Duration) -> Self {
        Self { response_ms: Some((response.as_secs_f64() * 100_000.0).round() / 100.0), ..self }
    }

    /// With the use of its connections.
    #[must_use]
    pub fn with_pool(self, pool: PoolUse) -> Self {
        Self { pool: Some(pool), ..self }
    }

    /// With its queue: the number of its entries, and the age of the oldest one.
    #[must_use]
    pub fn with_queue(self, pending: i64, oldest: Duration) -> Self {
        Self { pending: Some(pending), lag_seconds: Some((oldest.as_secs_f64() * 10.0).round() / 10.0), ..self }
    }

    /// With the number of records that wait for it, if it is known.
    #[must_use]
    pub fn with_lag(self, consumer_lag: Option<i64>) -> Self {
        Self { consumer_lag, ..self }
    }

    /// With the number of its runs.
    #[must_use]
    pub fn with_runs(self, active: usize) -> Self {
        Self { active: Some(active), ..self }
    }
}
