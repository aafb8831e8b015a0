//! The executor's consumer: both topics in one group, offsets stored by hand once a record's effect is durable.
//!
//! Offsets of a partition are stored in order, whatever the order in which its records are finished: a record that
//! is still under way holds back those behind it. So after a crash nothing is skipped, and some records come again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Datelike as _, Utc};
use futures_util::FutureExt as _;
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    client::Client as NativeClient,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers as _, Message as _, OwnedMessage},
};

use tokio_util::sync::CancellationToken;

use super::{
    message::{Message, MessageError},
    replaceable::{self, Client, ClientRole, Connection, LastError, ReplaceableClient},
};
use crate::{config, offload, trace};

/// What a member of the group does without brokers.
const PURPOSE: ClientRole =
    ClientRole { name: "requests", meaning: Some("runs under way go on, and requests are read when it is back") };
/// Bytes of a record from which on reading it takes long.
const LARGE_RECORD_BYTES: usize = 64 << 10;
/// Who does not ask for records for so long is no member any more. Above what the intake may wait for the database.
const MAX_POLL_INTERVAL: Duration = Duration::from_mins(1);

/// What is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Requests to execute runs.
    #[default]
    Executions,
    /// Requests to cancel them.
    Cancellations,
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    topic: Topic,
    /// Of the topic.
    partition: i32,
    /// In the partition.
    offset: i64,
}

/// A record, read as far as it can be.
#[derive(Debug)]
pub struct Record {
    /// To be given to [`Consumer::done`] once its effect is durable.
    pub position: Position,
    /// When it was sent, by the sender's or the broker's clock; `None` if it does not say, or no date.
    pub sent_at: Option<DateTime<Utc>>,
    /// Size of the value.
    pub bytes: usize,
    /// What it says.
    pub message: Result<Message, MessageError>,
    /// As it was received.
    pub raw: OwnedMessage,
}

struct Context(LastError);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                tracing::info!(partitions = list.count(), "{} Kafka partitions were assigned", list.count());
            }
            Rebalance::Revoke(list) => {
                tracing::info!(partitions = list.count(), "{} Kafka partitions were given up", list.count());
            }
            Rebalance::Error(error) => tracing::warn!("the Kafka group could not be joined: {error}"),
        }
    }
}

impl Client for StreamConsumer<Context> {
    type Context = Context;

    fn native(&self) -> &NativeClient<Context> {
        self.client()
    }
}

/// A member of the executors' group. When its client is made anew it joins again, and what was not done comes again.
pub struct Consumer {
    client: ReplaceableClient<StreamConsumer<Context>>,
    execution_topic: String,
    cancellation_topic: String,
    progress: Mutex<HashMap<(Topic, i32), Progress>>,
}

impl Consumer {
    /// Joins the group. Brokers need not be there yet; wrong settings are an error.
    pub fn new(kafka: &config::Kafka) -> KafkaResult<Self> {
        Ok(Self {
            client: ReplaceableClient::new(PURPOSE, kafka, join)?,
            execution_topic: kafka.execution_topic.clone(),
            cancellation_topic: kafka.cancellation_topic.clone(),
            progress: Mutex::default(),
        })
    }

