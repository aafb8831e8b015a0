//! Agents: rules for registering and changing them, and for showing their credentials.
//!
//! Credentials of an agent are stored as the caller gave them, without the members that [`render_auth_config`] derives
//! for the reference deployment's bridge.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use url::Url;

use self::{auth::checked_auth_config, kind::checked_config};
use crate::{
    breaker,
    input::{ANY_LENGTH, FieldError, Node, Object, Patch, Read, keep, member, text},
};

mod a2a;
mod address;
mod auth;
mod credentials;
mod fallbacks;
mod kind;
pub mod latency;
mod mcp;
mod model;
mod responses;

pub use a2a::A2aConfig;
pub use address::masked_url;
pub use auth::{AuthType, mask_auth_config, render_auth_config};
pub use credentials::{ClientCredentials, Credentials, secrets_of};
pub use fallbacks::{MAX_FALLBACKS, check as check_fallbacks};
pub use kind::{AgentKind, ChatConfig, model_url};
pub use mcp::McpConfig;
pub use responses::ResponsesConfig;

/// Length of an agent's name, as in its column.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// Maximum length of a URL that the reference validates.
const MAX_GIVEN_URL_CHARS: usize = 2083;

/// Maximum length of a normalised URL, as in its column.
const MAX_URL_CHARS: usize = 512;

/// Maximum delay between attempts, 24 days: sums of delays cannot overflow.
pub const MAX_DELAY_MS: i64 = i32::MAX as i64;

/// Status of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentStatus {
    /// The agent may be called.
    Active,
    /// Its owner has deactivated it.
    Inactive,
    /// It was deleted; its name stays taken.
    Deleted,
}

impl AgentStatus {
    /// All statuses.
    pub const ALL: [Self; 3] = [Self::Active, Self::Inactive, Self::Deleted];

    /// Text in the `status` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Deleted => "deleted",
        }
    }

    /// Parses a status in lower case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Reads a status that a caller may set; deleting has its own route.
    fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::parse(&name.to_lowercase())
                .filter(|status| *status != Self::Deleted)
                .ok_or_else(|| "must be one of active, inactive".to_owned())
        })
    }
}

/// Retry policy of calls to an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryConfig {
    /// Maximum number of attempts, 0 to 10.
    pub max_retries: u32,
    /// Pause after the first attempt.
    pub initial_delay_ms: u64,
    /// Maximum pause.
    pub max_delay_ms: u64,
    /// Factor from each pause to the next one, at least 1.
    pub backoff_multiplier: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { max_retries: 3, initial_delay_ms: 1000, max_delay_ms: 30_000, backoff_multiplier: 2.0 }
    }
}

impl RetryConfig {
    /// Reads the `retry_config` column. The defaults apply if it is null, or unreadable because another program wrote
    /// it.
    #[must_use]
    pub fn from_stored(stored: Option<&RawValue>) -> Self {
        let object = stored.filter(|raw| raw.get().starts_with('{'));
        object.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
    }

    /// Reads a policy; `default` has the members that it does not have.
    fn read(node: &Node<'_>, default: &Self) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let delay = |min| move |node: &Node<'_>| node.int(min..=MAX_DELAY_MS).map(i64::unsigned_abs);
        let max_retries = object.defaulted("max_retries", &mut errors, default.max_retries, |node| {
            // The range fits.
            node.int(0..=10).map(|number| u32::try_from(number).unwrap_or_default())
        });
        let initial_delay_ms = object.defaulted("initial_delay_ms", &mut errors, default.initial_delay_ms, delay(100));
        let max_delay_ms = object.defaulted("max_delay_ms", &mut errors, default.max_delay_ms, delay(1000));
        let backoff_multiplier =
            object.defaulted("backoff_multiplier", &mut errors, default.backoff_multiplier, |node| node.float(1.0));
        if errors.is_empty() && max_delay_ms < initial_delay_ms {
            let field = format!("{}.max_delay_ms", node.path());
            errors.push(FieldError::rule(field, "must be greater than or equal to initial_delay_ms"));
        }
        let config = Self { max_retries, initial_delay_ms, max_delay_ms, backoff_multiplier };
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// Values of members that an agent is registered without.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Time-out of one call.
    pub timeout_ms: i32,
    /// Retry policy.
    pub retry_config: RetryConfig,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { timeout_ms: 30_000, retry_config: RetryConfig::default() }
    }
}

