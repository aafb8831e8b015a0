//! Settings of A2A agents.

use serde_json::value::RawValue;
use url::{Origin, Url};

use crate::{
    a2a::Version,
    access::verifying_key::VerifyingKey,
    input::{FieldError, Node, Read},
    usage::Price,
};

/// Members of the `config` of an A2A agent.
const MEMBERS: [&str; 6] = ["protocol", "streaming", "push", "origins", "card_keys", "price"];
/// Maximum number of further origins.
const MAX_ORIGINS: usize = 16;
/// Length of an origin.
const ORIGIN_CHARS: std::ops::RangeInclusive<usize> = 1..=255;

/// Settings of an A2A agent.
#[derive(Clone, Debug, Default)]
pub struct A2aConfig {
    /// Version to speak; `None`: the one that the agent's card, or its answers, tell.
    pub protocol: Option<Version>,
    /// Whether tasks are streamed; `None`: where the card offers it.
    pub streaming: Option<bool>,
    /// Whether push notifications are asked for; `None`: where the card offers them.
    pub push: Option<bool>,
    /// Origins besides that of the agent's URL that a card may lead to, with inputs and credentials.
    pub origins: Vec<Origin>,
    /// Keys that sign the card.
    pub card_keys: Vec<VerifyingKey>,
    /// Whether the agent has a `config`: an agent without one that speaks 0.3 is called as before there was one.
    pub is_given: bool,
}

impl A2aConfig {
    /// Reads an agent's `config`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors: Vec<FieldError> = Vec::new();
        object.only(&MEMBERS, &mut errors);
        let protocol = object.nullable("protocol", &mut errors, |node| {
            node.parsed(|name| match name {
                "auto" => Ok(None),
                "1.0" => Ok(Some(Version::V1)),
                "0.3" => Ok(Some(Version::V03)),
                _ => Err("must be one of auto, 1.0, 0.3".to_owned()),
            })
        });
        let streaming = object.nullable("streaming", &mut errors, Node::boolean);
        let push = object.nullable("push", &mut errors, Node::boolean);
        let origins = object.nullable("origins", &mut errors, |node| {
            let nodes = node.list()?;
            if nodes.len() > MAX_ORIGINS {
                return Err(vec![FieldError::rule(node.path(), format!("must have at most {MAX_ORIGINS} origins"))]);
            }
            nodes.iter().map(read_origin).collect()
        });
        let card_keys = object.nullable("card_keys", &mut errors, |node| {
            let set = node.free_object()?;
            VerifyingKey::from_jwks(set.get().as_bytes())
                .map_err(|error| vec![FieldError::rule(node.path(), format!("is {error}"))])
        });
        // It is read where it is used.
        object.nullable("price", &mut errors, Price::read);
        let config = Self {
            protocol: protocol.flatten(),
            streaming,
            push,
            origins: origins.unwrap_or_default(),
            card_keys: card_keys.unwrap_or_default(),
            is_given: true,
        };
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }

    /// Reads the stored `config`; the defaults apply if there is none.
    #[must_use]
    pub fn from_stored(stored: Option<&RawValue>) -> Option<Self> {
        match stored.filter(|stored| stored.get() != "null") {
            None => Some(Self::default()),
            Some(stored) => Self::read(&Node::new("config", stored)).ok(),
        }
    }

    /// Whether an address that a card names may be called: it has the origin of the agent's URL, or one of the others.
    #[must_use]
    pub fn may_call(&self, own: &Url, named: &Url) -> bool {
        own.origin() == named.origin() || self.origins.contains(&named.origin())
    }
}

fn read_origin(node: &Node<'_>) -> Read<Origin> {
    let given = node.string(ORIGIN_CHARS)?;
    let url = Url::parse(&given).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let is_bare =
        |url: &Url| url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let origin = url.filter(is_bare).map(|url| url.origin()).filter(Origin::is_tuple);
    origin.ok_or_else(|| vec![FieldError::rule(node.path(), "must be an origin, such as https://agents.example:8443")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn read(config: &str) -> Read<A2aConfig> {
        A2aConfig::read(&Node::new("config", check_json(config.as_bytes()).expect(config)))
    }

    #[test]
    fn a_config_has_a_version_and_origins() {
        for (protocol, expected) in [("auto", None), ("1.0", Some(Version::V1)), ("0.3", Some(Version::V03))] {
            assert_eq!(read(&format!(r#"{{"protocol":"{protocol}"}}"#)).expect("valid").protocol, expected);
        }
        let config = read(r#"{"streaming":false,"origins":["https://Other.example","http://b:80"],"protocol":null}"#);
        let config = config.expect("valid");
        assert_eq!((config.protocol, config.streaming), (None, Some(false)));
        let own = Url::parse("https://own.example/a?key=k").expect("a URL");
        for (named, expected) in [
            ("https://own.example:443/b", true),
            ("http://own.example/b", false),
            ("https://own.example:444/b", false),
            ("https://other.example/x", true),
            ("http://b/x", true),
            ("https://b/x", false),
            ("https://own.example.evil/b", false),
        ] {
            assert_eq!(config.may_call(&own, &Url::parse(named).expect(named)), expected, "{named}");
        }
        assert!(A2aConfig::from_stored(None).is_some_and(|config| !config.is_given));
        assert!(A2aConfig::from_stored(Some(check_json(b"[]").expect("JSON"))).is_none());
    }

    #[test]
    fn each_bad_member_is_named() {
        for (config, expected) in [
            (r#"{"protocol":"2.0"}"#, "config.protocol value_error"),
            (r#"{"protocol":1.0}"#, "config.protocol string_type"),
            (r#"{"streaming":"yes"}"#, "config.streaming bool_type"),
            (r#"{"push":"yes"}"#, "config.push bool_type"),
            (r#"{"origins":"https://a"}"#, "config.origins list_type"),
            (r#"{"origins":["https://a/path"]}"#, "config.origins.0 value_error"),
            (r#"{"origins":["https://u@a"]}"#, "config.origins.0 value_error"),
            (r#"{"origins":["ftp://a"]}"#, "config.origins.0 value_error"),
            (r#"{"card_keys":{"keys":[]}}"#, "config.card_keys value_error"),
            (r#"{"card_keys":[]}"#, "config.card_keys dict_type"),
            (r#"{"model":"m"}"#, "config.model extra_forbidden"),
        ] {
            let errors = read(config).map(|_| ()).expect_err(config);
            let found: Vec<_> = errors.iter().map(|error| format!("{} {}", error.field, error.kind)).collect();
            assert_eq!(found, [expected], "{config}");
        }
        let many = format!(r#"{{"origins":[{}]}}"#, vec![r#""http://a""#; MAX_ORIGINS + 1].join(","));
        assert!(read(&many).is_err());
    }
}
