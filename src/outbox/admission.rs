//! Admission of held runs: the loop that lets the next run of a concurrency key start when a slot is free.
//!
//! While there are controlled runs it looks twenty times a second, else once a second. A slow walk through the held runs
//! finds what no notice has told of: a slot that was freed by deleting its run, or a run that was left undecided.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Relay;
use crate::{
    db::{
        self,
        flow::{self, Decided, FlowKey, Work},
    },
    run::RunStatus,
    telemetry::catalogue,
};

/// Polling interval while there are controlled runs.
const BUSY_EVERY: Duration = Duration::from_millis(50);
/// Polling interval while there are none.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// Interval of the parts of the walk.
const WALK_EVERY: Duration = Duration::from_secs(3);

impl Relay {
    /// Admits runs until drained.
    pub(super) async fn admit_all(self, drained: CancellationToken) {
        let (mut next_walk, mut walked) = (Instant::now(), None::<FlowKey>);
        while !drained.is_cancelled() {
            let found = self.admit_once().await;
            let (pause, is_walk_due) = match &found {
                // One more transaction may find more.
                Ok((true, _)) => (Duration::ZERO, true),
                Ok((false, found)) => {
                    (if found.is_any_open { BUSY_EVERY } else { IDLE_EVERY }, found.is_any_open || found.has_throttles)
                }
                Err(error) => {
                    tracing::debug!(error = error as &dyn std::error::Error, "runs could not be admitted: {error}");
                    (IDLE_EVERY, false)
                }
            };
            if is_walk_due && next_walk <= Instant::now() {
                next_walk = Instant::now() + WALK_EVERY;
                let (pool, after) = (self.0.pool.clone(), walked.take());
                let part = db::bounded(async move {
                    flow::forget_throttles(&pool).await?;
                    flow::walk(&pool, after.as_ref()).await
                });
                match part.await {
                    Ok(next) => walked = next,
                    Err(error) => tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "held runs could not be looked for: {error}"
                    ),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.0.admit.notified() => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Decides for the runs of woken keys. Returns whether something has changed, and what was found.
    async fn admit_once(&self) -> Result<(bool, Work), db::Error> {
        let pool = self.0.pool.clone();
        let (decided, found) = db::bounded(async move {
            let found = flow::work(&pool).await?;
            if !found.is_woken {
                return Ok((Decided::default(), found));
            }
            Ok((flow::admit_woken(&pool).await?, found))
        })
        .await?;
        self.decided(decided);
        Ok((decided != Decided::default(), found))
    }

    /// Counts what was decided for controlled runs, and sends the messages of those that may start.
    pub fn decided(&self, decided: Decided) {
        if decided == Decided::default() {
            return;
        }
        let Decided { admitted, passed, queued, skipped, dropped, replaced } = decided;
        for (decision, runs) in [
            ("admitted", admitted),
            ("queued", queued),
            ("skipped", skipped),
            ("dropped", dropped),
            ("replaced", replaced),
        ] {
            metrics::counter!("flow_control_runs_total", "decision" => decision).increment(runs as u64);
        }
        let cancelled = (skipped + dropped + replaced) as u64;
        catalogue::count_transition(RunStatus::Pending.as_str(), RunStatus::Cancelled.as_str(), cancelled);
        if admitted > 0 || replaced > 0 {
            self.sweep_soon();
        }
        if passed > 0 || queued > 0 {
            self.admit_soon();
        }
    }

    /// Looks for held runs at once.
    pub fn admit_soon(&self) {
        self.0.admit.notify_one();
    }
}
