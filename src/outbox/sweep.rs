//! Sweep of the outbox: sends free rows, whose messages are rebuilt from the run and its definition.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    CancelledRun, ExecutedRun, MAX_BACKLOG, Relay, Reservation, SWEEP_BATCH, SWEEP_EVERY,
    maintenance::MAINTENANCE_EVERY,
};
use crate::{
    access::OrganizationId,
    db::{
        self,
        outbox::{Kind, OpenRunPlace, Taken},
        processes,
    },
    input,
    kafka::producer::{DeliveryError, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES},
};

/// Number of rows of the first batch, before their size is known.
const FIRST_BATCH: usize = 16;
/// Estimated bytes of plans and inputs taken at a time.
const SWEEP_BATCH_BYTES: usize = 4 << 20;

/// Time-out for flushing queued messages at the end of the process.
const FLUSH: Duration = Duration::from_secs(5);

impl Relay {
    /// Sweeps until drained; then flushes, releases the remaining rows and deregisters the process.
    pub(super) async fn sweep_all(self, drained: CancellationToken, settled: CancellationToken) {
        let mut next_maintenance = Instant::now();
        let mut scanned = None::<OpenRunPlace>;
        while !drained.is_cancelled() {
            if let Err(error) = self.sweep_once(&drained).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "outbox sweep failed: {error}");
            }
            if next_maintenance <= Instant::now() {
                next_maintenance = Instant::now() + MAINTENANCE_EVERY;
                if let Err(error) = self.maintain(&mut scanned).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "outbox maintenance failed: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
        let producer = self.0.producer.current();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH)).await;
        let deadline = Instant::now() + FLUSH;
        if matches!(flushed, Ok(Ok(()))) {
            while self.0.held.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let pool = self.0.pool.clone();
        if let Some(id) = self.0.registration.current()
            && let Err(error) = db::bounded(async move { processes::deregister(&pool, id).await }).await
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "deregistration failed; the remaining outbox rows are freed later"
            );
        }
        settled.cancel();
    }

    /// Sends free rows as long as there are any, there is room, and no stop is requested. Returns how many were taken.
    pub async fn sweep_once(&self, drained: &CancellationToken) -> Result<usize, db::Error> {
        let pool = self.0.pool.clone();
        let counted = db::bounded(async move { db::outbox::backlog(&pool, MAX_BACKLOG).await });
        let (backlog, oldest_secs) = counted.await?;
        self.0.backlog.store(backlog, Ordering::Relaxed);
        let oldest = Duration::try_from_secs_f64(oldest_secs).unwrap_or_default();
        self.0.oldest_ms.store(u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        metrics::gauge!("outbox_events_pending").set(backlog as f64);
        metrics::gauge!("outbox_oldest_age_seconds").set(oldest_secs);
        self.0.is_full.store(false, Ordering::Relaxed);
        self.free_uncertain().await?;
        // While Kafka takes no messages, one of them is a probe.
        let is_probing = self.kafka().is_troubled();
        let (mut taken, mut limit) = (0, if is_probing { 1 } else { FIRST_BATCH });
        // The limit is the queue size: rows released meanwhile are left to the next sweep.
        while let Some(owner) = self.0.registration.current().filter(|_| taken < MAX_QUEUED_MESSAGES) {
            if drained.is_cancelled() || self.is_half_full() {
                break;
            }
            let pool = self.0.pool.clone();
            let rows = db::bounded(async move { db::outbox::take(&pool, owner, limit).await }).await?;
            let (count, bytes) = (rows.len(), rows.iter().map(Taken::payload_len).sum::<usize>());
            for row in rows {
                self.send_taken(row, owner);
            }
            taken += count;
            if count < limit || is_probing {
                break;
            }
            limit = (SWEEP_BATCH_BYTES * count / bytes.max(1)).clamp(1, SWEEP_BATCH);
        }
        Ok(taken)
    }

    /// Frees the batches whose commit was uncertain. One that is committed later is found by the maintenance.
    async fn free_uncertain(&self) -> Result<(), db::Error> {
        let batches = self.uncertain().clone();
        if batches.is_empty() {
            return Ok(());
        }
        let (pool, ids) = (self.0.pool.clone(), batches.clone());
        db::bounded(async move { db::outbox::free_batches(&pool, &ids).await }).await?;
        self.uncertain().retain(|batch| !batches.contains(batch));
        Ok(())
    }

    /// Half of the queue is reserved for new rows, so that their messages need no sweep.
    fn is_half_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
            || self.0.held.load(Ordering::Relaxed) > MAX_QUEUED_MESSAGES / 2
            || self.0.held_bytes.load(Ordering::Relaxed) > MAX_QUEUED_BYTES / 2
    }

    fn send_taken(&self, row: Taken, owner: Uuid) {
        // Compact JSON, since the size was checked in that form when the run was accepted.
        let compacted = |text: String| RawValue::from_string(text).ok().map(|raw| input::compact(&raw));
        let plan = row.workflow_plan.and_then(compacted);
        let input = row.input_data.and_then(compacted);
        let (correlation_id, traceparent) = (row.correlation_id.as_deref(), row.traceparent.as_deref());
        self.0.held.fetch_add(1, Ordering::Relaxed);
        let reservation = Reservation { relay: self.clone(), owner, bytes: 0, kept: false };
        match (row.kind, plan) {
            (Kind::Execution, Some(plan)) => {
                let input = input.filter(|input| input.get() != "null").unwrap_or_else(|| input::object_of([]));
                let organization = &OrganizationId::stored(&row.organization_id);
                let (run_id, priority) = (row.run_id.as_str(), row.priority);
                let run = ExecutedRun { run_id, correlation_id, traceparent, priority, organization, is_retry: false };
                self.execute(reservation, (row.event_id, None), run, &plan, &input);
            }
            (Kind::Execution, None) => {
                // The definition was deleted, so the message can never be rebuilt.
                self.settle_unsent(reservation, row.event_id, row.run_id, DeliveryError::NoPlan);
            }
            (Kind::Cancellation, _) => {
                let (cancelled_by, reason) = (row.cancelled_by.as_deref(), row.reason.as_deref());
                let run = CancelledRun { run_id: &row.run_id, correlation_id, traceparent, cancelled_by, reason };
                self.cancel(reservation, row.event_id, run);
            }
        }
    }
}
