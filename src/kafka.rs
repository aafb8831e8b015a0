//! Kafka: client configuration and topics. Payloads are in [`message`].

pub mod callbacks;
pub mod consumer;
mod group;
pub mod lag;
pub mod message;
mod oauth;
pub mod problem;
pub mod producer;
pub mod publisher;
pub mod replaceable;
mod stall;
pub mod topics;
pub mod trigger_consumer;

use std::time::Duration;

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    metadata::MetadataTopic,
    producer::{FutureProducer, Producer as _},
    types::RDKafkaErrorCode,
};

use self::callbacks::{Callbacks, Context};
use crate::config;

/// Time-out of metadata and admin requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time-out of requests of which there may be many.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time-out of a request, after which its connection is closed. It is above [`PRODUCE_TIMEOUT`] and far above the usual
/// duration: a consumer waits a tenth of a second for records.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Time-out for opening a connection, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may wait for its replicas before it answers a producer.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Interval of the statistics of a client.
const STATISTICS_EVERY: Duration = Duration::from_secs(15);

/// Base configuration of every client.
#[must_use]
pub fn client_config(kafka: &config::Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "workflow-api")
        .set("reconnect.backoff.ms", "50")
        // A broker that is back is noticed within a second.
        .set("reconnect.backoff.max.ms", "1000")
        // A broker that vanishes does not close its connections: requests are repeated on another connection after this
        // time.
        .set("socket.timeout.ms", ANSWER_TIMEOUT.as_millis().to_string())
        .set("socket.connection.setup.timeout.ms", CONNECT_TIMEOUT.as_millis().to_string())
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        // `ensure_topics` creates the topics, with the partition count of the settings.
        .set("allow.auto.create.topics", "false")
        .set("broker.address.ttl", "1000")
        .set("statistics.interval.ms", STATISTICS_EVERY.as_millis().to_string())
        .set_log_level(RDKafkaLogLevel::Error);
    kafka.clients.current().apply(&mut config);
    config
}

/// Base configuration of every producer.
#[must_use]
pub fn producer_config(kafka: &config::Kafka) -> ClientConfig {
    let mut config = client_config(kafka);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("request.timeout.ms", PRODUCE_TIMEOUT.as_millis().to_string())
        // About 8 s, with growing pauses. librdkafka does not tell of a refusal before the last try.
        .set("message.send.max.retries", "10")
        // Same partition for a key as with the Java clients.
        .set("partitioner", "murmur2_random");
    config
}

/// Creates a client. Properties that the operator has set take precedence over those of `config`.
fn create<C, T>(kafka: &config::Kafka, config: &mut ClientConfig, context: C) -> KafkaResult<T>
where
    C: ClientContext,
    T: FromClientConfigAndContext<C>,
{
    kafka.clients.current().apply(config);
    config.create_with_context(context)
}

/// Number of brokers that a new client finds; none is an error. Blocks the thread.
pub fn ping(kafka: &config::Kafka) -> Result<usize, PingError> {
    let callbacks = Callbacks::new("requests to Kafka", kafka);
    // A producer reads the errors of its connections in a thread of its own.
    let client: FutureProducer<Context> = create(kafka, &mut client_config(kafka), Context::new(callbacks.clone()))?;
    let answer = replaceable::ask(client.client(), &kafka.execution_topic, REQUEST_TIMEOUT);
    answer.map(|answer| answer.brokers).map_err(|error| match callbacks.last_error() {
        Some((kind, reason)) => PingError::Connection(kind.text(), reason),
        None => PingError::Kafka(error.to_string()),
    })
}

/// Reason why a new client gets no answer.
#[derive(Debug, thiserror::Error)]
pub enum PingError {
    /// Error of the connection: its kind, and the text of librdkafka.
    #[error("{0} ({1})")]
    Connection(&'static str, String),
    /// Another error.
    #[error("{0}")]
    Kafka(String),
}

impl From<KafkaError> for PingError {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error.to_string())
    }
}

/// New client for single requests.
fn open(kafka: &config::Kafka, mut config: ClientConfig, callbacks: Callbacks) -> KafkaResult<BaseConsumer<Context>> {
    let client: BaseConsumer<Context> = create(kafka, &mut config, Context::new(callbacks))?;
    if kafka.clients.current().oauth.is_some() {
        // The request for the first token waits in the queue of events.
        client.poll(Duration::ZERO);
    }
    Ok(client)
}

/// Reason why a broker rejects a record for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Larger than the topic or the client allows.
    #[error("its message is larger than the topic takes (max.message.bytes)")]
    TooLarge,
    /// Any other invalid record.
    #[error("Kafka rejects its message as invalid")]
    Invalid,
}

impl Refusal {
    /// Classifies the error, if it is about the record itself.
    #[must_use]
    pub fn of(code: RDKafkaErrorCode) -> Option<Self> {
        use RDKafkaErrorCode as Code;
        match code {
            Code::MessageSizeTooLarge | Code::InvalidMessageSize => Some(Self::TooLarge),
            Code::InvalidMessage | Code::InvalidRecord => Some(Self::Invalid),
            _ => None,
        }
    }
}

/// Whether the executors' group has read all records of the execution topic. Blocks the thread.
pub fn queue_is_drained(kafka: &config::Kafka) -> Result<bool, KafkaError> {
    let mut config = client_config(kafka);
    config.set("group.id", &kafka.group_id);
    let client = open(kafka, config, Callbacks::new("requests to Kafka", kafka))?;
    let metadata = client.fetch_metadata(Some(&kafka.execution_topic), SHORT_TIMEOUT)?;
    let mut asked = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
        asked.add_partition(&kafka.execution_topic, partition.id());
    }
    for committed in client.committed_offsets(asked, SHORT_TIMEOUT)?.elements() {
        let (low, high) = client.fetch_watermarks(&kafka.execution_topic, committed.partition(), SHORT_TIMEOUT)?;
        let read = if let Offset::Offset(offset) = committed.offset() { offset } else { low };
        if read < high {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_sets_takes_precedence_over_the_values_of_the_service() {
        let tuned = [
            ("compression_type", "compression.type", "lz4"),
            ("linger_ms", "linger.ms", "20"),
            ("batch_size", "batch.size", "65536"),
            ("fetch_min_bytes", "fetch.min.bytes", "1024"),
            ("fetch_wait_max_ms", "fetch.wait.max.ms", "250"),
            ("queued_min_messages", "queued.min.messages", "500"),
        ];
        let variables = tuned.map(|(suffix, _, value)| (format!("KAFKA_PROPERTY_{suffix}"), value.to_owned()));
        let variables = variables.into_iter().chain([("KAFKA_BROKERS".to_owned(), "host:9092".to_owned())]);
        let kafka: config::Kafka = config::load(variables).expect("valid settings");
        let mut config = producer_config(&kafka);
        // As each kind of client does.
        config.set("linger.ms", "0").set("fetch.wait.max.ms", "100").set("queued.min.messages", "2000");
        let _client: BaseConsumer<Context> =
            create(&kafka, &mut config, Context::new(Callbacks::new("test", &kafka))).expect("a client");
        for (_, property, value) in tuned {
            assert_eq!(config.get(property), Some(value), "{property}");
        }
    }
}
