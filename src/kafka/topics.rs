//! Topics: creates missing ones, checks the settings of existing ones, and adds partitions by command.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication},
    consumer::Consumer as _,
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::{
    callbacks::{Callbacks, Context},
    client_config, create, message, open, producer, publisher,
};
use crate::config;

/// Time-out of metadata and admin requests.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter retention loses messages that wait while no executor runs. They are sent again only minutes later.
const MIN_RETENTION_MS: i64 = 24 * 3_600_000;
/// Name of the clients in metrics.
const CLIENT: &str = "topics";

/// Reason why the topics cannot be created or checked.
#[derive(Debug, thiserror::Error)]
pub enum TopicsError {
    /// A request failed.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A topic is missing and was not created.
    #[error("topic {0} does not exist and cannot be created: {1}")]
    NotCreated(String, String),
    /// A topic got no more partitions.
    #[error("topic {0} gets no more partitions: {1}")]
    NotExtended(String, String),
}

/// Problem of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether messages can be lost or refused because of it.
    pub is_error: bool,
    /// Text with the name of the topic.
    pub text: String,
}

/// Settings of a topic.
#[derive(Clone, Debug, Default)]
struct Topic {
    partitions: usize,
    /// Smallest number of replicas of a partition.
    replicas: usize,
    /// Its configuration; empty if it could not be read.
    settings: HashMap<String, String>,
}

/// All topics of the cluster, and the number of brokers.
struct Cluster {
    brokers: usize,
    topics: BTreeMap<String, Topic>,
}

/// Topic with its number of partitions before and after [`add_partitions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// Name of the topic.
    pub topic: String,
    /// Number before; 0 if the topic does not exist.
    pub before: usize,
    /// Number after.
    pub after: usize,
}

/// Creates missing topics; existing ones are not changed. The topics of executions and cancellations have the same
/// partition count, so that both kinds of message about a run reach the same group member: if one of them exists, the
/// other is created with its count.
pub async fn ensure(kafka: &config::Kafka) -> Result<(), TopicsError> {
    let Cluster { brokers, topics: existing } = cluster(kafka).await?;
    let count_of = |topic: &str| existing.get(topic).and_then(|topic| i32::try_from(topic.partitions).ok());
    let pair = [&kafka.execution_topic, &kafka.cancellation_topic];
    let count = pair.iter().find_map(|topic| count_of(topic)).unwrap_or(kafka.partitions);
    // -1 is the default of the cluster.
    let replicas = kafka.replication.unwrap_or(-1);
    let topic = |name, count| NewTopic::new(name, count, TopicReplication::Fixed(replicas));
    let largest = publisher::MAX_BYTES.to_string();
    let mut wanted: Vec<NewTopic<'_>> = pair.map(|name| topic(name, count)).into();
    // Every received record must fit, with additional headers.
    wanted.push(topic(&kafka.dead_letter_topic, kafka.partitions).set("max.message.bytes", &largest));
    wanted.extend(others(kafka).map(|name| topic(name, kafka.partitions)));
    let missing: Vec<NewTopic<'_>> = wanted.into_iter().filter(|topic| count_of(topic.name).is_none()).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let Some(admin) = admin(kafka)? else {
        let why = "with OAUTHBEARER create it with the tools of Kafka".to_owned();
        return Err(TopicsError::NotCreated(first.name.to_owned(), why));
    };
    for result in admin.create_topics(&missing, &options()).await? {
        match result {
            Ok(topic) => tracing::info!(topic, "topic {topic} created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, RDKafkaErrorCode::InvalidReplicationFactor)) => {
                let wanted = kafka.replication.map_or("the cluster's default".to_owned(), |number| number.to_string());
                let why = format!("KAFKA_TOPIC_REPLICATION is {wanted}, and the number of brokers is {brokers}");
                return Err(TopicsError::NotCreated(topic, why));
            }
            Err((topic, code)) => return Err(TopicsError::NotCreated(topic, code.to_string())),
        }
    }
    Ok(())
}