/// Agent to register. It has no `Debug`, since it holds secrets.
pub struct NewAgent {
    /// Name, unique for ever.
    pub name: String,
    /// Normalised URL.
    pub url: String,
    /// Description for users.
    pub description: Option<String>,
    /// Protocol of the agent.
    pub kind: AgentKind,
    /// Settings of the protocol.
    pub config: Option<Box<RawValue>>,
    /// Type of the credentials in `auth_config`.
    pub auth_type: AuthType,
    /// Credentials in the stored form.
    pub auth_config: Option<Box<RawValue>>,
    /// Time-out of one call.
    pub timeout_ms: i32,
    /// Retry policy.
    pub retry_config: RetryConfig,
    /// Overrides of the settings; see [`breaker::Rules::of_agent`].
    pub circuit_breaker_config: Option<Box<RawValue>>,
    /// Names of the agents that are called when this one does not work, in this order.
    pub fallbacks: Vec<String>,
}

impl NewAgent {
    /// Rejects masks that a caller without the right to see secrets may have copied from another agent, and a URL with
    /// masks for any caller.
    pub fn unmasked(mut self, sees_secrets: bool) -> Read<Self> {
        address::unmasked_url(&self.url, None)?;
        if let Some(config) = self.auth_config.as_deref().filter(|_| !sees_secrets) {
            self.auth_config = Some(auth::unmask_auth_config(config, None)?.0);
        }
        Ok(self)
    }

    /// Parses the body of a create request.
    pub fn parse(body: &RawValue, defaults: &Defaults) -> Read<Self> {
        let body = Object::body(body)?;
        let mut errors = Vec::new();
        let name = body.required("name", &mut errors, |node| node.string(NAME_CHARS));
        let url = body.required("url", &mut errors, read_url);
        let description = body.nullable("description", &mut errors, |node| node.string(ANY_LENGTH));
        let kind = body.defaulted("kind", &mut errors, AgentKind::A2a, AgentKind::read);
        let config = body.nullable("config", &mut errors, Node::free_object);
        let kind_is_readable = !errors.iter().any(|error| error.field == "body.kind" || error.field == "body.config");
        let config =
            if kind_is_readable { keep(checked_config(kind, config.as_deref()), &mut errors).flatten() } else { None };
        let auth_type = body.defaulted("auth_type", &mut errors, AuthType::None, AuthType::read);
        let auth_config = body.nullable("auth_config", &mut errors, Node::free_object);
        // Rules between members are checked only if the members themselves are valid.
        let auth_is_readable = !errors.iter().any(|error| error.field.starts_with("body.auth_"));
        let auth_config = if auth_is_readable {
            keep(checked_auth_config(auth_type, auth_config.as_deref()), &mut errors).flatten()
        } else {
            None
        };
        let timeout_ms = body.defaulted("timeout_ms", &mut errors, defaults.timeout_ms, read_timeout);
        let retry = &defaults.retry_config;
        let read_retry = |node: &Node<'_>| RetryConfig::read(node, retry);
        let retry_config = body.defaulted("retry_config", &mut errors, retry.clone(), read_retry);
        let circuit_breaker_config = body.nullable("circuit_breaker_config", &mut errors, breaker::Rules::read_config);
        let fallbacks = body.defaulted("fallbacks", &mut errors, Vec::new(), fallbacks::read);
        if let Some(name) = &name {
            keep(check_fallbacks(name, &fallbacks), &mut errors);
        }
        match (name, url) {
            (Some(name), Some(url)) if errors.is_empty() => Ok(Self {
                name,
                url,
                description,
                kind,
                config,
                auth_type,
                auth_config,
                timeout_ms,
                retry_config,
                circuit_breaker_config,
                fallbacks,
            }),
            _ => Err(errors),
        }
    }
}

