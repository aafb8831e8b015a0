//! Flow control: which of several starts in a row counts, how fast runs start, and how many are under way at a time,
//! for a workflow or for each key of it. It is no part of the content: a change makes no new version, and holds for
//! all versions of the name.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    expression,
    input::{FieldError, Node, Read, object_of, shorten, text, to_raw},
    mapping::{
        Scope,
        reference::{Root, root_of},
    },
};

/// Length of an expression.
const EXPRESSION_CHARS: std::ops::RangeInclusive<usize> = 1..=500;
/// Maximum bytes of the value of a key, which an index holds.
const MAX_KEY_BYTES: usize = 256;
/// Range of the limit of runs.
const LIMIT: std::ops::RangeInclusive<i64> = 1..=1000;
/// Range of the runs of a period.
const RATE: std::ops::RangeInclusive<i64> = 1..=10_000;
/// Range of a period, up to a day.
const PERIOD_SECS: std::ops::RangeInclusive<i64> = 1..=86_400;

/// What happens to a run that finds no free slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConcurrencyPolicy {
    /// It waits for one.
    #[default]
    Queue,
    /// It ends at once, as cancelled.
    Skip,
    /// It gets one: the oldest runs of the key are cancelled.
    CancelRunning,
}

impl ConcurrencyPolicy {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Skip, Self::CancelRunning];

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Skip => "skip",
            Self::CancelRunning => "cancel_running",
        }
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::ALL
                .into_iter()
                .find(|policy| policy.as_str() == name)
                .ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Limit of the runs that are under way at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// Expression over the input: runs with different values do not count together. `None`: all runs do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Maximum number of runs of a key.
    pub limit: i32,
    /// What happens to further ones.
    #[serde(default)]
    pub policy: ConcurrencyPolicy,
}

impl Concurrency {
    /// Members that [`Concurrency::read`] reads.
    const MEMBERS: [&'static str; 3] = ["key", "limit", "policy"];

    /// Reads the member `concurrency`.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let key = object.nullable("key", &mut errors, read_key);
        let limit = object.required("limit", &mut errors, |node| int(node, LIMIT));
        let policy = object.defaulted("policy", &mut errors, ConcurrencyPolicy::Queue, ConcurrencyPolicy::read);
        match limit {
            Some(limit) if errors.is_empty() => Ok(Self { key, limit, policy }),
            _ => Err(errors),
        }
    }
}

/// What happens to a run that comes too early for its throttle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottlePolicy {
    /// It waits for its time.
    #[default]
    Queue,
    /// It ends at once, as cancelled.
    Drop,
}

impl ThrottlePolicy {
    /// All policies.
    pub const ALL: [Self; 2] = [Self::Queue, Self::Drop];

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Drop => "drop",
        }
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            let found = Self::ALL.into_iter().find(|policy| policy.as_str() == name);
            found.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Rate at which runs start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Expression over the input: runs with different values do not count together. `None`: all runs do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Number of runs of a key that start in a period.
    pub limit: i32,
    /// Length of the period.
    pub period_seconds: i32,
    /// Number of runs that may start at once after a pause.
    #[serde(default = "one")]
    pub burst: i32,
    /// What happens to runs that come too early.
    #[serde(default)]
    pub policy: ThrottlePolicy,
}

fn one() -> i32 {
    1
}

impl Throttle {
    /// Members that [`Throttle::read`] reads.
    const MEMBERS: [&'static str; 5] = ["key", "limit", "period_seconds", "burst", "policy"];

    /// Reads the member `throttle`.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let key = object.nullable("key", &mut errors, read_key);
        let limit = object.required("limit", &mut errors, |node| int(node, RATE));
        let period_seconds = object.required("period_seconds", &mut errors, |node| int(node, PERIOD_SECS));
        let burst = object.defaulted("burst", &mut errors, 1, |node| int(node, RATE));
        let policy = object.defaulted("policy", &mut errors, ThrottlePolicy::Queue, ThrottlePolicy::read);
        match (limit, period_seconds) {
            (Some(limit), Some(period_seconds)) if errors.is_empty() => {
                Ok(Self { key, limit, period_seconds, burst, policy })
            }
            _ => Err(errors),
        }
    }

    /// Mean time between two starts, in seconds.
    #[must_use]
    pub fn interval_secs(&self) -> f64 {
        f64::from(self.period_seconds) / f64::from(self.limit.max(1))
    }
}

