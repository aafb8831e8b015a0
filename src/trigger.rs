//! Triggers: what starts runs of a workflow without a client. Each kind reads and shows its own configuration, in a file
//! of its own.

pub mod kafka;
pub mod schedule;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;
use uuid::Uuid;

pub use self::{
    kafka::KafkaTrigger,
    schedule::{BackfillRequest, Schedule},
};
use crate::{
    expression,
    inbound::Webhook,
    input::{FieldError, Node, Object, Patch, Read, keep, object_of, request_object, to_raw},
    mapping::{self, Scope},
    timestamp::Timestamp,
};

/// Maximum number of triggers of an organisation.
pub const MAX_TRIGGERS: i64 = 10_000;
/// Maximum length of a chain of runs of which each has caused the next one, as that of nested runs.
pub const MAX_CHAIN: i16 = 16;
/// Priority of runs without one of their own.
pub const DEFAULT_PRIORITY: i16 = 5;
/// Length range of a name. Its runs are triggered by `trigger:` and the name.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=200;
/// Length range of the name of a workflow.
const WORKFLOW_NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;
/// Maximum length of a note.
const MAX_NOTE_CHARS: usize = 1000;
/// Maximum number of labels.
const MAX_LABELS: usize = 32;
/// Maximum length of the name and of the text of a label.
const MAX_LABEL_CHARS: usize = 255;
/// Maximum bytes of `input`.
const MAX_INPUT_BYTES: usize = 64 << 10;

/// Kind of a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TriggerKind {
    /// Fires when a record is in a topic.
    Kafka,
    /// Fires at times.
    Schedule,
    /// Fires when another service delivers something.
    Webhook,
}

impl TriggerKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Schedule, Self::Kafka, Self::Webhook];

    /// Name in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Schedule => "schedule",
            Self::Webhook => "webhook",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Names of its counters besides `fired` and `failed_to_start`.
    #[must_use]
    pub fn counters(self) -> &'static [&'static str] {
        match self {
            Self::Kafka => &["filtered", "repeated", "dead_letters"],
            Self::Schedule => &["missed", "overlap_skipped", "buffer_dropped"],
            Self::Webhook => &["filtered"],
        }
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::parse(name).ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Configuration of a trigger, by its kind.
#[derive(Clone, Debug)]
pub enum Config {
    /// Which records start runs.
    Kafka(Box<KafkaTrigger>),
    /// Times at which it fires.
    Schedule(Box<Schedule>),
    /// How deliveries are verified and read.
    Webhook(Box<Webhook>),
}

impl Config {
    /// Reads the configuration of that kind.
    pub fn read(kind: TriggerKind, node: &Node<'_>) -> Read<Self> {
        match kind {
            TriggerKind::Kafka => Ok(Self::Kafka(Box::new(KafkaTrigger::read(node)?))),
            TriggerKind::Schedule => Ok(Self::Schedule(Box::new(Schedule::read(&node.object()?)?))),
            TriggerKind::Webhook => Ok(Self::Webhook(Box::new(Webhook::read(node)?))),
        }
    }

    /// Reads a stored configuration. `None` if another release has written one that this one does not know.
    #[must_use]
    pub fn from_stored(kind: &str, stored: &RawValue) -> Option<Self> {
        Self::read(TriggerKind::parse(kind)?, &Node::new("config", stored)).ok()
    }

    /// The configuration in its normal form, without secrets: as it is stored and shown.
    #[must_use]
    pub fn to_stored(&self) -> Box<RawValue> {
        match self {
            Self::Kafka(kafka) => kafka.to_stored(),
            Self::Schedule(schedule) => schedule.to_stored(),
            Self::Webhook(webhook) => to_raw(&webhook.config),
        }
    }

    /// The configuration as a request gives it, with the secrets that it brings.
    #[must_use]
    fn to_given(&self) -> Box<RawValue> {
        match self {
            Self::Kafka(_) | Self::Schedule(_) => self.to_stored(),
            Self::Webhook(webhook) => webhook.to_given(),
        }
    }

    /// Whether the request brings secrets.
    #[must_use]
    pub fn has_secrets(&self) -> bool {
        match self {
            Self::Kafka(_) | Self::Schedule(_) => false,
            Self::Webhook(webhook) => webhook.secrets.is_some(),
        }
    }

    /// Whether it can fire at all, from now on, and its expressions are about what it sees. A stored configuration that is
    /// wrong in this can still be read.
    pub fn check(&self, path: &str, now: DateTime<Utc>) -> Result<(), Vec<FieldError>> {
        match self {
            Self::Schedule(schedule) => schedule.check(path, now),
            Self::Kafka(kafka) => check_expressions(
                path,
                &[("filter", kafka.filter.as_ref()), ("idempotency", kafka.idempotency.as_ref())],
            ),
            Self::Webhook(webhook) => {
                let config = &webhook.config;
                check_expressions(path, &[("filter", config.filter.as_ref()), ("dedupe", config.dedupe.as_ref())])
            }
        }
    }

    /// The next instants at which it fires, without jitter, as far as that is known beforehand.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        match self {
            Self::Schedule(schedule) => schedule.upcoming(after, count),
            Self::Kafka(_) | Self::Webhook(_) => Vec::new(),
        }
    }

    /// Kind of the trigger.
    #[must_use]
    pub fn kind(&self) -> TriggerKind {
        match self {
            Self::Kafka(_) => TriggerKind::Kafka,
            Self::Schedule(_) => TriggerKind::Schedule,
            Self::Webhook(_) => TriggerKind::Webhook,
        }
    }
}

