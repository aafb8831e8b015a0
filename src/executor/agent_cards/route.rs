//! Route to an A2A agent: version, binding and address of a call. Pure.

use http::Method;
use serde_json::value::RawValue;
use url::Url;

use crate::{
    a2a::{Binding, Card, Interface, MEDIA_TYPE, Operation, Version, request},
    agent::A2aConfig,
};

/// Media type of JSON-RPC.
const JSON: &str = "application/json";
/// Media type of event streams.
const EVENTS: &str = "text/event-stream";

/// How an agent is called.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a card has a switch for each capability")]
pub(in crate::executor) struct Route {
    pub(in crate::executor) version: Version,
    /// Whether the binding is HTTP+JSON instead of JSON-RPC.
    pub(in crate::executor) is_rest: bool,
    pub(in crate::executor) url: Url,
    pub(in crate::executor) tenant: Option<String>,
    /// Whether tasks are streamed.
    pub(in crate::executor) streams: bool,
    /// Whether the agent sends push notifications of tasks that are not streamed.
    pub(in crate::executor) pushes: bool,
    /// Whether JSON is accepted as input.
    pub(in crate::executor) accepts_json: bool,
}

/// HTTP request of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::executor) struct HttpRequest {
    pub(in crate::executor) method: Method,
    pub(in crate::executor) url: Url,
    pub(in crate::executor) body: Option<String>,
    pub(in crate::executor) media_type: &'static str,
    pub(in crate::executor) accept: &'static str,
    /// Version to name in the header.
    pub(in crate::executor) version: Option<&'static str>,
    /// Further headers.
    pub(in crate::executor) headers: Vec<(String, String)>,
}

impl Route {
    /// The route to an agent with this URL, by its settings, its card, and the version that it was found to speak. The
    /// error is the reason why it cannot be called.
    pub(super) fn decide(
        own: &Url,
        config: &A2aConfig,
        card: Option<&Card>,
        pinned: Option<Version>,
    ) -> Result<Self, String> {
        let wanted = config.protocol.or(pinned);
        let interface = match (card, wanted) {
            (None, _) => None,
            // What the settings name is spoken by HTTP+JSON too.
            (Some(card), Some(version)) => {
                let by_rest = || config.protocol.and_then(|_| card.http_json(version));
                card.json_rpc(version).or_else(by_rest)
            }
            (Some(card), None) => card.choose().map_err(|none| none.to_string())?,
        };
        let version = wanted.or_else(|| interface?.version).unwrap_or(Version::V03);
        // An agent without a config that speaks 0.3 is called as before agents had one.
        let may_stream = config.is_given || version == Version::V1;
        let streams = config.streaming.unwrap_or(may_stream && card.is_some_and(|card| card.streaming));
        let pushes = config.push.unwrap_or(may_stream) && card.is_some_and(|card| card.push);
        let accepts_json = card.is_some_and(|card| card.accepts_json);
        let is_rest = interface.is_some_and(|it| it.binding == Binding::HttpJson);
        let tenant = interface.and_then(|it| it.tenant.clone());
        let url = match interface.filter(|_| version == Version::V1) {
            None => own.clone(),
            Some(interface) => match address(own, config, interface) {
                Some(url) => url,
                // Cards often name an address that only their own host knows.
                None if !is_rest => own.clone(),
                None => {
                    return Err(format!(
                        "its card offers HTTP+JSON at {}, which is neither at the origin of the agent's URL nor in config.origins",
                        interface.url
                    ));
                }
            },
        };
        Ok(Self { version, is_rest, url, tenant, streams, pushes, accepts_json })
    }

    /// Whether the other version is tried if the agent does not know that of the route.
    pub(in crate::executor) fn may_fall_back(&self, config: &A2aConfig) -> bool {
        config.protocol.is_none() && !self.is_rest
    }