/// Starts in a row of which only the last one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debounce {
    /// Expression over the input: runs with different values do not replace each other. `None`: all runs do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Time without a further start after which a run begins.
    pub period_seconds: i32,
    /// Time after the first start of a row at which the last run begins anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait_seconds: Option<i32>,
}

impl Debounce {
    /// Members that [`Debounce::read`] reads.
    const MEMBERS: [&'static str; 3] = ["key", "period_seconds", "max_wait_seconds"];

    /// Reads the member `debounce`.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let key = object.nullable("key", &mut errors, read_key);
        let period_seconds = object.required("period_seconds", &mut errors, |node| int(node, PERIOD_SECS));
        let max_wait_seconds = object.nullable("max_wait_seconds", &mut errors, |node| int(node, PERIOD_SECS));
        if let (Some(period), Some(most)) = (period_seconds, max_wait_seconds)
            && most < period
        {
            errors.push(FieldError::rule(node.path() + ".max_wait_seconds", "must be at least period_seconds"));
        }
        match period_seconds {
            Some(period_seconds) if errors.is_empty() => Ok(Self { key, period_seconds, max_wait_seconds }),
            _ => Err(errors),
        }
    }
}

fn int(node: &Node<'_>, range: std::ops::RangeInclusive<i64>) -> Read<i32> {
    // The ranges fit.
    node.int(range).map(|int| i32::try_from(int).unwrap_or(i32::MAX))
}

/// Flow control of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowControl {
    /// Starts in a row of which only the last one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debounce: Option<Debounce>,
    /// Rate at which runs start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
    /// Limit of the runs that are under way at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// Stage of flow control. A run passes them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowStage {
    /// [`FlowControl::debounce`].
    Debounce,
    /// [`FlowControl::throttle`].
    Throttle,
    /// [`FlowControl::concurrency`].
    Concurrency,
}

impl FlowStage {
    /// All stages.
    pub const ALL: [Self; 3] = [Self::Debounce, Self::Throttle, Self::Concurrency];

    /// Name on the wire and in columns.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Debounce => "debounce",
            Self::Throttle => "throttle",
            Self::Concurrency => "concurrency",
        }
    }
}

/// Keys of a run that is to be started, one for each stage that it has to pass, in their order. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowKeys(Vec<(FlowStage, String)>);

impl FlowKeys {
    /// The keys by stage; an empty one is that of the whole workflow.
    pub fn iter(&self) -> impl Iterator<Item = (FlowStage, &str)> {
        self.0.iter().map(|(stage, key)| (*stage, key.as_str()))
    }

    /// The keys without that of a stage; `None`: no other stage is left.
    #[must_use]
    pub fn without(mut self, stage: FlowStage) -> Option<Self> {
        self.0.retain(|(of, _)| *of != stage);
        if self.0.is_empty() { None } else { Some(self) }
    }

    /// As an object with the first `stage`, its `key`, and the keys of the `rest` by stage.
    #[must_use]
    pub fn to_json(&self) -> Box<RawValue> {
        let mut stages = self.iter();
        let (stage, key) = stages.next().map_or(("", ""), |(stage, key)| (stage.as_str(), key));
        let rest: Vec<_> = stages.map(|(stage, key)| (stage.as_str(), to_raw(key))).collect();
        let rest = object_of(rest.iter().map(|(stage, key)| (*stage, &**key)));
        object_of([("stage", &*to_raw(stage)), ("key", &*to_raw(key)), ("rest", &*rest)])
    }
}

impl FlowControl {
    /// The flow control; `None` if there is nothing in it.
    #[must_use]
    pub fn unless_empty(self) -> Option<Self> {
        Some(self).filter(|flow| *flow != Self::default())
    }

    /// Keys of a run with that input; `None` if it is not controlled. An error says which key has no value.
    pub fn keys(&self, input: &RawValue) -> Result<Option<FlowKeys>, FieldError> {
        let stages = [
            (FlowStage::Debounce, self.debounce.as_ref().map(|debounce| debounce.key.as_deref())),
            (FlowStage::Throttle, self.throttle.as_ref().map(|throttle| throttle.key.as_deref())),
            (FlowStage::Concurrency, self.concurrency.as_ref().map(|concurrency| concurrency.key.as_deref())),
        ];
        let mut keys = Vec::new();
        for (stage, key) in stages {
            if let Some(key) = key {
                keys.push((stage, key_value(stage.as_str(), key, input)?));
            }
        }
        Ok(Some(keys).filter(|keys| !keys.is_empty()).map(FlowKeys))
    }
}

