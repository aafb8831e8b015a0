//! Agent cards: where and how an agent is called. Cards are hints: servers publish ones that do not fit them.

use serde_json::value::RawValue;
use url::Url;

use super::Version;
use crate::input::{elements, member, members, text};

/// Paths of cards, below an agent's own path or at the root of its host; the second is that of version 0.2.
const PATHS: [&str; 2] = ["/.well-known/agent-card.json", "/.well-known/agent.json"];
/// Maximum number of interfaces that are read.
const MAX_INTERFACES: usize = 32;
/// Maximum length of a tenant: it is sent with each request.
const MAX_TENANT_BYTES: usize = 1024;

/// Protocol binding of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// JSON-RPC 2.0 over HTTP.
    JsonRpc,
    /// HTTP with paths and methods.
    HttpJson,
    /// Another one, such as `GRPC`.
    Other(String),
}

impl Binding {
    fn read(name: &str) -> Self {
        // Some agents write the names in small letters.
        let known = [Self::JsonRpc, Self::HttpJson].into_iter().find(|known| known.as_str().eq_ignore_ascii_case(name));
        known.unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// Name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::JsonRpc => "JSONRPC",
            Self::HttpJson => "HTTP+JSON",
            Self::Other(name) => name,
        }
    }
}

/// Interface of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Address as given.
    pub url: String,
    /// Binding.
    pub binding: Binding,
    /// Version; `None`: one that is not known here.
    pub version: Option<Version>,
    /// Tenant to name in each request.
    pub tenant: Option<String>,
}

/// What a card says about calls of its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a card has a switch for each capability")]
pub struct Card {
    /// Interfaces in the order of preference.
    pub interfaces: Vec<Interface>,
    /// Whether tasks are streamed.
    pub streaming: bool,
    /// Whether the agent sends push notifications.
    pub push: bool,
    /// Whether JSON is accepted as input.
    pub accepts_json: bool,
    /// Whether there is another card for authenticated clients.
    pub has_extended: bool,
}

/// Reason why a card leads to no interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its card offers only {0}; this service speaks A2A 1.0 by JSONRPC or HTTP+JSON, and 0.3 by JSONRPC")]
pub struct NoInterface(pub String);

impl Card {
    /// Reads a card of 0.2, 0.3 or 1.0, or one of several versions. Members of wrong types count as absent.
    #[must_use]
    pub fn read(card: &RawValue) -> Self {
        let list = |name| member(card, name).and_then(elements).unwrap_or_default();
        let mut interfaces: Vec<Interface> =
            list("supportedInterfaces").into_iter().take(MAX_INTERFACES).filter_map(interface).collect();
        interfaces.extend(interfaces_of_03(card).take(MAX_INTERFACES));
        let capabilities = member(card, "capabilities");
        let can = |name| capabilities.is_some_and(|capabilities| is_true(capabilities, name));
        let modes = list("defaultInputModes").into_iter().filter_map(text);
        Self {
            interfaces,
            streaming: can("streaming"),
            push: can("pushNotifications"),
            accepts_json: modes.into_iter().any(|mode| mode.trim().eq_ignore_ascii_case("application/json")),
            has_extended: can("extendedAgentCard") || is_true(card, "supportsAuthenticatedExtendedCard"),
        }
    }

    /// The interface to call: by JSON-RPC with 1.0, then with 0.3, then by HTTP+JSON with 1.0. `None`: the card names no
    /// interface.
    pub fn choose(&self) -> Result<Option<&Interface>, NoInterface> {
        if self.interfaces.is_empty() {
            return Ok(None);
        }
        let found =
            self.json_rpc(Version::V1).or_else(|| self.json_rpc(Version::V03)).or_else(|| self.http_json(Version::V1));
        found.map(Some).ok_or_else(|| {
            let mut offered: Vec<String> = Vec::new();
            for Interface { binding, version, .. } in &self.interfaces {
                let name = match version {
                    Some(version) => format!("{} {}", binding.as_str(), version.as_str()),
                    None => format!("{} of another version", binding.as_str()),
                };
                if !offered.contains(&name) {
                    offered.push(name);
                }
            }
            NoInterface(offered.join(", "))
        })
    }

