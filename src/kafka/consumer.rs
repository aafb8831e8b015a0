//! Consumer of the executor: both topics in one group. An offset is stored explicitly once the effect of its record is
//! durable.
//!
//! Offsets of a partition are stored in order, in whatever order its records are finished: an unfinished record holds
//! back the ones behind it. So after a crash no record is skipped, and some are read again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Datelike as _, Utc};
use futures_util::FutureExt as _;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _, Message as _, OwnedMessage},
    statistics::Statistics,
};

use tokio_util::sync::CancellationToken;

use super::{
    callbacks::{Callbacks, Context, Role},
    lag::Lag,
    message::{Message, MessageError},
    problem::{Connection, Trouble},
    replaceable::{self, ClientRole, ReplaceableClient},
};
use crate::{config, offload, trace};

/// Role of the client in logs, and the effect of an outage.
const ROLE: ClientRole =
    ClientRole { name: "requests", meaning: Some("runs under way go on, and requests are read when it is back") };
/// Minimum size of a record whose parsing takes long.
const LARGE_RECORD_BYTES: usize = 64 << 10;
/// Maximum time between two polls before the group removes this member. It is longer than the intake waits for the
/// database.
const MAX_POLL_INTERVAL: Duration = Duration::from_mins(1);

/// Topic of the consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Requests to execute runs.
    #[default]
    Executions,
    /// Requests to cancel runs.
    Cancellations,
}

/// Position of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    topic: Topic,
    /// Partition of the topic.
    partition: i32,
    /// Offset in the partition.
    offset: i64,
}

/// Record with its parsed message, if it is valid.
#[derive(Debug)]
pub struct Record {
    /// Position to be passed to [`Consumer::done`] once the effect is durable.
    pub position: Position,
    /// Time of sending, by the sender's or the broker's clock; `None` if it is absent or not a date.
    pub sent_at: Option<DateTime<Utc>>,
    /// Size of the value.
    pub bytes: usize,
    /// Parsed message.
    pub message: Result<Message, MessageError>,
    /// Record as received.
    pub raw: OwnedMessage,
}

impl Role for Lag {
    fn statistics(&self, statistics: &Statistics) {
        self.update(statistics);
    }
}

impl ConsumerContext for Context<Lag> {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                self.callbacks.connection().end_all(Trouble::ReadDenied);
                tracing::info!(partitions = list.count(), "{} Kafka partitions were assigned", list.count());
            }
            Rebalance::Revoke(list) => {
                tracing::info!(partitions = list.count(), "{} Kafka partitions were revoked", list.count());
            }
            Rebalance::Error(error) => tracing::warn!("the Kafka group could not be joined: {error}"),
        }
    }
}

/// Member of the executors' group. When its client is replaced it joins again, and unfinished records are read again.
pub struct Consumer {
    client: ReplaceableClient<StreamConsumer<Context<Lag>>>,
    lag: Lag,
    execution_topic: String,
    cancellation_topic: String,
    group_id: String,
    progress: Mutex<HashMap<(Topic, i32), Progress>>,
}

impl Consumer {
    /// Joins the group. Brokers need not be up yet; invalid settings are an error.
    pub fn new(kafka: &config::Kafka) -> KafkaResult<Self> {
        let lag = Lag::default();
        let of_client = lag.clone();
        let join = move |kafka: &config::Kafka, callbacks| join(kafka, callbacks, of_client.clone());
        Ok(Self {
            client: ReplaceableClient::new(ROLE, kafka, join)?,
            lag,
            execution_topic: kafka.execution_topic.clone(),
            cancellation_topic: kafka.cancellation_topic.clone(),
            group_id: kafka.group_id.clone(),
            progress: Mutex::default(),
        })
    }