/// Gives each topic that exists the number of partitions of the settings, if it has fewer. The topics of executions and
/// cancellations get the same number: the largest of the settings and of both. A repeat is safe, and processes may run
/// meanwhile: consumers notice new partitions within seconds and read them from their beginning, producers use them later.
pub async fn add_partitions(kafka: &config::Kafka) -> Result<Vec<Extended>, TopicsError> {
    let existing = cluster(kafka).await?.topics;
    let count_of = |topic: &str| existing.get(topic).map_or(0, |topic| topic.partitions);
    let wanted = usize::try_from(kafka.partitions).unwrap_or(0);
    let pair = [&kafka.execution_topic, &kafka.cancellation_topic];
    let of_pair = pair.iter().map(|topic| count_of(topic)).max().unwrap_or(0).max(wanted);
    let rest = [&kafka.dead_letter_topic].into_iter().chain(others(kafka));
    let all = pair.into_iter().map(|topic| (topic, of_pair)).chain(rest.map(|topic| (topic, wanted)));
    let topics: Vec<Extended> = all
        .map(|(topic, wanted)| {
            let before = count_of(topic);
            let after = if before == 0 { 0 } else { before.max(wanted) };
            Extended { topic: topic.clone(), before, after }
        })
        .collect();
    let growing: Vec<&Extended> = topics.iter().filter(|topic| topic.before < topic.after).collect();
    let Some(first) = growing.first() else { return Ok(topics) };
    let Some(admin) = admin(kafka)? else {
        let why = "with OAUTHBEARER add them with the tools of Kafka".to_owned();
        return Err(TopicsError::NotExtended(first.topic.clone(), why));
    };
    let requests: Vec<NewPartitions<'_>> =
        growing.iter().map(|topic| NewPartitions::new(&topic.topic, topic.after)).collect();
    for result in admin.create_partitions(&requests, &options()).await? {
        if let Err((topic, code)) = result {
            return Err(TopicsError::NotExtended(topic, code.to_string()));
        }
    }
    Ok(topics)
}

/// Checks partitions, replication and configuration of the topics.
pub async fn check(kafka: &config::Kafka) -> Result<Vec<Finding>, TopicsError> {
    let mut cluster = cluster(kafka).await?;
    let names: Vec<&str> = [&kafka.execution_topic, &kafka.cancellation_topic, &kafka.dead_letter_topic]
        .into_iter()
        .chain(others(kafka))
        .map(String::as_str)
        .filter(|name| cluster.topics.contains_key(*name))
        .collect();
    let mut findings = Vec::new();
    if let Some(admin) = admin(kafka)? {
        let resources: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described =
            if resources.is_empty() { Vec::new() } else { admin.describe_configs(&resources, &options()).await? };
        for (name, described) in names.iter().zip(described) {
            match described {
                Ok(resource) => {
                    let entries = resource.entries.into_iter();
                    let settings = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                    cluster.topics.entry((*name).to_owned()).or_default().settings = settings;
                }
                Err(code) => findings.push(warning(format!("topic {name}: its configuration cannot be read ({code})"))),
            }
        }
    }
    findings.extend(judge(kafka, &cluster));
    Ok(findings)
}

/// Topics that are written only if the settings name them.
fn others(kafka: &config::Kafka) -> impl Iterator<Item = &String> {
    kafka.monitoring_topic.iter().chain(&kafka.events_topic)
}

/// Client for admin requests. `None` with OAUTHBEARER: the library gives such clients no token.
pub(super) fn admin(kafka: &config::Kafka) -> Result<Option<AdminClient<Context>>, KafkaError> {
    if kafka.clients.current().oauth.is_some() {
        return Ok(None);
    }
    create(kafka, &mut client_config(kafka), Context::new(Callbacks::new(CLIENT, kafka))).map(Some)
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}

async fn cluster(kafka: &config::Kafka) -> Result<Cluster, KafkaError> {
    let settings = kafka.clone();
    let reading = tokio::task::spawn_blocking(move || read_cluster(&settings));
    reading.await.unwrap_or(Err(KafkaError::Canceled))
}