/// Texts by name.
pub type Labels = BTreeMap<String, String>;

/// Configuration of a trigger, as its kind has it: what [`Config::read`] reads.
#[derive(utoipa::ToSchema)]
#[schema(as = TriggerConfig)]
#[serde(untagged)]
pub enum ConfigBody {
    /// Of a schedule.
    Schedule(schedule::ScheduleBody),
    /// Of a Kafka trigger.
    Kafka(kafka::KafkaTriggerBody),
    /// Of a webhook trigger.
    Webhook(crate::inbound::ConfigBody),
}

request_object! {
    /// Body of a create request.
    #[schema(as = CreateTriggerRequest, example = json!({"name": "monday-report", "kind": "schedule",
        "workflow_name": "report", "input": {"day": "${trigger.scheduled_at}"},
        "config": {"cron": ["0 9 * * 1"], "time_zone": "Europe/Berlin"}}))]
    pub struct NewTriggerBody: deny_unknown_fields {
        /// Name, unique in the organisation.
        #[schema(min_length = 1, max_length = 200, pattern = r"\S", example = "monday-report")]
        name: String = required(|node| node.not_blank(NAME_CHARS)),
        /// Kind of the trigger; never changed.
        #[schema(value_type = String, pattern = "^(schedule|kafka|webhook)$", example = "schedule")]
        kind: TriggerKind = required(TriggerKind::read),
        /// Name of the workflow that it starts. The workflow may be created later.
        #[schema(min_length = 1, max_length = 255, pattern = r"\S", example = "report")]
        workflow_name: String = required(|node| node.not_blank(WORKFLOW_NAME_CHARS)),
        /// Version of the workflow; absent or null: the newest one.
        #[schema(minimum = 1, maximum = 2_147_483_647)]
        version: Option<i32> = nullable(read_version),
        /// Input of its runs. Strings may contain references such as `${trigger.at}`; absent or null: the object
        /// `trigger` with all of that.
        #[schema(value_type = Option<std::collections::HashMap<String, serde_json::Value>>)]
        input: Option<Box<RawValue>> = nullable(read_input),
        /// Priority of its runs; the default is 5.
        #[schema(value_type = Option<i64>, minimum = 0, maximum = 9)]
        priority: Option<i16> = nullable(read_priority),
        /// Texts by name, for its owners.
        #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
        labels: Option<Labels> = nullable(read_labels),
        /// Whether it fires; the default is true.
        #[schema(nullable = false)]
        enabled: Option<bool> = patch_not_null(Node::boolean),
        /// Anything worth knowing, such as why it is paused.
        #[schema(max_length = 1000)]
        note: Option<String> = nullable(read_note),
        /// When it fires, as its kind has it.
        #[schema(value_type = ConfigBody)]
        config: Box<RawValue> = required(Node::free_object),
    }
}