    /// HTTP request of an operation. `task` is the task that it is about.
    pub(in crate::executor) fn request(
        &self,
        rpc_id: &str,
        operation: Operation,
        params: &RawValue,
        task: Option<&str>,
    ) -> HttpRequest {
        let accept = if operation == Operation::Stream { EVENTS } else { JSON };
        let version = (self.version == Version::V1).then(|| self.version.as_str());
        if !self.is_rest {
            let body = Some(request::rpc(rpc_id, self.version, operation, params));
            let url = self.url.clone();
            let (method, headers) = (Method::POST, Vec::new());
            return HttpRequest { method, url, body, media_type: JSON, accept, version, headers };
        }
        let mut url = self.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            path.extend(self.tenant.as_deref());
            match (operation, task) {
                (Operation::Send, _) => path.push("message:send"),
                (Operation::Stream, _) => path.push("message:stream"),
                (Operation::Get, task) => path.push("tasks").extend(task),
                (Operation::Cancel, task) => path.push("tasks").push(&format!("{}:cancel", task.unwrap_or_default())),
                (Operation::ExtendedCard, _) => path.push("extendedAgentCard"),
            };
        }
        let (method, body) = match operation {
            Operation::Get | Operation::ExtendedCard => (Method::GET, None),
            Operation::Send | Operation::Stream => (Method::POST, Some(params.get().to_owned())),
            Operation::Cancel => (Method::POST, Some("{}".to_owned())),
        };
        if operation == Operation::Get {
            url.query_pairs_mut().append_pair("historyLength", "0");
        }
        let accept = if operation == Operation::Stream { EVENTS } else { MEDIA_TYPE };
        HttpRequest { method, url, body, media_type: MEDIA_TYPE, accept, version, headers: Vec::new() }
    }
}

