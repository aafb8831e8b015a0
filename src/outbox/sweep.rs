//! Sweep of the outbox: sends free rows, whose messages are rebuilt from the run and its definition.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{CancelledRun, ExecutedRun, Relay, Reservation, SWEEP_BATCH, SWEEP_EVERY, maintenance::MAINTENANCE_EVERY};
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
/// Number of messages that are sent without a pause: the thread has requests to answer.
const UNINTERRUPTED: usize = 64;
/// Estimated bytes of plans and inputs taken at a time.
const SWEEP_BATCH_BYTES: usize = 4 << 20;

/// Time-out for flushing queued messages at the end of the process.
const FLUSH: Duration = Duration::from_secs(5);

/// Result of a sweep.
enum Swept {
    /// No free row is left.
    All,
    /// More rows may be free.
    Part,
}

impl Relay {
    /// Sweeps until drained; then flushes, releases the remaining rows and deregisters the process.
    pub(super) async fn sweep_all(self, drained: CancellationToken, settled: CancellationToken) {
        let mut next_maintenance = Instant::now();
        let mut scanned = None::<OpenRunPlace>;
        while !drained.is_cancelled() {
            let swept = self.sweep_once(&drained).await;
            if let Err(error) = &swept {
                tracing::debug!(error = error as &dyn std::error::Error, "outbox sweep failed: {error}");
            }
            if next_maintenance <= Instant::now() {
                next_maintenance = Instant::now() + MAINTENANCE_EVERY;
                if let Err(error) = self.maintain(&mut scanned).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "outbox maintenance failed: {error}");
                }
            }
            if matches!(swept, Ok(Swept::All) | Err(_)) {
                tokio::select! {
                    () = tokio::time::sleep(SWEEP_EVERY) => {}
                    () = self.0.freed.notified() => {}
                    () = drained.cancelled() => {}
                }
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

    /// Counts the backlog, and sends free rows for as long as there are any, but at most for [`SWEEP_EVERY`].
    async fn sweep_once(&self, drained: &CancellationToken) -> Result<Swept, db::Error> {
        let end = Instant::now() + SWEEP_EVERY;
        let (pool, limit) = (self.0.pool.clone(), self.0.kafka.max_backlog);
        let counted = db::bounded(async move { db::outbox::backlog(&pool, limit).await });
        let (backlog, oldest_secs) = counted.await?;
        self.0.backlog.store(backlog, Ordering::Relaxed);
        let oldest = Duration::try_from_secs_f64(oldest_secs).unwrap_or_default();
        self.0.oldest_ms.store(u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        metrics::gauge!("outbox_events_limit").set(limit as f64);
        metrics::gauge!("outbox_events_pending").set(backlog as f64);
        metrics::gauge!("outbox_oldest_age_seconds").set(oldest_secs);
        self.0.has_failed.store(false, Ordering::Relaxed);
        self.free_uncertain().await?;
        let mut limit = FIRST_BATCH;
        while let Some(owner) = self.0.registration.current() {
            if !self.wait_for_room(end, drained).await {
                return Ok(Swept::Part);
            }
            // While Kafka takes no messages, one of them is a probe.
            let is_probing = self.kafka().is_troubled();
            if is_probing {
                limit = 1;
            }
            let (pool, batch) = (self.0.pool.clone(), Uuid::now_v7());
            let taken = db::bounded(async move { db::outbox::take(&pool, owner, batch, limit).await }).await;
            let taking = taken.inspect_err(|_| self.abandon_batch(batch))?;
            let (count, bytes) = (taking.rows.len(), taking.payload_len());
            self.open_batch(batch, taking.rows.iter().filter(|row| row.kind == Kind::Execution).count());
            let plans: Vec<_> = taking.plans.into_iter().map(compacted).collect();
            for (number, row) in taking.rows.into_iter().enumerate() {
                if number % UNINTERRUPTED == UNINTERRUPTED - 1 {
                    tokio::task::yield_now().await;
                }
                let plan = row.plan.and_then(|plan| plans[plan].as_deref());
                self.send_taken(row, plan, owner, batch);
            }
            if count < limit || is_probing {
                break;
            }
            limit = (SWEEP_BATCH_BYTES * count / bytes.max(1)).clamp(1, SWEEP_BATCH);
        }
        Ok(Swept::All)
    }

    /// Waits until the queue has room for free rows. Returns `false` at the end of the sweep.
    ///
    /// After a failed delivery there is no room until the next sweep: the rows of such messages are free again.
    async fn wait_for_room(&self, end: Instant, drained: &CancellationToken) -> bool {
        loop {
            let settled = self.0.settled.notified();
            if drained.is_cancelled() || Instant::now() >= end {
                return false;
            }
            if !self.0.has_failed.load(Ordering::Relaxed) && !self.is_half_full() {
                return true;
            }
            tokio::select! {
                () = settled => {}
                () = tokio::time::sleep_until(end) => {}
                () = drained.cancelled() => {}
            }
        }
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
        self.0.held.load(Ordering::Relaxed) > MAX_QUEUED_MESSAGES / 2
            || self.0.held_bytes.load(Ordering::Relaxed) > MAX_QUEUED_BYTES / 2
    }

    fn send_taken(&self, row: Taken, plan: Option<&RawValue>, owner: Uuid, batch: Uuid) {
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
                self.execute(reservation, (row.event_id, Some(batch)), run, plan, &input);
            }
            (Kind::Execution, None) => {
                // The definition was deleted, so the message can never be rebuilt.
                self.settle_unsent(reservation, (row.event_id, Some(batch)), row.run_id, DeliveryError::NoPlan);
            }
            (Kind::Cancellation, _) => {
                let (cancelled_by, reason) = (row.cancelled_by.as_deref(), row.reason.as_deref());
                let run = CancelledRun { run_id: &row.run_id, correlation_id, traceparent, cancelled_by, reason };
                self.cancel(reservation, row.event_id, run);
            }
        }
    }
}

/// JSON without white space between the tokens, since the size was checked in that form when the run was accepted.
fn compacted(text: String) -> Option<Box<RawValue>> {
    RawValue::from_string(text).ok().map(|raw| input::compact(&raw))
}
