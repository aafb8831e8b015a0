//! Further properties of librdkafka: `KAFKA_PROPERTY_*` and `KAFKA_PROPERTIES`.

use rdkafka::ClientConfig;

use crate::config::{Reader, reader::KAFKA_PROPERTY};

/// Variable with lines `name=value`.
const TEXT: &str = "kafka_properties";

/// Properties that the service sets itself, because its guarantees or its memory depend on them.
const MANAGED: [&str; 31] = [
    "acks",
    "allow.auto.create.topics",
    "auto.commit.enable",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "batch.num.messages",
    "bootstrap.servers",
    "delivery.timeout.ms",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.sasl.oauthbearer.unsecure.jwt",
    "group.id",
    "group.protocol",
    "max.poll.interval.ms",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "plugin.library.paths",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queued.max.messages.kbytes",
    "request.required.acks",
    "retries",
    "statistics.interval.ms",
    "test.mock.num.brokers",
    "transactional.id",
];

/// Properties that have a setting of their own: the property, or what it begins with, and the setting.
const SETTINGS: [(&str, &str); 9] = [
    ("sasl.mechanism", "KAFKA_SASL_MECHANISM"),
    ("sasl.oauthbearer.", "KAFKA_OAUTH_*"),
    ("sasl.password", "KAFKA_SASL_PASSWORD"),
    ("sasl.username", "KAFKA_SASL_USERNAME"),
    ("security.protocol", "KAFKA_SECURITY_PROTOCOL"),
    ("ssl.ca.", "KAFKA_SSL_CA"),
    ("ssl.certificate.", "KAFKA_SSL_CERTIFICATE"),
    ("ssl.key.password", "KAFKA_SSL_KEY_PASSWORD"),
    ("ssl.key.", "KAFKA_SSL_KEY"),
];

/// Reads the properties. Problems are added to the reader.
pub(super) fn read(reader: &mut Reader) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (number, line) in reader.get(TEXT).unwrap_or_default().lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) => found.push((TEXT.to_owned(), name.trim().to_owned(), value.trim().to_owned())),
            // The line may be a secret.
            None => found.push((TEXT.to_owned(), format!("line {}", number + 1), String::new())),
        }
    }
    // No property that can be set has an underscore in its name.
    let variables = reader.kafka_properties().iter();
    found.extend(variables.map(|(suffix, value)| {
        (format!("{KAFKA_PROPERTY}{suffix}"), suffix.to_ascii_lowercase().replace('_', "."), value.clone())
    }));
    let mut properties: Vec<(String, String)> = Vec::new();
    for (setting, name, value) in found {
        let problem = match check(&name, &value) {
            Ok(()) if properties.iter().any(|(other, _)| *other == name) => Some(format!("{name} is given twice")),
            Ok(()) => None,
            Err(problem) => Some(problem),
        };
        match problem {
            Some(problem) => drop(reader.problem::<()>(&setting, problem)),
            None => properties.push((name, value)),
        }
    }
    properties
}

/// Checks that librdkafka knows the property, and that it may be set.
fn check(name: &str, value: &str) -> Result<(), String> {
    if MANAGED.contains(&name) {
        return Err(format!("the service sets {name} itself; its guarantees depend on it"));
    }
    if let Some((_, setting)) = SETTINGS.iter().find(|(property, _)| name.starts_with(property)) {
        return Err(format!("{name} is set by {setting}"));
    }
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(rdkafka::error::KafkaError::ClientConfig(_, text, ..)) if text.starts_with("No such") => {
            Err(format!("librdkafka has no property {name:?}"))
        }
        // The text of librdkafka can repeat the value.
        Err(_) if name.contains("password") => Err(format!("{name} has an invalid value")),
        Err(rdkafka::error::KafkaError::ClientConfig(_, text, ..)) => Err(text),
        Err(error) => Err(error.to_string()),
    }
}
