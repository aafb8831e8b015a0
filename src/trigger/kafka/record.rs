//! Records of a topic, as a trigger reads them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::{DateTime, Datelike as _, Utc};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    super::{Fired, TriggerKind, what},
    Format, KafkaTrigger,
};
use crate::{
    event::DEPTH_HEADER,
    expression, id,
    input::{self, check_json, to_raw},
    mapping::Scope,
    timestamp::Timestamp,
};

/// Maximum bytes of the value of `idempotency`.
const MAX_ID_BYTES: usize = 4096;
/// Header with the correlation id.
const CORRELATION_HEADER: &str = "x-correlation-id";

/// Record of a topic.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// By the sender's or the broker's clock, in milliseconds since 1970.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub value: Option<Vec<u8>>,
}

/// What a record is for a trigger.
#[derive(Clone, Debug)]
pub enum Opened {
    /// Its filter does not want it.
    Filtered,
    /// It is to start a run.
    Wanted(Wanted),
    /// It can never start one.
    Unusable(Unusable),
}

/// Record that is to start a run.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Wanted {
    pub run_id: String,
    pub at: DateTime<Utc>,
    /// What references of the input refer to.
    pub what: Box<RawValue>,
    /// Number of runs that have led to it.
    pub depth: i16,
    pub correlation_id: Option<String>,
}

/// Reason why a record can never start a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Stable code.
    pub reason: &'static str,
    /// The same for people.
    pub detail: String,
}

impl Unusable {
    /// Codes of the reasons that are found before a run is started.
    pub const REASONS: [&str; 2] = ["record_unreadable", "expression_failed"];

    fn unreadable(detail: impl Into<String>) -> Self {
        Self { reason: Self::REASONS[0], detail: detail.into() }
    }

    fn expression(member: &str, error: &expression::ExpressionError) -> Self {
        let detail = input::shorten_to(&format!("{member}: {error}"), 500).into_owned();
        Self { reason: Self::REASONS[1], detail }
    }
}

impl Record {
    /// Bytes that it takes in memory, roughly.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(name, value)| name.len() + len(value) + 64);
        len(&self.key) + len(&self.value) + headers.sum::<usize>() + 128
    }

    /// Time of the record, if it is one that can be stored.
    #[must_use]
    pub fn time(&self) -> Option<DateTime<Utc>> {
        let time = self.timestamp.and_then(DateTime::from_timestamp_millis);
        time.filter(|time| (1970..=9999).contains(&time.year()))
    }

    /// What distinguishes the record from another one at the same place, as after its topic was deleted and created again:
    /// SHA-256 of its time, key and value.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.timestamp.unwrap_or(-1).to_be_bytes());
        for part in [&self.key, &self.value] {
            // The digest includes the lengths, so that different records cannot have the same input.
            let length = part.as_ref().map_or(-1, |part| i64::try_from(part.len()).unwrap_or(i64::MAX));
            digest.update(length.to_be_bytes());
            digest.update(part.as_deref().unwrap_or_default());
        }
        digest.finalize().into()
    }

    /// Reads the record for a trigger; `now` stands for an absent time.
    #[must_use]
    pub fn open(&self, config: &KafkaTrigger, (id, name): (Uuid, &str), now: DateTime<Utc>) -> Opened {
        match self.opened(config, (id, name), now) {
            Ok(Some(wanted)) => Opened::Wanted(wanted),
            Ok(None) => Opened::Filtered,
            Err(unusable) => Opened::Unusable(unusable),
        }
    }

    fn opened(
        &self,
        config: &KafkaTrigger,
        (id, name): (Uuid, &str),
        now: DateTime<Utc>,
    ) -> Result<Option<Wanted>, Unusable> {
        let at = self.time().unwrap_or(now);
        let members = self.members(config.format)?;
        let what = what(Fired { kind: TriggerKind::Kafka.as_str(), id, name, at }, &members);
        let scope = Scope::of_trigger(&what);
        if let Some(filter) = &config.filter {
            match expression::holds(filter, &scope) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => return Err(Unusable::expression("filter", &error)),
            }
        }
        let identity = if let Some(key) = &config.idempotency {
            let value = expression::value(key, &scope, MAX_ID_BYTES)
                .map_err(|error| Unusable::expression("idempotency", &error))?;
            if ["null", "\"\""].contains(&value.get()) {
                let detail = "idempotency: the value is empty".to_owned();
                return Err(Unusable { reason: Unusable::REASONS[1], detail });
            }
            format!("kafka key {}", value.get())
        } else {
            let digest = crate::trace::hex(&self.digest());
            format!("kafka record {} {} {} {digest}", self.topic, self.partition, self.offset)
        };
        let run_id = id::derived_run_id(id, &identity);
        let depth = self.depth();
        let correlation_id =
            self.header(CORRELATION_HEADER).and_then(text).filter(|id| !id.is_empty()).map(str::to_owned);
        Ok(Some(Wanted { run_id, at, what, depth, correlation_id }))
    }

    /// Value of the last header of that name; null is empty.
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut named = self.headers.iter().rev().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.as_deref().unwrap_or_default())
    }

    /// Number of runs that have led to a run that it starts: one more than to the record itself. What is no number, or
    /// too large, is beyond every limit: it must not begin a chain anew. The database reads the header of dead letters
    /// likewise.
    fn depth(&self) -> i16 {
        let Some(value) = self.header(DEPTH_HEADER) else { return 0 };
        let number = text(value).map(str::trim).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        number.and_then(|number| number.parse().ok()).unwrap_or(i16::MAX).saturating_add(1)
    }

    /// Members of the object `trigger`.
    fn members(&self, format: Format) -> Result<Vec<(String, Box<RawValue>)>, Unusable> {
        let null = || to_raw(&());
        let value = match (&self.value, format) {
            (None, _) => null(),
            (Some(value), Format::Json) => check_json(value)
                .map_err(|fault| Unusable::unreadable(format!("its value is not JSON: {fault}")))?
                .to_owned(),
            (Some(value), Format::Text) => {
                let text = text(value).ok_or_else(|| Unusable::unreadable("its value is not text in UTF-8"))?;
                to_raw(text)
            }
            (Some(value), Format::BytesBase64) => to_raw(&STANDARD.encode(value)),
        };
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            // Of headers with the same name the last one counts, as for other clients.
            headers.insert(name.replace('\0', ""), value.as_deref().map_or_else(null, octets));
        }
        let time = self.time().map(Timestamp::from);
        Ok([
            ("topic", to_raw(&self.topic)),
            ("partition", to_raw(&self.partition)),
            ("offset", to_raw(&self.offset)),
            ("timestamp", to_raw(&time)),
            ("key", self.key.as_deref().map_or_else(null, octets)),
            ("headers", to_raw(&headers)),
            ("value", value),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into())
    }
}

