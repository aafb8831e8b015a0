//! Catalogue of the types of events, each with its schema and an example.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// Members of `data` with their schemas, those that may be absent, and examples: of all events, by subject, and by type.
static MEMBERS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("catalogue.json")).expect("a test reads the file"));

/// Type of events.
#[derive(Debug)]
pub struct EventType {
    /// Name.
    pub name: &'static str,
    /// When it happens.
    pub description: &'static str,
    /// Whether there can be very many, so that `*` does not include it.
    pub is_frequent: bool,
    /// What it is about, which decides the members of its data.
    subject: &'static str,
    /// Status of the run in the example; empty if it is about no run.
    status: &'static str,
}

const fn of_run(name: &'static str, status: &'static str, description: &'static str) -> EventType {
    EventType { name, description, is_frequent: false, subject: "run", status }
}

const fn about(subject: &'static str, name: &'static str, description: &'static str) -> EventType {
    EventType { name, description, is_frequent: false, subject, status: "" }
}

/// All types, in the order of the catalogue.
pub const TYPES: &[EventType] = &[
    of_run("run.started", "RUNNING", "An executor has begun the run, for the first time or after a retry."),
    of_run("run.completed", "COMPLETED", "The run has ended with success."),
    of_run("run.failed", "FAILED", "The run has failed. It may be retried."),
    of_run("run.cancelled", "CANCELLED", "The run was cancelled, by a caller or with the run around it."),
    of_run("run.paused", "RUNNING", "The run is paused: no further step begins."),
    of_run("run.resumed", "RUNNING", "The run is no longer paused."),
    of_run("run.retried", "PENDING", "The run was started again after it had failed or was cancelled."),
    of_run("run.waiting", "RUNNING", "A step waits for the answer to a callback, or to a question of its agent."),
    of_run("run.deadline_missed", "RUNNING", "The run has not ended within its deadline."),
    about("workflow", "workflow.silent", "No run of the workflow has succeeded for as long as silence_hours says."),
    EventType {
        name: "step.failed",
        description: "An attempt of a step has failed. The step may be repeated, and the run may go on.",
        is_frequent: true,
        subject: "run",
        status: "RUNNING",
    },
    about("agent", "agent.unavailable", "The circuit breaker of the agent has opened: it is not called for some time."),
    about("agent", "agent.recovered", "The circuit breaker of the agent has closed: it is called again."),
    about("dead_letter", "dead_letter.created", "A record of Kafka that cannot be used is kept as a dead letter."),
    about("schedule", "schedule.missed", "A schedule was due during an outage, and does not make up for it."),
    about("schedule", "schedule.paused", "A schedule was paused by the service, after too many failures."),
    about("trigger", "trigger.failed_to_start", "A trigger has fired, and no run could be started."),
    about("pause", "trigger.paused", "A trigger other than a schedule was paused by the service."),
    about("webhook", "webhook.disabled", "An endpoint of webhooks was disabled by the service."),
    about("webhook", "webhook.ping", "A test that a caller has asked for."),
];

/// Type with that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static EventType> {
    TYPES.iter().find(|known| known.name == name)
}

impl EventType {
    /// JSON Schema of an event of the type, as an endpoint receives it. Members can be added later, so others are
    /// allowed.
    #[must_use]
    pub fn schema(&self) -> Value {
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name,
            "description": self.description,
            "type": "object",
            "required": ["type", "timestamp", "data"],
            "properties": {
                "type": {"const": self.name},
                "timestamp": {"type": "string", "format": "date-time", "description": "Time when it was recorded."},
                "data": self.data_schema(),
            },
        })
    }

    /// JSON Schema of the member `data`.
    #[must_use]
    pub fn data_schema(&self) -> Value {
        let mut schema = json!({"type": "object", "properties": self.members("schema")});
        require_members(&mut schema);
        if let Some(known) = schema["properties"].as_object_mut() {
            known.extend(self.members("optional"));
        }
        schema
    }

    /// Example of an event.
    #[must_use]
    pub fn example(&self) -> Value {
        let mut data = self.members("example");
        if !self.status.is_empty() {
            data.insert("status".to_owned(), self.status.into());
        }
        json!({"type": self.name, "timestamp": "2026-11-28T10:00:00.123456Z", "data": data})
    }

    /// Schemas or examples of the members, or schemas of those that may be absent: those of all events, of the subject, and
    /// of the type.
    fn members(&self, part: &str) -> Map<String, Value> {
        let parts = ["common", self.subject, self.name].into_iter().filter_map(|of| MEMBERS[part][of].as_object());
        parts.flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// Requires all members of objects that do not say themselves what they require.
fn require_members(schema: &mut Value) {
    let Some(members) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    members.values_mut().for_each(require_members);
    let names: Vec<Value> = members.keys().cloned().map(Value::from).collect();
    if schema.get("required").is_none() {
        schema["required"] = names.into();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_example_is_valid_and_no_schema_accepts_what_lacks_a_member() {
        for known in TYPES {
            let schema = known.schema();
            let validator = jsonschema::draft202012::options()
                .should_validate_formats(true)
                .build(&schema)
                .unwrap_or_else(|error| panic!("{}: {error}", known.name));
            let example = known.example();
            let errors: Vec<String> = validator.iter_errors(&example).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{}: {errors:?}", known.name);
            let members = example["data"].as_object().expect("an object");
            for member in members.keys() {
                let mut without = example.clone();
                without["data"].as_object_mut().expect("an object").remove(member);
                assert!(!validator.is_valid(&without), "{} without {member}", known.name);
            }
            let mut full = example.clone();
            full["data"].as_object_mut().expect("an object").insert("is_test".to_owned(), json!(false));
            assert!(!validator.is_valid(&full), "{}: a member that may be absent has a schema too", known.name);
            let mut more = example.clone();
            more["data"]["added_later"] = json!(1);
            assert!(validator.is_valid(&more), "{} with a member more", known.name);
            let others = TYPES.iter().filter(|other| other.name != known.name);
            assert!(others.map(EventType::example).all(|other| !validator.is_valid(&other)), "{}", known.name);
        }
    }

    #[test]
    fn names_are_words_between_dots_and_differ() {
        let names: HashSet<&str> = TYPES.iter().map(|known| known.name).collect();
        assert_eq!(names.len(), TYPES.len());
        for name in names {
            let is_word =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(name.split('.').all(is_word), "{name}");
            assert_eq!(find(name).map(|known| known.name), Some(name));
        }
        assert!(find("run.unknown").is_none());
    }
}
