//! A delivery that was verified: its body, its id, and what the mapping of the trigger sees of it.

use std::{borrow::Cow, collections::BTreeMap, io::Read as _};

use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde_json::value::RawValue;

use super::{Config, Preset, Proof};
use crate::{
    event,
    input::{JsonFault, check_json, member, object_of, text, to_raw},
};

/// Maximum size of a body, as received and decompressed.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Headers with credentials, whatever the preset.
const CREDENTIALS: [HeaderName; 3] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
/// Headers with the signatures of the presets.
const SIGNATURES: [HeaderName; 6] = [
    HeaderName::from_static("x-hub-signature"),
    HeaderName::from_static("x-hub-signature-256"),
    HeaderName::from_static("stripe-signature"),
    HeaderName::from_static("x-slack-signature"),
    HeaderName::from_static("webhook-signature"),
    HeaderName::from_static("svix-signature"),
];

/// Reason why a verified delivery cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The content coding is not supported.
    #[error("the Content-Encoding is neither gzip nor identity")]
    Coding,
    /// The body is not in its content coding.
    #[error("the body is not in the format of its Content-Encoding")]
    Compressed,
    /// The decompressed body is too large.
    #[error("the decompressed body is larger than 1 MiB")]
    TooLarge,
    /// The body is not text.
    #[error("the body is not UTF-8")]
    NotText,
    /// The body is not the JSON that its type says, or has text that cannot be stored.
    #[error("the body, the headers or the query cannot be read: {0}")]
    Json(JsonFault),
}

/// A delivery, as it arrived.
pub struct Delivery<'a> {
    /// Method of the request.
    pub method: &'a Method,
    /// Query of the request.
    pub query: &'a str,
    /// Headers of the request.
    pub headers: &'a HeaderMap,
    /// Body of the request, as received.
    pub body: &'a [u8],
}

/// What a provider sends to try the address. It starts no run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// GitHub's `ping`.
    Ping,
    /// Slack's `url_verification`: the answer repeats the text.
    Challenge(String),
}

