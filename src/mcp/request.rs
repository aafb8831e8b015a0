//! Requests of a client.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{json, value::RawValue};

use super::{
    CLIENT_CAPABILITIES, CLIENT_INFO, IDEMPOTENCY_KEY, Link, METHOD_HEADER, NAME_HEADER, PROTOCOL_VERSION, Revision,
    SESSION_HEADER, TASKS, VERSION_HEADER, own_info,
};
use crate::input::{object_of, to_raw};

/// Media types that a client accepts.
pub const ACCEPT: &str = "application/json, text/event-stream";

/// HTTP request: its headers besides those of all requests, and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Body, JSON.
    pub body: String,
}

/// Request for which an answer is expected.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Id of the request, unique in a session.
    pub id: &'a str,
    /// Method.
    pub method: &'a str,
    /// Name that a header repeats: of a tool, or the id of a task.
    pub name: Option<&'a str>,
    /// Parameters besides `_meta`.
    pub params: &'a [(&'a str, &'a RawValue)],
    /// Key that repeats of the request share.
    pub key: Option<&'a str>,
    /// Whether questions of the server are answered.
    pub may_ask: bool,
}

impl Call<'_> {
    /// The request in the revision of the link.
    #[must_use]
    pub fn to(&self, link: &Link) -> Outgoing {
        let mut meta: Vec<(&str, Box<RawValue>)> = Vec::new();
        if link.is_modern() {
            meta.push((PROTOCOL_VERSION, to_raw(link.revision.as_str())));
            meta.push((CLIENT_INFO, to_raw(&own_info())));
            let mut capabilities = json!({"extensions": {TASKS: {}}});
            if self.may_ask {
                capabilities["elicitation"] = json!({"form": {}, "url": {}});
            }
            meta.push((CLIENT_CAPABILITIES, to_raw(&capabilities)));
        }
        meta.extend(self.key.map(|key| (IDEMPOTENCY_KEY, to_raw(key))));
        let meta = (!meta.is_empty()).then(|| object_of(meta.iter().map(|(name, value)| (*name, &**value))));
        let params = object_of(
            self.params.iter().copied().chain(meta.as_deref().map(|meta| ("_meta", meta))).collect::<Vec<_>>(),
        );
        let (version, id, method) = (to_raw("2.0"), to_raw(self.id), to_raw(self.method));
        let body = object_of([("jsonrpc", &*version), ("id", &*id), ("method", &*method), ("params", &*params)]);
        let mut headers = headers(link);
        if link.is_modern() {
            headers.push((METHOD_HEADER.to_owned(), self.method.to_owned()));
            headers.extend(self.name.map(|name| (NAME_HEADER.to_owned(), header_value(name))));
        }
        Outgoing { headers, body: body.get().to_owned() }
    }
}

/// The headers of every request.
fn headers(link: &Link) -> Vec<(String, String)> {
    let session = link.session.iter().map(|session| (SESSION_HEADER.to_owned(), session.clone()));
    let version = (VERSION_HEADER.to_owned(), link.revision.as_str().to_owned());
    [version].into_iter().chain(session).collect()
}

/// The question what a server is.
#[must_use]
pub fn discover() -> Outgoing {
    Call { id: "discover", method: "server/discover", name: None, params: &[], key: None, may_ask: false }
        .to(&Link::MODERN)
}

/// The first request of the handshake. It has no header: the revision is not agreed yet.
#[must_use]
pub fn initialize(revision: Revision) -> Outgoing {
    let params = json!({"protocolVersion": revision.as_str(), "capabilities": {}, "clientInfo": own_info()});
    let body = json!({"jsonrpc": "2.0", "id": "initialize", "method": "initialize", "params": params});
    Outgoing { headers: Vec::new(), body: body.to_string() }
}

/// A notification, which has no answer.
#[must_use]
pub fn notification(link: &Link, method: &str, params: &serde_json::Value) -> Outgoing {
    let body = json!({"jsonrpc": "2.0", "method": method, "params": params});
    Outgoing { headers: headers(link), body: body.to_string() }
}

