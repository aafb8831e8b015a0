//! Producer of the relay: idempotent, `acks=all`, results by callback.

use std::time::Duration;

use rdkafka::{
    client::Client as NativeClient,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{DeliveryResult, Header, Message as _, OwnedHeaders},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::sync::mpsc::UnboundedSender;
use uuid::Uuid;

use super::{
    Refusal,
    callbacks::{Callbacks, Context, Role},
    message,
    replaceable::{self, Client},
    stall::Token,
};
use crate::config;

/// Maximum number and bytes of queued messages, which bounds the memory during an outage of the broker.
pub const MAX_QUEUED_MESSAGES: usize = 20_000;
/// See [`MAX_QUEUED_MESSAGES`].
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Maximum size of a record, just under the default of a topic's `max.message.bytes`.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Reason why the broker does not have a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The delivery failed or its result is unknown: the message may be sent again.
    #[error("{0}")]
    Undelivered(RDKafkaErrorCode),
    /// The broker rejects the message for good.
    #[error(transparent)]
    Refused(Refusal),
    /// The message cannot be built.
    #[error("the workflow version that the run is pinned to does not exist")]
    NoPlan,
}

impl DeliveryError {
    /// Error code of a run whose message cannot be sent, in metrics.
    #[must_use]
    pub fn error_code(self) -> &'static str {
        if self == Self::Refused(Refusal::TooLarge) { "message_too_large" } else { "dispatch_failed" }
    }
}

impl From<RDKafkaErrorCode> for DeliveryError {
    fn from(code: RDKafkaErrorCode) -> Self {
        Refusal::of(code).map_or(Self::Undelivered(code), Self::Refused)
    }
}

/// Delivery report of a message.
#[derive(Debug)]
pub struct Report {
    /// Id of the run, which is the message's key.
    pub run_id: String,
    /// Id of the message.
    pub event_id: Uuid,
    /// Batch of the outbox that the message belongs to; `None`: it has a row of its own.
    pub batch: Option<Uuid>,
    /// Payload size.
    pub bytes: usize,
    /// Success, or the reason of the failure.
    pub outcome: Result<(), DeliveryError>,
    /// Whether the outcome is about this message alone. Otherwise it was sent in a batch, and a broker that finds the
    /// batch too large rejects all its messages.
    pub is_alone: bool,
}

/// Role that sends every delivery report into a channel. The channel is unbounded, but there are at most as
/// many reports as queued messages.
pub struct Reports {
    reports: UnboundedSender<Report>,
    batching: Batching,
}

impl Role for Reports {}

/// Batching of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// Several messages per batch.
    Many,
    /// One message per batch.
    One,
}

/// Data that travels with a message through librdkafka.
pub struct Envelope {
    run_id: String,
    event_id: Uuid,
    batch: Option<Uuid>,
    /// Dropped with the delivery report.
    _token: Token,
}

impl ProducerContext for Context<Reports> {
    type DeliveryOpaque = Box<Envelope>;

    fn delivery(&self, result: &DeliveryResult<'_>, envelope: Self::DeliveryOpaque) {
        let (message, outcome) = match result {
            Ok(message) => (message, Ok(())),
            Err((error, message)) => (message, Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))),
        };
        self.callbacks.delivery(message.topic(), outcome, self.role.batching == Batching::Many);
        let (bytes, outcome) = (message.payload_len(), outcome.map_err(DeliveryError::from));
        let Envelope { run_id, event_id, batch, .. } = *envelope;
        // The receiver lives as long as the relay. Later reports are not needed: the row still exists.
        let is_alone = self.role.batching == Batching::One;
        drop(self.role.reports.send(Report { run_id, event_id, batch, bytes, outcome, is_alone }));
    }
}

/// Producer with its own polling thread.
pub struct Producer(ThreadedProducer<Context<Reports>>);

impl Producer {
    /// Creates the client. Brokers need not be up yet; invalid settings are an error.
    pub fn new(
        kafka: &config::Kafka,
        batching: Batching,
        reports: UnboundedSender<Report>,
        callbacks: Callbacks,
    ) -> KafkaResult<Self> {
        let mut settings = super::producer_config(kafka);
        if batching == Batching::One {
            settings.set("batch.num.messages", "1");
        }
        settings
            .set("linger.ms", "0")
            // The outbox row stays until the broker has the message, so a delivery time-out is of no use.
            .set("message.timeout.ms", "0")
            .set("message.max.bytes", (MAX_RECORD_BYTES + 4096).to_string())
            .set("queue.buffering.max.messages", MAX_QUEUED_MESSAGES.to_string())
            .set("queue.buffering.max.kbytes", (MAX_QUEUED_BYTES >> 10).to_string());
        Ok(Self(super::create(kafka, &mut settings, Context { callbacks, role: Reports { reports, batching } })?))
    }

    /// Queues a message keyed by its run. Does not block. The outcome is sent as a [`Report`], except for an error that
    /// is returned here.
    pub fn send(
        &self,
        topic: &str,
        (run_id, event_id, batch): (&str, Uuid, Option<Uuid>),
        traceparent: &str,
        payload: &[u8],
        token: Token,
    ) -> Result<(), KafkaError> {
        let envelope = Box::new(Envelope { run_id: run_id.to_owned(), event_id, batch, _token: token });
        let headers = message::headers(traceparent)
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let record = BaseRecord::with_opaque_to(topic, envelope).key(run_id).payload(payload).headers(headers);
        self.0.send(record).map_err(|(error, _)| {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            self.0.context().callbacks.delivery(topic, Err(code), false);
            error
        })
    }

    /// Waits until all queued messages have been reported, or until the time-out. Blocks the thread.
    pub fn flush(&self, at_most: Duration) -> Result<(), KafkaError> {
        self.0.flush(at_most)
    }
}

impl Client for Producer {
    type Context = Context<Reports>;

    fn native(&self) -> &NativeClient<Context<Reports>> {
        self.0.client()
    }

    fn end(self) {
        replaceable::end_producer(&self.0);
    }
}
