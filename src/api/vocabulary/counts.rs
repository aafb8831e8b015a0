//! Gauges from the database: open runs by state, circuit breakers by state, unsealed audit entries, events that
//! no reader has seen, the state of retention, the last check of the invariants.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    clock::Clock,
    db::{self, invariants::Recorded, runs::OpenRuns},
};

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
        let counted = db::bounded(async move {
            let (runs, active) = (db::runs::count_open(&pool).await?, db::run_counts::open(&pool).await?);
            let waited = db::runs::oldest_waiting_secs(&pool).await?;
            let (breakers, unsealed) = (db::breakers::count(&pool).await?, db::audit::unsealed(&pool).await?);
            let (events, invariants) =
                (db::webhook_events::pending(&pool).await?, db::invariants::recorded(&pool).await?);
            let retention = db::retention::status(&pool).await?;
            Ok(((runs, active, waited, events), breakers, unsealed, retention, invariants))
        });
        if let Ok(((runs, active, waited_secs, events), (open, half_open), unsealed, retention, invariants)) =
            counted.await
        {
            for (reader, count, secs) in [
                ("webhooks", events.to_fan_out, events.fan_out_secs),
                ("topic", events.to_publish, events.publish_secs),
            ] {
                metrics::gauge!("events_pending", "reader" => reader).set(count as f64);
                metrics::gauge!("events_pending_oldest_age_seconds", "reader" => reader).set(secs);
            }
            let OpenRuns { waiting, debounced, throttled, without_slot, running, parked, paused } = runs;
            let held = debounced + throttled + without_slot;
            for (state, count) in
                [("waiting", waiting), ("held", held), ("running", running), ("parked", parked), ("paused", paused)]
            {
                metrics::gauge!("workflow_runs", "state" => state).set(count as f64);
            }
            for (stage, count) in [("debounce", debounced), ("throttle", throttled), ("concurrency", without_slot)] {
                metrics::gauge!("flow_control_held_runs", "stage" => stage).set(count as f64);
            }
            metrics::gauge!("workflow_instances_active").set(active as f64);
            metrics::gauge!("workflow_runs_oldest_waiting_seconds").set(waited_secs);
            metrics::gauge!("audit_unsealed_entries").set(unsealed.entries as f64);
            metrics::gauge!("audit_unsealed_oldest_age_seconds").set(unsealed.oldest_secs);
            for (state, count) in [("open", open), ("half_open", half_open)] {
                metrics::gauge!("circuit_breakers", "state" => state).set(count as f64);
            }
            let lag = retention.scan.lag(retention.now).and_then(|lag| lag.to_std().ok()).unwrap_or_default();
            metrics::gauge!("retention_lag_seconds").set(lag.as_secs_f64());
            let is_failing = retention.archive_failed_since.is_some();
            metrics::gauge!("retention_archive_failing").set(f64::from(u8::from(is_failing)));
            set_invariants(&invariants);
        }
    }
}

/// Sets the gauges of the last recorded check of the invariants. Before the first one there are none.
fn set_invariants(recorded: &[Recorded]) {
    for Recorded { name, violations, .. } in recorded {
        if let Some(violations) = violations {
            metrics::gauge!("workflow_api_invariant_violations", "invariant" => name.clone()).set(*violations as f64);
        }
    }
    let Some(checked_at_secs) = recorded.iter().map(|one| one.checked_at_secs).reduce(f64::max) else { return };
    let is_complete = recorded.iter().all(|one| one.violations.is_some());
    metrics::gauge!("workflow_api_invariants_check_success").set(f64::from(u8::from(is_complete)));
    metrics::gauge!("workflow_api_invariants_check_timestamp_seconds").set(checked_at_secs);
}
