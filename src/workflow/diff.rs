//! Diff of two versions of a workflow, by step and member.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::input::{member, members, object_of, to_raw};

/// Value in two versions.
// It is null in a version without it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Change {
    /// Value in the first version.
    #[schema(value_type = Value)]
    pub before: Box<RawValue>,
    /// Value in the second version.
    #[schema(value_type = Value)]
    pub after: Box<RawValue>,
}

impl Change {
    /// Change between two values as the database renders them, so that equal texts mean equal values. An absent value
    /// is a null.
    #[must_use]
    pub fn between(before: Option<&RawValue>, after: Option<&RawValue>) -> Option<Self> {
        let (before, after) = (before.unwrap_or(RawValue::NULL), after.unwrap_or(RawValue::NULL));
        (before.get() != after.get()).then(|| Self { before: before.to_owned(), after: after.to_owned() })
    }
}

/// Differences of two plans. The maps are JSON objects by step id.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Change of the first step.
    pub start_step: Option<Change>,
    /// Change of the limits of runs.
    pub limits: Option<Change>,
    /// Steps that only the second plan has.
    pub added: Box<RawValue>,
    /// Steps that only the first plan has.
    pub removed: Box<RawValue>,
    /// Differing members of the steps in both plans, each a [`Change`].
    pub changed: Box<RawValue>,
    /// Whether the plans are equal.
    pub identical: bool,
}

impl Diff {
    /// Compares two stored plans, as the database renders them. An unreadable plan has no steps.
    #[must_use]
    pub fn between(before: &RawValue, after: &RawValue) -> Self {
        let start_step = Change::between(member(before, "start_step"), member(after, "start_step"));
        let limits = Change::between(member(before, "limits"), member(after, "limits"));
        let (before, after) = (steps(before), steps(after));
        let (by_id_before, by_id_after): (HashMap<_, _>, HashMap<_, _>) = (by_id(&before), by_id(&after));
        let only_in = |steps: &[(String, &RawValue)], others: &HashMap<&str, &RawValue>| {
            object_of(steps.iter().map(|(id, step)| (id.as_str(), *step)).filter(|(id, _)| !others.contains_key(id)))
        };
        let changed: Vec<(&str, Box<RawValue>)> = before
            .iter()
            .filter_map(|(id, step)| Some((id.as_str(), changes(step, by_id_after.get(id.as_str())?)?)))
            .collect();
        let added = only_in(&after, &by_id_before);
        let removed = only_in(&before, &by_id_after);
        let has_same_steps = changed.is_empty() && added.get() == "{}" && removed.get() == "{}";
        let identical = start_step.is_none() && limits.is_none() && has_same_steps;
        let changed = object_of(changed.iter().map(|(id, members)| (*id, &**members)));
        Self { start_step, limits, added, removed, changed, identical }
    }
}

fn steps(plan: &RawValue) -> Vec<(String, &RawValue)> {
    member(plan, "steps").and_then(members).unwrap_or_default()
}

fn by_id<'a>(steps: &'a [(String, &'a RawValue)]) -> HashMap<&'a str, &'a RawValue> {
    steps.iter().map(|(id, step)| (id.as_str(), *step)).collect()
}

/// Differing members as an object; `None` if there are none.
fn changes(before: &RawValue, after: &RawValue) -> Option<Box<RawValue>> {
    let (before, after) = (members(before).unwrap_or_default(), members(after).unwrap_or_default());
    let (by_name, by_name_after) = (by_id(&before), by_id(&after));
    let mut names: Vec<&str> = by_name.keys().chain(by_name_after.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let changes: Vec<(&str, Box<RawValue>)> = names
        .into_iter()
        .filter_map(|name| {
            let change = Change::between(by_name.get(name).copied(), by_name_after.get(name).copied())?;
            Some((name, to_raw(&change)))
        })
        .collect();
    (!changes.is_empty()).then(|| object_of(changes.iter().map(|(name, change)| (*name, &**change))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn steps_are_compared_member_by_member() {
        let raw = |json: &'static str| check_json(json.as_bytes()).expect(json);
        let before =
            raw(r#"{"start_step": "a", "steps": {"a": {"id": "a", "n": 1, "gone": 2}, "b": {"id": "b"}, "s": {}}}"#);
        let after = raw(
            r#"{"start_step": "c", "steps": {"a": {"id": "a", "n": 12345678901234567890, "x": null}, "c": {}, "s": {}}}"#,
        );
        let diff = Diff::between(before, after);
        assert_eq!(to_raw(&diff.start_step).get(), r#"{"before":"a","after":"c"}"#);
        assert_eq!((diff.added.get(), diff.removed.get()), (r#"{"c":{}}"#, r#"{"b":{"id": "b"}}"#));
        let expected = r#"{"a":{"gone":{"before":2,"after":null},"n":{"before":1,"after":12345678901234567890}}}"#;
        assert_eq!((diff.changed.get(), diff.identical), (expected, false));
        assert!(Diff::between(before, before).identical);
        assert!(Diff::between(raw("7"), raw("null")).identical);
    }
}
