//! Bodies of deliveries: the envelope of an event. Values of runs keep their text.

use serde_json::value::RawValue;

use crate::{
    event::Event,
    expression,
    input::{members, object_of, to_raw},
    mapping::{Scope, reference::is_of_event},
};

/// Maximum bytes of input and output together in a full payload.
pub const MAX_VALUES_BYTES: usize = 64 << 10;

/// Values of a run for a full payload.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// None: a thin payload, or an event without a run.
    None,
    /// Both together are larger than [`MAX_VALUES_BYTES`].
    TooLarge,
    /// The input and the output, if there is one.
    #[expect(missing_docs, reason = "said by the names")]
    Of { input: Option<&'a RawValue>, output: Option<&'a RawValue> },
}

/// Members of a full payload with the input and the output of the run.
pub const VALUES: [&str; 2] = ["input", "output"];
/// Member of a full payload with the address of an open callback, which is a permission to answer it.
pub const CALLBACK_URL: &str = "callback_url";

/// Body of an event. `api` is the address of the API, and `callback_url` that of the callback that the event is about.
#[must_use]
pub fn render(event: &Event, api: &str, values: Values<'_>, callback_url: Option<&str>) -> String {
    let data = event.data(api);
    let (omitted, callback_url) = (to_raw("too_large"), callback_url.map(to_raw));
    let (omitted, input, output) = match values {
        Values::None => (None, None, None),
        Values::TooLarge => (Some(&*omitted), None, None),
        Values::Of { input, output } => (None, input, output),
    };
    let more =
        [("output_omitted", omitted), ("input", input), ("output", output), (CALLBACK_URL, callback_url.as_deref())];
    let more: Vec<_> = more.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    if more.is_empty() {
        return event.envelope(api).get().to_owned();
    }
    let known = members(&data).unwrap_or_default();
    let all = known.iter().map(|(name, value)| (name.as_str(), *value)).chain(more);
    let data = object_of(all);
    let (event_type, at) = (to_raw(&event.event_type), to_raw(&event.created_at));
    object_of([("type", &*event_type), ("timestamp", &*at), ("data", &*data)]).get().to_owned()
}

/// The body with `mask` in the place of these members of a full payload.
#[must_use]
pub fn masked(body: &RawValue, hidden: &[&str], mask: &str) -> Box<RawValue> {
    let mask = to_raw(mask);
    let known = members(body).unwrap_or_default();
    let data = known.iter().find(|(name, _)| name == "data").and_then(|(_, data)| members(data));
    let Some(data) = data.filter(|data| data.iter().any(|(name, _)| hidden.contains(&name.as_str()))) else {
        return body.to_owned();
    };
    let data = object_of(data.iter().map(|(name, value)| {
        let name = name.as_str();
        (name, if hidden.contains(&name) { &*mask } else { *value })
    }));
    object_of(known.iter().map(|(name, value)| {
        let name = name.as_str();
        (name, if name == "data" { &*data } else { *value })
    }))
}

/// Whether the filter takes a body. A filter that has no value for it takes it: an event is rather sent than lost.
#[must_use]
pub fn passes(filter: &str, body: &RawValue) -> bool {
    expression::holds(filter, &Scope::of_event(body)).unwrap_or(true)
}

/// Checks that a filter is about events. The error is for people.
pub fn check_filter(filter: &str) -> Result<(), String> {
    expression::check_about(filter, "${event.type}, ${event.timestamp} or ${event.data.<path>}", is_of_event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> Box<RawValue> {
        check_json(json.as_bytes()).expect(json).to_owned()
    }

    fn event(event_type: &str, run_id: Option<&str>, data: &str) -> Event {
        let at = chrono::DateTime::parse_from_rfc3339("2026-11-28T10:00:00.123456Z").expect("a time").to_utc();
        Event {
            id: uuid::Uuid::nil(),
            event_type: event_type.to_owned(),
            created_at: at.into(),
            run_id: run_id.map(str::to_owned),
            seq: run_id.map(|_| 17),
            data: raw(data),
        }
    }

    fn failed() -> Event {
        event("run.failed", Some("run-1"), r#"{"run_id":"run-1","status":"FAILED"}"#)
    }

    #[test]
    fn a_body_keeps_the_text_of_values_and_has_a_link_to_the_run() {
        let output = raw(r#"{"a":1.0,"b":"\u00e9","c":123456789012345678901234567890}"#);
        let body = render(&failed(), "https://x/api/v1", Values::Of { input: None, output: Some(&output) }, None);
        let expected = r#"{"type":"run.failed","timestamp":"2026-11-28T10:00:00.123456Z","data":{"links":{"run":"https://x/api/v1/runs/run-1"},"run_id":"run-1","seq":17,"status":"FAILED","output":{"a":1.0,"b":"\u00e9","c":123456789012345678901234567890}}}"#;
        assert_eq!(body, expected);
        let ping = event("webhook.ping", None, "{}");
        let thin = render(&ping, "https://x", Values::None, None);
        let expected = r#"{"type":"webhook.ping","timestamp":"2026-11-28T10:00:00.123456Z","data":{"links":{}}}"#;
        assert_eq!(thin, expected);
        let large = render(&failed(), "https://x", Values::TooLarge, None);
        assert!(large.contains(r#""output_omitted":"too_large""#) && large.contains("links"), "{large}");
    }

    #[test]
    fn the_address_of_a_callback_is_a_member_that_can_be_masked() {
        let waiting = event("run.waiting", Some("run-1"), r#"{"run_id":"run-1","n":1.0}"#);
        let body = render(&waiting, "https://x", Values::None, Some("https://x/callbacks/t"));
        let data = |url: &str| {
            format!(
                r#""data":{{"links":{{"run":"https://x/runs/run-1"}},"n":1.0,"run_id":"run-1","seq":17,"callback_url":"{url}"}}"#
            )
        };
        assert!(body.contains(&data("https://x/callbacks/t")), "{body}");
        let without = |body: &str| masked(&raw(body), &[CALLBACK_URL], "****");
        assert_eq!(without(&body).get(), body.replace(&data("https://x/callbacks/t"), &data("****")));
        let other = render(&failed(), "https://x", Values::None, None);
        assert_eq!(without(&other).get(), other);
    }

    #[test]
    fn a_filter_reads_the_envelope() {
        let body = raw(&render(&failed(), "https://x", Values::None, None));
        for (filter, expected) in [
            ("${event.data.status} == 'FAILED'", true),
            ("${event.data.status} == 'COMPLETED'", false),
            ("${event.type} in ['run.failed', 'run.cancelled'] and ${event.data.seq} > 16", true),
            ("${event.data.missing} is null", true),
            // No order between a text and a number: the event is sent.
            ("${event.data.status} > 1", true),
        ] {
            assert_eq!(passes(filter, &body), expected, "{filter}");
            assert_eq!(check_filter(filter), Ok(()));
        }
        for filter in
            ["${data.status} == 'FAILED'", "${event.data.seq} > 1 or ${workflow.input.x}", "${event.id}", "'x'"]
        {
            let why = check_filter(filter).expect_err(filter);
            assert!(why.contains("${event.type}"), "{why}");
        }
    }
}
