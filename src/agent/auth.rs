//! Credentials of agents: types, stored form, shown form.

use http::{HeaderName, HeaderValue, header};
use serde_json::value::RawValue;
use url::Url;

use crate::input::{FieldError, Node, Read, member, members, object_of, text, to_raw};

/// Headers that route or delimit a message.
const FRAMING_HEADERS: [HeaderName; 10] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Authentication type of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthType {
    /// No authentication.
    None,
    /// `Authorization: Bearer <token>`.
    Bearer,
    /// Key in a configurable header, or in the query.
    ApiKey,
    /// `Authorization: Basic <user name and password>`.
    Basic,
    /// A token that is requested with client credentials (RFC 6749, section 4.4).
    OAuth2,
}

impl AuthType {
    /// All types.
    pub const ALL: [Self; 5] = [Self::None, Self::Bearer, Self::ApiKey, Self::Basic, Self::OAuth2];

    /// Text in the `auth_type` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bearer => "bearer",
            Self::ApiKey => "apikey",
            Self::Basic => "basic",
            Self::OAuth2 => "oauth2",
        }
    }

    /// Parses a type in lower case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|auth_type| auth_type.as_str() == name)
    }

    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| {
            Self::parse(&name.to_lowercase())
                .ok_or_else(|| "must be one of none, bearer, apikey, basic, oauth2".to_owned())
        })
    }
}

/// Credentials to store, if they fit the type.
///
/// Members that [`render_auth_config`] adds are removed, so that a client may send back what it received: `type`, and
/// for API keys `header`. An API key with a `header` but no `header_name` is interpreted as by the reference's bridge.
pub(super) fn checked_auth_config(auth_type: AuthType, config: Option<&RawValue>) -> Read<Option<Box<RawValue>>> {
    let fail = |text: &str| Err(vec![FieldError::rule("body.auth_config", text)]);
    let required: &[&str] = match auth_type {
        AuthType::None => &[],
        AuthType::Bearer => &["token"],
        AuthType::ApiKey => &["key"],
        AuthType::Basic => &["username", "password"],
        AuthType::OAuth2 => &["token_url", "client_id", "client_secret"],
    };
    let wanted = match auth_type {
        AuthType::ApiKey => "key and header_name".to_owned(),
        _ => required.join(" and "),
    };
    let lacks = || fail(&format!("must contain {wanted} for auth_type {}", auth_type.as_str()));
    let Some(config) = config else { return if auth_type == AuthType::None { Ok(None) } else { lacks() } };
    if auth_type == AuthType::None {
        return fail("must be null for auth_type none");
    }
    let mut members = members(config).unwrap_or_default();
    members.retain(|(name, _)| name != "type");
    let has = |members: &[(String, &RawValue)], wanted: &str| {
        members.iter().any(|(name, value)| name == wanted && value.get() != "null")
    };
    if auth_type == AuthType::ApiKey {
        if has(&members, "header_name") {
            members.retain(|(name, _)| name != "header");
        } else {
            members.retain(|(name, _)| name != "header_name");
            for (name, _) in members.iter_mut().filter(|(name, _)| name == "header") {
                "header_name".clone_into(name);
            }
        }
        match (has(&members, "header_name"), has(&members, "query_name")) {
            (true, true) => return fail("must contain only one of header_name and query_name"),
            (false, false) => return lacks(),
            _ => {}
        }
    }
    if !required.iter().all(|name| has(&members, name)) {
        return lacks();
    }
    check_headers(&members)?;
    Ok(Some(object_of(members.iter().map(|(name, value)| (name.as_str(), *value)))))
}

/// Rejects values that are invalid in a header, which would fail every call, and headers that would break the message
/// framing.
fn check_headers(members: &[(String, &RawValue)]) -> Read<()> {
    let fail = |text: String| Err(vec![FieldError::rule("body.auth_config", text)]);
    for (name, value) in members {
        let Some(value) = text(value) else { continue };
        match name.as_str() {
            "token" | "key" if HeaderValue::from_str(&value).is_err() => {
                return fail(format!("{name} has characters that cannot be sent in a header"));
            }
            // The first colon ends the name.
            "username" if value.contains(':') => return fail("username must not have a colon".to_owned()),
            "token_url" => match Url::parse(&value) {
                Ok(url)
                    if matches!(url.scheme(), "http" | "https")
                        && url.username().is_empty()
                        && url.password().is_none() => {}
                _ => return fail("token_url must be an http or https address without a user".to_owned()),
            },
            "header_name" => match HeaderName::from_bytes(value.as_bytes()) {
                Ok(header) if !FRAMING_HEADERS.contains(&header) => {}
                Ok(_) => return fail("header_name is reserved by HTTP".to_owned()),
                Err(_) => return fail("header_name is not the name of a header".to_owned()),
            },
            _ => {}
        }
    }
    Ok(())
}

