//! Loop of one reader: from the records of a topic to runs.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use tokio::time::Instant;

use super::Member;
use crate::{
    actions::{
        fire_trigger::FireError,
        receive_records::{Taken, Wait},
    },
    db,
    kafka::{
        problem,
        trigger_consumer::{self, TriggerConsumer},
    },
    trigger::kafka::Record,
};

/// Maximum records, and bytes, that wait in memory. Above either, reading is paused; below half of both it resumes.
const MAX_HELD: usize = 500;
const MAX_HELD_BYTES: usize = 4 << 20;
/// Maximum records, and bytes, of a transaction, unless a single record is larger.
const MAX_BATCH: usize = 200;
const MAX_BATCH_BYTES: usize = 2 << 20;
/// Pause while the backlog is full, or a quota is used up.
const PAUSE: Duration = Duration::from_millis(500);
/// Pauses after errors of the database: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Pause after errors of the consumer. It is short, as later events in its queue wait until they are read.
const KAFKA_PAUSE: Duration = Duration::from_millis(10);
/// Time after which an error that has not occurred again is not shown any more, if records are read.
const SHOWN_FOR: Duration = Duration::from_mins(1);
/// Statements, or transactions, between two polls: while the database is silent, the group keeps its member however long
/// that lasts.
const STATEMENTS_OF_A_TURN: u64 = 3;
const _: () =
    assert!(2 * STATEMENTS_OF_A_TURN * db::LONGEST_STATEMENT.as_secs() < trigger_consumer::MAX_POLL_INTERVAL.as_secs());

/// Record that waits.
struct Held {
    assignment: u64,
    bytes: usize,
    record: Arc<Record>,
}

/// Reader of a trigger.
pub(super) struct Reader<'a> {
    member: &'a Member,
    consumer: &'a TriggerConsumer,
    held: VecDeque<Held>,
    bytes: usize,
    retry_at: Option<Instant>,
    failures: u32,
    /// Assignment under which reading is paused.
    paused: Option<u64>,
    /// Error that is shown.
    shown: Option<Shown>,
}

/// Error that is shown to the owner of the trigger.
struct Shown {
    text: String,
    /// Assignment at that time.
    assignment: u64,
    /// When it last occurred.
    at: Instant,
    /// Whether a record was read after that.
    has_read: bool,
}

/// An error of the consumer in words for the owner of the trigger; `None`: it is one of the connection to the brokers, or of
/// the membership, which the client overcomes.
fn words(error: &KafkaError) -> Option<String> {
    let text = match error.rdkafka_error_code() {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => "the topic does not exist",
        Some(Code::GroupAuthorizationFailed) => "the brokers deny the consumer group",
        Some(code) if problem::is_denied(code) => "the brokers deny reading the topic",
        Some(Code::NotImplemented) => "its records are compressed in a way that is not supported",
        Some(
            Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::RebalanceInProgress
            | Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::PollExceeded,
        ) => return None,
        _ => return Some(format!("the topic cannot be read: {error}")),
    };
    Some(text.to_owned())
}

impl<'a> Reader<'a> {
    pub(super) fn new(member: &'a Member, consumer: &'a TriggerConsumer) -> Self {
        let (held, paused, shown) = (VecDeque::new(), None, None);
        Self { member, consumer, held, bytes: 0, retry_at: None, failures: 0, paused, shown }
    }