    /// Replaces the client whenever necessary, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.client.watch(stop).await;
    }

    /// Connection state: whether brokers answer.
    pub fn connection(&self) -> &Connection {
        self.client.connection()
    }

    /// Records that wait in the partitions of this member.
    pub fn lag(&self) -> &Lag {
        &self.lag
    }

    /// Records that Kafka denies reading.
    pub fn note_denied(&self, code: RDKafkaErrorCode) {
        let is_group = code == RDKafkaErrorCode::GroupAuthorizationFailed;
        let subject = if is_group { self.group_id.as_str() } else { "topics" };
        self.connection().begin(Trouble::ReadDenied, subject, code);
    }

    /// Next record. Dropping the future loses nothing. It must be polled regularly, even if no record is needed, or the
    /// group removes this member.
    pub async fn recv(&self) -> KafkaResult<Record> {
        self.client.recv(|record| self.read(record)).await
    }

    /// Next record, if one is available already.
    pub fn try_recv(&self) -> Option<KafkaResult<Record>> {
        self.recv().now_or_never()
    }

    fn read(&self, record: &BorrowedMessage<'_>) -> Record {
        let is_execution = record.topic() == self.execution_topic;
        let topic = if is_execution { Topic::Executions } else { Topic::Cancellations };
        let position = Position { topic, partition: record.partition(), offset: record.offset() };
        self.with_progress(position, |progress| progress.begin(position.offset));
        let payload = record.payload().unwrap_or_default();
        let sent_at = sent_at(record);
        let bytes = payload.len();
        let parse = || Message::parse(payload);
        // The run's organisation is known only after parsing.
        let message = if bytes > LARGE_RECORD_BYTES { offload::in_place(parse) } else { parse() };
        Record { position, sent_at, bytes, message, raw: record.detach() }
    }

    /// Marks the effect of this record as durable, so that it need not be read again.
    pub fn done(&self, position: Position) {
        let Some(offset) = self.with_progress(position, |progress| progress.end(position.offset)) else { return };
        let topic = self.name(position.topic);
        if let Err(error) = self.client.with(|client| client.store_offset(topic, position.partition, offset)) {
            // The partition belongs to another member now, which reads the record again and finds its effect.
            tracing::debug!(topic, partition = position.partition, "the offset is not stored: {error}");
        }
    }

    /// Seeks back to this record, which is then read again with those behind it. Does nothing if the partition belongs
    /// to another member now, which reads the record.
    pub fn seek_back(&self, position: Position) {
        let topic = self.name(position.topic);
        // Without a time-out it does not wait for the result.
        let offset = Offset::Offset(position.offset);
        let sought = self.client.with(|client| client.seek(topic, position.partition, offset, Duration::ZERO));
        if let Err(error) = sought {
            tracing::debug!(
                topic,
                partition = position.partition,
                "seek failed, the record cannot be read again: {error}"
            );
        }
    }

    fn with_progress<T>(&self, position: Position, act: impl FnOnce(&mut Progress) -> T) -> T {
        let mut all = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        act(all.entry((position.topic, position.partition)).or_default())
    }

    /// Pauses or resumes reading the partitions of the topic that this member has; a rebalance resumes.
    pub fn set_paused(&self, topic: Topic, paused: bool) -> Result<(), KafkaError> {
        let (client, topic) = (self.client.current(), self.name(topic));
        let mut partitions = TopicPartitionList::new();
        for partition in client.assignment()?.elements_for_topic(topic) {
            partitions.add_partition(topic, partition.partition());
        }
        if paused { client.pause(&partitions) } else { client.resume(&partitions) }
    }

    fn name(&self, topic: Topic) -> &str {
        match topic {
            Topic::Executions => &self.execution_topic,
            Topic::Cancellations => &self.cancellation_topic,
        }
    }

    /// Commits stored offsets and leaves the group. Blocks the thread until no other reference to the consumer exists.
    pub fn close(self: Arc<Self>) {
        replaceable::wait_for_last_reference(self).client.leave();
    }
}

fn join(kafka: &config::Kafka, callbacks: Callbacks, lag: Lag) -> KafkaResult<StreamConsumer<Context<Lag>>> {
    let mut config = super::client_config(kafka);
    config
        .set("group.id", &kafka.group_id)
        // Same strategy as the reference's consumers, so that both can be members of the group.
        .set("partition.assignment.strategy", "range")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // Maximum delay of the records that a killed executor had not read.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("max.poll.interval.ms", MAX_POLL_INTERVAL.as_millis().to_string())
        // The topics may be created after this process starts.
        .set("topic.metadata.refresh.interval.ms", "2000")
        // A fetch waits this long for records. The end of a pause takes as long.
        .set("fetch.wait.max.ms", "100")
        // Prefetched records cost memory, and are read again after a crash.
        .set("queued.max.messages.kbytes", "16384")
        .set("queued.min.messages", "2000");
    let client: StreamConsumer<Context<Lag>> = super::create(kafka, &mut config, Context { callbacks, role: lag })?;
    client.subscribe(&[&kafka.execution_topic, &kafka.cancellation_topic])?;
    Ok(client)
}

/// Time when a record was sent, by the sender's or the broker's clock; `None` if it is absent or not a date.
#[must_use]
pub fn sent_at(record: &impl rdkafka::Message) -> Option<DateTime<Utc>> {
    let sent_at = record.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
    // The database might reject other years.
    sent_at.filter(|instant| (1970..=9999).contains(&instant.year()))
}

/// The record's `traceparent`, if it is valid.
#[must_use]
pub fn traceparent(record: &impl rdkafka::Message) -> Option<String> {
    let headers = record.headers()?;
    let header = headers.iter().find(|header| header.key == trace::TRACEPARENT)?;
    trace::valid(std::str::from_utf8(header.value?).ok()?).map(str::to_owned)
}

/// Unfinished records of one partition, and finished ones behind them.
#[derive(Debug, Default)]
struct Progress {
    open: VecDeque<(i64, bool)>,
}

impl Progress {
    fn begin(&mut self, offset: i64) {
        if self.open.back().is_some_and(|(last, _)| *last >= offset) {
            // After a rebalance, records are read again from an earlier offset. Unfinished ones come again.
            self.open.clear();
        }
        self.open.push_back((offset, false));
    }

    /// Offset to store, if this was the oldest unfinished record.
    fn end(&mut self, offset: i64) -> Option<i64> {
        let index = self.open.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        self.open[index].1 = true;
        let mut finished = None;
        while let Some((offset, true)) = self.open.front() {
            finished = Some(*offset);
            self.open.pop_front();
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_stored_only_when_all_before_it_are_done() {
        let mut progress = Progress::default();
        for offset in [3, 4, 7] {
            progress.begin(offset);
        }
        assert_eq!(progress.end(4), None);
        assert_eq!(progress.end(5), None);
        assert_eq!(progress.end(3), Some(4));
        assert_eq!(progress.end(3), None);
        assert_eq!(progress.end(7), Some(7));
    }

    #[test]
    fn records_that_come_again_replace_the_ones_before() {
        let mut progress = Progress::default();
        progress.begin(8);
        progress.begin(9);
        progress.begin(8);
        assert_eq!(progress.end(9), None);
        assert_eq!(progress.end(8), Some(8));
    }
}