request_object! {
    /// Body of an update request; absent members stay unchanged.
    #[schema(as = UpdateTriggerRequest, example = json!({"config": {"cron": ["0 8 * * 1"], "time_zone": "Europe/Berlin"}}))]
    pub struct TriggerPatchBody: deny_unknown_fields {
        /// Name, unique in the organisation.
        #[schema(nullable = false, min_length = 1, max_length = 200, pattern = r"\S")]
        name: Option<String> = patch_not_null(|node| node.not_blank(NAME_CHARS)),
        /// Name of the workflow that it starts.
        #[schema(nullable = false, min_length = 1, max_length = 255, pattern = r"\S")]
        workflow_name: Option<String> = patch_not_null(|node| node.not_blank(WORKFLOW_NAME_CHARS)),
        /// Version of the workflow; null: the newest one.
        #[schema(value_type = Option<i32>, minimum = 1, maximum = 2_147_483_647)]
        version: Patch<i32> = patch(read_version),
        /// Input of its runs, replaced as a whole; null: the object `trigger` with all that can be referred to.
        #[schema(value_type = Option<std::collections::HashMap<String, serde_json::Value>>)]
        input: Patch<Box<RawValue>> = patch(read_input),
        /// Priority of its runs.
        #[schema(nullable = false, value_type = Option<i64>, minimum = 0, maximum = 9)]
        priority: Option<i16> = patch_not_null(read_priority),
        /// Texts by name, replaced as a whole.
        #[schema(nullable = false, value_type = Option<std::collections::HashMap<String, String>>)]
        labels: Option<Labels> = patch_not_null(read_labels),
        /// Whether it fires.
        #[schema(nullable = false)]
        enabled: Option<bool> = patch_not_null(Node::boolean),
        /// Anything worth knowing.
        #[schema(value_type = Option<String>, max_length = 1000)]
        note: Patch<String> = patch(read_note),
        /// When it fires, replaced as a whole.
        #[schema(nullable = false, value_type = Option<ConfigBody>)]
        config: Option<Box<RawValue>> = patch_not_null(Node::free_object),
    }
}

/// Trigger to create.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "described in the body")]
pub struct NewTrigger {
    pub name: String,
    pub workflow_name: String,
    pub version: Option<i32>,
    pub input: Option<Box<RawValue>>,
    pub priority: i16,
    pub labels: Labels,
    pub enabled: bool,
    pub note: Option<String>,
    pub config: Config,
}

impl NewTrigger {
    /// Reads the body of a create request.
    pub fn parse(body: &RawValue) -> Read<Self> {
        let body = NewTriggerBody::read(&Object::body(body)?)?;
        let config = Config::read(body.kind, &Node::new("body.config", &body.config))?;
        Ok(Self {
            name: body.name,
            workflow_name: body.workflow_name,
            version: body.version,
            input: body.input,
            priority: body.priority.unwrap_or(DEFAULT_PRIORITY),
            labels: body.labels.unwrap_or_default(),
            enabled: body.enabled.unwrap_or(true),
            note: body.note,
            config,
        })
    }
}

/// Change of a trigger. The configuration is read when the kind of the trigger is known.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "described in the body")]
pub struct TriggerPatch {
    pub name: Option<String>,
    pub workflow_name: Option<String>,
    pub version: Patch<i32>,
    pub input: Patch<Box<RawValue>>,
    pub priority: Option<i16>,
    pub labels: Option<Labels>,
    pub enabled: Option<bool>,
    pub note: Patch<String>,
    pub config: Option<Box<RawValue>>,
}

impl TriggerPatch {
    /// Reads the body of an update request.
    pub fn parse(body: &RawValue) -> Read<Self> {
        let body = TriggerPatchBody::read(&Object::body(body)?)?;
        let TriggerPatchBody { name, workflow_name, version, input, priority, labels, enabled, note, config } = body;
        Ok(Self { name, workflow_name, version, input, priority, labels, enabled, note, config })
    }

