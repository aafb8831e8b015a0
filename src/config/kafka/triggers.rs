//! `MAX_KAFKA_TRIGGERS`, `KAFKA_TRIGGER_TOPICS` and `KAFKA_TRIGGER_DELETE_GROUPS`: triggers that read topics.

use crate::{access::OrganizationId, config::Reader};

/// Placeholder for the id of an organisation.
const ORGANIZATION: &str = "{organization}";

/// Settings of triggers that read topics.
#[derive(Clone, Debug, Default)]
pub struct KafkaTriggers {
    /// `MAX_KAFKA_TRIGGERS`: maximum number of Kafka triggers of all organisations; each process has a client for each of them.
    pub most: i64,
    /// `KAFKA_TRIGGER_DELETE_GROUPS`: whether the groups of deleted triggers are deleted. librdkafka 2.12 ends the process if the
    /// broker does not know the request `DeleteGroups`.
    pub deletes_groups: bool,
    /// `KAFKA_TRIGGER_TOPICS`: names of topics, or their beginnings with a `*` at the end. `None`: the default organisation
    /// may read all.
    topics: Option<Vec<String>>,
    /// Topics of the service itself, which no trigger reads.
    own: Vec<String>,
}

impl KafkaTriggers {
    pub(super) fn read(reader: &mut Reader, own: Vec<String>) -> Option<Self> {
        let most = reader.number("max_kafka_triggers", 32, 0..=1000);
        let topics = reader.parsed("kafka_trigger_topics", None, |value| {
            let patterns: Vec<String> =
                value.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect();
            match patterns.iter().find(|one| !is_pattern(one)) {
                Some(wrong) => {
                    Err(format!("has an entry that is no name of a topic, with * at its end or not: {wrong:?}"))
                }
                None => Ok(Some(patterns)),
            }
        });
        let deletes_groups = reader.boolean("kafka_trigger_delete_groups", true);
        Some(Self { most: most?, deletes_groups: deletes_groups?, topics: topics?, own })
    }

    /// Whether triggers of the organisation may read the topic; the error is for the caller.
    pub fn check(&self, topic: &str, organization: &OrganizationId) -> Result<(), &'static str> {
        if topic.starts_with("__") || self.own.iter().any(|own| own == topic) {
            return Err("is a topic of the service or of Kafka itself");
        }
        let is_allowed = match &self.topics {
            None => organization.is_default(),
            Some(patterns) => {
                patterns.iter().any(|pattern| matches(&pattern.replace(ORGANIZATION, organization.as_str()), topic))
            }
        };
        if is_allowed {
            Ok(())
        } else {
            Err("is not one that the operator has opened for the organisation (KAFKA_TRIGGER_TOPICS)")
        }
    }
}

fn is_pattern(text: &str) -> bool {
    let plain = text.replace(ORGANIZATION, "");
    let plain = plain.strip_suffix('*').unwrap_or(&plain);
    plain.len() <= 249 && plain.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn matches(pattern: &str, topic: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => topic.starts_with(begin),
        None => topic == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Kafka};

    fn settings(topics: Option<&str>) -> KafkaTriggers {
        let given = topics.map(|topics| ("KAFKA_TRIGGER_TOPICS".to_owned(), topics.to_owned()));
        let all = given.into_iter().chain([("KAFKA_BROKERS".to_owned(), "host:9092".to_owned())]);
        config::load::<Kafka>(all).expect("valid settings").triggers
    }

    #[test]
    fn an_organisation_reads_the_topics_that_the_operator_has_opened_and_never_those_of_the_service() {
        let (default, acme) = (OrganizationId::default(), OrganizationId::stored("acme"));
        let none = settings(None);
        assert_eq!(none.check("orders", &default), Ok(()));
        none.check("orders", &acme).expect_err("not opened");
        let some = settings(Some("public, {organization}.*"));
        for (topic, organization, is_allowed) in [
            ("public", &default, true),
            ("public", &acme, true),
            ("publicity", &acme, false),
            ("acme.orders", &acme, true),
            ("other.orders", &acme, false),
            ("acme.orders", &default, false),
        ] {
            assert_eq!(some.check(topic, organization).is_ok(), is_allowed, "{topic} of {}", organization.as_str());
        }
        for own in [
            "workflow.execution.requests",
            "workflow.dead-letters",
            "workflow.monitoring.updates",
            "__consumer_offsets",
        ] {
            settings(Some("*")).check(own, &default).expect_err(own);
        }
    }
}