/// Changes of an agent, including secrets. `None` and [`Patch::Absent`] mean no change.
#[derive(Default)]
pub struct AgentPatch {
    /// Normalised URL.
    pub url: Option<String>,
    /// Description for users.
    pub description: Patch<String>,
    /// Stored only as returned by [`AgentPatch::merged_kind`].
    pub kind: Option<AgentKind>,
    /// Stored only as returned by [`AgentPatch::merged_kind`].
    pub config: Patch<Box<RawValue>>,
    /// Stored only as returned by [`AgentPatch::merged_auth`].
    pub auth_type: Option<AuthType>,
    /// Stored only as returned by [`AgentPatch::merged_auth`].
    pub auth_config: Patch<Box<RawValue>>,
    /// Time-out of one call.
    pub timeout_ms: Option<i32>,
    /// Retry policy, replaced as a whole.
    pub retry_config: Option<RetryConfig>,
    /// Status, active or inactive.
    pub status: Option<AgentStatus>,
    /// Overrides of the settings; see [`breaker::Rules::of_agent`].
    pub circuit_breaker_config: Patch<Box<RawValue>>,
    /// Names of the agents that are called when this one does not work; [`check_fallbacks`] checks them.
    pub fallbacks: Option<Vec<String>>,
}

impl AgentPatch {
    /// Parses the body of an update request.
    pub fn parse(body: &RawValue, defaults: &Defaults) -> Read<Self> {
        let body = Object::body(body)?;
        let mut errors = Vec::new();
        let patch = Self {
            url: body.patch_not_null("url", &mut errors, read_url),
            description: body.patch("description", &mut errors, |node| node.string(ANY_LENGTH)),
            kind: body.patch_not_null("kind", &mut errors, AgentKind::read),
            config: body.patch("config", &mut errors, Node::free_object),
            auth_type: body.patch_not_null("auth_type", &mut errors, AuthType::read),
            auth_config: body.patch("auth_config", &mut errors, Node::free_object),
            timeout_ms: body.patch_not_null("timeout_ms", &mut errors, read_timeout),
            retry_config: body
                .patch_not_null("retry_config", &mut errors, |node| RetryConfig::read(node, &defaults.retry_config)),
            status: body.patch_not_null("status", &mut errors, AgentStatus::read),
            circuit_breaker_config: body.patch("circuit_breaker_config", &mut errors, breaker::Rules::read_config),
            fallbacks: body.patch_not_null("fallbacks", &mut errors, fallbacks::read),
        };
        if errors.is_empty() { Ok(patch) } else { Err(errors) }
    }