    /// The change that sets a trigger to this definition.
    #[must_use]
    pub fn to(new: NewTrigger) -> Self {
        fn set<T>(value: Option<T>) -> Patch<T> {
            value.map_or(Patch::Null, Patch::Value)
        }
        Self {
            name: Some(new.name),
            workflow_name: Some(new.workflow_name),
            version: set(new.version),
            input: set(new.input),
            priority: Some(new.priority),
            labels: Some(new.labels),
            enabled: Some(new.enabled),
            note: set(new.note),
            config: Some(new.config.to_given()),
        }
    }
}

request_object! {
    /// Body of a fire or preview request.
    #[schema(as = FireTriggerRequest, example = json!({"trigger": {}}))]
    pub struct FireBody: deny_unknown_fields {
        /// Members of the object `trigger` that references of the input refer to, as if they had happened.
        #[schema(value_type = Option<std::collections::HashMap<String, serde_json::Value>>)]
        trigger: Option<Vec<(String, Box<RawValue>)>> = nullable(|node| {
            Ok(node.map()?.into_iter().map(|(name, node)| (name, node.raw().to_owned())).collect())
        }),
    }
}

impl FireBody {
    /// Reads the body: the members that it has.
    pub fn parse(body: Option<&RawValue>) -> Read<Vec<(String, Box<RawValue>)>> {
        let Some(body) = body else { return Ok(Vec::new()) };
        Ok(Self::read(&Object::body(body)?)?.trigger.unwrap_or_default())
    }
}

request_object! {
    /// Body of a pause request.
    #[schema(as = PauseTriggerRequest, example = json!({"note": "until the new model is there"}))]
    pub struct PauseBody: deny_unknown_fields {
        /// Why it is paused.
        #[schema(max_length = 1000)]
        note: Option<String> = nullable(read_note),
    }
}

impl PauseBody {
    /// Reads the body; an absent one has no note.
    pub fn parse(body: Option<&RawValue>) -> Read<Option<String>> {
        let Some(body) = body else { return Ok(None) };
        Ok(Self::read(&Object::body(body)?)?.note)
    }
}

fn read_version(node: &Node<'_>) -> Read<i32> {
    // The range fits.
    node.int(1..=i32::MAX.into()).map(|version| i32::try_from(version).unwrap_or(i32::MAX))
}

fn read_priority(node: &Node<'_>) -> Read<i16> {
    node.int(0..=9).map(|priority| i16::try_from(priority).unwrap_or(DEFAULT_PRIORITY))
}

fn read_note(node: &Node<'_>) -> Read<String> {
    node.string(0..=MAX_NOTE_CHARS)
}

fn read_labels(node: &Node<'_>) -> Read<Labels> {
    let members = node.map()?;
    if members.len() > MAX_LABELS {
        return Err(vec![node.error("too_long", format!("There should be at most {MAX_LABELS} labels"))]);
    }
    let (mut labels, mut errors) = (Labels::new(), Vec::new());
    for (name, node) in members {
        if name.is_empty() || name.chars().count() > MAX_LABEL_CHARS {
            let text = format!("the name of a label has 1 to {MAX_LABEL_CHARS} characters");
            errors.push(FieldError::rule(node.path(), text));
        } else if let Some(text) = keep(node.string(0..=MAX_LABEL_CHARS), &mut errors) {
            labels.insert(name, text);
        }
    }
    if errors.is_empty() { Ok(labels) } else { Err(errors) }
}

/// Checks that the expressions, by their members, refer to the trigger and to nothing else.
fn check_expressions(path: &str, expressions: &[(&str, Option<&String>)]) -> Result<(), Vec<FieldError>> {
    let fault = |(member, text): &(&str, Option<&String>)| {
        let checked = expression::check_about((*text)?, "${trigger.<path>}", mapping::reference::is_of_trigger);
        checked.err().map(|why| FieldError::rule(format!("{path}.{member}"), why))
    };
    let errors: Vec<_> = expressions.iter().filter_map(fault).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Reads an input with references, of which each must be one to the trigger.
fn read_input(node: &Node<'_>) -> Read<Box<RawValue>> {
    let input = node.free_object()?;
    if input.get().len() > MAX_INPUT_BYTES {
        return Err(vec![FieldError::rule(node.path(), format!("must have at most {MAX_INPUT_BYTES} bytes"))]);
    }
    let mut errors = Vec::new();
    mapping::strings(&input, &mut |text| {
        for piece in mapping::split(text) {
            let mapping::Piece::Reference(reference) = piece else { continue };
            if !mapping::reference::is_of_trigger(reference) && errors.len() < crate::input::MAX_ERRORS {
                let shown = crate::input::shorten(reference);
                errors.push(FieldError::rule(node.path(), format!("reference '{shown}' must be trigger.<path>")));
            }
        }
    });
    if errors.is_empty() { Ok(input) } else { Err(errors) }
}

/// Trigger that fires, as references of its input see it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Fired<'a> {
    pub kind: &'a str,
    pub id: Uuid,
    pub name: &'a str,
    /// When the trigger was due, without jitter.
    pub at: DateTime<Utc>,
}