    /// The interface for this version by JSON-RPC.
    #[must_use]
    pub fn json_rpc(&self, version: Version) -> Option<&Interface> {
        self.find(&Binding::JsonRpc, version)
    }

    /// The interface for this version by HTTP+JSON, which is known only with 1.0.
    #[must_use]
    pub fn http_json(&self, version: Version) -> Option<&Interface> {
        self.find(&Binding::HttpJson, version).filter(|_| version == Version::V1)
    }

    fn find(&self, binding: &Binding, version: Version) -> Option<&Interface> {
        self.interfaces.iter().find(|it| it.binding == *binding && it.version == Some(version))
    }
}

fn interface(raw: &RawValue) -> Option<Interface> {
    let inner = |name: &str| member(raw, name).and_then(text).filter(|text| !text.is_empty());
    Some(Interface {
        url: inner("url")?,
        binding: Binding::read(&inner("protocolBinding")?),
        version: inner("protocolVersion").and_then(|name| Version::parse(&name)),
        tenant: inner("tenant").filter(|tenant| tenant.len() <= MAX_TENANT_BYTES),
    })
}

/// Interfaces in the form of 0.3: one at the top, and additional ones.
fn interfaces_of_03(card: &RawValue) -> impl Iterator<Item = Interface> {
    let named = |holder: &RawValue, name: &str| member(holder, name).and_then(text).filter(|text| !text.is_empty());
    // 0.2 has no member for the version, and early servers of 1.0 say it here.
    let version = named(card, "protocolVersion").map_or(Some(Version::V03), |name| Version::parse(&name));
    let at = |url: String, binding: Option<String>| Interface {
        url,
        binding: binding.map_or(Binding::JsonRpc, |name| Binding::read(&name)),
        version,
        tenant: None,
    };
    let first = named(card, "url").map(|url| at(url, named(card, "preferredTransport")));
    let additional = member(card, "additionalInterfaces").and_then(elements).unwrap_or_default();
    let additional = additional.into_iter().filter_map(move |other| {
        let transport = named(other, "transport")?;
        Some(at(named(other, "url")?, Some(transport)))
    });
    let additional: Vec<Interface> = additional.collect();
    first.into_iter().chain(additional)
}

fn is_true(holder: &RawValue, name: &str) -> bool {
    member(holder, name).is_some_and(|value| value.get() == "true")
}

