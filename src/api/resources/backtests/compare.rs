//! Comparison of a replay with the run that was recorded.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, value::RawValue};
use utoipa::ToSchema;

use super::path_of;
use crate::{
    api::vocabulary::sets,
    db::runs::RecordedStep,
    executor::{Report, Shown},
    input::to_raw,
    workflow::StepKind,
};

/// Maximum number of changes of one run that are listed.
const MAX_CHANGES: usize = 50;
/// Maximum bytes of a value that is shown.
const SHOWN_BYTES: usize = 2048;

/// Recorded run.
pub struct RecordedRun {
    pub status: String,
    pub output: Option<Box<RawValue>>,
    pub rows: Vec<RecordedStep>,
}

/// Difference at one step path.
#[derive(Serialize, ToSchema)]
pub struct StepChange {
    /// Path of the step.
    path: String,
    /// Id of the step.
    step_id: String,
    /// Kind of the difference.
    #[schema(value_type = sets::StepChangeKind)]
    change: &'static str,
    /// Value in the run; null also if there is none. More than 2 KiB are omitted.
    #[schema(value_type = Option<Value>)]
    recorded: Option<Box<RawValue>>,
    /// Value in the replay, in the same way.
    #[schema(value_type = Option<Value>)]
    replayed: Option<Box<RawValue>>,
    /// Whether one of the values is omitted because of its size.
    values_omitted: bool,
}

/// Last attempt at a path.
#[derive(Clone, Copy)]
struct Last<'a> {
    step_id: &'a str,
    status: &'a str,
    input: Option<&'a RawValue>,
    output: Option<&'a RawValue>,
    /// Whether the values depend on the present time only, or are not known.
    is_opaque: bool,
}

/// Differences between a run and its replay.
pub struct Comparison {
    pub path_changed: bool,
    pub output_changed: bool,
    pub changes: Vec<StepChange>,
    pub has_more: bool,
    pub without_recording: Vec<String>,
}

impl Comparison {
    /// Compares a replay with its run. Addresses of callbacks, which begin with `callbacks_url`, are all the same.
    pub fn of(recorded: &RecordedRun, replayed: &Report, callbacks_url: &str) -> Self {
        let before: BTreeMap<String, Last<'_>> = recorded
            .rows
            .iter()
            .map(|row| {
                let last = Last {
                    step_id: &row.step_id,
                    status: &row.status,
                    input: row.input_data.as_ref().map(|input| &*input.0),
                    output: row.output_data.as_ref().map(|output| &*output.0),
                    is_opaque: false,
                };
                (path_of(row), last)
            })
            .collect();
        // What is below a sub-workflow is part of another run, and a failure without an attempt has no row.
        let attempts = replayed.attempts.iter().filter(|attempt| attempt.attempt > 0 && !attempt.path.contains('>'));
        let after: BTreeMap<String, Last<'_>> = attempts
            .clone()
            .map(|attempt| {
                let last = Last {
                    step_id: &attempt.step_id,
                    status: attempt.status,
                    input: attempt.input.value.as_deref(),
                    output: attempt.output.value.as_deref(),
                    is_opaque: attempt.kind == Some(StepKind::Wait)
                        || attempt.input.is_omitted
                        || attempt.output.is_omitted,
                };
                (attempt.path.clone(), last)
            })
            .collect();
        let same = |before: Option<&RawValue>, after: Option<&RawValue>| is_same(before, after, callbacks_url);
        let mut all = Vec::new();
        for path in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            match (before.get(path), after.get(path)) {
                (Some(before), None) => all.push(StepChange::new(path, before.step_id, "removed", None, None)),
                (None, Some(after)) => all.push(StepChange::new(path, after.step_id, "added", None, None)),
                (Some(before), Some(after)) => {
                    let change = |change, before: Option<&RawValue>, after_value: Option<&RawValue>| {
                        StepChange::new(path, after.step_id, change, before, after_value)
                    };
                    if before.status != after.status {
                        all.push(change("status", Some(&to_raw(before.status)), Some(&to_raw(after.status))));
                    }
                    if !after.is_opaque && !same(before.input, after.input) {
                        all.push(change("input", before.input, after.input));
                    }
                    if !after.is_opaque && !same(before.output, after.output) {
                        all.push(change("output", before.output, after.output));
                    }
                }
                (None, None) => {}
            }
        }
        let path_changed = all.iter().any(|change| ["added", "removed"].contains(&change.change));
        let has_more = all.len() > MAX_CHANGES;
        all.truncate(MAX_CHANGES);
        let is_missing = |from: Option<&str>| from.is_some_and(|from| from != "recording");
        let missing = attempts.filter(|attempt| is_missing(attempt.answered_from));
        let missing: BTreeSet<&str> = missing.map(|attempt| attempt.step_id.as_str()).collect();
        let Shown { value, is_omitted } = &replayed.output;
        Self {
            path_changed,
            output_changed: !is_omitted && !same(recorded.output.as_deref(), value.as_deref()),
            changes: all,
            has_more,
            without_recording: missing.into_iter().map(str::to_owned).collect(),
        }
    }
}