    /// Makes the client anew whenever that is needed, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.client.watch(stop).await;
    }

    /// Whether brokers answer.
    pub fn connection(&self) -> &Connection {
        self.client.connection()
    }

    /// The next record. Dropping the future loses nothing. It has to be polled now and then, also when nothing is
    /// wanted, or the group drops this member.
    pub async fn recv(&self) -> KafkaResult<Record> {
        loop {
            let renewed = self.client.renewed();
            let client = self.client.current();
            tokio::select! {
                biased;
                received = client.recv() => return received.map(|record| self.read(&record)),
                () = renewed => {}
            }
        }
    }

    /// The next record if there is one already.
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
        // Whose run it is stands in the record.
        let message = if bytes > LARGE_RECORD_BYTES { offload::in_place(parse) } else { parse() };
        Record { position, sent_at, bytes, message, raw: record.detach() }
    }

    /// The effect of this record is durable: it need not come again.
    pub fn done(&self, position: Position) {
        let Some(offset) = self.with_progress(position, |progress| progress.end(position.offset)) else { return };
        let topic = self.name(position.topic);
        if let Err(error) = self.client.with(|client| client.store_offset(topic, position.partition, offset)) {
            // The partition is another member's now, who reads the record again and finds it done.
            tracing::debug!(topic, partition = position.partition, "the offset is not stored: {error}");
        }
    }

    /// Reads on from this record, which then comes again with those behind it. Does nothing if the partition is
    /// another member's now, to whom the record comes.
    pub fn seek_back(&self, position: Position) {
        let topic = self.name(position.topic);
        // Without a time-out it only asks for it, and waits for no answer.
        let offset = Offset::Offset(position.offset);
        let sought = self.client.with(|client| client.seek(topic, position.partition, offset, Duration::ZERO));
        if let Err(error) = sought {
            tracing::debug!(topic, partition = position.partition, "cannot be read again: {error}");
        }
    }

    fn with_progress<T>(&self, position: Position, act: impl FnOnce(&mut Progress) -> T) -> T {
        let mut all = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        act(all.entry((position.topic, position.partition)).or_default())
    }

    /// Stops or resumes reading the partitions that this member has of the topic; a rebalance resumes.
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

    /// Commits what is stored and leaves the group. Blocks the thread until nobody else has the consumer.
    pub fn close(self: Arc<Self>) {
        let client = replaceable::wait_for_last_reference(self).client;
        let is_connected = client.connection().is_up();
        let client = client.into_current();
        if !is_connected {
            // Nobody hears it, and it would wait for an answer.
            return replaceable::close_in_background(client);
        }
        let client = replaceable::wait_for_last_reference(client);
        if let Err(error) = client.commit_consumer_state(CommitMode::Sync) {
            tracing::debug!("offsets are not committed at the end: {error}");
        }
    }
}

fn join(kafka: &config::Kafka, last_error: LastError) -> KafkaResult<StreamConsumer<Context>> {
    let client: StreamConsumer<Context> = super::client_config(kafka)
        .set("group.id", &kafka.group_id)
        // As the reference's consumers, so that both can be members of the group.
        .set("partition.assignment.strategy", "range")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // What a killed executor had not read yet shall wait no longer than this.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("max.poll.interval.ms", MAX_POLL_INTERVAL.as_millis().to_string())
        // Both topics may be made after this process.
        .set("topic.metadata.refresh.interval.ms", "2000")
        // An answer that waits for records is not asked again before; so long takes the end of a pause.
        .set("fetch.wait.max.ms", "100")
        // What is read ahead costs memory, and comes again after a crash.
        .set("queued.max.messages.kbytes", "16384")
        .set("queued.min.messages", "2000")
        .create_with_context(Context(last_error))?;
    client.subscribe(&[&kafka.execution_topic, &kafka.cancellation_topic])?;
    Ok(client)
}

/// When a record was sent, by the sender's or the broker's clock; `None` if it does not say, or no date.
#[must_use]
pub fn sent_at(record: &impl rdkafka::Message) -> Option<DateTime<Utc>> {
    let sent_at = record.timestamp().to_millis().and_then(DateTime::from_timestamp_millis);
    // Others than these the database might refuse.
    sent_at.filter(|instant| (1970..=9999).contains(&instant.year()))
}

/// The record's `traceparent`, if it is valid.
#[must_use]
pub fn traceparent(record: &impl rdkafka::Message) -> Option<String> {
    let headers = record.headers()?;
    let header = headers.iter().find(|header| header.key == trace::TRACEPARENT)?;
    trace::valid(std::str::from_utf8(header.value?).ok()?).map(str::to_owned)
}

/// The records of one partition that were read and are not finished, or not all before them.
#[derive(Debug, Default)]
struct Progress {
    open: VecDeque<(i64, bool)>,
}

impl Progress {
    fn begin(&mut self, offset: i64) {
        if self.open.back().is_some_and(|(last, _)| *last >= offset) {
            // Read again from an earlier place, after a rebalance. What was under way comes again.
            self.open.clear();
        }
        self.open.push_back((offset, false));
    }

    /// The offset to store, if this was the oldest open one.
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