/// Possible addresses of an agent's card, in the order of likelihood.
#[must_use]
pub fn addresses(agent: &Url) -> Vec<Url> {
    let own = agent.path().trim_end_matches('/');
    let mut urls = Vec::with_capacity(4);
    for path in PATHS {
        for base in [own, ""] {
            let mut url = agent.clone();
            url.set_fragment(None);
            url.set_path(&format!("{base}{path}"));
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    urls
}

/// Names of the top-level members in which two cards differ.
#[must_use]
pub fn changed_members(before: &RawValue, after: &RawValue) -> Vec<String> {
    let parse = |raw: &RawValue| -> Vec<(String, serde_json::Value)> {
        let members = members(raw).unwrap_or_default().into_iter();
        members.map(|(name, value)| (name, serde_json::from_str(value.get()).unwrap_or_default())).collect()
    };
    let (before, after) = (parse(before), parse(after));
    let find = |card: &[(String, serde_json::Value)], name: &str| {
        card.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let mut names: Vec<String> = before.iter().chain(&after).map(|(name, _)| name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| find(&before, name) != find(&after, name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    #[test]
    fn the_interface_is_chosen_by_binding_and_version() {
        let one = |binding: &str, version: &str, url: &str| {
            format!(r#"{{"url":"{url}","protocolBinding":"{binding}","protocolVersion":"{version}"}}"#)
        };
        let (rpc1, rpc03) = (one("JSONRPC", "1.0", "rpc1"), one("JSONRPC", "0.3", "rpc03"));
        let (rest1, rest03) = (one("HTTP+JSON", "1.0", "rest1"), one("HTTP+JSON", "0.3", "rest03"));
        let (grpc, next) = (one("GRPC", "1.0", "grpc"), one("JSONRPC", "2.0", "next"));
        let (small, small_rest) = (one("jsonrpc", "1.2", "small"), one("http+json", "1.0", "small rest"));
        let of = |interfaces: &[&String]| {
            let list = interfaces.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(",");
            format!(r#"{{"supportedInterfaces":[{list}]}}"#)
        };
        for (card, expected) in [
            (of(&[&grpc, &rest1, &rpc03, &rpc1]), Ok(Some(("rpc1", Version::V1)))),
            (of(&[&grpc, &rest1, &rpc03]), Ok(Some(("rpc03", Version::V03)))),
            (of(&[&grpc, &rest1]), Ok(Some(("rest1", Version::V1)))),
            (of(&[&grpc]), Err("GRPC 1.0")),
            (of(&[&small]), Ok(Some(("small", Version::V1)))),
            (of(&[&small_rest]), Ok(Some(("small rest", Version::V1)))),
            (of(&[&grpc, &rest03, &next, &grpc]), Err("GRPC 1.0, HTTP+JSON 0.3, JSONRPC of another version")),
            (of(&[]), Ok(None)),
            (r#"{"supportedInterfaces":"no"}"#.to_owned(), Ok(None)),
            (r#"{"supportedInterfaces":[7,{"url":7},{"url":"u"}]}"#.to_owned(), Ok(None)),
            // 0.2 and 0.3.
            (r#"{"url":"u"}"#.to_owned(), Ok(Some(("u", Version::V03)))),
            (r#"{"url":"u","protocolVersion":"0.3.0"}"#.to_owned(), Ok(Some(("u", Version::V03)))),
            (r#"{"url":"u","protocolVersion":"1.0"}"#.to_owned(), Ok(Some(("u", Version::V1)))),
            (
                r#"{"url":"u","protocolVersion":"0.3.0","preferredTransport":"GRPC","additionalInterfaces":[
                    {"url":"v","transport":"JSONRPC"}]}"#
                    .to_owned(),
                Ok(Some(("v", Version::V03))),
            ),
            (r#"{"url":"u","preferredTransport":"GRPC"}"#.to_owned(), Err("GRPC 0.3")),
            (r#"{"url":"u","preferredTransport":"HTTP+JSON"}"#.to_owned(), Err("HTTP+JSON 0.3")),
            // Both.
            (
                format!(r#"{{"url":"u","protocolVersion":"0.3.0","supportedInterfaces":[{rpc1}]}}"#),
                Ok(Some(("rpc1", Version::V1))),
            ),
        ] {
            let read = Card::read(raw(&card));
            let found = read.choose().map(|it| it.map(|it| (it.url.as_str(), it.version.expect("a known one"))));
            let found = found.map_err(|NoInterface(offered)| offered);
            assert_eq!(found, expected.map_err(str::to_owned), "{card}");
        }
    }

    #[test]
    fn capabilities_are_those_of_either_version() {
        let card = Card::read(raw(
            r#"{"capabilities":{"streaming":true,"pushNotifications":true,"extendedAgentCard":true},"defaultInputModes":["text/plain","application/JSON"]}"#,
        ));
        assert!(card.streaming && card.push && card.has_extended && card.accepts_json);
        let card = Card::read(raw(
            r#"{"capabilities":{"streaming":"yes"},"supportsAuthenticatedExtendedCard":true,"defaultInputModes":["text"]}"#,
        ));
        assert!(!card.streaming && !card.push && card.has_extended && !card.accepts_json);
        let long = "x".repeat(MAX_TENANT_BYTES + 1);
        for (tenant, expected) in [("t", Some("t")), ("", None), (long.as_str(), None)] {
            let json = format!(
                r#"{{"supportedInterfaces":[{{"url":"u","protocolBinding":"JSONRPC","protocolVersion":"1.0","tenant":"{tenant}"}}]}}"#
            );
            assert_eq!(Card::read(raw(&json)).interfaces[0].tenant.as_deref(), expected);
        }
    }

    #[test]
    fn the_members_that_differ_are_named() {
        let before = raw(r#"{"a":1,"b":{"x":1,"y":2},"c":3}"#);
        for (after, expected) in
            [(r#"{"c":3, "b":{"y":2,"x":1},"a":1}"#, &[][..]), (r#"{"a":2,"b":{"x":1,"y":2},"d":3}"#, &["a", "c", "d"])]
        {
            assert_eq!(changed_members(before, raw(after)), expected);
        }
    }
}
