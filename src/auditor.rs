//! Auditor: background work of the audit trail. It writes entries of denied attempts, seals entries, and drops expired
//! ones.
//!
//! After a crash: an entry is committed with its change, and waits in `audit_unsealed_batches` for the next sealing process.
//! Denied attempts that are not written yet are lost; no answer depends on them.

mod attempts;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::attempts::Attempts;
pub use self::attempts::Denied;
use crate::{
    db::{
        self,
        audit::{self, DeniedEntry, Sealed},
    },
    lifecycle::Lifecycle,
    timestamp::Timestamp,
};

/// Interval of writing denied attempts.
const DENIED_EVERY: Duration = Duration::from_secs(1);
/// Pause after sealing, so that many entries share a seal.
const SEAL_EVERY: Duration = Duration::from_millis(100);
/// Polling interval for entries that another program or a lost process has left unsealed.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Interval of creating and dropping partitions, and pause after a failure.
const PARTITIONS_EVERY: Duration = Duration::from_hours(1);
const PARTITIONS_AGAIN: Duration = Duration::from_secs(30);

/// Handle of the auditor. Cheap to clone.
#[derive(Clone)]
pub struct Auditor {
    attempts: Arc<Mutex<Attempts>>,
    fresh: Arc<Notify>,
}

impl Auditor {
    /// Starts the background loops. The caller cancels `drained` when no more entries can come.
    #[must_use]
    pub fn start(pool: &db::Pool, kept_days: i32, lifecycle: &Lifecycle, drained: &CancellationToken) -> Self {
        let this = Self { attempts: Arc::default(), fresh: Arc::default() };
        lifecycle.spawn("audit-denied", this.clone().write_denied(pool.clone(), drained.clone()));
        lifecycle.spawn("audit-seals", this.clone().seal(pool.clone(), drained.clone()));
        lifecycle.spawn("audit-partitions", keep_partitions(pool.clone(), kept_days, lifecycle.clone()));
        this
    }

    /// Queues the attempt to be written or counted.
    pub fn denied(&self, denied: Denied) {
        self.attempts().add(denied, std::time::Instant::now(), Timestamp::now());
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the sealing loop after entries may have been written.
    pub fn wake(&self) {
        self.fresh.notify_one();
    }

    async fn write_denied(self, pool: db::Pool, drained: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(DENIED_EVERY) => {}
                () = drained.cancelled() => {}
            }
            let is_last = drained.is_cancelled();
            let entries = self.attempts().take(std::time::Instant::now(), is_last);
            if !entries.is_empty() {
                self.write(entries, &pool, is_last).await;
                self.wake();
            }
            if is_last {
                return;
            }
        }
    }

    /// Writes all entries together, or each one that can be written. If the database is unavailable, they stay queued.
    async fn write(&self, entries: Vec<DeniedEntry>, pool: &db::Pool, is_last: bool) {
        let insert = |entries: Vec<DeniedEntry>| {
            let pool = pool.clone();
            db::bounded(async move { audit::insert_denied(&pool, &entries).await })
        };
        let mut error = match insert(entries.clone()).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let mut lost = 0;
        if matches!(error, db::Error::Unavailable(_)) && !is_last {
            lost = self.attempts().requeue(entries);
        } else {
            // One rejected entry must not fail the others.
            for entry in entries {
                let attempts = entry.attempts;
                if let Err(refused) = insert(vec![entry]).await {
                    lost += attempts;
                    error = refused;
                }
            }
        }
        if lost > 0 {
            metrics::counter!("audit_denied_attempts_lost_total").increment(lost);
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "{lost} denied attempts are not in the audit trail: {error}"
            );
        }
    }

    async fn seal(self, pool: db::Pool, drained: CancellationToken) {
        let mut sealed_before = "0".to_owned();
        while !drained.is_cancelled() {
            tokio::select! {
                () = self.fresh.notified() => {}
                () = tokio::time::sleep(POLL_EVERY) => {}
                // The last entries are sealed here, or by the next process.
                () = drained.cancelled() => {}
            }
            let started = Instant::now();
            let (pool, after) = (pool.clone(), sealed_before.clone());
            match db::bounded(async move { audit::seal(&pool, &after).await }).await {
                Ok(Sealed { is_cut, before }) => {
                    sealed_before = before;
                    if is_cut {
                        self.wake();
                    }
                }
                Err(error) => {
                    metrics::counter!("audit_seal_failures_total").increment(1);
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "audit entries could not be sealed: {error}"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(started + SEAL_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }
}

async fn keep_partitions(pool: db::Pool, kept_days: i32, lifecycle: Lifecycle) {
    let stop = lifecycle.soft_stop();
    while !stop.is_cancelled() {
        let mut pause = PARTITIONS_EVERY;
        let pool = pool.clone();
        if let Err(error) = db::bounded(async move { audit::keep_partitions(&pool, kept_days).await }).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "audit partitions could not be maintained: {error}"
            );
            pause = PARTITIONS_AGAIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
