//! A producer for what is sent beside runs' requests: dead letters, and monitoring updates. Like the relay's, it is
//! idempotent with `acks=all`; the caller waits for the outcome of what it hands over.

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
    replaceable::{self, Client, ClientRole, Context, ReplaceableClient},
};
use crate::config;

/// Largest record that such a producer sends: more than topics take by default, since what came in by a topic with a
/// higher limit shall fit.
pub const MAX_BYTES: usize = 16 << 20;
/// Records that may wait in the producer.
pub const MAX_QUEUED: usize = 20_000;

/// A record to send.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Outgoing<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a str, Option<Vec<u8>>)>,
}

/// See the module.
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
    /// Makes the client. Brokers need not be there yet; wrong settings are an error. `give_up`: how long a record is
    /// tried; `None`: as long as it takes.
    pub fn new(name: &'static str, settings: &config::Kafka, give_up: Option<Duration>) -> KafkaResult<Self> {
        let purpose = ClientRole { name, meaning: None };
        ReplaceableClient::new(purpose, settings, move |settings, last_error| {
            client(settings, give_up, Context(last_error))
        })
        .map(Self)
    }

    /// Makes the client anew whenever that is needed, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.0.watch(stop).await;
    }

    /// Sends records, [`MAX_QUEUED`] at most, in their order, and waits for all; the outcome of each.
    ///
    /// A broker refuses a batch that is too large with all its records; those are sent again one by one.
    ///
    /// Dropping the future takes nothing back.
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
        // Nothing here keeps the client: what it has is reported when it is replaced.
        let queued: Vec<_> = self.0.with(|producer| {
            records.iter().map(|record| producer.send_result(to_future(record)).map_err(|error| error.0)).collect()
        });
        let mut outcomes = Vec::with_capacity(queued.len());
        for outcome in queued {
            outcomes.push(match outcome {
                Err(error) => Err(error),
                Ok(delivery) => match delivery.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err((error, _))) => Err(error),
                    // The client has ended.
                    Err(_) => Err(KafkaError::Canceled),
                },
            });
        }
        outcomes
    }
}

/// Why Kafka will never take this record, if that is what the error says.
#[must_use]
pub fn refusal(error: &KafkaError) -> Option<Refusal> {
    Refusal::of(error.rdkafka_error_code()?)
}

fn client(
    settings: &config::Kafka,
    give_up: Option<Duration>,
    context: Context,
) -> KafkaResult<FutureProducer<Context>> {
    super::producer_config(settings)
        .set("linger.ms", "5")
        .set("message.timeout.ms", give_up.map_or(0, |give_up| give_up.as_millis()).to_string())
        .set("message.max.bytes", MAX_BYTES.to_string())
        .set("queue.buffering.max.messages", MAX_QUEUED.to_string())
        .set("queue.buffering.max.kbytes", "131072")
        .create_with_context(context)
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
