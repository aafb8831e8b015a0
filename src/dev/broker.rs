//! The broker in this process: librdkafka's own for tests. It speaks Kafka's protocol and keeps a few megabytes in
//! memory, so it is for trying the service and for nothing else.

use rdkafka::{error::KafkaError, mocking::MockCluster, producer::DefaultProducerContext};

use crate::config;

/// Runs as long as it is kept.
pub(super) struct Broker(MockCluster<'static, DefaultProducerContext>);

impl Broker {
    /// Starts it on a free port of the loopback interface, with all topics: it does not know the request that would
    /// create them later.
    pub(super) fn start(kafka: &config::Kafka) -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        let always = [&kafka.execution_topic, &kafka.cancellation_topic, &kafka.dead_letter_topic];
        for topic in always.into_iter().chain(&kafka.monitoring_topic) {
            cluster.create_topic(topic, kafka.partitions, 1)?;
        }
        Ok(Self(cluster))
    }

    /// For `KAFKA_BROKERS`.
    pub(super) fn address(&self) -> String {
        self.0.bootstrap_servers()
    }
}
