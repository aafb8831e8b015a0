//! Session of the console: a cookie that stands for the API key or the token by which its browser signed in.
//!
//! The cookie is a secret and its signature by the service, so that an invented one costs no query. The database has only
//! a hash of the secret. A token is stored encrypted with the secret and verified again at each use; of an API key only its
//! id is stored. So a session has exactly the rights of its credentials, and ends with them.
//!
//! A browser adds the cookie to requests that pages of other sites cause. So it counts only for requests of which the
//! browser says that a page of the same origin sent them.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};
use url::{Host, Url};

use super::{app::App, signing::SIGNATURE_BYTES};
use crate::db;

/// Longest time for which a session is valid.
pub const LIFETIME: TimeDelta = TimeDelta::hours(12);
/// Cookie over HTTPS: by its prefix, browsers take it from this host alone.
const COOKIE: &str = "__Host-wf";
/// Cookie over HTTP, on this machine: browsers do not agree on whether they take the other one there.
const LOCAL_COOKIE: &str = "wf";
/// Purpose of the signature.
const PURPOSE: &[u8] = b"console-session";
const SECRET_BYTES: usize = 32;
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Header with the id of the session that a page was drawn for. All tabs of a browser share one cookie, so another one may
/// have signed in as another caller meanwhile.
pub const CONSOLE_SESSION: HeaderName = HeaderName::from_static("console-session");

/// Secret of a session.
pub struct Secret([u8; SECRET_BYTES]);

/// Reason why a cookie has no secret.
pub enum InvalidCookie {
    /// The service did not make it.
    Invalid,
    /// The database could not be queried.
    Db(db::Error),
}

impl Secret {
    /// Makes a new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Reads and checks the value of a cookie.
    pub async fn verify(app: &App, cookie: &str) -> Result<Self, InvalidCookie> {
        let bytes = URL_SAFE_NO_PAD.decode(cookie).map_err(|_| InvalidCookie::Invalid)?;
        let (secret, signature) = bytes.split_at_checked(SECRET_BYTES).ok_or(InvalidCookie::Invalid)?;
        let key = app.signing.key().await.map_err(InvalidCookie::Db)?;
        if signature.len() != SIGNATURE_BYTES || !key.verifies(PURPOSE, secret, signature) {
            return Err(InvalidCookie::Invalid);
        }
        Ok(Self(secret.try_into().map_err(|_| InvalidCookie::Invalid)?))
    }

    /// Value of the cookie.
    pub async fn cookie(&self, app: &App) -> Result<String, db::Error> {
        let signature = app.signing.key().await?.sign(PURPOSE, &self.0);
        Ok(URL_SAFE_NO_PAD.encode([&self.0[..], &signature[..]].concat()))
    }

    /// Hash by which the database finds the session.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }

    /// Encrypts a token.
    #[must_use]
    pub fn seal(&self, token: &str) -> Vec<u8> {
        let mut data = token.as_bytes().to_vec();
        let nonce = self.cipher().seal_in_place_append_tag(Aad::from(PURPOSE), &mut data);
        let nonce = nonce.expect("a token is shorter than the 64 GiB that the algorithm takes");
        [&nonce.as_ref()[..], &data].concat()
    }

    /// Decrypts a token; `None` if it was not encrypted with this secret.
    #[must_use]
    pub fn open(&self, sealed: &[u8]) -> Option<String> {
        let (nonce, data) = sealed.split_at_checked(NONCE_LEN)?;
        let (nonce, mut data) = (Nonce::try_assume_unique_for_key(nonce).ok()?, data.to_vec());
        let token = self.cipher().open_in_place(nonce, Aad::from(PURPOSE), &mut data).ok()?;
        String::from_utf8(token.to_vec()).ok()
    }

    /// The hash of the secret says nothing about this key: the text before it differs.
    fn cipher(&self) -> RandomizedNonceKey {
        let key = Sha256::new_with_prefix(b"workflow-api console session token ").chain_update(self.0).finalize();
        RandomizedNonceKey::new(&AES_256_GCM, &key).expect("the key has the length that the algorithm takes")
    }
}

/// Cookie in a request, and which one.
#[must_use]
pub fn presented(headers: &HeaderMap) -> Option<&str> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    // Other sites on subdomains of the host could set the one without the prefix, so it counts only where there are none.
    let counts = |name: &str| name == COOKIE || (name == LOCAL_COOKIE && is_loopback(headers));
    pairs.find(|(name, _)| counts(name)).map(|(_, value)| value)
}

/// Whether the browser addresses this machine.
fn is_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let url = host.and_then(|host| Url::parse(&format!("http://{host}")).ok());
    match url.as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether a page of this service has sent the request, by what the browser says of it. `public_url`: `PUBLIC_URL`, which