impl StepChange {
    fn new(
        path: &str,
        step_id: &str,
        change: &'static str,
        recorded: Option<&RawValue>,
        replayed: Option<&RawValue>,
    ) -> Self {
        let shown =
            |value: Option<&RawValue>| value.filter(|value| value.get().len() <= SHOWN_BYTES).map(ToOwned::to_owned);
        let (before, after) = (shown(recorded), shown(replayed));
        Self {
            path: path.to_owned(),
            step_id: step_id.to_owned(),
            change,
            values_omitted: before.is_some() != recorded.is_some() || after.is_some() != replayed.is_some(),
            recorded: before,
            replayed: after,
        }
    }
}

/// Whether two values are equal as JSON, but for the addresses of callbacks.
fn is_same(before: Option<&RawValue>, after: Option<&RawValue>, callbacks_url: &str) -> bool {
    let parse = |value: Option<&RawValue>| {
        let text = without_tokens(value.map_or("null", RawValue::get), callbacks_url);
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    match (before, after) {
        (Some(before), Some(after)) if before.get() == after.get() => true,
        _ => is_equal(&parse(before), &parse(after)),
    }
}

/// Whether two values are equal. The database writes `1e2` as `100`.
fn is_equal(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Number(before), Value::Number(after)) => before == after || before.as_f64() == after.as_f64(),
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(before, after)| is_equal(before, after))
        }
        (Value::Object(before), Value::Object(after)) => {
            let has_equal = |(name, before)| after.get(name).is_some_and(|after| is_equal(before, after));
            before.len() == after.len() && before.iter().all(has_equal)
        }
        _ => before == after,
    }
}

/// The text without the tokens behind this prefix.
fn without_tokens(text: &str, callbacks_url: &str) -> String {
    let mut parts = text.split(callbacks_url);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept += callbacks_url;
        kept += part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn values_are_compared_as_json_and_addresses_of_callbacks_are_equal() {
        let same = |before: &str, after: &str| {
            let raw = |text: &'static str| check_json(text.as_bytes()).expect("JSON");
            let (before, after) = (before.to_owned().leak(), after.to_owned().leak());
            is_same(Some(raw(before)), Some(raw(after)), "http://h/callbacks/")
        };
        assert!(same(r#"{"a":1,"b":[2]}"#, r#"{"b": [2], "a": 1}"#));
        assert!(!same(r#"{"a":1}"#, r#"{"a":2}"#));
        assert!(same("[100]", "[1e2]") && !same("[100]", "[100,1]") && !same(r#"{"a":1}"#, r#"{"b":1}"#));
        assert!(same(r#"{"u":"http://h/callbacks/x_Y-1"}"#, r#"{"u":"http://h/callbacks/test-ask"}"#));
        assert!(!same(r#"{"u":"http://h/callbacks/x?a"}"#, r#"{"u":"http://h/callbacks/y?b"}"#));
        assert!(is_same(None, Some(RawValue::NULL), "http://h/"));
    }
}
