//! Events for programs outside of the service: their form on the wire, whichever way they take.

pub mod catalogue;
pub mod cloud_event;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    input::{member, to_raw},
    timestamp::Timestamp,
};

/// Event as it is stored.
#[derive(Clone, Debug)]
pub struct Event {
    /// Id.
    pub id: Uuid,
    /// Type, such as `run.completed`.
    pub event_type: String,
    /// Time of recording.
    pub created_at: Timestamp,
    /// Run of the event; `None` if it is about no run.
    pub run_id: Option<String>,
    /// Place in the run's log.
    pub seq: Option<i32>,
    /// Member `data` without `seq` and `links`: a JSON object.
    pub data: Box<RawValue>,
}

/// Prefix of an event's id on the wire.
const ID_PREFIX: &str = "evt_";
/// Header of a delivery and of a record: number of runs that have led to the event.
pub const DEPTH_HEADER: &str = "webhook-depth";

/// Event as receivers see it.
#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: Timestamp,
    data: &'a RawValue,
}

/// Addresses of what the event is about.
#[derive(Serialize)]
struct Links {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
}

/// Id of an event on the wire. It has no `.`, which separates the parts of a signed text.
#[must_use]
pub fn wire_id(id: Uuid) -> String {
    format!("{ID_PREFIX}{}", id.simple())
}

impl Event {
    /// Member `data` of the envelope, with the place in the log and the links. `api` is the address of the API, such as
    /// `https://example.org/api/v1`.
    #[must_use]
    pub fn data(&self, api: &str) -> Box<RawValue> {
        let mut members: BTreeMap<String, &RawValue> =
            serde_json::from_str(self.data.get()).expect("the table accepts objects only");
        let links = Links { run: self.run_id.as_ref().map(|run_id| format!("{api}/runs/{}", path_segment(run_id))) };
        let (seq, links) = (to_raw(&self.seq), to_raw(&links));
        if self.run_id.is_some() {
            members.insert("seq".to_owned(), &seq);
        }
        members.insert("links".to_owned(), &links);
        to_raw(&members)
    }

    /// The whole event: type, timestamp and data.
    #[must_use]
    pub fn envelope(&self, api: &str) -> Box<RawValue> {
        to_raw(&Envelope { event_type: &self.event_type, timestamp: self.created_at, data: &self.data(api) })
    }
}

/// Number of runs that have led to what the data of an event tell, each by an event of the one before.
#[must_use]
pub fn depth(data: &RawValue) -> i32 {
    let depth = member(data, "trigger").and_then(|trigger| member(trigger, "depth"));
    depth.and_then(|depth| depth.get().parse().ok()).unwrap_or_default()
}

/// Id of a run in a path: other programs may have given it characters that a path cannot contain.
fn path_segment(id: &str) -> String {
    let encoded = |byte: u8| {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        if is_plain { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    id.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_event_has_its_place_and_the_address_of_its_run_whatever_the_id() {
        let mut event = Event {
            id: Uuid::nil(),
            event_type: "run.started".to_owned(),
            created_at: Timestamp::now(),
            run_id: Some("a/b ü".to_owned()),
            seq: Some(7),
            data: to_raw(&json!({"organization_id": "default", "number": 1})),
        };
        let data = |event: &Event| serde_json::from_str::<Value>(event.data("http://h/api").get()).expect("JSON");
        let links = json!({"run": "http://h/api/runs/a%2Fb%20%C3%BC"});
        assert_eq!(data(&event), json!({"organization_id": "default", "number": 1, "seq": 7, "links": links}));
        event.seq = None;
        assert_eq!(data(&event)["seq"], Value::Null);
        event.run_id = None;
        assert_eq!(data(&event), json!({"organization_id": "default", "number": 1, "links": {}}));
        assert_eq!(wire_id(event.id), "evt_00000000000000000000000000000000");
    }
}
