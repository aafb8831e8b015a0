//! Events as records of Kafka: `CloudEvents` 1.0 in structured JSON, <https://cloudevents.io>.

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Event, wire_id};
use crate::{input::to_raw, timestamp::Timestamp};

/// Media type of a record's value; the Kafka protocol binding has it in the header `content-type`.
pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: String,
    source: &'a str,
    #[serde(rename = "type")]
    event_type: &'a str,
    subject: &'a str,
    time: Timestamp,
    datacontenttype: &'static str,
    dataschema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: &'a RawValue,
}

/// The event as a value of a record. `api` is the address of the API, `subject` what the event is about: the run, or
/// the organisation.
#[must_use]
pub fn render(event: &Event, api: &str, subject: &str, traceparent: Option<&str>) -> Box<RawValue> {
    to_raw(&CloudEvent {
        specversion: "1.0",
        id: wire_id(event.id),
        source: api,
        event_type: &event.event_type,
        subject,
        time: event.created_at,
        datacontenttype: "application/json",
        dataschema: format!("{api}/webhook-events#{}", event.event_type),
        traceparent,
        data: &event.data(api),
    })
}