impl Delivery<'_> {
    /// The body as JSON: JSON as it is, a form as an object, anything else as a string; null if it is empty.
    pub fn read_body(&self, config: &Config) -> Result<Box<RawValue>, Unreadable> {
        let bytes = self.decompressed()?;
        let content_type = self.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let body = match essence.as_deref() {
            Some("application/x-www-form-urlencoded") => form(&bytes, config.preset),
            None | Some("application/json") => return json(&bytes),
            Some(other) if other.starts_with("application/") && other.ends_with("+json") => return json(&bytes),
            Some(_) => to_raw(std::str::from_utf8(&bytes).map_err(|_| Unreadable::NotText)?),
        };
        check_json(body.get().as_bytes()).map_err(Unreadable::Json)?;
        Ok(body)
    }

    /// The body without its content coding.
    fn decompressed(&self) -> Result<Cow<'_, [u8]>, Unreadable> {
        let mut is_gzip = false;
        for value in self.headers.get_all(header::CONTENT_ENCODING) {
            for coding in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match coding.to_ascii_lowercase().as_slice() {
                    b"" | b"identity" => {}
                    b"gzip" | b"x-gzip" if !is_gzip => is_gzip = true,
                    _ => return Err(Unreadable::Coding),
                }
            }
        }
        if !is_gzip {
            return Ok(Cow::Borrowed(self.body));
        }
        let mut bytes = Vec::new();
        let limit = MAX_BODY_BYTES as u64 + 1;
        MultiGzDecoder::new(self.body).take(limit).read_to_end(&mut bytes).map_err(|_| Unreadable::Compressed)?;
        if bytes.len() > MAX_BODY_BYTES { Err(Unreadable::TooLarge) } else { Ok(Cow::Owned(bytes)) }
    }

    /// What the expressions and the mapping of the trigger see, with the body as read: `body`, `headers` without
    /// credentials, `query` and `method`. `key_header` is the header of this service's own keys.
    pub fn event(
        &self,
        config: &Config,
        body: &RawValue,
        key_header: &HeaderName,
    ) -> Result<Vec<(String, Box<RawValue>)>, Unreadable> {
        let own = config.header.as_deref();
        let is_hidden = |name: &HeaderName| {
            CREDENTIALS.contains(name) || SIGNATURES.contains(name) || name == key_header || own == Some(name.as_str())
        };
        let headers = self.headers.keys().filter(|name| !is_hidden(name)).map(|name| {
            let values: Vec<_> = self.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            (name.as_str(), String::from_utf8_lossy(&values.join(&b", "[..])).into_owned())
        });
        let headers = to_raw(&headers.collect::<BTreeMap<_, _>>());
        let query = grouped(self.query.as_bytes());
        for part in [&headers, &query] {
            check_json(part.get().as_bytes()).map_err(Unreadable::Json)?;
        }
        let method = to_raw(self.method.as_str());
        let members = [("body", body.to_owned()), ("headers", headers), ("query", query), ("method", method)];
        Ok(members.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// What the delivery is, if it only tries the address.
    #[must_use]
    pub fn greeting(&self, config: &Config, body: &RawValue) -> Option<Greeting> {
        match config.preset {
            Preset::Github => {
                let event = self.headers.get("x-github-event");
                event.is_some_and(|event| event == "ping").then_some(Greeting::Ping)
            }
            Preset::Slack => {
                let is_challenge = member(body, "type").and_then(text).is_some_and(|kind| kind == "url_verification");
                let challenge = member(body, "challenge").filter(|_| is_challenge);
                challenge.and_then(text).map(Greeting::Challenge)
            }
            _ => None,
        }
    }

    /// The id of the delivery by the rules of its preset; `None` if it has none. An expression is evaluated by the caller.
    #[must_use]
    pub fn id(&self, config: &Config, proof: &Proof, body: &RawValue) -> Option<String> {
        let of_body = |name| member(body, name).and_then(text);
        let id = match config.preset {
            Preset::Stripe => of_body("id"),
            Preset::Slack => of_body("event_id").or_else(|| proof.signature.clone()),
            Preset::Github | Preset::Standard => proof.id.clone(),
            Preset::None | Preset::Hmac | Preset::Basic | Preset::Header => {
                // What this service itself has sent is known by its id.
                let own = || self.headers.contains_key(event::DEPTH_HEADER).then_some("webhook-id");
                let name = config.dedupe_header.as_deref().or_else(own)?;
                self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            }
        };
        id.filter(|id| !id.is_empty())
    }
}

/// JSON as it is, without a byte order mark.
fn json(bytes: &[u8]) -> Result<Box<RawValue>, Unreadable> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii().is_empty() {
        return Ok(RawValue::NULL.to_owned());
    }
    check_json(bytes).map(ToOwned::to_owned).map_err(Unreadable::Json)
}

/// A form as an object. The field `payload` of Slack's forms is JSON.
fn form(bytes: &[u8], preset: Preset) -> Box<RawValue> {
    let fields = grouped(bytes);
    let payload = member(&fields, "payload").filter(|_| preset == Preset::Slack).and_then(text);
    let Some(payload) = payload.as_deref().and_then(|payload| check_json(payload.as_bytes()).ok()) else {
        return fields;
    };
    let members = crate::input::members(&fields).unwrap_or_default();
    object_of(members.iter().map(|(name, value)| (name.as_str(), if name == "payload" { payload } else { *value })))
}