    /// Replaces masks by the stored values, for a caller that saw the agent without its secrets and sends it back:
    /// asterisks in the URL, and those in the credentials if the caller may not see them. Kept secrets may not be sent
    /// to another address or in another header, which could echo them to that caller.
    pub fn unmasked(mut self, url: &str, auth_config: Option<&RawValue>, sees_secrets: bool) -> Read<Self> {
        if !sees_secrets {
            self.url = self.url.filter(|given| *given != masked_url(url));
        }
        let mut keeps_secrets = false;
        if let Some(given) = &self.url {
            let (meant, keeps) = address::unmasked_url(given, Some(url))?;
            self.url = Some(meant).filter(|meant| *meant != url);
            keeps_secrets = keeps;
        }
        if sees_secrets {
            return Ok(self);
        }
        let stored = auth_config.filter(|raw| raw.get() != "null");
        match &self.auth_config {
            Patch::Value(given) => {
                let (config, keeps) = auth::unmask_auth_config(given, stored)?;
                if keeps && auth::header_in(given) != stored.and_then(auth::header_in) {
                    let text = "the stored key cannot be used in another header; give it again with the new one";
                    return Err(vec![FieldError::rule("body.auth_config.header_name", text)]);
                }
                for name in ["query_name", "token_url"] {
                    let in_config = |config: &RawValue| member(config, name).and_then(text);
                    if keeps && in_config(given) != stored.and_then(in_config) {
                        let text = format!("the stored secret cannot be used with another {name}; give it again");
                        return Err(vec![FieldError::rule(format!("body.auth_config.{name}"), text)]);
                    }
                }
                self.auth_config = Patch::Value(config);
                keeps_secrets |= keeps;
            }
            Patch::Absent => keeps_secrets |= stored.is_some(),
            Patch::Null => {}
        }
        if keeps_secrets && self.url.is_some() {
            let text = "the stored credentials cannot be used for another address; give them again with the new one";
            return Err(vec![FieldError::rule("body.url", text)]);
        }
        Ok(self)
    }

    /// The `auth_type` and `auth_config` to store, given the stored ones (a JSON null means none).
    ///
    /// If the update contains neither, the stored ones are returned unchecked: the reference accepted agents whose
    /// credentials do not fit their type, and these can still be renamed or deactivated.
    pub fn merged_auth(
        &self,
        auth_type: AuthType,
        auth_config: Option<&RawValue>,
    ) -> Read<(AuthType, Option<Box<RawValue>>)> {
        let stored = auth_config.filter(|raw| raw.get() != "null");
        if self.auth_type.is_none() && self.auth_config.is_absent() {
            return Ok((auth_type, stored.map(ToOwned::to_owned)));
        }
        let auth_type = self.auth_type.unwrap_or(auth_type);
        let auth_config = match &self.auth_config {
            Patch::Absent => stored,
            Patch::Null => None,
            Patch::Value(given) => Some(&**given),
        };
        Ok((auth_type, checked_auth_config(auth_type, auth_config)?))
    }

    /// The `kind` and `config` to store, given the stored ones. A new kind does not keep the previous config.
    pub fn merged_kind(&self, kind: AgentKind, config: Option<&RawValue>) -> Read<(AgentKind, Option<Box<RawValue>>)> {
        if self.kind.is_none() && self.config.is_absent() {
            return Ok((kind, config.map(ToOwned::to_owned)));
        }
        let (kind, is_other) = self.kind.map_or((kind, false), |wanted| (wanted, wanted != kind));
        let config = match &self.config {
            Patch::Absent => config.filter(|_| !is_other),
            Patch::Null => None,
            Patch::Value(given) => Some(&**given),
        };
        Ok((kind, checked_config(kind, config)?))
    }
}

fn read_timeout(node: &Node<'_>) -> Read<i32> {
    // The range fits.
    node.int(1000..=300_000).map(|number| i32::try_from(number).unwrap_or(i32::MAX))
}

