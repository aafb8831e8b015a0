//! Kafka and dead-letter settings: `KAFKA_*`, `MAX_BACKLOG`, `MAX_KAFKA_TRIGGERS`, `ENABLE_MONITORING_UPDATES`,
//! `DEAD_LETTER_RETENTION_DAYS` and `MAX_DEAD_LETTERS`.

mod clients;
mod properties;
mod triggers;

use std::time::Duration;

pub use self::{
    clients::{Clients, Oauth},
    triggers::KafkaTriggers,
};
use super::{Live, Reader, Section};

/// This is longer than the time-out of a broker request (15 s), so that librdkafka can recover by itself first.
const RENEW_KAFKA_CLIENTS_AFTER: Duration = Duration::from_secs(20);
/// This is longer than librdkafka tries to send a message to a broker that does not take it (11 times, 10 s each).
const KAFKA_PRODUCER_STALLED_AFTER: Duration = Duration::from_mins(2);

/// Kafka settings.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `KAFKA_BROKERS` in the format of librdkafka.
    pub brokers: String,
    /// `KAFKA_EXECUTION_TOPIC`.
    pub execution_topic: String,
    /// `KAFKA_CANCELLATION_TOPIC`.
    pub cancellation_topic: String,
    /// `KAFKA_DEAD_LETTER_TOPIC`: receives records of the first two topics that cannot be processed.
    pub dead_letter_topic: String,
    /// `KAFKA_MONITORING_TOPIC`, unless `ENABLE_MONITORING_UPDATES` is off.
    pub monitoring_topic: Option<String>,
    /// `KAFKA_EVENTS_TOPIC`: topic of events for other programs; `None`: there is none.
    pub events_topic: Option<String>,
    /// `KAFKA_TOPIC_PARTITIONS`: number of partitions of topics that are created.
    pub partitions: i32,
    /// `KAFKA_TOPIC_REPLICATION`: number of replicas of topics that are created. `None`: the default of the cluster.
    pub replication: Option<i32>,
    /// `MAX_BACKLOG`: messages that may wait for Kafka before new runs are refused. Each is a row.
    pub max_backlog: i64,
    /// `KAFKA_GROUP_ID`: consumer group of the executors.
    pub group_id: String,
    /// Limits of triggers that read topics.
    pub triggers: KafkaTriggers,
    /// TLS, authentication and further properties of the clients.
    pub clients: Live<Clients>,
    /// Not a setting: a client that reaches no broker for this long, while other clients do, is replaced.
    pub renew_after: Duration,
    /// Not a setting: a producer that has not sent a message for this long, while brokers answer it, is replaced.
    pub stalled_after: Duration,
}

impl Section for Kafka {
    fn read(reader: &mut Reader) -> Option<Self> {
        let brokers = reader.required("kafka_brokers").and_then(|value| {
            let brokers: Vec<&str> = value.split(',').map(str::trim).filter(|broker| !broker.is_empty()).collect();
            match brokers.iter().find(|broker| !is_host_and_port(broker)) {
                Some(wrong) => {
                    reader.problem("kafka_brokers", format!("has an entry that is not host:port: {wrong:?}"))
                }
                None if brokers.is_empty() => reader.problem("kafka_brokers", "names no broker"),
                None => Some(brokers.join(",")),
            }
        });
        let execution_topic = topic(reader, "kafka_execution_topic", "workflow.execution.requests");
        let cancellation_topic = topic(reader, "kafka_cancellation_topic", "workflow.cancellation.requests");
        let dead_letter_topic = topic(reader, "kafka_dead_letter_topic", "workflow.dead-letters");
        let monitoring_topic = topic(reader, "kafka_monitoring_topic", "workflow.monitoring.updates");
        let has_events = reader.has("kafka_events_topic");
        let events_topic = topic(reader, "kafka_events_topic", "");
        let is_monitored = reader.boolean("enable_monitoring_updates", true);
        let topics = [
            ("kafka_execution_topic", &execution_topic),
            ("kafka_cancellation_topic", &cancellation_topic),
            ("kafka_dead_letter_topic", &dead_letter_topic),
            ("kafka_monitoring_topic", &monitoring_topic),
            ("kafka_events_topic", &events_topic),
        ];
        for (index, (name, topic)) in topics.iter().enumerate() {
            if let Some((other, _)) = topics[..index].iter().find(|(_, other)| topic.is_some() && other == topic) {
                reader.problem::<()>(name, format!("must differ from {}", other.to_ascii_uppercase()));
            }
        }
        let partitions = reader.number("kafka_topic_partitions", 6, 1..=1000);
        let replication = reader.parsed("kafka_topic_replication", None, |value| match value.parse() {
            Ok(number @ 1..=100) => Ok(Some(number)),
            _ => Err(format!("must be a whole number from 1 to 100, not {value:?}")),
        });
        let max_backlog = reader.number("max_backlog", 100_000, 1..=10_000_000);
        let clients = Clients::read(reader);
        let own = topics.iter().filter_map(|(_, topic)| (*topic).clone()).filter(|topic| !topic.is_empty());
        let triggers = KafkaTriggers::read(reader, own.collect());
        Some(Self {
            triggers: triggers?,
            brokers: brokers?,
            execution_topic: execution_topic?,
            cancellation_topic: cancellation_topic?,
            dead_letter_topic: dead_letter_topic?,
            events_topic: Some(events_topic?).filter(|_| has_events),
            monitoring_topic: Some(monitoring_topic?).filter(|_| is_monitored == Some(true)),
            partitions: partitions?,
            replication: replication?,
            max_backlog: max_backlog?,
            group_id: reader.text("kafka_group_id", "execution-consumer-group"),
            clients: Live::new(clients?),
            renew_after: RENEW_KAFKA_CLIENTS_AFTER,
            stalled_after: KAFKA_PRODUCER_STALLED_AFTER,
        })
    }
}

fn topic(reader: &mut Reader, name: &str, default: &str) -> Option<String> {
    reader.parsed(name, default.to_owned(), |value| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if value.len() <= 249 && value.chars().all(legal) && value != "." && value != ".." {
            Ok(value.to_owned())
        } else {
            Err(format!("is not a legal topic name: {value:?}"))
        }
    })
}

fn is_host_and_port(broker: &str) -> bool {
    broker.rsplit_once(':').is_some_and(|(host, port)| {
        let legal = |c: char| c.is_alphanumeric() || "._-".contains(c);
        let is_bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = is_bracketed.map_or(!host.is_empty() && host.chars().all(legal), |address| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
        });
        is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Retention of records that cannot be processed.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetters {
    /// `DEAD_LETTER_RETENTION_DAYS`.
    pub days: i32,
    /// `MAX_DEAD_LETTERS`.
    pub most: i64,
}

impl Section for DeadLetters {
    fn read(reader: &mut Reader) -> Option<Self> {
        let days = reader.number("dead_letter_retention_days", 30, 1..=36_500);
        let most = reader.number("max_dead_letters", 10_000, 1..=10_000_000);
        Some(Self { days: days?, most: most? })
    }
}
