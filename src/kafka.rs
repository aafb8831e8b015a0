//! Kafka: how clients are set up, and the topics. Payloads are in [`message`].

pub mod consumer;
pub mod message;
pub mod producer;

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use crate::config;

/// Metadata and admin requests that take longer count as no answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What every client of ours starts from.
#[must_use]
pub fn client_config(kafka: &config::Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("client.id", "workflow-api")
        .set("reconnect.backoff.ms", "50")
        // A broker that is back shall be noticed within a second.
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        // Topics are made by `ensure_topics`, with the partition count that the settings name.
        .set("allow.auto.create.topics", "false")
        .set("broker.address.ttl", "1000")
        .set_log_level(RDKafkaLogLevel::Error);
    config
}

/// Whether a broker answers, as a blocking call for a thread of its own.
pub fn ping(kafka: &config::Kafka) -> Result<usize, KafkaError> {
    let client: BaseConsumer = client_config(kafka).create()?;
    client.fetch_metadata(None, REQUEST_TIMEOUT).map(|metadata| metadata.brokers().len())
}

/// Makes the two topics where they are missing, both with the same partition count, so that the two kinds of
/// message about a run reach the same group member. A topic that exists is left as it is, but its partner is made
/// with its count.
pub async fn ensure_topics(kafka: &config::Kafka) -> Result<(), KafkaError> {
    let settings = kafka.clone();
    let partitions =
        tokio::task::spawn_blocking(move || partition_counts(&settings)).await.unwrap_or(Err(KafkaError::Canceled))?;
    let count = partitions.iter().copied().find(|count| *count > 0).unwrap_or(kafka.partitions);
    let admin: AdminClient<DefaultClientContext> = client_config(kafka).create()?;
    let topics = [&kafka.execution_topic, &kafka.cancellation_topic];
    let missing: Vec<NewTopic<'_>> = topics
        .iter()
        .zip(&partitions)
        .filter(|(_, existing)| **existing == 0)
        // -1: as the cluster's default says.
        .map(|(topic, _)| NewTopic::new(topic, count, TopicReplication::Fixed(-1)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT));
    for result in admin.create_topics(&missing, &options).await? {
        match result {
            Ok(topic) => tracing::info!(topic, partitions = count, "topic {topic} created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    Ok(())
}

/// The partition counts of the execution and the cancellation topic, 0 for one that does not exist.
fn partition_counts(kafka: &config::Kafka) -> Result<[i32; 2], KafkaError> {
    let client: BaseConsumer = client_config(kafka).create()?;
    let metadata = client.fetch_metadata(None, REQUEST_TIMEOUT)?;
    let count = |name: &str| {
        let topic = metadata.topics().iter().find(|topic| topic.name() == name);
        topic.map_or(0, |topic| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX))
    };
    Ok([count(&kafka.execution_topic), count(&kafka.cancellation_topic)])
}
