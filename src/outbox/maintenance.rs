//! Upkeep: frees the rows of dead processes, sends lost requests again, expires idempotency keys, makes the topics.

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
    db::{self, processes},
    kafka,
};

/// How often orphans, overdue runs and expired keys are looked for.
pub(super) const UPKEEP_EVERY: Duration = Duration::from_secs(3);

/// A run that is still PENDING after this, although Kafka acknowledged its message and the executors have read
/// everything, was lost by the broker.
const OVERDUE_SECS: f64 = 10.0;
/// The same, if the executors have *not* read everything: then it most likely waits in Kafka.
const OVERDUE_IN_QUEUE_SECS: f64 = 600.0;

/// A broker that answers later is not asked further.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A message that was refused in a batch is taken by a sweep long before that.
const KEEP_REFUSED: Duration = Duration::from_mins(10);

impl Relay {
    /// Frees orphans, sends lost requests again, drops what has expired.
    pub(super) async fn maintain(&self) -> Result<(), db::Error> {
        // Another process may have sent them.
        self.refused().retain(|_, refused_at| refused_at.elapsed() < KEEP_REFUSED);
        let pool = self.0.pool.clone();
        let mine = self.0.registration.current();
        // Asked before the rows are: one that comes to be known meanwhile is too young to be freed.
        let known: Vec<Uuid> = self.known().iter().copied().collect();
        let cleaned = db::bounded(async move {
            let orphans = db::outbox::free_orphans(&pool).await?;
            let forgotten = match mine {
                Some(owner) => db::outbox::free_unacknowledged(&pool, owner, &known).await?,
                None => 0,
            };
            processes::bury(&pool).await?;
            Ok(orphans + forgotten)
        });
        let freed = cleaned.await?;
        if freed > 0 {
            tracing::info!(freed, "{freed} outbox rows that nobody had in memory were freed");
        }
        let pool = self.0.pool.clone();
        let any_overdue = db::bounded(async move { db::outbox::any_overdue(&pool, OVERDUE_SECS).await });
        if self.is_connected() && any_overdue.await? {
            let kafka = self.0.kafka.clone();
            let drained = tokio::task::spawn_blocking(move || queue_is_drained(&kafka)).await;
            let older_than = if matches!(drained, Ok(Ok(true))) { OVERDUE_SECS } else { OVERDUE_IN_QUEUE_SECS };
            let pool = self.0.pool.clone();
            let again = db::bounded(async move { db::outbox::redispatch(&pool, older_than, SWEEP_BATCH).await });
            let again = again.await?;
            if again > 0 {
                tracing::warn!(runs = again, "{again} runs were still pending and are dispatched again");
            }
        }
        Ok(())
    }

    /// Deletes idempotency keys that are too old.
    pub(super) async fn expire_keys(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if let Err(error) = db::idempotency::expire(&self.0.pool, self.0.key_ttl_hours).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "idempotency keys do not expire: {error}");
            }
            tokio::select! {
                () = tokio::time::sleep(UPKEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Makes the topics once Kafka is there, and again when one has gone.
    pub(super) async fn keep_topics(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if self.is_connected() && !self.0.topics_checked.load(Ordering::Relaxed) {
                match kafka::ensure_topics(&self.0.kafka).await {
                    Ok(()) => self.0.topics_checked.store(true, Ordering::Relaxed),
                    Err(error) => tracing::warn!("the topics cannot be made yet: {error}"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }
}

/// Whether the executors' group has read all there is on the execution topic. Blocks the thread.
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
