//! Metrics of the pool. A caller that finds a connection ready costs one addition under the lock that it has anyway; only
//! one that waits is timed.

use std::time::Duration;

use super::{Pool, PooledConnection, Shared};

impl Pool {
    /// Number of connections, and number of idle ones.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let state = self.0.state();
        (state.open - state.opening, state.idle.len())
    }

    /// Sets the metrics to the present state.
    pub fn report(&self) {
        let state = self.0.state();
        let (open, idle) = (state.open - state.opening, state.idle.len());
        let (waiting, acquired) = (state.waiting.len(), state.acquired);
        drop(state);
        metrics::gauge!("db_pool_size").set(open as f64);
        metrics::gauge!("db_pool_idle").set(idle as f64);
        metrics::gauge!("db_pool_in_use").set(open.saturating_sub(idle) as f64);
        metrics::gauge!("db_pool_waiting").set(waiting as f64);
        metrics::gauge!("db_pool_max").set(self.max() as f64);
        metrics::counter!("db_pool_acquired_total").absolute(acquired);
    }
}

impl Shared {
    /// Counts a caller that has waited.
    pub(super) fn count_wait(&self, time: Duration, result: &Result<PooledConnection, sqlx::Error>) {
        metrics::histogram!("db_pool_wait_seconds").record(time);
        match result {
            Ok(_) => self.state().acquired += 1,
            Err(sqlx::Error::PoolTimedOut) => metrics::counter!("db_pool_timeouts_total").increment(1),
            Err(_) => {}
        }
    }
}