    /// Reads until the trigger was changed.
    pub(super) async fn run(mut self) {
        loop {
            if self.held.is_empty() || self.retry_at.is_some() {
                let retry_at = self.retry_at;
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                        self.retry_at = None;
                    }
                    received = self.consumer.recv() => self.receive_all(received).await,
                    // An error may be over, without a record.
                    () = tokio::time::sleep(PAUSE), if self.shown.is_some() => {}
                }
            } else if let Some(received) = self.consumer.try_recv() {
                self.receive_all(received).await;
            }
            self.forget_stale();
            self.hide().await;
            if self.retry_at.is_none() && !self.held.is_empty() && !self.process().await {
                return;
            }
            self.pause_or_resume();
        }
    }

    async fn receive_all(&mut self, first: KafkaResult<(u64, Record)>) {
        let mut next = Some(first);
        while let Some(received) = next.take() {
            match received {
                Ok((assignment, record)) => {
                    if let Some(shown) = &mut self.shown {
                        shown.has_read = true;
                    }
                    let bytes = record.bytes();
                    self.bytes += bytes;
                    self.held.push_back(Held { assignment, bytes, record: Arc::new(record) });
                }
                Err(error) => return self.note(&error).await,
            }
            if self.held.len() < MAX_HELD && self.bytes < MAX_HELD_BYTES {
                next = self.consumer.try_recv();
            }
        }
    }

    /// Shows an error of the topic to the owner of the trigger.
    async fn note(&mut self, error: &KafkaError) {
        let trigger_id = self.member.trigger.id;
        tracing::debug!(%trigger_id, "the topic of a trigger cannot be read: {error}");
        if let Some(text) = words(error) {
            let is_new = self.shown.as_ref().is_none_or(|shown| shown.text != text);
            if is_new {
                tracing::warn!(%trigger_id, "the topic of a Kafka trigger cannot be read: {text}");
                self.member.parts.note(trigger_id, Some(&text)).await;
            }
            let (assignment, at) = (self.consumer.assignment(), Instant::now());
            self.shown = Some(Shown { text, assignment, at, has_read: false });
        }
        tokio::time::sleep(KAFKA_PAUSE).await;
    }

    /// Shows no error any more, once there are other partitions, or records have been read for a while.
    async fn hide(&mut self) {
        let Some(shown) = &self.shown else { return };
        let has_others = self.consumer.assignment() != shown.assignment && self.consumer.has_partitions();
        if has_others || (shown.has_read && shown.at.elapsed() >= SHOWN_FOR) {
            self.shown = None;
            self.member.parts.note(self.member.trigger.id, None).await;
        }
    }

    /// Forgets records that another member reads, or this one again.
    fn forget_stale(&mut self) {
        let current = self.consumer.assignment();
        if self.held.iter().any(|held| held.assignment != current) {
            self.held.retain(|held| held.assignment == current);
            self.bytes = self.held.iter().map(|held| held.bytes).sum();
        }
    }

    /// Takes the next batch. Returns whether the trigger is still as it was.
    async fn process(&mut self) -> bool {
        if self.member.parts.relay.is_full() {
            self.retry_at = Some(Instant::now() + PAUSE);
            return true;
        }
        let mut bytes = 0;
        let fitting = self.held.iter().take(MAX_BATCH).take_while(|held| {
            let is_first = bytes == 0;
            bytes += held.bytes;
            is_first || bytes <= MAX_BATCH_BYTES
        });
        let batch: Vec<Arc<Record>> = fitting.map(|held| Arc::clone(&held.record)).collect();
        match self.member.receive(batch).await {
            Ok(Taken { count, waits }) => {
                self.failures = 0;
                self.done(count);
                match waits {
                    None => {}
                    Some(Wait::Quota) => self.retry_at = Some(Instant::now() + PAUSE),
                    Some(Wait::Rate) => {
                        let rate = self.member.config.max_per_second.unwrap_or(1).max(1);
                        let next = Duration::from_secs_f64(1.0 / rate as f64);
                        self.retry_at = Some(Instant::now() + next.clamp(Duration::from_millis(50), PAUSE));
                    }
                    Some(Wait::Changed) => return false,
                }
            }
            Err(error) => self.postpone(&error),
        }
        true
    }

    /// Stores the offsets of the first records, which are done with.
    fn done(&mut self, count: usize) {
        let current = self.consumer.assignment();
        let mut last = HashMap::new();
        for held in self.held.drain(..count) {
            self.bytes -= held.bytes;
            if held.assignment == current {
                last.insert(held.record.partition, held.record.offset);
            }
        }
        for (partition, offset) in last {
            self.consumer.done(partition, offset);
        }
    }

    fn postpone(&mut self, error: &FireError) {
        if self.failures == 0 {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                trigger_id = %self.member.trigger.id,
                "records of a Kafka trigger wait: {error}"
            );
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE);
        self.retry_at = Some(Instant::now() + pause);
        self.failures += 1;
    }

    fn pause_or_resume(&mut self) {
        let (len, bytes) = (self.held.len(), self.bytes);
        let is_full = len >= MAX_HELD || bytes >= MAX_HELD_BYTES;
        let is_low = len < MAX_HELD / 2 && bytes < MAX_HELD_BYTES / 2;
        let current = self.consumer.assignment();
        let is_paused = self.paused == Some(current);
        let wanted = is_full || (is_paused && !is_low);
        if wanted != is_paused {
            match self.consumer.set_paused(wanted) {
                Ok(()) => self.paused = wanted.then_some(current),
                Err(error) => tracing::debug!("reading was not paused or resumed: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_does_not_pass_by_itself_is_said_in_words() {
        let of = |code| words(&KafkaError::MessageConsumption(code));
        assert_eq!(of(Code::UnknownTopicOrPartition).as_deref(), Some("the topic does not exist"));
        assert_eq!(of(Code::TopicAuthorizationFailed).as_deref(), Some("the brokers deny reading the topic"));
        assert!(of(Code::NotImplemented).is_some_and(|text| text.contains("compressed")));
        assert!(of(Code::BadMessage).is_some_and(|text| text.contains("BadMessage")));
        for passing in [Code::BrokerTransportFailure, Code::AllBrokersDown, Code::UnknownMemberId, Code::PollExceeded] {
            assert_eq!(of(passing), None, "{passing}");
        }
    }
}