/// Reads an expression over the input.
fn read_key(node: &Node<'_>) -> Read<String> {
    let key = node.not_blank(EXPRESSION_CHARS)?;
    let fault = |text: String| Err(vec![FieldError::rule(node.path(), text)]);
    let references = match expression::references(&key) {
        Ok(references) => references,
        Err(error) => return fault(format!("it is no expression: {error}")),
    };
    if let Some(reference) = references.iter().find(|reference| !matches!(root_of(reference), Ok((Root::Input(_), _))))
    {
        let reference = shorten(reference);
        return fault(format!("'{reference}' is no value of the input, such as ${{workflow.input.customer}}"));
    }
    if references.is_empty() { fault("it has the same value for all runs; leave it out".to_owned()) } else { Ok(key) }
}

/// Value of a key as text; empty without an expression.
fn key_value(member: &str, key: Option<&str>, input: &RawValue) -> Result<String, FieldError> {
    let Some(key) = key else { return Ok(String::new()) };
    let fault = |text: String| Err(FieldError::new("body.input_data", "flow_key", format!("{member}.key {text}")));
    let value = match expression::value(key, &Scope::new(input), MAX_KEY_BYTES * 6) {
        Ok(value) => value,
        Err(error) => return fault(format!("has no value for this input: {error}")),
    };
    match value.get().as_bytes().first() {
        Some(b'{' | b'[') => {
            return fault("must have a text, a number or a truth value, and has an object or an array".to_owned());
        }
        Some(b'n') => {
            return fault("is null for this input; a default is written ${workflow.input.customer:-none}".to_owned());
        }
        _ => {}
    }
    let value = text(&value).unwrap_or_else(|| value.get().to_owned());
    if value.len() > MAX_KEY_BYTES {
        return fault(format!(
            "has a value of {} bytes for this input, and at most {MAX_KEY_BYTES} are possible",
            value.len()
        ));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    /// The `field kind` of each error of a `concurrency` with these members.
    fn check(json: &str, expected: &[&str]) {
        let errors = Concurrency::read(&Node::new("body.concurrency", raw(json))).err();
        are(errors, json, expected);
    }

    fn are(errors: Option<Vec<FieldError>>, json: &str, expected: &[&str]) {
        let errors = errors.unwrap_or_default();
        let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
        assert_eq!(found, expected, "{json}");
    }

    #[test]
    fn a_limit_has_a_key_over_the_input_and_a_policy() {
        for json in [
            r#"{"limit": 1}"#,
            r#"{"key": null, "limit": 1000, "policy": "skip"}"#,
            r#"{"key": "${workflow.input.customer:-none}", "limit": 3, "policy": "cancel_running"}"#,
            r#"{"key": "${workflow.input.a} or ${workflow.input.b}", "limit": 3, "policy": "queue"}"#,
        ] {
            check(json, &[]);
        }
        check("1", &["body.concurrency model_attributes_type"]);
        check("{}", &["body.concurrency.limit missing"]);
        check(r#"{"limit": 0}"#, &["body.concurrency.limit greater_than_equal"]);
        check(
            r#"{"limit": 1001, "more": 1}"#,
            &["body.concurrency.more extra_forbidden", "body.concurrency.limit less_than_equal"],
        );
        check(r#"{"limit": 1, "policy": "wait"}"#, &["body.concurrency.policy value_error"]);
        for key in ["${workflow.input.a", "'one'", "${a.output.x}", "${workflow.input.a} ==", "len(1)", "${loop.index}"]
        {
            check(&format!(r#"{{"limit": 1, "key": "{key}"}}"#), &["body.concurrency.key value_error"]);
        }
        check(
            &format!(r#"{{"limit": 1, "key": "${{workflow.input.{}}}"}}"#, "x".repeat(500)),
            &["body.concurrency.key string_too_long"],
        );
    }

    #[test]
    fn a_throttle_and_a_debounce_have_periods_of_up_to_a_day() {
        let throttle = |json: &str, expected: &[&str]| {
            are(Throttle::read(&Node::new("body.throttle", raw(json))).err(), json, expected);
        };
        throttle(r#"{"limit": 1, "period_seconds": 1}"#, &[]);
        throttle(
            r#"{"key": "${workflow.input.a}", "limit": 10, "period_seconds": 86400, "burst": 5, "policy": "drop"}"#,
            &[],
        );
        throttle("{}", &["body.throttle.limit missing", "body.throttle.period_seconds missing"]);
        throttle(r#"{"limit": 1, "period_seconds": 86401}"#, &["body.throttle.period_seconds less_than_equal"]);
        throttle(r#"{"limit": 1, "period_seconds": 1, "burst": 0}"#, &["body.throttle.burst greater_than_equal"]);
        throttle(r#"{"limit": 1, "period_seconds": 1, "policy": "skip"}"#, &["body.throttle.policy value_error"]);
        let debounce = |json: &str, expected: &[&str]| {
            are(Debounce::read(&Node::new("body.debounce", raw(json))).err(), json, expected);
        };
        debounce(r#"{"period_seconds": 5}"#, &[]);
        debounce(r#"{"key": "${workflow.input.a}", "period_seconds": 5, "max_wait_seconds": 5}"#, &[]);
        debounce("{}", &["body.debounce.period_seconds missing"]);
        debounce(r#"{"period_seconds": 5, "max_wait_seconds": 4}"#, &["body.debounce.max_wait_seconds value_error"]);
        debounce(r#"{"period_seconds": 5, "policy": "drop"}"#, &["body.debounce.policy extra_forbidden"]);
    }

    #[test]
    fn the_keys_are_in_the_order_of_the_stages() {
        let debounce = Debounce { key: None, period_seconds: 1, max_wait_seconds: None };
        let concurrency =
            Concurrency { key: Some("${workflow.input.a}".to_owned()), limit: 1, policy: ConcurrencyPolicy::Queue };
        let flow = FlowControl { debounce: Some(debounce), throttle: None, concurrency: Some(concurrency) };
        let keys = flow.keys(raw(r#"{"a": "x\"y"}"#)).expect("a value").expect("controlled");
        let json: serde_json::Value = serde_json::from_str(keys.to_json().get()).expect("JSON");
        let expected = serde_json::json!({"stage": "debounce", "key": "", "rest": {"concurrency": "x\"y"}});
        assert_eq!(json, expected);
        let later = keys.without(FlowStage::Debounce).expect("one is left");
        assert_eq!(later.iter().collect::<Vec<_>>(), [(FlowStage::Concurrency, "x\"y")]);
        assert_eq!(later.without(FlowStage::Concurrency), None);
    }

    #[test]
    fn a_key_is_a_scalar_of_the_input() {
        let key = |key: &str, input: &str| {
            let concurrency = Concurrency { key: Some(key.to_owned()), limit: 1, policy: ConcurrencyPolicy::Queue };
            let flow = FlowControl { concurrency: Some(concurrency), ..FlowControl::default() };
            let first = |keys: FlowKeys| keys.iter().next().map(|(_, key)| key.to_owned()).expect("one");
            flow.keys(raw(input)).map(|keys| first(keys.expect("controlled"))).map_err(|error| error.message)
        };
        assert_eq!(key("${workflow.input.a}", r#"{"a": "x\u00e9"}"#), Ok("xé".to_owned()));
        assert_eq!(key("${workflow.input.a}", r#"{"a": 12}"#), Ok("12".to_owned()));
        assert_eq!(key("${workflow.input.a} > 1", r#"{"a": 12}"#), Ok("true".to_owned()));
        assert_eq!(key("${workflow.input.b:-none}", "{}"), Ok("none".to_owned()));
        for (wrong, input) in [
            ("${workflow.input.a}", "{}"),
            ("${workflow.input.a}", r#"{"a": {}}"#),
            ("${workflow.input.a}", r#"{"a": []}"#),
            ("${workflow.input.a} < 1", r#"{"a": "x"}"#),
        ] {
            assert!(key(wrong, input).is_err(), "{wrong} {input}");
        }
        let long = "x".repeat(257);
        assert!(key("${workflow.input.a}", &format!(r#"{{"a": "{long}"}}"#)).is_err());
        assert_eq!(key("${workflow.input.a}", &format!(r#"{{"a": "{}"}}"#, &long[1..])).map(|key| key.len()), Ok(256));
        assert_eq!(FlowControl::default().keys(raw("{}")), Ok(None));
    }
}
