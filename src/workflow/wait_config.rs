//! Configuration of steps that wait for something outside of their run: a time, a callback, another workflow.

use std::ops::RangeInclusive;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use super::reading::{ID_CHARS, one_of};
use crate::input::{FieldError, Node, Object, Read, iso_8601, text};

/// Maximum wait and time limit, ten years: longer ones are rejected as mistakes.
pub const MAX_WAIT_SECS: i64 = 315_576_000;

/// Maximum number of characters of a comment to a decision.
const MAX_COMMENT_CHARS: usize = 2000;

/// Range of a step's time limit in seconds.
pub(super) const TIMEOUT_SECS: RangeInclusive<i64> = 1..=MAX_WAIT_SECS;

/// Duration or end of a wait. Exactly one member is set.
#[derive(Clone, Debug, Serialize)]
pub struct WaitConfig {
    /// Seconds, as a number or a text with references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<Box<RawValue>>,
    /// ISO 8601 duration, or a text with references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// ISO 8601 time with a zone, or a text with references.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Configuration of a callback.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CallbackConfig {
    /// Set if the callback is an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

/// Approval by a person.
#[derive(Clone, Debug, Serialize)]
pub struct Approval {
    /// Role that the approver must have; `None`: the callback's address is enough.
    pub role: Option<String>,
    /// `fail` or `continue`.
    pub on_reject: &'static str,
}

/// Workflow that runs as a step. Exactly one member is set.
#[derive(Clone, Debug, Serialize)]
pub struct SubWorkflowConfig {
    /// Id of a definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// Name, of which the newest version is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_name: Option<String>,
}

impl WaitConfig {
    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let duration_seconds = object.nullable("duration_seconds", &mut errors, |node| {
            if text(node.raw()).is_none_or(|text| !has_reference(&text)) {
                let secs = node.float(0.0)?;
                bounded(secs).map_err(|text| vec![FieldError::rule(node.path(), text)])?;
            }
            Ok(node.raw().to_owned())
        });
        let duration = object.nullable("duration", &mut errors, |node| {
            node.parsed(|text| if has_reference(text) { Ok(()) } else { iso_duration(text).map(drop) })?;
            node.string(0..=usize::MAX)
        });
        let until = object.nullable("until", &mut errors, |node| {
            node.parsed(|text| if has_reference(text) { Ok(()) } else { instant(text).map(drop) })?;
            node.string(0..=usize::MAX)
        });
        let given = [duration_seconds.is_some(), duration.is_some(), until.is_some()];
        if errors.is_empty() && given.iter().filter(|given| **given).count() != 1 {
            errors.push(FieldError::rule(node.path(), "needs one of duration_seconds, duration and until"));
        }
        if errors.is_empty() { Ok(Self { duration_seconds, duration, until }) } else { Err(errors) }
    }
}

impl CallbackConfig {
    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        let mut errors = Vec::new();
        let approval = node.object()?.nullable("approval", &mut errors, Approval::read);
        if errors.is_empty() { Ok(Self { approval }) } else { Err(errors) }
    }
}

impl Approval {
    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let role = object.nullable("role", &mut errors, |node| node.not_blank(ID_CHARS));
        let on_reject = object.nullable("on_reject", &mut errors, |node| one_of(node, &["fail", "continue"]));
        if errors.is_empty() { Ok(Self { role, on_reject: on_reject.unwrap_or("fail") }) } else { Err(errors) }
    }
}

impl SubWorkflowConfig {
    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let workflow_id = object.nullable("workflow_id", &mut errors, |node| {
            node.parsed(|text| match uuid::Uuid::try_parse(text) {
                Ok(id) => Ok(id.to_string()),
                Err(_) => Err("must be a UUID".to_owned()),
            })
        });
        let workflow_name = object.nullable("workflow_name", &mut errors, |node| node.not_blank(ID_CHARS));
        if errors.is_empty() && workflow_id.is_some() == workflow_name.is_some() {
            errors.push(FieldError::rule(node.path(), "needs either workflow_id or workflow_name"));
        }
        if errors.is_empty() { Ok(Self { workflow_id, workflow_name }) } else { Err(errors) }
    }
}

