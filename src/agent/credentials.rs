//! Credentials of agents in requests, and their removal from texts.

use base64::{Engine as _, engine::general_purpose};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use serde_json::value::RawValue;
use url::Url;

use super::auth::{AuthType, is_public};
use crate::input::{member, members, text, to_raw};

/// Default header of an API key.
const DEFAULT_KEY_HEADER: &str = "X-API-Key";
/// Replacement of a secret in a text.
const MASK: &str = "***";
/// Minimum length of a URL query value that may be a secret: shorter ones are versions and switches.
const MIN_QUERY_SECRET: usize = 4;
/// Minimum length of a secret whose encoded forms are masked, too: shorter ones would occur by chance.
const MIN_ENCODED_SECRET: usize = 8;

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

/// Secrets of an agent in all forms in which it may repeat them. It has no `Debug`.
#[derive(Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Secrets of the agent's URL and credentials.
    #[must_use]
    pub fn of(url: &str, auth_config: Option<&RawValue>) -> Self {
        let mut forms = Vec::new();
        for (name, value) in auth_config.and_then(members).unwrap_or_default() {
            if !is_public(&name, value) {
                add_forms(&mut forms, &as_sent(value));
            }
        }
        let find = |name| Some(as_sent(member(auth_config?, name).filter(|value| value.get() != "null")?));
        for (user, secret) in PAIRS {
            if let (Some(user), Some(secret)) = (find(user), find(secret)) {
                add_pair(&mut forms, &user, &secret);
                // A token endpoint gets both form-encoded.
                add_pair(&mut forms, &form_encoded(&user), &form_encoded(&secret));
            }
        }
        if let Ok(url) = Url::parse(url) {
            for (name, value) in url.query_pairs() {
                let secret = if value.is_empty() { name } else { value };
                if secret.len() >= MIN_QUERY_SECRET {
                    add_forms(&mut forms, &secret);
                }
            }
            let password = url.password().unwrap_or_default();
            add_forms(&mut forms, password);
            // It is sent as `Authorization: Basic`.
            let (user, password) = (percent_decoded(url.username()), percent_decoded(password));
            add_forms(&mut forms, &password);
            add_pair(&mut forms, &user, &password);
        }
        // One secret may be a part of another, so longer ones come first.
        forms.sort_by(|one, other| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
        forms.dedup();
        Self(forms)
    }

    /// Removes the secrets from a text. This comes before the text is truncated, since a part of a secret would not be
    /// found.
    #[must_use]
    pub fn mask(&self, mut text: String) -> String {
        for form in self.0.iter().filter(|form| !form.is_empty()) {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), MASK);
            }
        }
        text
    }
}

/// Adds a secret as it is, and as encoded in JSON, in a URL and in base64.
fn add_forms(forms: &mut Vec<String>, secret: &str) {
    let secret = secret.trim();
    if secret.is_empty() {
        return;
    }
    forms.push(secret.to_owned());
    forms.push(to_raw(secret).get().trim_matches('"').to_owned());
    if secret.len() >= MIN_ENCODED_SECRET {
        forms.push(form_encoded(secret));
        add_base64(forms, secret);
    }
}

/// Adds a user and a secret in the forms in which they are sent together.
fn add_pair(forms: &mut Vec<String>, user: &str, secret: &str) {
    if secret.trim().is_empty() {
        return;
    }
    let pair = format!("{user}:{secret}");
    // With the scheme it does not occur by chance, however short it is.
    forms.push(format!("Basic {}", general_purpose::STANDARD_NO_PAD.encode(&pair)));
    if pair.len() >= MIN_ENCODED_SECRET {
        add_base64(forms, &pair);
    }
}

/// Adds a secret in base64, also as it is in the base64 of a longer text.
fn add_base64(forms: &mut Vec<String>, secret: &str) {
    for engine in [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD] {
        forms.push(engine.encode(secret));
        for before in 0..3 {
            let bytes = [&[0; 2][..before], secret.as_bytes()].concat();
            let encoded = engine.encode(&bytes);
            // The characters at the edges also depend on what is next to the secret.
            let (from, to) = ((before * 4).div_ceil(3), encoded.len() - usize::from(!bytes.len().is_multiple_of(3)));
            forms.push(encoded[from..to].to_owned());
        }
    }
}

fn form_encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// Text of a part of a URL in which a plus is no space.
fn percent_decoded(part: &str) -> String {
    let value = part.replace('+', "%2B").replace('&', "%26");
    url::form_urlencoded::parse(format!("={value}").as_bytes()).map(|(_, value)| value.into_owned()).collect()
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
        let secrets = Secrets::of("http://h/p?key=k%2Fey1&v=1&flag-9", Some(config));
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
            let masked = Secrets::of(url, Some(config)).mask(given.to_owned());
            assert_eq!(masked.trim_end_matches('='), "***", "{given}");
        }
        // In the base64 of a longer text, wherever the secret begins.
        let config = check_json(br#"{"token":"a-long-secret"}"#).expect("JSON");
        let secrets = Secrets::of("http://h/", Some(config));
        for around in ["", "1", "12", "123"] {
            let encoded = general_purpose::STANDARD.encode(format!("{around}a-long-secret{around}"));
            let masked = secrets.mask(encoded.clone());
            assert!(masked.contains("***") && masked.len() <= encoded.len() - 13, "{encoded}: {masked}");
        }
        assert_eq!(Secrets::of("no URL", None).mask("as it is".to_owned()), "as it is");
    }
}
