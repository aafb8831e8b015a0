//! Tokens for OAUTHBEARER: client credentials grant (RFC 6749, section 4.4) at the authorisation server of
//! `KAFKA_OAUTH_TOKEN_URL`. librdkafka would need libcurl for this.
//!
//! The clients of a process share one token, which is replaced before it expires. A failure is remembered for some
//! seconds, so that an authorisation server that is down does not block the threads of all clients.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use rdkafka::client::OAuthToken;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use crate::{clock::Clock, config::Oauth, offload};

/// Time-out of a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of an answer.
const MAX_BYTES: usize = 64 << 10;
/// Lifetime of a token whose answer names none.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(5);
/// How long a failure is remembered. librdkafka asks again after 10 s.
const KEEP_FAILURE: Duration = Duration::from_secs(5);

/// Reason why there is no token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// The request failed.
    #[error("the token endpoint cannot be reached: {0}")]
    Unreachable(String),
    /// Another status than 200.
    #[error("the token endpoint answered {0}")]
    Status(u16),
    /// Not the JSON of a token.
    #[error("the answer of the token endpoint has no access_token")]
    NoToken,
}

#[derive(Clone)]
struct Token {
    text: SecretString,
    principal: String,
    begin: Instant,
    lifetime: Duration,
    expires_at_ms: i64,
}

struct Cached {
    of: Oauth,
    at: Instant,
    token: Result<Token, TokenError>,
}

impl Cached {
    /// Tokens are used for four fifths of their lifetime.
    fn is_usable(&self) -> bool {
        match &self.token {
            Ok(token) => token.begin.elapsed() < token.lifetime * 4 / 5,
            Err(_) => self.at.elapsed() < KEEP_FAILURE,
        }
    }
}

static CACHE: Mutex<Option<Cached>> = Mutex::new(None);

/// A valid token. Blocks the thread while one is fetched.
pub fn token(oauth: &Oauth) -> Result<OAuthToken, TokenError> {
    offload::in_place(|| {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.as_ref().is_none_or(|cached| cached.of != *oauth || !cached.is_usable()) {
            let token = fetch_in_thread(oauth);
            *cache = Some(Cached { of: oauth.clone(), at: Instant::now(), token });
        }
        let token = cache.as_ref().map_or(Err(TokenError::NoToken), |cached| cached.token.clone())?;
        Ok(OAuthToken {
            token: token.text.expose_secret().to_owned(),
            principal_name: token.principal,
            lifetime_ms: token.expires_at_ms,
        })
    })
}

/// Fetches a token in a thread with a runtime of its own: the caller can be a thread of any kind.
fn fetch_in_thread(oauth: &Oauth) -> Result<Token, TokenError> {
    let failed = |error: std::io::Error| TokenError::Unreachable(error.to_string());
    thread::scope(|scope| {
        let fetching = thread::Builder::new().name("kafka-token".to_owned()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(fetch(oauth))
        });
        fetching.map_err(failed)?.join().unwrap_or(Err(TokenError::NoToken))
    })
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    expires_in: Option<u32>,
}

async fn fetch(oauth: &Oauth) -> Result<Token, TokenError> {
    let begin = Instant::now();
    let failed = |error: reqwest::Error| {
        // The innermost cause: the outer ones repeat the address.
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        TokenError::Unreachable(cause.to_string())
    };
    let client = reqwest::Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
    // The specification encodes both parts before they are joined.
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let secret = oauth.client_secret.expose_secret();
    let basic = BASE64_STANDARD.encode(format!("{}:{}", encoded(&oauth.client_id), encoded(secret)));
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    if let Some(scope) = &oauth.scope {
        form.append_pair("scope", scope);
    }
    let request = client.build().map_err(failed)?.post(oauth.token_url.clone());
    let request = request.header(http::header::AUTHORIZATION, format!("Basic {basic}"));
    let request = request.header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.finish());
    let mut answer = request.header(http::header::ACCEPT, "application/json").send().await.map_err(failed)?;
    if answer.status() != http::StatusCode::OK {
        return Err(TokenError::Status(answer.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > MAX_BYTES {
            return Err(TokenError::NoToken);
        }
        body.extend_from_slice(&piece);
    }
    let Answer { access_token, expires_in } = serde_json::from_slice(&body).map_err(|_| TokenError::NoToken)?;
    let principal = subject(&access_token).unwrap_or_else(|| oauth.client_id.clone());
    let lifetime = expires_in.map_or(DEFAULT_LIFETIME, |secs| Duration::from_secs(secs.into()));
    let expires_at_ms = (Clock::default().now() + lifetime).timestamp_millis();
    Ok(Token { text: access_token.into(), principal, begin, lifetime, expires_at_ms })
}

/// The `sub` of a token that is a JSON Web Token. Brokers check the token; this is only a name for librdkafka.
fn subject(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Claims { sub } = serde_json::from_slice(&claims).ok()?;
    (!sub.is_empty() && !sub.contains('\0')).then_some(sub)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_that_of_a_json_web_token() {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"runs","exp":1}"#);
        assert_eq!(subject(&format!("e30.{claims}.")).as_deref(), Some("runs"));
        assert_eq!(subject("opaque"), None);
        assert_eq!(subject("a.b.c"), None);
    }
}
