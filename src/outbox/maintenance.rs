//! Maintenance of the outbox: frees the rows of dead processes, redispatches lost requests, expires idempotency keys,
//! creates the topics.

use std::{sync::atomic::Ordering, time::Duration};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    topic_partition_list::Offset,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Relay, SWEEP_BATCH, SWEEP_EVERY};
use crate::{
    config,
    db::{self, outbox::OpenRunPlace, processes},
    kafka,
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

/// Time-out of a request to a broker.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
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
        if !self.is_connected() {
            return Ok(());
        }
        let (pool, after) = (self.0.pool.clone(), scanned.take());
        let overdue =
            db::bounded(async move { db::outbox::overdue(&pool, after.as_ref(), OVERDUE_SCAN, OVERDUE_SECS).await })
                .await?;
        *scanned = overdue.next;
        if !overdue.run_ids.is_empty() {
            let kafka = self.0.kafka.clone();
            let drained = tokio::task::spawn_blocking(move || queue_is_drained(&kafka)).await;
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

    /// Deletes expired idempotency keys.
    pub(super) async fn expire_keys(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if let Err(error) = db::idempotency::expire(&self.0.pool, self.0.key_ttl_hours).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "idempotency keys could not be expired: {error}"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(MAINTENANCE_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Creates the topics once Kafka is up, and again if one is missing.
    pub(super) async fn keep_topics(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if self.is_connected() && !self.0.topics_checked.load(Ordering::Relaxed) {
                match kafka::ensure_topics(&self.0.kafka).await {
                    Ok(()) => self.0.topics_checked.store(true, Ordering::Relaxed),
                    Err(error) => tracing::warn!("the topics cannot be created yet: {error}"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }
}

/// Whether the executors' group has read all records of the execution topic. Blocks the thread.
fn queue_is_drained(kafka: &config::Kafka) -> Result<bool, KafkaError> {
    let client: BaseConsumer = kafka::client_config(kafka).set("group.id", &kafka.group_id).create()?;
    let metadata = client.fetch_metadata(Some(&kafka.execution_topic), ANSWER_WITHIN)?;
    let mut asked = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
        asked.add_partition(&kafka.execution_topic, partition.id());
    }
    for committed in client.committed_offsets(asked, ANSWER_WITHIN)?.elements() {
        let (low, high) = client.fetch_watermarks(&kafka.execution_topic, committed.partition(), ANSWER_WITHIN)?;
        let read = if let Offset::Offset(offset) = committed.offset() { offset } else { low };
        if read < high {
            return Ok(false);
        }
    }
    Ok(true)
}
