//! Gauges that the database knows: open runs by state, circuit breakers by state.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::db;

/// Scrapes that come sooner get the values of the last count, so that asking often costs the database nothing.
const KEEP: Duration = Duration::from_secs(5);

/// The counts of a process, and when they were taken.
#[derive(Default)]
pub struct Counts(Mutex<Option<Instant>>);

impl Counts {
    /// Counts again, unless the last count is recent. Without an answer of the database the last values stand.
    pub async fn refresh(&self, pool: &db::Pool) {
        {
            let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.is_some_and(|taken| taken.elapsed() < KEEP) {
                return;
            }
            *taken = Some(Instant::now());
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