fn has_reference(text: &str) -> bool {
    text.contains("${")
}

/// Checks the seconds of a wait. The error is the text for a step's error message.
pub fn bounded(secs: f64) -> Result<f64, String> {
    if (0.0..=MAX_WAIT_SECS as f64).contains(&secs) {
        Ok(secs)
    } else {
        Err(format!("must be from 0 to {MAX_WAIT_SECS} seconds"))
    }
}

/// Parses an ISO 8601 time with a zone.
pub fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    let zoned = iso_8601(text.trim())
        .and_then(|(local, offset)| local.checked_sub_signed(TimeDelta::seconds(offset?.local_minus_utc().into())));
    let wrong = || "must be a time with a zone, such as 2026-02-03T09:00:00Z".to_owned();
    zoned.map(|utc| utc.and_utc()).ok_or_else(wrong)
}

/// Checks that a time is close enough to be waited for.
pub fn near(instant: DateTime<Utc>, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    if (instant - now).num_seconds() <= MAX_WAIT_SECS {
        Ok(instant)
    } else {
        Err("must be at most ten years away".to_owned())
    }
}

/// Seconds of an ISO 8601 duration of weeks, days, hours, minutes and seconds, as far as a wait may be long. Years and months
/// are rejected, since they differ in length.
pub fn iso_duration(text: &str) -> Result<f64, String> {
    crate::input::iso_duration(text).and_then(bounded)
}

/// Checks that a decision is an object with `approved` and an optional comment. An authorisation that an agent needs
/// has nothing but `approved`, so that no secret is stored here.
pub fn check_decision(answer: &RawValue, is_authorisation: bool) -> Read<()> {
    let body = Object::body(answer)?;
    let mut errors = Vec::new();
    if is_authorisation {
        body.only(&["approved"], &mut errors);
    }
    body.required("approved", &mut errors, Node::boolean);
    body.nullable("comment", &mut errors, |node| node.string(0..=MAX_COMMENT_CHARS));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_iso_8601_has_them() {
        for (text, expected) in [
            ("PT0S", Some(0.0)),
            ("PT1.5S", Some(1.5)),
            ("PT1M30S", Some(90.0)),
            ("P1DT2H", Some(93_600.0)),
            ("P2W", Some(1_209_600.0)),
            (" PT5M ", Some(300.0)),
            ("P", None),
            ("PT", None),
            ("P1DT", None),
            ("P1Y", None),
            ("P1M", None),
            ("PT1S30M", None),
            ("PT-5S", None),
            ("PT1e3S", None),
            ("5 minutes", None),
            ("P9999999W", None),
        ] {
            assert_eq!(iso_duration(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn an_instant_is_at_most_ten_years_away() {
        let now = instant("2026-02-03T09:00:00Z").expect("now");
        assert!(near(instant("2036-02-03T09:00:00Z").expect("later"), now).is_ok());
        assert!(near(instant("1970-01-01T00:00:00Z").expect("before"), now).is_ok());
        for text in ["2036-02-04T09:00:00Z", "9999-12-31T23:59:59Z"] {
            assert_eq!(near(instant(text).expect(text), now), Err("must be at most ten years away".to_owned()));
        }
    }

    #[test]
    fn an_instant_needs_its_zone() {
        assert!(instant("2026-02-03T09:00:00Z").is_ok());
        assert!(instant("2026-02-03T09:00:00.5+02:00").is_ok());
        let same = instant("2026-02-03T10:00:00Z");
        assert!(same.is_ok());
        for text in [
            "2026-02-03T10:00Z",
            "2026-02-03T11:00+01:00",
            "2026-02-03T11:00:00+0100",
            "2026-02-03T11:00:00+01",
            "20260203T100000Z",
            "2026-02-03T10:00:00,0Z",
            "2026-W06-2T10:00:00Z",
        ] {
            assert_eq!(instant(text), same, "{text}");
        }
        assert_eq!(instant("2026-02-02T24:00:00Z"), instant("2026-02-03T00:00:00Z"));
        for text in ["2026-02-03T09:00:00", "2026-02-03", "tomorrow", ""] {
            assert!(instant(text).is_err(), "{text}");
        }
    }
}
