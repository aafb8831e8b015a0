//! Kafka triggers: which records start runs, and what the runs see of them.

mod record;

use chrono::{DateTime, Datelike as _, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

pub use self::record::{Opened, Record, Unusable, Wanted};
use crate::{
    expression,
    input::{FieldError, Node, Read, iso_8601, request_object, to_raw},
    timestamp::Timestamp,
};

/// Begin of the names of all consumer groups of triggers. With another one, a trigger could take the records of another
/// program.
pub const GROUP_PREFIX: &str = "wf-trigger-";
/// Length range of the name of a consumer group.
const GROUP_CHARS: std::ops::RangeInclusive<usize> = 1..=200;
/// Length range of the name of a topic.
const TOPIC_CHARS: std::ops::RangeInclusive<usize> = 1..=249;
/// Maximum length of an expression.
const MAX_EXPRESSION_CHARS: usize = 2000;
/// Range of `max_per_second`.
const RATES: std::ops::RangeInclusive<i64> = 1..=10_000;
/// Value of `idempotency` that stands for the place of the record.
const OFFSET: &str = "offset";

/// Where a group without offsets begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind the last record.
    Latest,
    /// At the first record.
    Earliest,
    /// At the first record of this time or later.
    At(DateTime<Utc>),
}

impl Start {
    fn text(self) -> String {
        match self {
            Self::Latest => "latest".to_owned(),
            Self::Earliest => "earliest".to_owned(),
            Self::At(at) => Timestamp::from(at).to_string(),
        }
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|text| {
            let wrong = || "must be latest, earliest, or a time with a zone, such as 2027-02-03T09:00:00Z".to_owned();
            match text {
                "latest" => return Ok(Self::Latest),
                "earliest" => return Ok(Self::Earliest),
                _ => {}
            }
            let (local, offset) = iso_8601(text.trim()).ok_or_else(wrong)?;
            let offset = chrono::TimeDelta::seconds(offset.ok_or_else(wrong)?.local_minus_utc().into());
            let utc = local.checked_sub_signed(offset).ok_or_else(wrong)?.and_utc();
            if (1970..=2900).contains(&utc.year()) { Ok(Self::At(utc)) } else { Err(wrong()) }
        })
    }
}

/// How the value of a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// As JSON.
    Json,
    /// As text in UTF-8.
    Text,
    /// As bytes, shown in base64.
    BytesBase64,
}

impl Format {
    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|text| match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            "bytes_base64" => Ok(Self::BytesBase64),
            _ => Err("must be one of json, text, bytes_base64".to_owned()),
        })
    }
}

/// What happens to a record that cannot start a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It becomes a dead letter, and the next ones are read.
    DeadLetter,
    /// The trigger is paused in front of it.
    Stop,
}

impl OnError {
    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|text| match text {
            "dead_letter" => Ok(Self::DeadLetter),
            "stop" => Ok(Self::Stop),
            _ => Err("must be one of dead_letter, stop".to_owned()),
        })
    }
}

/// Which records start runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KafkaTrigger {
    /// Topic that is read.
    pub topic: String,
    /// Consumer group; `None`: that of the trigger's id.
    pub group_id: Option<String>,
    /// See [`Start`].
    pub start: Start,
    /// See [`Format`].
    pub format: Format,
    /// Expression that a record must satisfy.
    pub filter: Option<String>,
    /// Expression whose value identifies a record; `None`: its place does.
    pub idempotency: Option<String>,
    /// Maximum number of runs that it starts in a second.
    pub max_per_second: Option<i64>,
    /// See [`OnError`].
    pub on_error: OnError,
}

request_object! {
    /// The `config` of a Kafka trigger.
    #[schema(as = KafkaTriggerConfig, example = json!({"topic": "orders", "filter": "${trigger.value.total} > 100"}))]
    pub struct KafkaTriggerBody: deny_unknown_fields {
        /// Topic that is read, of the brokers of the service. The operator decides which ones an organisation may read
        /// (`KAFKA_TRIGGER_TOPICS`). It may be created later.
        #[schema(min_length = 1, max_length = 249, pattern = "^[A-Za-z0-9._-]+$", example = "orders")]
        topic: String = required(read_topic),
        /// Consumer group, unique; it begins with `wf-trigger-`, and never changes. The default is `wf-trigger-` and the id of
        /// the trigger.
        #[schema(min_length = 1, max_length = 200, pattern = "^wf-trigger-[A-Za-z0-9._-]+$", example = json!(null))]
        group_id: Option<String> = nullable(read_group),
        /// Where a group without offsets begins: `latest` (the default), `earliest`, or the time of a record.
        #[schema(value_type = Option<String>, example = "latest")]
        start: Option<Start> = nullable(Start::read),
        /// How the value of a record is read; the default is `json`.
        #[schema(value_type = Option<String>, pattern = "^(json|text|bytes_base64)$")]
        format: Option<Format> = nullable(Format::read),
        /// Condition on the record, such as `${trigger.value.total} > 100`; others start no run.
        #[schema(max_length = 2000, example = json!(null))]
        filter: Option<String> = nullable(read_expression),
        /// What identifies a record: `offset` (the default), its place in the topic; or an expression such as
        /// `${trigger.value.order_id}`, so that of records with the same value one starts a run.
        #[schema(max_length = 2000, example = "offset")]
        idempotency: Option<String> = nullable(|node| match node.string(0..=MAX_EXPRESSION_CHARS)?.as_str() {
            OFFSET => Ok(OFFSET.to_owned()),
            _ => read_expression(node),
        }),
        /// Maximum number of runs that it starts in a second, over all processes.
        #[schema(minimum = 1, maximum = 10_000)]
        max_per_second: Option<i64> = nullable(|node| node.int(RATES)),
        /// What happens to a record that cannot start a run: it becomes a dead letter (`dead_letter`, the default), or the
        /// trigger is paused in front of it (`stop`).
        #[schema(value_type = Option<String>, pattern = "^(dead_letter|stop)$")]
        on_error: Option<OnError> = nullable(OnError::read),
    }
}