/// Form fields or parameters as an object of strings, and of arrays of strings for those that are repeated.
fn grouped(bytes: &[u8]) -> Box<RawValue> {
    let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(bytes) {
        values.entry(name.into_owned()).or_default().push(value.into_owned());
    }
    let values: Vec<_> = values
        .iter()
        .map(|(name, values)| match &values[..] {
            [value] => (name.as_str(), to_raw(value)),
            values => (name.as_str(), to_raw(values)),
        })
        .collect();
    object_of(values.iter().map(|(name, value)| (*name, &**value)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};
    use serde_json::{Value, json};

    use super::*;

    fn config(preset: &str) -> Config {
        serde_json::from_value(json!({"preset": preset})).expect("a configuration")
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        headers
    }

    fn delivery<'a>(headers: &'a HeaderMap, body: &'a [u8]) -> Delivery<'a> {
        Delivery { method: &Method::POST, query: "a=1&b=x%20y&a=2&c", headers, body }
    }

    fn read(preset: &str, pairs: &[(&'static str, &'static str)], body: &[u8]) -> Result<String, Unreadable> {
        let headers = headers(pairs);
        delivery(&headers, body).read_body(&config(preset)).map(|body| body.get().to_owned())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    /// C3, test 2: what is verified is read without a change of numbers or of escapes.
    #[test]
    fn a_body_is_read_as_its_type_says() {
        const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");
        for (pairs, body, expected) in [
            (&[][..], &b" { \"a\" : 1.0, \"b\": \"\\u00e9\" } \n"[..], r#"{ "a" : 1.0, "b": "\u00e9" }"#),
            (
                &[("content-type", "application/json")],
                b"\xef\xbb\xbf[123456789012345678901]",
                "[123456789012345678901]",
            ),
            (&[("content-type", "application/cloudevents+json; charset=utf-8")], b"7", "7"),
            (&[("content-type", "application/json")], b"", "null"),
            (&[("content-type", "application/json")], b"\xef\xbb\xbf \n", "null"),
            (&[("content-type", "text/plain")], b"{\"a\"", r#""{\"a\"""#),
            (&[FORM], b"a=1&b=x+y&a=%C3%A9&payload=%7B%7D", r#"{"a":["1","é"],"b":"x y","payload":"{}"}"#),
            (&[FORM], b"", "{}"),
        ] {
            assert_eq!(read("none", pairs, body).as_deref(), Ok(expected));
        }
        let slack = read("slack", &[FORM], b"payload=%7B%22n%22%3A1.0%7D&token=t").expect("a form");
        assert_eq!(slack, r#"{"payload":{"n":1.0},"token":"t"}"#);
        let slack = read("slack", &[FORM], b"payload=text").expect("a form");
        assert_eq!(slack, r#"{"payload":"text"}"#);
    }

    #[test]
    fn a_body_that_cannot_be_stored_is_refused() {
        let kind = |pairs: &[(&'static str, &'static str)], body: &[u8]| match read("none", pairs, body) {
            Err(Unreadable::Json(fault)) => fault.kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(&[], b"{"), "json_invalid");
        assert_eq!(kind(&[], b"\"\\u0000\""), "string_nul");
        assert_eq!(kind(&[], "[".repeat(100_000).as_bytes()), "json_invalid");
        assert_eq!(kind(&[], format!("{}{}", "[".repeat(65), "]".repeat(65)).as_bytes()), "json_too_deep");
        assert_eq!(kind(&[("content-type", "application/x-www-form-urlencoded")], b"a=%00"), "string_nul");
        assert_eq!(kind(&[("content-type", "text/plain")], b"a\0"), "string_nul");
        assert_eq!(read("none", &[("content-type", "text/plain")], b"\xff"), Err(Unreadable::NotText));
    }

    /// C3, test 6: a compressed body is decompressed within a bound.
    #[test]
    fn a_compressed_body_is_read_within_the_limit() {
        const GZIP: (&str, &str) = ("content-encoding", "gzip");
        assert_eq!(read("none", &[GZIP], &gzip(b"{\"a\":1}")).as_deref(), Ok("{\"a\":1}"));
        assert_eq!(read("none", &[("content-encoding", "identity, X-GZIP")], &gzip(b"1")).as_deref(), Ok("1"));
        let text = format!("\"{}\"", "x".repeat(MAX_BODY_BYTES - 2));
        assert_eq!(read("none", &[GZIP], &gzip(text.as_bytes())), Ok(text.clone()));
        let bomb = gzip(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < MAX_BODY_BYTES);
        assert_eq!(read("none", &[GZIP], &bomb), Err(Unreadable::TooLarge));
        assert_eq!(read("none", &[GZIP], b"{}"), Err(Unreadable::Compressed));
        assert_eq!(read("none", &[GZIP], &gzip(b"{}")[..10]), Err(Unreadable::Compressed));
        for coding in ["br", "deflate", "gzip, gzip"] {
            assert_eq!(read("none", &[("content-encoding", coding)], b"{}"), Err(Unreadable::Coding), "{coding}");
        }
    }

    #[test]
    fn the_mapping_sees_the_request_without_credentials() {
        let pairs = [
            ("x-github-event", "push"),
            ("accept", "a"),
            ("accept", "b"),
            ("authorization", "Basic secret"),
            ("cookie", "secret"),
            ("x-hub-signature-256", "sha256=secret"),
            ("x-api-key", "secret"),
            ("x-own", "secret"),
        ];
        let headers = headers(&pairs);
        let config: Config = serde_json::from_value(json!({"preset": "header", "header": "x-own"})).expect("valid");
        let key_header = HeaderName::from_static("x-api-key");
        let event = delivery(&headers, b"").event(&config, RawValue::NULL, &key_header).expect("it can be stored");
        let event = object_of(event.iter().map(|(name, value)| (name.as_str(), &**value)));
        let event: Value = serde_json::from_str(event.get()).expect("JSON");
        assert_eq!(
            event,
            json!({"body": null, "method": "POST", "query": {"a": ["1", "2"], "b": "x y", "c": ""},
                "headers": {"accept": "a, b", "x-github-event": "push"}})
        );
        let nul = Delivery { query: "a=%00", ..delivery(&headers, b"") };
        assert!(matches!(nul.event(&config, RawValue::NULL, &key_header), Err(Unreadable::Json(_))));
    }

    #[test]
    fn the_id_of_a_delivery_is_where_its_preset_has_it() {
        let body = to_raw(&json!({"id": "evt_1", "event_id": "Ev1"}));
        let pairs = headers(&[("x-id", "h1")]);
        let proof = Proof { id: Some("p1".to_owned()), signature: Some("s1".to_owned()) };
        let id = |config: &Config, body: &RawValue| delivery(&pairs, b"").id(config, &proof, body);
        let of = |preset: &str| id(&config(preset), &body);
        assert_eq!(of("github").as_deref(), Some("p1"));
        assert_eq!(of("standard").as_deref(), Some("p1"));
        assert_eq!(of("stripe").as_deref(), Some("evt_1"));
        assert_eq!(of("slack").as_deref(), Some("Ev1"));
        assert_eq!(id(&config("slack"), RawValue::NULL).as_deref(), Some("s1"), "a form has no event_id");
        assert_eq!(id(&config("stripe"), RawValue::NULL), None);
        assert_eq!(of("hmac"), None);
        let with_header: Config =
            serde_json::from_value(json!({"preset": "none", "dedupe_header": "x-id"})).expect("valid");
        assert_eq!(id(&with_header, &body).as_deref(), Some("h1"));
    }

    #[test]
    fn what_only_tries_the_address_is_recognised() {
        let ping = headers(&[("x-github-event", "ping")]);
        let push = headers(&[("x-github-event", "push")]);
        let challenge = to_raw(&json!({"type": "url_verification", "challenge": "c", "token": "t"}));
        let other = to_raw(&json!({"type": "event_callback", "challenge": "c"}));
        let greeting =
            |preset: &str, headers: &HeaderMap, body: &RawValue| delivery(headers, b"").greeting(&config(preset), body);
        assert_eq!(greeting("github", &ping, RawValue::NULL), Some(Greeting::Ping));
        assert_eq!(greeting("github", &push, RawValue::NULL), None);
        assert_eq!(greeting("hmac", &ping, RawValue::NULL), None);
        assert_eq!(greeting("slack", &push, &challenge), Some(Greeting::Challenge("c".to_owned())));
        assert_eq!(greeting("slack", &push, &other), None);
        assert_eq!(greeting("github", &push, &challenge), None);
    }
}