fn read_cluster(kafka: &config::Kafka) -> Result<Cluster, KafkaError> {
    let client = open(kafka, client_config(kafka), Callbacks::new(CLIENT, kafka))?;
    let metadata = client.fetch_metadata(None, TIMEOUT)?;
    let topics = metadata.topics().iter().filter(|topic| !topic.partitions().is_empty()).map(|topic| {
        let replicas = topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
        let found = Topic { partitions: topic.partitions().len(), replicas, settings: HashMap::new() };
        (topic.name().to_owned(), found)
    });
    Ok(Cluster { brokers: metadata.brokers().len(), topics: topics.collect() })
}

fn warning(text: String) -> Finding {
    Finding { is_error: false, text }
}

fn error(text: String) -> Finding {
    Finding { is_error: true, text }
}

/// Problems of the topics. Pure.
fn judge(kafka: &config::Kafka, cluster: &Cluster) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Each topic with the largest record that it has to take, and whether a shorter limit loses messages.
    let largest = [
        (Some(&kafka.execution_topic), producer::MAX_RECORD_BYTES, true),
        (Some(&kafka.cancellation_topic), producer::MAX_RECORD_BYTES, true),
        (Some(&kafka.dead_letter_topic), publisher::MAX_BYTES, false),
        (kafka.monitoring_topic.as_ref(), producer::MAX_RECORD_BYTES, false),
        (kafka.events_topic.as_ref(), message::MAX_EVENT_BYTES, true),
    ];
    for (name, bytes, is_needed) in largest {
        let Some(name) = name else { continue };
        let Some(topic) = cluster.topics.get(name) else {
            findings.push(warning(format!("topic {name} does not exist yet; the service creates it when it starts")));
            continue;
        };
        findings.extend(judge_topic(kafka, name, topic, cluster.brokers));
        let limit =
            number(topic, "max.message.bytes").filter(|limit| usize::try_from(*limit).is_ok_and(|it| it < bytes));
        if let Some(limit) = limit {
            let text = format!("topic {name}: max.message.bytes is {limit}, below the {bytes} of the largest message");
            findings.push(Finding { is_error: is_needed, text });
        }
    }
    let [executions, cancellations] =
        [&kafka.execution_topic, &kafka.cancellation_topic].map(|name| cluster.topics.get(name));
    if let (Some(executions), Some(cancellations)) = (executions, cancellations)
        && executions.partitions != cancellations.partitions
    {
        let (first, second) = (executions.partitions, cancellations.partitions);
        findings.push(warning(format!(
            "the topics of executions and cancellations have {first} and {second} partitions; with the same number, \
             both messages about a run reach the same executor"
        )));
    }
    findings
}

/// Problems of a topic that any of them can have.
fn judge_topic(kafka: &config::Kafka, name: &str, topic: &Topic, brokers: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    let wanted = usize::try_from(kafka.partitions).unwrap_or(0);
    if topic.partitions < wanted && name == kafka.execution_topic {
        let has = topic.partitions;
        let text = format!("topic {name}: {has} partitions, below KAFKA_TOPIC_PARTITIONS={wanted}");
        findings.push(warning(format!(
            "{text}; at most {has} executors receive requests. `workflow-api add-partitions` adds the others"
        )));
    }
    let replicas = topic.replicas;
    if let Some(wanted) = kafka.replication.filter(|wanted| usize::try_from(*wanted).is_ok_and(|it| it > replicas)) {
        let text = format!("topic {name}: a partition has {replicas} replicas, below KAFKA_TOPIC_REPLICATION={wanted}");
        findings.push(warning(format!("{text}; kafka-reassign-partitions adds replicas")));
    } else if replicas < 2 && brokers > 1 {
        findings.push(warning(format!(
            "topic {name}: a partition has {replicas} replica; the loss of a broker loses messages"
        )));
    }
    if let Some(minimum) = number(topic, "min.insync.replicas") {
        // Brokers require at most as many as there are.
        let minimum = usize::try_from(minimum).unwrap_or(0).min(replicas);
        if minimum == replicas && replicas > 1 {
            let text = format!("topic {name}: min.insync.replicas is {minimum}, the number of replicas");
            findings.push(warning(format!("{text}; without one broker all messages are refused")));
        } else if minimum < 2 && replicas > 2 {
            findings
                .push(warning(format!("topic {name}: min.insync.replicas is 1; acknowledged messages can be lost")));
        }
    }
    if topic.settings.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        let text = format!("topic {name}: cleanup.policy contains compact");
        findings.push(error(format!("{text}, which deletes messages before they are read; set it to delete")));
    }
    if let Some(ms) = number(topic, "retention.ms").filter(|ms| (0..MIN_RETENTION_MS).contains(ms)) {
        let text = format!("topic {name}: retention.ms is {ms}, less than a day");
        findings.push(warning(format!("{text}; messages that wait for longer are lost and sent again later")));
    }
    findings
}