/// is also this service, for proxies that change `Host`.
#[must_use]
pub fn is_same_origin(headers: &HeaderMap, public_url: &str) -> bool {
    let mut sites = headers.get_all(FETCH_SITE).iter();
    let says_so = sites.next().is_some_and(|site| site == "same-origin") && sites.next().is_none();
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let agrees = match (origins.next(), origins.next()) {
        // Browsers send none with a GET.
        (None, _) => true,
        (Some(origin), None) => names_this_service(origin, headers, public_url),
        (Some(_), Some(_)) => false,
    };
    says_so && agrees
}

fn names_this_service(origin: &HeaderValue, headers: &HeaderMap, public_url: &str) -> bool {
    let Some(origin) = origin.to_str().ok().and_then(|origin| Url::parse(origin).ok()) else { return false };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let addressed = host.and_then(|host| Url::parse(&format!("{}://{host}", origin.scheme())).ok());
    let public = Url::parse(public_url).ok();
    addressed.into_iter().chain(public).any(|own| own.origin().is_tuple() && own.origin() == origin.origin())
}

/// Value of `Set-Cookie` for a sign-in from a page of this origin.
#[must_use]
pub fn set_cookie(headers: &HeaderMap, cookie: &str) -> String {
    let is_https = headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https:"));
    let (name, secure) = if is_https { (COOKIE, "; Secure") } else { (LOCAL_COOKIE, "") };
    format!("{name}={cookie}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", LIFETIME.num_seconds())
}

/// Values of `Set-Cookie` that delete the cookies.
pub const CLEARED: [HeaderValue; 2] = [
    HeaderValue::from_static("__Host-wf=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict; Secure"),
    HeaderValue::from_static("wf=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn a_request_counts_only_if_the_browser_calls_it_same_origin_and_its_origin_agrees() {
        let same = ("sec-fetch-site", "same-origin");
        let host = ("host", "api.example");
        for (lines, expected) in [
            (&[host, same][..], true),
            (&[host, same, ("origin", "https://api.example")], true),
            (&[host, same, ("origin", "http://api.example")], true),
            (&[host, same, ("origin", "https://api.example:443")], true),
            (&[("host", "10.0.0.1:8000"), same, ("origin", "https://public.example")], true),
            (&[("host", "[::1]:8000"), same, ("origin", "http://[::1]:8000")], true),
            (&[host, same, ("origin", "https://api.example:8443")], false),
            (&[host, same, ("origin", "https://evil.example")], false),
            (&[host, same, ("origin", "https://public.example:1")], false),
            (&[host, same, ("origin", "http://public.example")], false),
            (&[host, same, ("origin", "null")], false),
            (&[host, same, ("origin", "https://api.example"), ("origin", "https://evil.example")], false),
            (&[host, same, same], false),
            (&[host, ("sec-fetch-site", "same-site")], false),
            (&[host, ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("sec-fetch-site", "same-origin, same-origin")], false),
            (&[host, ("origin", "https://api.example")], false),
            (&[host], false),
            (&[same, ("origin", "https://api.example")], false),
        ] {
            assert_eq!(is_same_origin(&headers(lines), "https://public.example/wf"), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_cookie_without_the_prefix_counts_on_this_machine_only() {
        for (host, expected) in [
            ("localhost:8000", Some("a")),
            ("127.0.0.1", Some("a")),
            ("127.8.0.1:80", Some("a")),
            ("[::1]:8000", Some("a")),
            ("wf.localhost", Some("a")),
            ("localhost.example", None),
            ("127.0.0.1.example", None),
            ("10.0.0.1", None),
            ("api.example", None),
        ] {
            assert_eq!(presented(&headers(&[("host", host), ("cookie", "wf=a")])), expected, "{host}");
            assert_eq!(presented(&headers(&[("host", host), ("cookie", "x=wf=z; __Host-wf=b")])), Some("b"), "{host}");
        }
        assert_eq!(presented(&headers(&[("cookie", "wf=a")])), None);
        assert_eq!(presented(&headers(&[("cookie", "a=1"), ("cookie", "b;c; __Host-wf=d=e")])), Some("d=e"));
    }

    #[test]
    fn a_token_is_opened_with_its_own_secret_only() {
        let (secret, other) = (Secret::generate(), Secret::generate());
        let sealed = secret.seal("a.b.c");
        assert!(!sealed.windows(5).any(|part| part == b"a.b.c"));
        assert_eq!(secret.open(&sealed).as_deref(), Some("a.b.c"));
        assert_eq!(other.open(&sealed), None);
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert_eq!(secret.open(&changed), None, "byte {index}");
        }
        assert_eq!(secret.open(&sealed[..NONCE_LEN - 1]), None);
    }

    #[test]
    fn the_cookie_has_the_prefix_over_https() {
        let https = set_cookie(&headers(&[("origin", "https://api.example")]), "x");
        assert_eq!(https, "__Host-wf=x; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure");
        let http = set_cookie(&headers(&[("origin", "http://localhost:8000")]), "x");
        assert_eq!(http, "wf=x; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict");
    }
}
