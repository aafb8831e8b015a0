//! The relay's producer: idempotent, `acks=all`, results by callback.

use std::time::Duration;

use rdkafka::{
    ClientContext,
    client::Client as NativeClient,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::{
    Refusal, message,
    replaceable::{self, Client, LastError},
};
use crate::config;

/// Messages that may wait in the producer, in number and in bytes: what a broken broker may cost in memory.
pub const MAX_QUEUED_MESSAGES: usize = 20_000;
/// See [`MAX_QUEUED_MESSAGES`].
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Largest record, just under the default of a topic's `max.message.bytes`.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Why the broker does not have a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// It was not sent, or nobody knows: it may be sent again.
    #[error("{0}")]
    Undelivered(RDKafkaErrorCode),
    /// The broker will never take it.
    #[error(transparent)]
    Refused(Refusal),
    /// It cannot be made.
    #[error("the workflow version that the run is pinned to does not exist")]
    NoPlan,
}

impl From<RDKafkaErrorCode> for DeliveryError {
    fn from(code: RDKafkaErrorCode) -> Self {
        Refusal::of(code).map_or(Self::Undelivered(code), Self::Refused)
    }
}

/// What became of a message.
#[derive(Debug)]
pub struct Report {
    /// The run, which is the message's key.
    pub run_id: String,
    /// Of the message.
    pub event_id: Uuid,
    /// Payload size.
    pub bytes: usize,
    /// The broker has it, or why not.
    pub outcome: Result<(), DeliveryError>,
    /// The outcome is about this message alone. Otherwise it was sent in a batch with others, and a broker that finds the
    /// batch too large refuses all of them.
    pub is_alone: bool,
}

/// Sends every delivery report into a channel. The channel is not bounded itself: there are at most as many reports
/// as queued messages.
pub struct Reports {
    reports: UnboundedSender<Report>,
    last_error: LastError,
    batching: Batching,
}

/// How many messages a producer sends in one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// As many as are there.
    Many,
    /// One.
    One,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        self.last_error.note(&error, reason);
    }
}

/// Travels with a message through librdkafka.
pub struct Envelope {
    run_id: String,
    event_id: Uuid,
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Envelope>;

    fn delivery(&self, result: &DeliveryResult<'_>, envelope: Self::DeliveryOpaque) {
        let (bytes, outcome) = match result {
            Ok(message) => (message.payload_len(), Ok(())),
            Err((error, message)) => {
                (message.payload_len(), Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail).into()))
            }
        };
        let Envelope { run_id, event_id } = *envelope;
        // The receiver lives as long as the relay. After that nobody needs the report: the row is still there.
        let is_alone = self.batching == Batching::One;
        drop(self.reports.send(Report { run_id, event_id, bytes, outcome, is_alone }));
    }
}

/// A producer with its own polling thread.
pub struct Producer(ThreadedProducer<Reports>);

impl Producer {
    /// Makes the client. Brokers need not be there yet; wrong settings are an error.
    pub fn new(
        kafka: &config::Kafka,
        batching: Batching,
        reports: UnboundedSender<Report>,
        last_error: LastError,
    ) -> KafkaResult<Self> {
        let mut settings = super::producer_config(kafka);
        if batching == Batching::One {
            settings.set("batch.num.messages", "1");
        }
        let producer = settings
            .set("linger.ms", "0")
            // The outbox row stays until the broker has the message, so there is no point in giving up.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", (MAX_RECORD_BYTES + 4096).to_string())
            .set("queue.buffering.max.messages", MAX_QUEUED_MESSAGES.to_string())
            .set("queue.buffering.max.kbytes", (MAX_QUEUED_BYTES >> 10).to_string())
            .create_with_context(Reports { reports, last_error, batching })?;
        Ok(Self(producer))
    }

    /// Queues a message keyed by its run. Does not block; the outcome comes as a [`Report`], but an error here is
    /// the only word on this message.
    pub fn send(
        &self,
        topic: &str,
        run_id: &str,
        event_id: Uuid,
        traceparent: &str,
        payload: &[u8],
    ) -> Result<(), KafkaError> {
        let envelope = Box::new(Envelope { run_id: run_id.to_owned(), event_id });
        let headers = message::headers(traceparent)
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let record = BaseRecord::with_opaque_to(topic, envelope).key(run_id).payload(payload).headers(headers);
        self.0.send(record).map_err(|(error, _)| error)
    }

    /// Waits until all queued messages have been reported, at most that long. Blocks the thread.
    pub fn flush(&self, at_most: Duration) -> Result<(), KafkaError> {
        self.0.flush(at_most)
    }
}

impl Client for Producer {
    type Context = Reports;

    fn native(&self) -> &NativeClient<Reports> {
        self.0.client()
    }

    fn end(self) {
        replaceable::end_producer(&self.0);
    }
}