fn number(topic: &Topic, setting: &str) -> Option<i64> {
    topic.settings.get(setting)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(replication: &str) -> config::Kafka {
        let variables =
            [("KAFKA_BROKERS", "host:9092"), ("KAFKA_EXECUTION_TOPIC", "e"), ("KAFKA_CANCELLATION_TOPIC", "c")]
                .into_iter()
                .chain([("KAFKA_DEAD_LETTER_TOPIC", "d"), ("ENABLE_MONITORING_UPDATES", "false")])
                .chain([("KAFKA_TOPIC_REPLICATION", replication)]);
        config::load(variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).expect("valid settings")
    }

    fn topic(partitions: usize, replicas: usize, settings: &[(&str, &str)]) -> Topic {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Topic { partitions, replicas, settings }
    }

    /// Findings about the execution topic, beside two good ones: whether they are errors, and their texts.
    fn found(executions: Topic, brokers: usize) -> Vec<(bool, String)> {
        found_with("", executions, brokers)
    }

    fn found_with(replication: &str, executions: Topic, brokers: usize) -> Vec<(bool, String)> {
        let good = [("max.message.bytes", "16777216")];
        let topics = [("e", executions), ("c", topic(6, 3, &good)), ("d", topic(6, 3, &good))];
        let topics = topics.into_iter().map(|(name, topic)| (name.to_owned(), topic)).collect();
        let found = judge(&settings(replication), &Cluster { brokers, topics });
        found.into_iter().map(|finding| (finding.is_error, finding.text)).collect()
    }

    #[test]
    fn a_topic_that_loses_or_refuses_messages_is_an_error_and_a_risky_one_a_warning() {
        let good = [
            ("max.message.bytes", "1048588"),
            ("min.insync.replicas", "2"),
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
        ];
        assert_eq!(found(topic(6, 3, &good), 3), []);
        assert_eq!(found(topic(6, 3, &[("retention.ms", "-1")]), 3), []);
        assert_eq!(found(topic(6, 1, &[]), 1), []);
        let one = |executions, brokers, is_error, part: &str| {
            let found = found(executions, brokers);
            assert!(found.len() == 1 && found[0].0 == is_error && found[0].1.contains(part), "{part}: {found:?}");
        };
        one(topic(6, 3, &[("cleanup.policy", "compact,delete")]), 3, true, "compact");
        one(topic(6, 3, &[("max.message.bytes", "1000000")]), 3, true, "max.message.bytes is 1000000");
        assert_eq!(found(topic(6, 1, &[("min.insync.replicas", "2")]), 1), []);
        one(topic(6, 3, &[("min.insync.replicas", "3")]), 3, false, "without one broker");
        one(topic(6, 3, &[("min.insync.replicas", "1")]), 3, false, "can be lost");
        one(topic(6, 1, &[]), 3, false, "loss of a broker");
        one(topic(6, 3, &[("retention.ms", "3600000")]), 3, false, "less than a day");
        assert_eq!(found_with("3", topic(6, 3, &good), 3), []);
        let fewer = found_with("3", topic(6, 1, &good), 3);
        assert!(fewer.len() == 1 && fewer[0].1.contains("below KAFKA_TOPIC_REPLICATION=3"), "{fewer:?}");
        let fewer = found(topic(3, 3, &[]), 3);
        assert!(fewer.len() == 2 && fewer.iter().all(|(is_error, _)| !is_error), "{fewer:?}");
    }
}
