//! Publisher: producer of dead letters and monitoring updates. Like the relay's producer, it is idempotent with
//! `acks=all`; the caller waits for the outcome of its records.

use std::time::Duration;

use rdkafka::{
    client::Client as NativeClient,
    error::{KafkaError, KafkaResult},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _, future_producer::FutureProducerContext},
};
use tokio_util::sync::CancellationToken;

use super::{
    Refusal,
    callbacks::Context,
    replaceable::{self, Client, ClientRole, ReplaceableClient},
};
use crate::config;

/// Maximum size of a record. It exceeds the default of topics, since records of a topic with a higher limit must fit.
pub const MAX_BYTES: usize = 16 << 20;
/// Maximum number of queued records.
pub const MAX_QUEUED: usize = 20_000;

/// Record to send.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a str, Option<Vec<u8>>)>,
}

/// Publisher with a replaceable client.
pub struct Publisher(ReplaceableClient<FutureProducer<Context>>);

impl Client for FutureProducer<Context> {
    type Context = FutureProducerContext<Context>;

    fn native(&self) -> &NativeClient<Self::Context> {
        self.client()
    }

    fn end(self) {
        replaceable::end_producer(&self);
    }
}

impl Publisher {
    /// Creates the client. Brokers need not be up yet; invalid settings are an error. `delivery_timeout` is per record;
    /// `None`: no time-out.
    pub fn new(name: &'static str, settings: &config::Kafka, delivery_timeout: Option<Duration>) -> KafkaResult<Self> {
        let purpose = ClientRole { name, meaning: None };
        ReplaceableClient::new(purpose, settings, move |settings, callbacks| {
            client(settings, delivery_timeout, Context::new(callbacks))
        })
        .map(Self)
    }

    /// Replaces the client whenever necessary, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.0.watch(stop).await;
    }

    /// Sends records, at most [`MAX_QUEUED`], in their order, and waits for the outcome of each.
    ///
    /// A broker that finds a batch too large rejects all its records; these are sent again one by one.
    ///
    /// Dropping the future does not cancel the records.
    pub async fn publish(&self, records: &[Outgoing<'_>]) -> Vec<Result<(), KafkaError>> {
        let mut outcomes = self.publish_together(records).await;
        if records.len() > 1 {
            for (record, outcome) in records.iter().zip(&mut outcomes) {
                if outcome.as_ref().is_err_and(|error| refusal(error) == Some(Refusal::TooLarge)) {
                    *outcome = self.publish_together(std::slice::from_ref(record)).await.remove(0);
                }
            }
        }
        outcomes
    }

    async fn publish_together(&self, records: &[Outgoing<'_>]) -> Vec<Result<(), KafkaError>> {
        // No reference to the client is kept here: its records are reported when it is replaced.
        let (queued, _token) = self.0.queue(|producer, token| {
            let send = |record| producer.send_result(to_future(record)).map_err(|(error, _)| error);
            (records.iter().map(send).collect::<Vec<_>>(), token)
        });
        let mut outcomes = Vec::with_capacity(queued.len());
        for (record, outcome) in records.iter().zip(queued) {
            let outcome = match outcome {
                Err(error) => Err(error),
                Ok(delivery) => match delivery.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err((error, _))) => Err(error),
                    // The client has been closed.
                    Err(_) => Err(KafkaError::Canceled),
                },
            };
            let result = outcome.as_ref().copied().map_err(KafkaError::rdkafka_error_code);
            match result {
                Ok(()) => self.0.callbacks().delivery(record.topic, Ok(()), false),
                Err(Some(code)) => self.0.callbacks().delivery(record.topic, Err(code), records.len() > 1),
                Err(None) => {}
            }
            outcomes.push(outcome);
        }
        outcomes
    }
}

/// Reason why Kafka rejects this record for good, if the error is about the record.
#[must_use]
pub fn refusal(error: &KafkaError) -> Option<Refusal> {
    Refusal::of(error.rdkafka_error_code()?)
}

fn client(
    settings: &config::Kafka,
    delivery_timeout: Option<Duration>,
    context: Context,
) -> KafkaResult<FutureProducer<Context>> {
    let mut config = super::producer_config(settings);
    config
        .set("linger.ms", "5")
        .set("message.timeout.ms", delivery_timeout.map_or(0, |timeout| timeout.as_millis()).to_string())
        .set("message.max.bytes", MAX_BYTES.to_string())
        .set("queue.buffering.max.messages", MAX_QUEUED.to_string())
        .set("queue.buffering.max.kbytes", "131072");
    super::create(settings, &mut config, context)
}

fn to_future<'a>(record: &'a Outgoing<'a>) -> FutureRecord<'a, [u8], [u8]> {
    let mut future = FutureRecord::to(record.topic);
    if let Some(key) = record.key {
        future = future.key(key);
    }
    if let Some(value) = record.value {
        future = future.payload(value);
    }
    if !record.headers.is_empty() {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: value.as_ref() }));
        future = future.headers(headers);
    }
    future
}