/// Address of an interface, if it may be called, with the query of the agent's URL unless it has its own.
fn address(own: &Url, config: &A2aConfig, interface: &Interface) -> Option<Url> {
    let mut url = Url::parse(&interface.url).ok().filter(|url| config.may_call(own, url))?;
    let has_user = !url.username().is_empty() || url.password().is_some();
    if url.query().is_none() && url.origin() == own.origin() {
        url.set_query(own.query());
    }
    url.set_fragment(None);
    (!has_user).then_some(url)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::input::{Node, check_json, to_raw};

    fn url(text: &str) -> Url {
        Url::parse(text).expect(text)
    }

    fn config(json: &str) -> A2aConfig {
        A2aConfig::read(&Node::new("config", check_json(json.as_bytes()).expect(json))).expect(json)
    }

    fn card(interfaces: &[(&str, &str, &str)], streaming: bool) -> Card {
        let interfaces: Vec<_> = interfaces
            .iter()
            .map(|(url, binding, version)| {
                json!({"url": url, "protocolBinding": binding, "protocolVersion": version, "tenant": "t"})
            })
            .collect();
        Card::read(&to_raw(&json!({"supportedInterfaces": interfaces, "capabilities": {"streaming": streaming},
            "defaultInputModes": ["application/json"]})))
    }

    const OWN: &str = "https://agent.example/base?key=s";

    #[test]
    fn the_version_is_that_of_the_settings_then_the_one_seen_then_that_of_the_card() {
        let both = card(
            &[("https://agent.example/1", "JSONRPC", "1.0"), ("https://agent.example/03", "JSONRPC", "0.3")],
            true,
        );
        let old = card(&[("https://agent.example/03", "JSONRPC", "0.3")], true);
        let none = A2aConfig::default();
        for (settings, card, pinned, expected) in [
            (&none, None, None, (Version::V03, OWN, false)),
            (&none, None, Some(Version::V1), (Version::V1, OWN, false)),
            (&none, Some(&both), None, (Version::V1, "https://agent.example/1?key=s", true)),
            (&none, Some(&both), Some(Version::V03), (Version::V03, OWN, false)),
            (&none, Some(&old), None, (Version::V03, OWN, false)),
            (&none, Some(&old), Some(Version::V1), (Version::V1, OWN, true)),
            (&config("{}"), Some(&old), None, (Version::V03, OWN, true)),
            (
                &config(r#"{"streaming":false}"#),
                Some(&both),
                None,
                (Version::V1, "https://agent.example/1?key=s", false),
            ),
            (&config(r#"{"protocol":"0.3"}"#), None, Some(Version::V1), (Version::V03, OWN, false)),
            (&config(r#"{"protocol":"1.0","streaming":true}"#), None, None, (Version::V1, OWN, true)),
            (
                &config(r#"{"protocol":"1.0"}"#),
                Some(&both),
                Some(Version::V03),
                (Version::V1, "https://agent.example/1?key=s", true),
            ),
            (&config(r#"{"protocol":"0.3"}"#), Some(&both), None, (Version::V03, OWN, true)),
        ] {
            let route = Route::decide(&url(OWN), settings, card, pinned).expect("a route");
            assert_eq!(
                (route.version, route.url.as_str(), route.streams),
                expected,
                "{settings:?} {card:?} {pinned:?}"
            );
        }
    }

    #[test]
    fn a_card_leads_to_another_origin_only_if_the_settings_allow_it() {
        let elsewhere = card(&[("https://other.example/a", "JSONRPC", "1.0")], false);
        let rest = card(&[("https://other.example/a", "HTTP+JSON", "1.0")], false);
        let (none, allowed) = (A2aConfig::default(), config(r#"{"origins":["https://other.example"]}"#));
        let route = |config: &A2aConfig, card: &Card| Route::decide(&url(OWN), config, Some(card), None);
        assert_eq!(route(&none, &elsewhere).expect("a route").url.as_str(), OWN);
        assert_eq!(route(&allowed, &elsewhere).expect("a route").url.as_str(), "https://other.example/a");
        assert!(route(&none, &rest).expect_err("no route").contains("nor in config.origins"));
        assert!(route(&allowed, &rest).expect("a route").is_rest);
        // By HTTP+JSON only if nothing else is offered, or the settings name the version.
        let mixed = card(
            &[("https://agent.example/03", "JSONRPC", "0.3"), ("https://agent.example/r", "HTTP+JSON", "1.0")],
            false,
        );
        for (settings, pinned, expected) in [
            (&none, None, (Version::V03, false)),
            (&none, Some(Version::V1), (Version::V1, false)),
            (&config(r#"{"protocol":"1.0"}"#), None, (Version::V1, true)),
            (&config(r#"{"protocol":"0.3"}"#), None, (Version::V03, false)),
        ] {
            let route = Route::decide(&url(OWN), settings, Some(&mixed), pinned).expect("a route");
            assert_eq!((route.version, route.is_rest), expected, "{settings:?} {pinned:?}");
        }
        for odd in ["http://169.254.169.254/", "https://u:p@agent.example/a", "/relative", "0.0.0.0:9999", ""] {
            let odd = card(&[(odd, "JSONRPC", "1.0")], false);
            assert_eq!(route(&none, &odd).expect("a route").url.as_str(), OWN);
        }
        let grpc = card(&[("agent.example:443", "GRPC", "1.0")], false);
        assert!(route(&none, &grpc).expect_err("no route").starts_with("its card offers only GRPC 1.0"));
    }

    #[test]
    fn each_binding_has_its_requests() {
        let params = to_raw(&json!({"id": "a/b"}));
        let rpc = Route::decide(&url(OWN), &config(r#"{"protocol":"1.0"}"#), None, None).expect("a route");
        let request = rpc.request("r", Operation::Get, &params, Some("a/b"));
        assert_eq!((request.method, request.url.as_str(), request.version), (Method::POST, OWN, Some("1.0")));
        assert_eq!(
            request.body.as_deref(),
            Some(r#"{"jsonrpc":"2.0","id":"r","method":"GetTask","params":{"id":"a/b"}}"#)
        );
        let old = Route { version: Version::V03, ..rpc };
        assert_eq!(old.request("r", Operation::Send, &params, None).version, None);
        let rest = card(&[("https://agent.example/v1/", "HTTP+JSON", "1.0")], false);
        let rest = Route::decide(&url("https://agent.example/"), &A2aConfig::default(), Some(&rest), None).expect("it");
        for (operation, method, path, body) in [
            (Operation::Send, Method::POST, "message:send", Some(r#"{"id":"a/b"}"#)),
            (Operation::Stream, Method::POST, "message:stream", Some(r#"{"id":"a/b"}"#)),
            (Operation::Get, Method::GET, "tasks/a%2Fb?historyLength=0", None),
            (Operation::Cancel, Method::POST, "tasks/a%2Fb:cancel", Some("{}")),
            (Operation::ExtendedCard, Method::GET, "extendedAgentCard", None),
        ] {
            let request = rest.request("r", operation, &params, Some("a/b"));
            assert_eq!(request.url.as_str(), format!("https://agent.example/v1/t/{path}"));
            assert_eq!((request.method, request.body.as_deref(), request.version), (method, body, Some("1.0")));
        }
    }
}
