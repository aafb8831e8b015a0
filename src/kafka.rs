//! Kafka: client configuration and topics. Payloads are in [`message`].

pub mod consumer;
pub mod message;
pub mod producer;
pub mod publisher;
pub mod replaceable;

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::MetadataTopic,
    types::RDKafkaErrorCode,
};

use crate::config;

/// Time-out of metadata and admin requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Time-out of a request, after which its connection is closed. It is above [`PRODUCE_TIMEOUT`] and far above the usual
/// duration: a consumer waits a tenth of a second for records.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Time-out for opening a connection, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker may wait for its replicas before it answers a producer.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(10);

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
        .set_log_level(RDKafkaLogLevel::Error);
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
        // Same partition for a key as with the Java clients.
        .set("partitioner", "murmur2_random");
    config
}

/// Number of brokers that a new client finds; none is an error. Blocks the thread.
pub fn ping(kafka: &config::Kafka) -> Result<usize, KafkaError> {
    let client: BaseConsumer = client_config(kafka).create()?;
    replaceable::ask(client.client(), &kafka.execution_topic, REQUEST_TIMEOUT)
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

/// Creates missing topics; existing ones are not changed. The topics of executions and cancellations have the same
/// partition count, so that both kinds of message about a run reach the same group member: if one of them exists, the
/// other is created with its count.
pub async fn ensure_topics(kafka: &config::Kafka) -> Result<(), KafkaError> {
    let settings = kafka.clone();
    let existing =
        tokio::task::spawn_blocking(move || partition_counts(&settings)).await.unwrap_or(Err(KafkaError::Canceled))?;
    let count_of = |topic: &str| existing.iter().find(|(name, _)| name == topic).map(|(_, count)| *count);
    let pair = [&kafka.execution_topic, &kafka.cancellation_topic];
    let count = pair.iter().find_map(|topic| count_of(topic)).unwrap_or(kafka.partitions);
    // -1 is the default of the cluster.
    let topic = |name, count| NewTopic::new(name, count, TopicReplication::Fixed(-1));
    let largest = publisher::MAX_BYTES.to_string();
    let mut wanted: Vec<NewTopic<'_>> = pair.map(|name| topic(name, count)).into();
    // Every received record must fit, with additional headers.
    wanted.push(topic(&kafka.dead_letter_topic, kafka.partitions).set("max.message.bytes", &largest));
    wanted.extend(kafka.monitoring_topic.as_ref().map(|name| topic(name, kafka.partitions)));
    let missing: Vec<NewTopic<'_>> = wanted.into_iter().filter(|topic| count_of(topic.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT));
    for result in admin.create_topics(&missing, &options).await? {
        match result {
            Ok(topic) => tracing::info!(topic, "topic {topic} created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    Ok(())
}

/// All topics with their partition counts.
fn partition_counts(kafka: &config::Kafka) -> Result<Vec<(String, i32)>, KafkaError> {
    let client: BaseConsumer = client_config(kafka).create()?;
    let metadata = client.fetch_metadata(None, REQUEST_TIMEOUT)?;
    let count = |topic: &MetadataTopic| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
    let topics = metadata.topics().iter().filter(|topic| !topic.partitions().is_empty());
    Ok(topics.map(|topic| (topic.name().to_owned(), count(topic))).collect())
}