/// Reads a URL in its stored form: scheme and host in lower case, no default port, a path.
fn read_url(node: &Node<'_>) -> Read<String> {
    let fail = |kind, message: String| Err(vec![node.error(kind, message)]);
    let Some(given) = text(node.raw()) else {
        return fail("url_type", "URL input should be a string or URL".to_owned());
    };
    if given.chars().count() > MAX_GIVEN_URL_CHARS {
        return fail("url_too_long", format!("URL should have at most {MAX_GIVEN_URL_CHARS} characters"));
    }
    let url = match Url::parse(&given) {
        Ok(url) => url,
        Err(error) => return fail("url_parsing", format!("Input should be a valid URL, {error}")),
    };
    if !matches!(url.scheme(), "http" | "https") {
        return fail("url_scheme", "URL scheme should be 'http' or 'https'".to_owned());
    }
    let url = String::from(url); // ASCII, so that bytes are characters
    if url.len() > MAX_URL_CHARS {
        return fail("url_too_long", format!("URL should have at most {MAX_URL_CHARS} characters"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    fn parse_new(body: &RawValue) -> Read<NewAgent> {
        NewAgent::parse(body, &Defaults::default())
    }

    fn parse_patch(body: &RawValue) -> Read<AgentPatch> {
        AgentPatch::parse(body, &Defaults::default())
    }

    /// The `field kind` of each error, in order.
    fn faults<T>(read: Read<T>) -> Vec<String> {
        let errors = read.err().unwrap_or_default();
        errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect()
    }

    /// Checks that a create body `{"name": "a", "url": "http://a", <members>}` has these errors.
    fn check(members: &str, expected: &[&str]) {
        let body = format!(r#"{{"name":"a","url":"http://a"{}{members}}}"#, if members.is_empty() { "" } else { "," });
        assert_eq!(faults(parse_new(raw(&body))), expected, "{members}");
    }

    #[test]
    fn a_minimal_agent_gets_the_defaults() {
        let agent = parse_new(raw(r#"{"name":" ","url":"http://A:8080"}"#)).expect("valid");
        assert_eq!((agent.name.as_str(), agent.url.as_str(), agent.timeout_ms), (" ", "http://a:8080/", 30_000));
        assert_eq!(agent.auth_type, AuthType::None);
        assert!(agent.auth_config.is_none() && agent.description.is_none() && agent.circuit_breaker_config.is_none());
        let retry = serde_json::to_string(&agent.retry_config).expect("JSON");
        let expected = r#"{"max_retries":3,"initial_delay_ms":1000,"max_delay_ms":30000,"backoff_multiplier":2.0}"#;
        assert_eq!(retry, expected);
    }

    #[test]
    fn a_default_is_used_for_each_member_that_is_not_given() {
        let retry_config =
            RetryConfig { max_retries: 7, initial_delay_ms: 200, max_delay_ms: 2000, backoff_multiplier: 1.5 };
        let defaults = Defaults { timeout_ms: 9000, retry_config: retry_config.clone() };
        let parse = |members: &str| {
            let body = format!(r#"{{"name":"a","url":"http://a"{members}}}"#);
            NewAgent::parse(raw(&body), &defaults).map_err(|errors| errors[0].field.clone())
        };
        let agent = parse("").unwrap_or_else(|field| panic!("{field}"));
        assert_eq!((agent.timeout_ms, &agent.retry_config), (9000, &retry_config));
        let agent = parse(r#","timeout_ms":1000,"retry_config":{"max_retries":1}"#);
        let agent = agent.unwrap_or_else(|field| panic!("{field}"));
        assert_eq!((agent.timeout_ms, agent.retry_config), (1000, RetryConfig { max_retries: 1, ..retry_config }));
        // Above the longest pause, which is a default here.
        let refused = parse(r#","retry_config":{"initial_delay_ms":2001}"#);
        assert_eq!(refused.err().as_deref(), Some("body.retry_config.max_delay_ms"));
    }

    #[test]
    fn every_bad_member_is_reported_in_the_order_of_the_fields() {
        let body = raw(r#"{"timeout_ms":10,"name":""}"#);
        let expected = ["body.name string_too_short", "body.url missing", "body.timeout_ms greater_than_equal"];
        assert_eq!(faults(parse_new(body)), expected);
        assert_eq!(faults(parse_new(raw("null"))), ["body missing"]);
        assert_eq!(faults(parse_new(raw("[]"))), ["body model_attributes_type"]);
    }

    #[test]
    fn each_member_has_its_limits() {
        check("", &[]);
        check(r#""unknown":1,"description":null,"timeout_ms":"2000","retry_config":{}"#, &[]);
        check(&format!(r#""name":"{}""#, "é".repeat(255)), &[]);
        check(&format!(r#""name":"{}""#, "é".repeat(256)), &["body.name string_too_long"]);
        check(r#""name":null"#, &["body.name string_type"]);
        check(r#""description":1"#, &["body.description string_type"]);
        check(r#""timeout_ms":1000"#, &[]);
        check(r#""timeout_ms":300001"#, &["body.timeout_ms less_than_equal"]);
        check(r#""timeout_ms":1500.5"#, &["body.timeout_ms int_from_float"]);
        check(r#""timeout_ms":null"#, &["body.timeout_ms int_type"]);
        check(r#""retry_config":null"#, &["body.retry_config model_attributes_type"]);
        check(r#""auth_type":"digest""#, &["body.auth_type value_error"]);
        check(r#""auth_config":"x""#, &["body.auth_config dict_type"]);
        check(r#""circuit_breaker_config":{"enabled":true}"#, &[]);
        check(r#""circuit_breaker_config":[]"#, &["body.circuit_breaker_config dict_type"]);
        let below =
            r#""retry_config":{"max_retries":11,"initial_delay_ms":99,"max_delay_ms":999,"backoff_multiplier":0.9}"#;
        check(
            below,
            &[
                "body.retry_config.max_retries less_than_equal",
                "body.retry_config.initial_delay_ms greater_than_equal",
                "body.retry_config.max_delay_ms greater_than_equal",
                "body.retry_config.backoff_multiplier greater_than_equal",
            ],
        );
        check(r#""retry_config":{"initial_delay_ms":30001}"#, &["body.retry_config.max_delay_ms value_error"]);
        check(r#""retry_config":{"max_retries":0,"initial_delay_ms":30000}"#, &[]);
    }

    #[test]
    fn a_url_is_normalised_and_limited() {
        for (given, stored) in [
            ("HTTP://Agent.Example:80", "http://agent.example/"),
            ("https://a:443/b?c#d", "https://a/b?c#d"),
            ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ] {
            let agent = parse_new(raw(&format!(r#"{{"name":"a","url":"{given}"}}"#))).expect(given);
            assert_eq!(agent.url, stored);
        }
        let long = |chars: usize| format!("\"http://a/{}\"", "x".repeat(chars - 9));
        for (url, fault) in [
            ("1".to_owned(), "body.url url_type"),
            ("\"\"".to_owned(), "body.url url_parsing"),
            ("\"agent\"".to_owned(), "body.url url_parsing"),
            ("\"http://\"".to_owned(), "body.url url_parsing"),
            ("\"http://a:99999\"".to_owned(), "body.url url_parsing"),
            ("\"ftp://a\"".to_owned(), "body.url url_scheme"),
            (long(513), "body.url url_too_long"),
            (long(2084), "body.url url_too_long"),
        ] {
            check(&format!(r#""url":{url}"#), &[fault]);
        }
        check(&format!(r#""url":{}"#, long(512)), &[]);
    }

    #[test]
    fn credentials_must_fit_their_type_even_when_absent() {
        let bad = ["body.auth_config value_error"];
        for (members, expected) in [
            (r#""auth_type":"none","auth_config":null"#, &[][..]),
            (r#""auth_type":"none","auth_config":{}"#, &bad),
            (r#""auth_config":{"token":"t"}"#, &bad),
            (r#""auth_type":"BEARER","auth_config":{"token":"t"}"#, &[]),
            (r#""auth_type":"bearer""#, &bad),
            (r#""auth_type":"bearer","auth_config":null"#, &bad),
            (r#""auth_type":"bearer","auth_config":{"token":null}"#, &bad),
            (r#""auth_type":"apikey","auth_config":{"key":"k","header_name":"H"}"#, &[]),
            (r#""auth_type":"apikey","auth_config":{"key":"k","header":"H"}"#, &[]),
            (r#""auth_type":"apikey","auth_config":{"key":"k"}"#, &bad),
            (r#""auth_type":"apikey","auth_config":{"header_name":"H"}"#, &bad),
            (r#""auth_type":"apikey","auth_config":{"key":"k","query_name":"q"}"#, &[]),
            (r#""auth_type":"apikey","auth_config":{"key":"k","query_name":"q","header_name":"H"}"#, &bad),
            (r#""auth_type":"apikey","auth_config":{"query_name":"q"}"#, &bad),
            (r#""auth_type":"basic","auth_config":{"username":"u","password":"p"}"#, &[]),
            (r#""auth_type":"basic","auth_config":{"username":"u:","password":"p"}"#, &bad),
            (r#""auth_type":"basic","auth_config":{"username":"u"}"#, &bad),
            (
                r#""auth_type":"oauth2","auth_config":{"token_url":"https://a/t","client_id":"c","client_secret":"s"}"#,
                &[],
            ),
            (r#""auth_type":"oauth2","auth_config":{"token_url":"a","client_id":"c","client_secret":"s"}"#, &bad),
            (r#""auth_type":"oauth2","auth_config":{"token_url":"https://a/t","client_secret":"s"}"#, &bad),
            (r#""auth_type":"oauth2""#, &bad),
        ] {
            check(members, expected);
        }
    }

    #[test]
    fn an_update_distinguishes_absent_from_null() {
        let patch = parse_patch(raw(r#"{"name":7,"description":null,"status":"Inactive"}"#)).expect("valid");
        assert!(patch.url.is_none() && patch.auth_config.is_absent());
        assert_eq!((patch.description, patch.status), (Patch::Null, Some(AgentStatus::Inactive)));
        for member in ["url", "timeout_ms", "retry_config", "auth_type", "status"] {
            let read = parse_patch(raw(&format!(r#"{{"{member}":null}}"#))).map(|_| ());
            let errors = read.expect_err(member);
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, format!("body.{member}").as_str()));
        }
        assert_eq!(faults(parse_patch(raw(r#"{"status":"deleted"}"#))), ["body.status value_error"]);
        assert!(parse_patch(raw(r#"{"retry_config":{"max_retries":1}}"#)).is_ok_and(|patch| {
            patch.retry_config == Some(RetryConfig { max_retries: 1, ..RetryConfig::default() })
        }));
    }

    #[test]
    fn an_update_is_checked_with_what_is_stored() {
        let check = |body: &str, auth_type, stored: Option<&str>, expected: Option<(AuthType, Option<&str>)>| {
            let patch = parse_patch(raw(body)).expect(body);
            let merged = patch.merged_auth(auth_type, stored.map(raw));
            let merged = merged.ok().map(|(auth_type, config)| (auth_type, config.map(|config| config.to_string())));
            let expected = expected.map(|(auth_type, config)| (auth_type, config.map(ToOwned::to_owned)));
            assert_eq!(merged, expected, "{body}");
        };
        let (none, bearer) = (AuthType::None, AuthType::Bearer);
        let token = r#"{"token":"t"}"#;
        check(r#"{"auth_type":"none","auth_config":null}"#, bearer, Some(token), Some((none, None)));
        check(r#"{"auth_type":"none"}"#, bearer, Some(token), None);
        check(r#"{"auth_config":null}"#, bearer, Some(token), None);
        check(r#"{"auth_type":"bearer"}"#, none, Some("null"), None);
        check(r#"{"auth_config":{"token":"t","type":"x"}}"#, bearer, None, Some((bearer, Some(token))));
        check(r#"{"description":"kept though it does not fit"}"#, none, Some(token), Some((none, Some(token))));
        check("{}", none, Some("null"), Some((none, None)));
    }

    #[test]
    fn a_stored_retry_config_always_has_all_members() {
        for stored in [None, Some("null"), Some("{}"), Some("[1]"), Some(r#"{"max_retries":"x"}"#)] {
            assert_eq!(RetryConfig::from_stored(stored.map(raw)), RetryConfig::default());
        }
        assert_eq!(RetryConfig::from_stored(Some(raw(r#"{"max_retries":9}"#))).max_retries, 9);
    }
}
