//! Gauges from the database: open runs by state, circuit breakers by state.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{clock::Clock, db};

/// Minimum time between two counts. Earlier scrapes get the last values, so that frequent scrapes do not load the
/// database.
const KEEP: Duration = Duration::from_secs(5);

/// Time of the last count of this process.
#[derive(Default)]
pub struct Counts(Mutex<Option<Instant>>);

impl Counts {
    /// Counts again, unless the last count is recent. If the database does not answer, the last values remain.
    pub async fn refresh(&self, pool: &db::Pool, clock: &Clock) {
        {
            let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.is_some_and(|taken| clock.since(taken) < KEEP) {
                return;
            }
            *taken = Some(clock.instant());
        }
        let pool = pool.clone();
        let counted =
            db::bounded(async move { Ok((db::runs::count_open(&pool).await?, db::breakers::count(&pool).await?)) });
        if let Ok((runs, (open, half_open))) = counted.await {
            for (state, count) in [("waiting", runs.waiting), ("running", runs.running), ("parked", runs.parked)] {
                metrics::gauge!("workflow_runs", "state" => state).set(count as f64);
            }
            for (state, count) in [("open", open), ("half_open", half_open)] {
                metrics::gauge!("circuit_breakers", "state" => state).set(count as f64);
            }
        }
    }
}