/// The object that references of the input refer to: `kind`, `id`, `name`, `at` and the members of the kind. A schedule has
/// `scheduled_at`.
#[must_use]
pub fn what(fired: Fired<'_>, members: &[(String, Box<RawValue>)]) -> Box<RawValue> {
    let at = Timestamp::from(fired.at);
    let mut all = vec![
        ("kind", to_raw(fired.kind)),
        ("id", to_raw(&fired.id)),
        ("name", to_raw(fired.name)),
        ("at", to_raw(&at)),
    ];
    let is_given = |name: &str| members.iter().any(|(given, _)| given == name);
    if fired.kind == TriggerKind::Schedule.as_str() && !is_given("scheduled_at") {
        all.push(("scheduled_at", to_raw(&at)));
    }
    let is_common = |name: &str| ["kind", "id", "name", "at"].contains(&name);
    let others = members.iter().filter(|(name, _)| !is_common(name));
    object_of(
        all.iter().map(|(name, value)| (*name, &**value)).chain(others.map(|(name, value)| (name.as_str(), &**value))),
    )
}

/// Input of a run, with what has happened in the place of references. Without a mapping, it is the object `trigger`.
/// The error is for people.
pub fn resolve_input(mapping: Option<&RawValue>, what: &RawValue) -> Result<Box<RawValue>, String> {
    match mapping {
        Some(mapping) => mapping::resolve_value(mapping, &Scope::of_trigger(what)),
        None => Ok(crate::input::object_of([(mapping::reference::TRIGGER, what)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    #[test]
    fn an_input_has_what_has_happened_in_the_place_of_references() {
        let what = raw(r#"{"at":"2027-01-01T00:00:00Z","body":{"n":12345678901234567890123,"items":[1,{"a":2}]}}"#);
        let resolve = |mapping: &str| resolve_input(Some(raw(mapping)), what).map(|input| input.get().to_owned());
        assert_eq!(resolve(r#"{"n":"${trigger.body.n}"}"#), Ok(r#"{"n":12345678901234567890123}"#.to_owned()));
        assert_eq!(resolve(r#"{"a":"${trigger.body.items[1].a}"}"#), Ok(r#"{"a":2}"#.to_owned()));
        assert_eq!(
            resolve(r#"{"t":"at ${trigger.at}","d":"${trigger.none:-7}"}"#),
            Ok(r#"{"t":"at 2027-01-01T00:00:00Z","d":7}"#.to_owned())
        );
        assert!(resolve(r#"{"a":"${trigger.none}"}"#).expect_err("no member").contains("no member 'none'"));
        let all = resolve_input(None, what).expect("an input");
        assert_eq!(all.get(), format!(r#"{{"trigger":{}}}"#, what.get()));
    }

    #[test]
    fn a_reference_to_anything_but_the_trigger_is_refused_when_it_is_saved() {
        for (input, is_good) in [
            (r#"{"a":"${trigger.at}","b":["${trigger.x:-none}","$ {x}"]}"#, true),
            (r#"{"a":"${trigger}"}"#, true),
            (r#"{"a":"${workflow.input.x}"}"#, false),
            (r#"{"a":[{"b":"x ${step.output.y}"}]}"#, false),
            (r#"{"a":"${triggered.at}"}"#, false),
        ] {
            let read = read_input(&Node::new("body.input", raw(input)));
            assert_eq!(read.is_ok(), is_good, "{input}: {read:?}");
        }
    }
}