/// Text that the database can store.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// Bytes as JSON: their text, or an object with `base64`.
fn octets(bytes: &[u8]) -> Box<RawValue> {
    match text(bytes) {
        Some(text) => to_raw(text),
        None => to_raw(&serde_json::json!({"base64": STANDARD.encode(bytes)})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Node;

    fn opened(config_json: &str, record: &Record) -> Opened {
        let id = Uuid::from_u128(7);
        let node = Node::new("config", check_json(config_json.as_bytes()).expect(config_json));
        let config = KafkaTrigger::read(&node).expect(config_json);
        record.open(&config, (id, "n"), DateTime::UNIX_EPOCH)
    }

    fn record(value: Option<&[u8]>) -> Record {
        let (timestamp, value) = (Some(1_800_000_000_000), value.map(<[u8]>::to_vec));
        Record { topic: "t".to_owned(), partition: 2, offset: 5, timestamp, value, ..Record::default() }
    }

    fn run_id(config: &str, record: &Record) -> String {
        match opened(config, record) {
            Opened::Wanted(wanted) => wanted.run_id,
            other => panic!("{config}: {other:?}"),
        }
    }

    #[test]
    fn a_run_sees_the_record_whatever_its_bytes_are() {
        let headers = vec![
            ("a".to_owned(), Some(b"1".to_vec())),
            ("a".to_owned(), Some(b"2".to_vec())),
            ("bytes".to_owned(), Some(vec![0xff])),
            ("nul".to_owned(), Some(vec![0])),
            ("none".to_owned(), None),
            ("webhook-depth".to_owned(), Some(b"3".to_vec())),
            ("X-Correlation-ID".to_owned(), Some(b"req-7".to_vec())),
        ];
        let record = Record { headers, key: Some(b"k".to_vec()), ..record(Some(br#"{"n":12345678901234567890123}"#)) };
        let Opened::Wanted(wanted) = opened(r#"{"topic":"t"}"#, &record) else { panic!("wanted") };
        let what = wanted.what.get();
        for part in [
            r#""kind":"kafka""#,
            r#""topic":"t","partition":2,"offset":5,"timestamp":"2027-01-15T08:00:00"#,
            r#""key":"k""#,
            r#""headers":{"X-Correlation-ID":"req-7","a":"2","bytes":{"base64":"/w=="},"none":null,"nul":{"base64":"AA=="},"#,
            r#""value":{"n":12345678901234567890123}"#,
        ] {
            assert!(what.contains(part), "{part}: {what}");
        }
        assert_eq!((wanted.depth, wanted.correlation_id.as_deref()), (4, Some("req-7")));
    }

    #[test]
    fn a_run_is_one_deeper_than_its_record_and_an_unreadable_depth_is_beyond_every_limit() {
        let depth = |headers: &[(&str, Option<&[u8]>)]| {
            let header = |(name, value): &(&str, Option<&[u8]>)| ((*name).to_owned(), value.map(<[u8]>::to_vec));
            let record = Record { headers: headers.iter().map(header).collect(), ..record(Some(b"1")) };
            match opened(r#"{"topic":"t"}"#, &record) {
                Opened::Wanted(wanted) => wanted.depth,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(depth(&[]), 0);
        for (value, expected) in [("0", 1), ("15", 16), (" 16 ", 17), ("32766", i16::MAX), ("32767", i16::MAX)] {
            assert_eq!(depth(&[("webhook-depth", Some(value.as_bytes()))]), expected, "{value}");
        }
        for value in [&b""[..], b"-1", b"+1", b"x", b"1.5", b"99999", b"\xff"] {
            assert_eq!(depth(&[("Webhook-Depth", Some(value))]), i16::MAX, "{value:?}");
        }
        assert_eq!(depth(&[("webhook-depth", None)]), i16::MAX);
        // The last one counts, as of every header.
        assert_eq!(depth(&[("webhook-depth", Some(b"9")), ("webhook-depth", Some(b"2"))]), 3);
    }

    #[test]
    fn a_tombstone_has_the_value_null_in_every_format_and_bad_values_are_unusable() {
        for format in ["json", "text", "bytes_base64"] {
            let config = format!(r#"{{"topic":"t","format":"{format}"}}"#);
            let Opened::Wanted(wanted) = opened(&config, &record(None)) else { panic!("wanted") };
            assert!(wanted.what.get().contains(r#""value":null"#), "{format}");
        }
        for (format, value, is_good) in [
            ("json", &b""[..], false),
            ("json", b"{", false),
            ("json", br#""\u0000""#, false),
            ("json", b"17", true),
            ("text", b"\xff", false),
            ("text", b"a\0b", false),
            ("text", b"", true),
            ("bytes_base64", b"\xff\0", true),
        ] {
            let config = format!(r#"{{"topic":"t","format":"{format}"}}"#);
            let opened = opened(&config, &record(Some(value)));
            assert_eq!(matches!(opened, Opened::Wanted(_)), is_good, "{format} {value:?}: {opened:?}");
        }
        let failed = opened(r#"{"topic":"t","filter":"${trigger.value.a} > 1"}"#, &record(Some(b"{}")));
        assert!(matches!(&failed, Opened::Unusable(unusable) if unusable.reason == "expression_failed"), "{failed:?}");
        let filtered = opened(r#"{"topic":"t","filter":"${trigger.value.a} > 1"}"#, &record(Some(br#"{"a":1}"#)));
        assert!(matches!(filtered, Opened::Filtered), "{filtered:?}");
    }

    /// C2, test 8: a topic that was deleted and created again has other records at the same places.
    #[test]
    fn the_same_record_has_the_same_run_and_another_one_at_its_place_has_another() {
        let (config, one) = (r#"{"topic":"t"}"#, record(Some(b"1")));
        assert_eq!(run_id(config, &one), run_id(config, &one.clone()));
        for other in [
            record(Some(b"2")),
            Record { timestamp: Some(1_800_000_000_001), ..one.clone() },
            Record { key: Some(Vec::new()), ..one.clone() },
            Record { offset: 6, ..one.clone() },
            Record { partition: 3, ..one.clone() },
            Record { topic: "u".to_owned(), ..one.clone() },
        ] {
            assert_ne!(run_id(config, &one), run_id(config, &other), "{other:?}");
        }
        let by_key = r#"{"topic":"t","idempotency":"${trigger.value.id}"}"#;
        let (a, b) = (record(Some(br#"{"id":1,"x":1}"#)), record(Some(br#"{"id":1,"x":2}"#)));
        assert_eq!(run_id(by_key, &a), run_id(by_key, &Record { partition: 9, offset: 1, ..b }));
        let empty = opened(by_key, &record(Some(br#"{"id":null}"#)));
        assert!(matches!(empty, Opened::Unusable(_)), "{empty:?}");
    }
}