/// Credentials as they are shown; `None` if absent, for a JSON null, or if they are not an object.
///
/// The reference's executor and bridge read every value as a string and choose the header by `type` and `header`.
/// Therefore these two are added and scalars are converted to strings (other values to their JSON text; nulls are
/// omitted).
#[must_use]
pub fn render_auth_config(auth_type: AuthType, stored: Option<&RawValue>) -> Option<Box<RawValue>> {
    let mut shown: Vec<(String, Box<RawValue>)> = members(stored?)?
        .into_iter()
        .filter(|(name, value)| name != "type" && value.get() != "null")
        .map(|(name, value)| {
            let value = if text(value).is_some() { value.to_owned() } else { to_raw(value.get()) };
            (name, value)
        })
        .collect();
    shown.push(("type".to_owned(), to_raw(auth_type.as_str())));
    let header = shown.iter().find(|(name, _)| name == "header_name").map(|(_, value)| value.clone());
    if let (AuthType::ApiKey, Some(header)) = (auth_type, header) {
        shown.retain(|(name, _)| name != "header");
        shown.push(("header".to_owned(), header));
    }
    Some(object_of(shown.iter().map(|(name, value)| (name.as_str(), &**value))))
}

/// Members of credentials that are not secret.
const PUBLIC_MEMBERS: [&str; 9] =
    ["header_name", "header", "type", "query_name", "username", "token_url", "client_id", "scope", "audience"];

/// Mask that replaces a secret.
pub(super) const MASK: &str = "********";

/// Credentials with masked secrets, so that only their names are visible.
#[must_use]
pub fn mask_auth_config(stored: &RawValue) -> Box<RawValue> {
    let Some(members) = members(stored) else { return RawValue::NULL.to_owned() };
    let mask = to_raw(MASK);
    let shown =
        members.iter().map(|(name, value)| (name.as_str(), if is_public(name, value) { *value } else { &*mask }));
    object_of(shown)
}

/// Header of an API key, if the credentials name one.
pub(super) fn header_in(config: &RawValue) -> Option<String> {
    let named = |name| member(config, name).and_then(text).map(|name| name.trim().to_lowercase());
    named("header_name").or_else(|| named("header"))
}

/// Whether the member of credentials is not secret.
pub(super) fn is_public(name: &str, value: &RawValue) -> bool {
    value.get() == "null" || PUBLIC_MEMBERS.contains(&name)
}

/// Restores masked credentials (see [`mask_auth_config`]) from the stored ones. Also returns whether there were masks.
pub(super) fn unmask_auth_config(given: &RawValue, stored: Option<&RawValue>) -> Read<(Box<RawValue>, bool)> {
    let mut keeps_secrets = false;
    let stored = stored.and_then(members).unwrap_or_default();
    let members = members(given).unwrap_or_default().into_iter().map(|(name, value)| {
        if text(value).as_deref() != Some(MASK) {
            return Ok((name, value));
        }
        keeps_secrets = true;
        let known = stored.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        let unknown =
            || vec![FieldError::rule(format!("body.auth_config.{name}"), "is masked, but no such secret is stored")];
        Ok((name.clone(), known.ok_or_else(unknown)?))
    });
    let members = members.collect::<Read<Vec<_>>>()?;
    Ok((object_of(members.iter().map(|(name, value)| (name.as_str(), *value))), keeps_secrets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn raw(json: &str) -> &RawValue {
        check_json(json.as_bytes()).expect(json)
    }

    #[test]
    fn shown_credentials_can_be_sent_back() {
        for (auth_type, stored, shown) in [
            (AuthType::Bearer, r#"{"token":"t","n":1}"#, r#"{"token":"t","n":"1","type":"bearer"}"#),
            (
                AuthType::ApiKey,
                r#"{"key":"k","header_name":"H","o":{"a":true},"z":null}"#,
                r#"{"key":"k","header_name":"H","o":"{\"a\":true}","type":"apikey","header":"H"}"#,
            ),
        ] {
            let rendered = render_auth_config(auth_type, Some(raw(stored))).expect("an object");
            assert_eq!(rendered.get(), shown);
            let again = checked_auth_config(auth_type, Some(&rendered)).expect("valid").expect("some");
            assert_eq!(render_auth_config(auth_type, Some(&again)).expect("an object").get(), shown);
            assert!(!again.get().contains("\"type\"") && !again.get().contains("\"header\""), "{again}");
        }
        assert!(render_auth_config(AuthType::Bearer, None).is_none());
        assert!(render_auth_config(AuthType::Bearer, Some(RawValue::NULL)).is_none());
        assert!(render_auth_config(AuthType::Bearer, Some(raw("[1]"))).is_none());
    }
}
