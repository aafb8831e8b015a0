//! Receiver of webhooks: logs each delivery, and shows the latest ones. It checks no signature: it has no secret.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use http::HeaderMap;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::input::{self, shorten};

/// Number of deliveries that are shown.
const MAX_SHOWN: usize = 20;
/// Maximum bytes of a body that is shown.
const MAX_BODY_BYTES: usize = 128 << 10;

/// Delivery that was received.
#[derive(Clone, Serialize)]
struct Delivery {
    webhook_id: String,
    webhook_timestamp: String,
    webhook_attempt: String,
    webhook_signature: String,
    /// Null if it is no JSON, or large.
    body: Option<Box<RawValue>>,
}

/// Latest deliveries, the last one first.
#[derive(Default)]
pub(super) struct Deliveries(Mutex<VecDeque<Delivery>>);

impl Deliveries {
    /// Logs a delivery, and keeps it for a while.
    pub(super) fn take(&self, headers: &HeaderMap, body: &[u8]) {
        let header = |name| {
            let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            shorten(value).into_owned()
        };
        let json = input::check_json(body).ok().filter(|_| body.len() <= MAX_BODY_BYTES);
        let event_type = json.and_then(|body| input::member(body, "type")).and_then(input::text).unwrap_or_default();
        let delivery = Delivery {
            webhook_id: header("webhook-id"),
            webhook_timestamp: header("webhook-timestamp"),
            webhook_attempt: header("webhook-attempt"),
            webhook_signature: header("webhook-signature"),
            body: json.map(ToOwned::to_owned),
        };
        let (id, event_type) = (&delivery.webhook_id, shorten(&event_type));
        tracing::info!(webhook_id = id, "delivery of {event_type}: {}", json.map_or("no JSON", RawValue::get));
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        latest.push_front(delivery);
        latest.truncate(MAX_SHOWN);
    }

    /// The latest deliveries as JSON.
    pub(super) fn shown(&self) -> Box<RawValue> {
        input::to_raw(&*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_deliveries_are_shown_whatever_they_contain() {
        let deliveries = Deliveries::default();
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "evt_1".parse().expect("a value"));
        deliveries.take(&headers, b"no JSON");
        for n in 0..MAX_SHOWN {
            deliveries.take(&headers, format!(r#"{{"type":"run.failed","n":{n}.0}}"#).as_bytes());
        }
        let shown = deliveries.shown().get().to_owned();
        assert!(shown.starts_with(r#"[{"webhook_id":"evt_1""#) && shown.contains(r#""n":19.0"#), "{shown}");
        assert!(shown.contains(r#""n":0.0"#) && !shown.contains(r#""body":null"#), "{shown}");
    }
}
