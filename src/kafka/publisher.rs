//! A producer for what is sent beside runs' requests: dead letters, and monitoring updates. Like the relay's, it is
//! idempotent with `acks=all`; the caller waits for the outcome of what it hands over.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer as _},
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
pub struct Publisher {
    settings: config::Kafka,
    /// Given up on a record after that.
    give_up: Option<Duration>,
    producer: Mutex<FutureProducer>,
}

impl Publisher {
    /// Makes the client. Brokers need not be there yet; wrong settings are an error. `give_up`: how long a record is
    /// tried; `None`: as long as it takes.
    pub fn new(settings: &config::Kafka, give_up: Option<Duration>) -> KafkaResult<Self> {
        let producer = Mutex::new(client(settings, give_up)?);
        Ok(Self { settings: settings.clone(), give_up, producer })
    }

    /// Sends records, [`MAX_QUEUED`] at most, in their order, and waits for all; the outcome of each.
    ///
    /// Dropping the future takes nothing back.
    pub async fn publish(&self, records: &[Outgoing<'_>]) -> Vec<Result<(), KafkaError>> {
        let producer = match self.working() {
            Ok(producer) => producer,
            Err(error) => return records.iter().map(|_| Err(error.clone())).collect(),
        };
        let send = |record| producer.send_result(to_future(record)).map_err(|error| error.0);
        let queued: Vec<_> = records.iter().map(send).collect();
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

    /// The producer; a new one if it has met an error after which it sends nothing any more.
    fn working(&self) -> KafkaResult<FutureProducer> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if producer.client().fatal_error().is_some() {
            tracing::warn!("a Kafka producer met a fatal error and is replaced");
            let broken = std::mem::replace(&mut *producer, client(&self.settings, self.give_up)?);
            tokio::task::spawn_blocking(move || drop(broken));
        }
        Ok(producer.clone())
    }
}

/// Whether Kafka will never take this record, however often it is sent.
#[must_use]
pub fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::MessageSizeTooLarge | Code::InvalidMessage | Code::InvalidMessageSize | Code::InvalidRecord)
    )
}

fn client(settings: &config::Kafka, give_up: Option<Duration>) -> KafkaResult<FutureProducer> {
    super::client_config(settings)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("message.timeout.ms", give_up.map_or(0, |give_up| give_up.as_millis()).to_string())
        .set("message.max.bytes", MAX_BYTES.to_string())
        .set("queue.buffering.max.messages", MAX_QUEUED.to_string())
        .set("queue.buffering.max.kbytes", "131072")
        .create()
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
