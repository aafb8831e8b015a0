//! Settling: updates the outbox rows of messages after their delivery reports.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use rdkafka::error::RDKafkaErrorCode;
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Relay;
use crate::{
    db,
    kafka::{
        Refusal,
        producer::{Batching, DeliveryError, Producer, Report},
        replaceable::{ClientRole, ReplaceableClient},
    },
};

/// Pause between two deletes of acknowledged rows, so that one statement deletes many.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a failed attempt to settle.
const SETTLE_RETRY: Duration = Duration::from_millis(500);

/// Role of the producer of messages that were rejected in a batch.
const SINGLE: ClientRole = ClientRole { name: "single runs", meaning: None };

impl Relay {
    /// Settles delivery reports until no more can come.
    pub(super) async fn settle_all(self, mut reports: UnboundedReceiver<Report>, settled: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = reports.recv_many(&mut batch, 2000) => if count == 0 { return },
                () = settled.cancelled() => return,
            }
            let mut failures = 0_u64;
            while let Err(error) = self.settle(&mut batch).await {
                // An outage has many of them.
                if failures == 0 {
                    tracing::warn!(error = &error as &dyn std::error::Error, "outbox rows are settled later: {error}");
                }
                failures += 1;
                tokio::select! {
                    () = tokio::time::sleep(SETTLE_RETRY) => {}
                    () = settled.cancelled() => return,
                }
            }
            if failures > 0 {
                tracing::info!(count = failures, "outbox rows are settled again, after {failures} failed attempts");
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Deletes the rows of delivered messages, releases those of failed ones, and ends runs whose message can never be
    /// sent.
    async fn settle(&self, batch: &mut Vec<Report>) -> Result<(), db::Error> {
        use RDKafkaErrorCode as Code;
        let (mut done_runs, mut done_events) = (Vec::new(), Vec::new());
        let (mut back_runs, mut back_events) = (Vec::new(), Vec::new());
        // The same of the messages in batches, and the number of reports for each batch.
        let (mut free_runs, mut free_events) = (Vec::new(), Vec::new());
        let mut reported: HashMap<Uuid, usize> = HashMap::new();
        let mut delivered = 0;
        for report in &*batch {
            self.end_span(report.event_id, report.outcome.is_ok());
            if let Some(id) = report.batch {
                *reported.entry(id).or_default() += 1;
            }
            let (unsent_runs, unsent_events) = match report.batch {
                Some(_) => (&mut free_runs, &mut free_events),
                None => (&mut back_runs, &mut back_events),
            };
            match report.outcome {
                Ok(()) => {}
                Err(DeliveryError::Refused(Refusal::TooLarge)) if !report.is_alone => {
                    // The batch may have been too large instead of this message. The next sweep sends it alone.
                    tracing::debug!(run_id = report.run_id, "rejected in a batch, will be sent alone");
                    self.make_single();
                    self.refused().insert(report.event_id, Instant::now());
                    unsent_runs.push(report.run_id.clone());
                    unsent_events.push(report.event_id);
                    continue;
                }
                Err(DeliveryError::Undelivered(code)) => {
                    self.0.has_failed.store(true, Ordering::Relaxed);
                    if matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) {
                        self.0.topics_checked.store(false, Ordering::Relaxed);
                    }
                    tracing::debug!(run_id = report.run_id, "not sent, will be retried: {code}");
                    unsent_runs.push(report.run_id.clone());
                    unsent_events.push(report.event_id);
                    continue;
                }
                Err(why @ (DeliveryError::Refused(_) | DeliveryError::NoPlan)) => {
                    tracing::error!(run_id = report.run_id, "run {} cannot be dispatched: {why}", report.run_id);
                    let text = format!("the run could not be dispatched: {why}");
                    let (pool, run_id, event) = (self.0.pool.clone(), report.run_id.clone(), Some(report.event_id));
                    db::bounded(async move { db::runs::fail_pending(&pool, &run_id, event, &text).await }).await?;
                    metrics::counter!("workflow_execution_failures_total").increment(1);
                    metrics::counter!("workflow_error_total", "error_code" => why.error_code()).increment(1);
                }
            }
            delivered += 1;
            if report.batch.is_none() {
                done_runs.push(report.run_id.clone());
                done_events.push(report.event_id);
            }
        }
        if !free_runs.is_empty() {
            let pool = self.0.pool.clone();
            db::bounded(async move { db::outbox::free_requests(&pool, &free_runs, &free_events).await }).await?;
        }
        if !done_runs.is_empty() {
            let pool = self.0.pool.clone();
            db::bounded(async move { db::outbox::delete(&pool, &done_runs, &done_events).await }).await?;
        }
        let done_batches: Vec<Uuid> = {
            let known = self.known();
            let is_done = |id: &Uuid| known.batches.get(id) == reported.get(id);
            reported.keys().copied().filter(is_done).collect()
        };
        if !done_batches.is_empty() {
            let pool = self.0.pool.clone();
            db::bounded(async move { db::outbox::delete_batches(&pool, &done_batches).await }).await?;
        }
        if delivered > 0 {
            metrics::counter!("outbox_messages_published_total").increment(delivered);
            tracing::debug!(messages = delivered, "Kafka has acknowledged messages");
        }
        // Without an id, the rows of this process are orphans and are freed as such.
        if let Some(owner) = self.0.registration.current().filter(|_| !back_runs.is_empty()) {
            let pool = self.0.pool.clone();
            db::bounded(async move { db::outbox::release(&pool, owner, &back_runs, &back_events).await }).await?;
        }
        {
            let mut known = self.known();
            for report in batch.iter().filter(|report| report.batch.is_none()) {
                known.events.remove(&report.event_id);
            }
            known.batches.retain(|id, unreported| {
                *unreported -= reported.get(id).copied().unwrap_or_default();
                *unreported > 0
            });
        }
        {
            let mut refused = self.refused();
            for report in batch.iter().filter(|report| report.is_alone) {
                refused.remove(&report.event_id);
            }
        }
        let bytes: usize = batch.iter().map(|report| report.bytes).sum();
        self.0.held.fetch_sub(batch.len(), Ordering::Relaxed);
        self.0.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        batch.clear();
        self.0.settled.notify_waiters();
        Ok(())
    }

    /// Creates the producer of single messages, if there is none yet.
    fn make_single(&self) {
        if self.0.single.get().is_some() {
            return;
        }
        let reports = self.0.reports.clone();
        let made = ReplaceableClient::new(SINGLE, &self.0.kafka, move |kafka, callbacks| {
            Producer::new(kafka, Batching::One, reports.clone(), callbacks)
        });
        match made {
            Ok(single) => {
                // Only the settling task creates one, so there was none.
                if self.0.single.set(single).is_ok() {
                    let relay = self.clone();
                    tokio::spawn(async move {
                        if let Some(single) = relay.0.single.get() {
                            single.watch(&relay.0.drained).await;
                        }
                    });
                }
            }
            Err(error) => tracing::error!("the Kafka producer of single messages cannot be created: {error}"),
        }
    }
}
