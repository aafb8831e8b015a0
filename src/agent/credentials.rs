//! Credentials of agents in requests, and which of their members are secret.

use base64::{Engine as _, engine::general_purpose};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use serde_json::value::RawValue;
use url::Url;

use super::auth::{AuthType, is_public};
use crate::{
    input::{member, members, text},
    masking::Secrets,
};

/// Default header of an API key.
const DEFAULT_KEY_HEADER: &str = "X-API-Key";

/// Authentication of a request to an agent. It has no `Debug`, since it holds a secret.
pub enum Credentials {
    /// No authentication.
    None,
    /// Authentication by this header.
    Header(HeaderName, HeaderValue),
    /// Authentication by this parameter of the query.
    Query(String, String),
    /// Authentication by a token, which is requested with these credentials.
    Client(ClientCredentials),
    /// The stored credentials lack a value, or have one that cannot be sent.
    Unusable,
}

/// Credentials of a client, and where it gets its token. It has no `Debug`, since it holds a secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientCredentials {
    /// Address of the token endpoint.
    pub token_url: Url,
    /// Id of the client.
    pub client_id: String,
    /// Secret of the client.
    pub client_secret: String,
    /// Scopes to request, separated by spaces.
    pub scope: Option<String>,
    /// Audience to request, which some servers require.
    pub audience: Option<String>,
}

impl Credentials {
    /// The type's column decides; if the reference left it empty, the `type` that its bridge reads.
    #[must_use]
    pub fn read(auth_type: Option<&str>, config: Option<&RawValue>) -> Self {
        let find = |name: &str| Some(as_sent(member(config?, name).filter(|value| value.get() != "null")?));
        let named = auth_type.map(str::to_owned).or_else(|| find("type"));
        let (name, value) = match named.as_deref().and_then(AuthType::parse) {
            None | Some(AuthType::None) => return Self::None,
            Some(AuthType::Bearer) => {
                let Some(token) = find("token") else { return Self::Unusable };
                (Ok(AUTHORIZATION), HeaderValue::try_from(format!("Bearer {token}")))
            }
            Some(AuthType::Basic) => {
                let (Some(user), Some(password)) = (find("username"), find("password")) else { return Self::Unusable };
                let encoded = general_purpose::STANDARD.encode(format!("{user}:{password}"));
                (Ok(AUTHORIZATION), HeaderValue::try_from(format!("Basic {encoded}")))
            }
            Some(AuthType::OAuth2) => {
                let url = find("token_url").and_then(|url| Url::parse(&url).ok());
                let (Some(token_url), Some(client_id), Some(client_secret)) =
                    (url, find("client_id"), find("client_secret"))
                else {
                    return Self::Unusable;
                };
                let (scope, audience) = (find("scope"), find("audience"));
                return Self::Client(ClientCredentials { token_url, client_id, client_secret, scope, audience });
            }
            Some(AuthType::ApiKey) => {
                let Some(key) = find("key") else { return Self::Unusable };
                if let Some(name) = find("query_name") {
                    return Self::Query(name, key);
                }
                let header = find("header_name").or_else(|| find("header"));
                let header = header.as_deref().unwrap_or(DEFAULT_KEY_HEADER).trim().to_owned();
                (HeaderName::try_from(header), HeaderValue::try_from(key))
            }
        };
        match (name, value) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                Self::Header(name, value)
            }
            _ => Self::Unusable,
        }
    }
}

/// Value as sent: values that are not strings are sent as JSON.
fn as_sent(value: &RawValue) -> String {
    text(value).unwrap_or_else(|| value.get().to_owned())
}

/// Members that are sent together, joined by a colon, as `Authorization: Basic` in base64.
const PAIRS: [(&str, &str); 2] = [("username", "password"), ("client_id", "client_secret")];

