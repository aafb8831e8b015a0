//! Broker in this process: librdkafka's mock for tests. It speaks the Kafka protocol and keeps a few megabytes in
//! memory, so it is only for trying out the service.

use rdkafka::{error::KafkaError, mocking::MockCluster, producer::DefaultProducerContext};

use crate::config;

/// Mock broker. It runs until it is dropped.
pub(super) struct Broker(MockCluster<'static, DefaultProducerContext>);

impl Broker {
    /// Starts the broker on a free port of the loopback interface, with all topics: it does not support the request
    /// that creates topics.
    pub(super) fn start(kafka: &config::Kafka) -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        let always = [&kafka.execution_topic, &kafka.cancellation_topic, &kafka.dead_letter_topic];
        for topic in always.into_iter().chain(&kafka.monitoring_topic).chain(&kafka.events_topic) {
            cluster.create_topic(topic, kafka.partitions, 1)?;
        }
        Ok(Self(cluster))
    }

    /// Address for `KAFKA_BROKERS`.
    pub(super) fn address(&self) -> String {
        self.0.bootstrap_servers()
    }
}
