//! Maintenance of the outbox: frees the rows of dead processes, redispatches lost requests, expires idempotency keys,
//! creates the topics.

use std::{sync::atomic::Ordering, time::Duration};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Relay, SWEEP_BATCH, SWEEP_EVERY};
use crate::{
    db::{self, outbox::OpenRunPlace, processes},
    kafka::{
        self,
        topics::{self, Finding},
    },
};

/// Interval of the maintenance.
pub(super) const MAINTENANCE_EVERY: Duration = Duration::from_secs(3);

/// Time after which a run that is still PENDING was lost by the broker, although Kafka acknowledged its message and the
/// executors have read all records.
const OVERDUE_SECS: f64 = 10.0;
/// The same time if the executors have *not* read all records: then the message is most likely still in Kafka.
const OVERDUE_IN_QUEUE_SECS: f64 = 600.0;

/// Number of runs that are checked at a time.
const OVERDUE_SCAN: usize = 10_000;

/// Retention of messages rejected in a batch. A sweep takes them long before that.
const KEEP_REFUSED: Duration = Duration::from_mins(10);

impl Relay {
    /// Frees orphaned rows, redispatches lost requests, and drops expired entries.
    ///
    /// `scanned` is the place up to which runs were checked for being overdue: a large queue is checked in parts.
    pub(super) async fn maintain(&self, scanned: &mut Option<OpenRunPlace>) -> Result<(), db::Error> {
        // Another process may have sent them.
        self.refused().retain(|_, refused_at| refused_at.elapsed() < KEEP_REFUSED);
        let pool = self.0.pool.clone();
        let mine = self.0.registration.current();
        // These are read before the rows: a row that is added meanwhile is too recent to be freed.
        let (known, known_batches): (Vec<Uuid>, Vec<Uuid>) = {
            let known = self.known();
            (known.events.iter().copied().collect(), known.batches.keys().copied().collect())
        };
        let cleaned = db::bounded(async move {
            let mut freed = db::outbox::free_orphans(&pool).await?;
            let mut batches = db::outbox::orphaned_batches(&pool).await?;
            if let Some(owner) = mine {
                freed += db::outbox::free_unacknowledged(&pool, owner, &known).await?;
                batches.extend(db::outbox::unacknowledged_batches(&pool, owner, &known_batches).await?);
            }
            if !batches.is_empty() {
                freed += db::outbox::free_batches(&pool, &batches).await?;
            }
            processes::bury(&pool).await?;
            Ok(freed)
        });
        let freed = cleaned.await?;
        if freed > 0 {
            tracing::info!(freed, "{freed} unowned outbox rows were freed");
        }
        if !self.kafka().is_up() {
            return Ok(());
        }
        let (pool, after) = (self.0.pool.clone(), scanned.take());
        let overdue =
            db::bounded(async move { db::outbox::overdue(&pool, after.as_ref(), OVERDUE_SCAN, OVERDUE_SECS).await })
                .await?;
        *scanned = overdue.next;
        if !overdue.run_ids.is_empty() {
            let settings = self.0.kafka.clone();
            let drained = tokio::task::spawn_blocking(move || kafka::queue_is_drained(&settings)).await;
            let older_than = if matches!(drained, Ok(Ok(true))) { OVERDUE_SECS } else { OVERDUE_IN_QUEUE_SECS };
            let pool = self.0.pool.clone();
            let again =
                db::bounded(
                    async move { db::outbox::redispatch(&pool, &overdue.run_ids, older_than, SWEEP_BATCH).await },
                );
            let again = again.await?;
            if again > 0 {
                tracing::warn!(runs = again, "{again} runs were still pending and are dispatched again");
            }
        }
        Ok(())
    }

    /// Deletes expired idempotency keys, and deliveries of webhooks.
    pub(super) async fn expire_keys(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if let Err(error) = db::idempotency::expire(&self.0.pool, self.0.key_ttl_hours).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "idempotency keys could not be expired: {error}"
                );
            }
            if let Err(error) = db::inbound::expire_deliveries(&self.0.pool).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "deliveries of webhooks could not be expired: {error}"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(MAINTENANCE_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Creates the topics once Kafka is up, and again if one is missing; then checks their settings.
    pub(super) async fn keep_topics(self, drained: CancellationToken) {
        let mut logged = String::new();
        while !drained.is_cancelled() {
            if self.kafka().is_up() && !self.0.topics_checked.load(Ordering::Relaxed) {
                match topics::ensure(&self.0.kafka).await {
                    Ok(()) => {
                        self.0.topics_checked.store(true, Ordering::Relaxed);
                        logged.clear();
                        self.check_topics().await;
                    }
                    Err(error) => {
                        let text = error.to_string();
                        if text != logged {
                            tracing::warn!("the topics cannot be created yet: {text}");
                            logged = text;
                        }
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Logs the problems of the topics.
    async fn check_topics(&self) {
        match topics::check(&self.0.kafka).await {
            Ok(findings) => {
                for Finding { is_error, text } in findings {
                    if is_error {
                        tracing::error!("Kafka: {text}");
                    } else {
                        tracing::warn!("Kafka: {text}");
                    }
                }
            }
            Err(error) => tracing::warn!("the settings of the topics cannot be checked: {error}"),
        }
    }
}