fn is_legal(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && name != "." && name != ".."
}

fn read_topic(node: &Node<'_>) -> Read<String> {
    let topic = node.string(TOPIC_CHARS)?;
    if is_legal(&topic) { Ok(topic) } else { Err(vec![FieldError::rule(node.path(), "must be the name of a topic")]) }
}

fn read_group(node: &Node<'_>) -> Read<String> {
    let group = node.string(GROUP_CHARS)?;
    if group.len() > GROUP_PREFIX.len() && group.starts_with(GROUP_PREFIX) && is_legal(&group) {
        return Ok(group);
    }
    let text = format!("must begin with {GROUP_PREFIX}, followed by letters, digits, dots, underscores or hyphens");
    Err(vec![FieldError::rule(node.path(), text)])
}

fn read_expression(node: &Node<'_>) -> Read<String> {
    let text = node.not_blank(1..=MAX_EXPRESSION_CHARS)?;
    match expression::check(&text) {
        Ok(()) => Ok(text),
        Err(error) => Err(vec![FieldError::rule(node.path(), error)]),
    }
}

impl KafkaTrigger {
    /// Reads a configuration.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let body = KafkaTriggerBody::read(&node.object()?)?;
        Ok(Self {
            topic: body.topic,
            group_id: body.group_id,
            start: body.start.unwrap_or(Start::Latest),
            format: body.format.unwrap_or(Format::Json),
            filter: body.filter,
            idempotency: body.idempotency.filter(|text| text != OFFSET),
            max_per_second: body.max_per_second,
            on_error: body.on_error.unwrap_or(OnError::DeadLetter),
        })
    }

    /// The configuration in its normal form, which [`KafkaTrigger::read`] reads.
    #[must_use]
    pub fn to_stored(&self) -> Box<RawValue> {
        to_raw(&serde_json::json!({
            "topic": self.topic,
            "group_id": self.group_id,
            "start": self.start.text(),
            "format": self.format,
            "filter": self.filter,
            "idempotency": self.idempotency.as_deref().unwrap_or(OFFSET),
            "max_per_second": self.max_per_second,
            "on_error": self.on_error,
        }))
    }

    /// Consumer group of the trigger with this id.
    #[must_use]
    pub fn group(&self, id: Uuid) -> String {
        self.group_id.clone().unwrap_or_else(|| format!("{GROUP_PREFIX}{id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn config(json: &str) -> Read<KafkaTrigger> {
        KafkaTrigger::read(&Node::new("body.config", check_json(json.as_bytes()).expect(json)))
    }

    #[test]
    fn a_configuration_is_shown_with_all_its_defaults_and_read_again_as_the_same() {
        let read = config(r#"{"topic":"orders"}"#).expect("valid");
        let stored = read.to_stored();
        let shown: serde_json::Value = serde_json::from_str(stored.get()).expect("JSON");
        assert_eq!(
            shown,
            serde_json::json!({"topic": "orders", "group_id": null, "start": "latest", "format": "json", "filter": null,
                "idempotency": "offset", "max_per_second": null, "on_error": "dead_letter"})
        );
        for json in [
            stored.get(),
            r#"{"topic":"a","start":"2027-01-01T01:00:00+01:00","format":"bytes_base64","filter":"${trigger.value.a} == 1",
                "idempotency":"${trigger.key}","max_per_second":5,"on_error":"stop","group_id":"wf-trigger-x"}"#,
        ] {
            let read = config(json).expect(json);
            let again = KafkaTrigger::read(&Node::new("config", &read.to_stored())).expect(json);
            assert_eq!(read, again);
        }
    }

    #[test]
    fn a_bad_configuration_is_refused_with_its_field() {
        for (json, field) in [
            ("{}", "topic"),
            (r#"{"topic":"a b"}"#, "topic"),
            (r#"{"topic":".."}"#, "topic"),
            (r#"{"topic":""}"#, "topic"),
            (r#"{"topic":"a","group_id":"billing"}"#, "group_id"),
            (r#"{"topic":"a","group_id":"wf-trigger-"}"#, "group_id"),
            (r#"{"topic":"a","start":"yesterday"}"#, "start"),
            (r#"{"topic":"a","start":"2027-01-01T00:00:00"}"#, "start"),
            (r#"{"topic":"a","format":"avro"}"#, "format"),
            (r#"{"topic":"a","filter":"1 +"}"#, "filter"),
            (r#"{"topic":"a","idempotency":""}"#, "idempotency"),
            (r#"{"topic":"a","max_per_second":0}"#, "max_per_second"),
            (r#"{"topic":"a","on_error":"ignore"}"#, "on_error"),
            (r#"{"topic":"a","x":1}"#, "x"),
        ] {
            let errors = config(json).expect_err(json);
            assert_eq!(errors[0].field, format!("body.config.{field}"), "{json}");
        }
    }
}