/// Secrets of an agent's URL and credentials, to be removed from texts.
#[must_use]
pub fn secrets_of(url: &str, auth_config: Option<&RawValue>) -> Secrets {
    let mut secrets = Secrets::default();
    for (name, value) in auth_config.and_then(members).unwrap_or_default() {
        if !is_public(&name, value) {
            secrets.add(&as_sent(value));
        }
    }
    let find = |name| Some(as_sent(member(auth_config?, name).filter(|value| value.get() != "null")?));
    for (user, secret) in PAIRS {
        if let (Some(user), Some(secret)) = (find(user), find(secret)) {
            secrets.add_pair(&user, &secret);
        }
    }
    secrets.add_url(url);
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn credentials_become_a_header() {
        for (auth_type, config, expected) in [
            (Some("none"), "null", Some(None)),
            (None, "null", Some(None)),
            (Some("bearer"), r#"{"token":"t"}"#, Some(Some(("authorization", "Bearer t")))),
            (None, r#"{"token":"t","type":"bearer"}"#, Some(Some(("authorization", "Bearer t")))),
            (Some("apikey"), r#"{"key":7,"header_name":"X-Mine"}"#, Some(Some(("x-mine", "7")))),
            (Some("apikey"), r#"{"key":"k","header":"X-H"}"#, Some(Some(("x-h", "k")))),
            (Some("apikey"), r#"{"key":"k"}"#, Some(Some(("x-api-key", "k")))),
            (Some("apikey"), r#"{"key":"k","header":"a b"}"#, None),
            (Some("bearer"), r#"{"token":"a\nb"}"#, None),
            (Some("bearer"), "{}", None),
            (
                Some("basic"),
                r#"{"username":"Aladdin","password":"open sesame"}"#,
                Some(Some(("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="))),
            ),
            (Some("basic"), r#"{"username":"u"}"#, None),
            (Some("apikey"), r#"{"key":"k","query_name":"q"}"#, Some(Some(("?q", "k")))),
            (
                Some("oauth2"),
                r#"{"token_url":"https://t/","client_id":"c","client_secret":"s"}"#,
                Some(Some(("https://t/", "c"))),
            ),
            (Some("oauth2"), r#"{"token_url":"t","client_id":"c","client_secret":"s"}"#, None),
        ] {
            let config = check_json(config.as_bytes()).expect(config);
            let read = match Credentials::read(auth_type, Some(config)) {
                Credentials::None => Some(None),
                Credentials::Unusable => None,
                Credentials::Header(name, value) => {
                    Some(Some((name.to_string(), value.to_str().expect("ASCII").to_owned())))
                }
                Credentials::Query(name, value) => Some(Some((format!("?{name}"), value))),
                Credentials::Client(client) => Some(Some((client.token_url.to_string(), client.client_id))),
            };
            let expected = expected.map(|header| header.map(|(name, value)| (name.to_owned(), value.to_owned())));
            assert_eq!(read, expected, "{config}");
        }
    }

    #[test]
    fn secrets_are_masked_in_every_form() {
        let config = check_json(br#"{"token":"a+b\"c/d?e>f","header_name":"X-Key","key":12345}"#).expect("JSON");
        let secrets = secrets_of("http://h/p?key=k%2Fey1&v=1&flag-9", Some(config));
        for (given, expected) in [
            ("got a+b\"c/d?e>f", "got ***"),
            (r#"got {"t":"a+b\"c/d?e>f"}"#, r#"got {"t":"***"}"#),
            ("got a%2Bb%22c%2Fd%3Fe%3Ef", "got ***"),
            ("got YStiImMvZD9lPmY=", "got ***="),
            ("12345, k/ey1, flag-9", "***, ***, ***"),
            ("X-Key, v=1, http://h/p", "X-Key, v=1, http://h/p"),
        ] {
            assert_eq!(secrets.mask(given.to_owned()), expected);
        }
        for (url, config, given) in [
            ("http://h/", r#"{"username":"ada","password":"secretpass"}"#, "Basic YWRhOnNlY3JldHBhc3M="),
            ("http://h/", r#"{"username":"ada","password":"secretpass"}"#, "YWRhOnNlY3JldHBhc3M="),
            ("http://h/", r#"{"username":"a","password":"b"}"#, "Basic YTpi"),
            ("http://h/", r#"{"client_id":"i/d","client_secret":"s3cr+t"}"#, "Basic aS9kOnMzY3IrdA=="),
            ("http://h/", r#"{"client_id":"i/d","client_secret":"s3cr+t"}"#, "Basic aSUyRmQ6czNjciUyQnQ="),
            ("http://me:pass%2Fw&rd+@h/", "{}", "Basic bWU6cGFzcy93JnJkKw=="),
        ] {
            let config = check_json(config.as_bytes()).expect(config);
            let masked = secrets_of(url, Some(config)).mask(given.to_owned());
            assert_eq!(masked.trim_end_matches('='), "***", "{given}");
        }
        // In the base64 of a longer text, wherever the secret begins.
        let config = check_json(br#"{"token":"a-long-secret"}"#).expect("JSON");
        let secrets = secrets_of("http://h/", Some(config));
        for around in ["", "1", "12", "123"] {
            let encoded = general_purpose::STANDARD.encode(format!("{around}a-long-secret{around}"));
            let masked = secrets.mask(encoded.clone());
            assert!(masked.contains("***") && masked.len() <= encoded.len() - 13, "{encoded}: {masked}");
        }
        assert_eq!(secrets_of("no URL", None).mask("as it is".to_owned()), "as it is");
    }
}