/// Notification that nobody waits for the answer to the request any more.
#[must_use]
pub fn cancelled(link: &Link, id: &str) -> Outgoing {
    notification(link, "notifications/cancelled", &json!({"requestId": id}))
}

/// Answer to a request that a server of an older revision has sent in an event stream: to a `ping`, or that there is no
/// such method.
#[must_use]
pub fn answer(link: &Link, id: &RawValue, method: &str) -> Outgoing {
    let (version, empty) = (to_raw("2.0"), object_of([]));
    let error = to_raw(&json!({"code": super::METHOD_NOT_FOUND, "message": "Method not found"}));
    let outcome = if method == "ping" { ("result", &*empty) } else { ("error", &*error) };
    let body = object_of([("jsonrpc", &*version), ("id", id), outcome]);
    Outgoing { headers: headers(link), body: body.get().to_owned() }
}

/// A text as the value of a header: in Base64 unless it is plain.
#[must_use]
pub fn header_value(text: &str) -> String {
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text && !text.is_empty();
    if is_plain && !text.starts_with("=?base64?") {
        return text.to_owned();
    }
    format!("=?base64?{}?=", BASE64_STANDARD.encode(text))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn body(outgoing: &Outgoing) -> Value {
        serde_json::from_str(&outgoing.body).expect("JSON")
    }

    #[test]
    fn each_revision_has_its_requests() {
        let arguments = to_raw(&json!({"a": 1}));
        let name = to_raw("tü");
        let params = [("name", &*name), ("arguments", &*arguments)];
        let call =
            Call { id: "i", method: "tools/call", name: Some("tü"), params: &params, key: Some("k"), may_ask: false };
        let modern = call.to(&Link::MODERN);
        let asking = Call { may_ask: true, ..call }.to(&Link::MODERN);
        assert_eq!(
            body(&asking)["params"]["_meta"][CLIENT_CAPABILITIES],
            json!({"extensions": {TASKS: {}}, "elicitation": {"form": {}, "url": {}}})
        );
        let meta = json!({PROTOCOL_VERSION: "2026-07-28", CLIENT_INFO: own_info(),
            CLIENT_CAPABILITIES: {"extensions": {TASKS: {}}}, "idempotencyKey": "k"});
        assert_eq!(
            body(&modern),
            json!({"jsonrpc": "2.0", "id": "i", "method": "tools/call",
                "params": {"name": "tü", "arguments": {"a": 1}, "_meta": meta}})
        );
        let header = |outgoing: &Outgoing| {
            outgoing.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>()
        };
        assert_eq!(
            header(&modern),
            ["mcp-protocol-version: 2026-07-28", "mcp-method: tools/call", "mcp-name: =?base64?dMO8?="]
        );
        let old = Link { revision: Revision::NEWEST_LEGACY, session: Some("s".to_owned()) };
        let legacy = call.to(&old);
        assert_eq!(header(&legacy), ["mcp-protocol-version: 2025-11-25", "mcp-session-id: s"]);
        assert_eq!(body(&legacy)["params"]["_meta"], json!({"idempotencyKey": "k"}));
        let list = Call { id: "l", method: "tools/list", name: None, params: &[], key: None, may_ask: false }.to(&old);
        assert_eq!(body(&list)["params"], json!({}));
        assert!(initialize(old.revision).headers.is_empty());
        assert_eq!(body(&initialize(old.revision))["params"]["protocolVersion"], "2025-11-25");
        assert_eq!(body(&discover())["method"], "server/discover");
        let seven = to_raw(&7);
        assert_eq!(body(&answer(&old, &seven, "ping")), json!({"jsonrpc": "2.0", "id": 7, "result": {}}));
        assert_eq!(body(&answer(&old, &seven, "roots/list"))["error"]["code"], -32601);
        assert_eq!(body(&cancelled(&old, "i"))["params"], json!({"requestId": "i"}));
    }

    #[test]
    fn only_plain_texts_are_headers_as_they_are() {
        for (text, expected) in [
            ("us-west1", "us-west1"),
            ("two words", "two words"),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
            ("", "=?base64??="),
        ] {
            assert_eq!(header_value(text), expected);
        }
    }
}
