//! Access tokens of agents with client credentials (RFC 6749, section 4.4), cached until they expire.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose};
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use url::form_urlencoded::{Serializer, byte_serialize};

use super::{Egress, cause_of, read_body, was_not_allowed};
use crate::{
    agent::ClientCredentials,
    cache::{Cache, SingleFlight},
    clock::Clock,
    input::text,
};

/// Maximum number of cached tokens.
const MAX_TOKENS: usize = 10_000;
/// Maximum size of an answer of a token endpoint.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Time-out of a request for a token.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// A token is replaced this long before it expires.
const MARGIN: Duration = Duration::from_secs(30);
/// Validity of a token whose answer names none.
const DEFAULT_VALIDITY: Duration = Duration::from_mins(5);
/// Maximum time for which a token is used.
const LONGEST_VALIDITY: Duration = Duration::from_hours(24);

/// Reason why there is no token. Its text has no secrets.
#[derive(Clone, Debug, thiserror::Error)]
#[error("no access token: {text}")]
pub struct NoToken {
    text: String,
    /// Whether the same request may succeed later.
    pub may_pass: bool,
}

impl NoToken {
    fn new(text: impl Into<String>, may_pass: bool) -> Self {
        Self { text: text.into(), may_pass }
    }
}

/// Token with the instant until which it is used.
#[derive(Clone)]
struct Token {
    value: HeaderValue,
    until: Instant,
}

/// Token cache.
pub(super) struct Tokens {
    clock: Clock,
    known: Mutex<Cache<ClientCredentials, Token>>,
    flights: SingleFlight<ClientCredentials>,
}

impl Tokens {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, known: Mutex::new(Cache::new(MAX_TOKENS)), flights: SingleFlight::default() }
    }

    /// The value of the header `Authorization` for these credentials. Concurrent callers share one request.
    pub(super) async fn header(&self, egress: &Egress, client: &ClientCredentials) -> Result<HeaderValue, NoToken> {
        if let Some(value) = self.cached(client) {
            return Ok(value);
        }
        let read = async {
            let token = self.request(egress, client).await?;
            let value = token.value.clone();
            self.known().insert(client.clone(), token, 1);
            Ok(value)
        };
        self.flights.read(client.clone(), || self.cached(client), read).await
    }

    /// Uses a token no more, which an agent has refused. It is still masked.
    pub(super) fn forget(&self, client: &ClientCredentials) {
        let (mut known, until) = (self.known(), self.clock.instant());
        if let Some(token) = known.get(client) {
            known.insert(client.clone(), Token { until, ..token }, 1);
        }
    }

    /// Removes the last token from a text of the agent.
    pub(super) fn mask(&self, client: &ClientCredentials, text: String) -> String {
        let token = self.known().get(client).map(|token| token.value);
        match token.as_ref().and_then(|value| value.to_str().ok()?.strip_prefix("Bearer ")) {
            Some(token) if text.contains(token) => text.replace(token, "***"),
            _ => text,
        }
    }

    fn cached(&self, client: &ClientCredentials) -> Option<HeaderValue> {
        let token = self.known().get(client)?;
        (token.until > self.clock.instant()).then_some(token.value)
    }

    fn known(&self) -> MutexGuard<'_, Cache<ClientCredentials, Token>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, egress: &Egress, client: &ClientCredentials) -> Result<Token, NoToken> {
        let asked_at = self.clock.instant();
        let ClientCredentials { token_url, client_id, client_secret, .. } = client;
        // RFC 6749, section 2.3.1: both are form-encoded first.
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let basic = general_purpose::STANDARD.encode(format!("{}:{}", encoded(client_id), encoded(client_secret)));
        let request = egress
            .request(Method::POST, token_url.clone())
            .map_err(|_| NoToken::new("the address of token_url is not allowed", false))?
            .header(header::AUTHORIZATION, format!("Basic {basic}"))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form(client));
        let exchange = async {
            let response = request.send().await.map_err(|error| {
                if was_not_allowed(&error) {
                    return NoToken::new("the address of token_url is not allowed", false);
                }
                let cause = cause_of(&error).map_or_else(String::new, |cause| format!(": {cause}"));
                NoToken::new(format!("its token endpoint cannot be reached{cause}"), true)
            })?;
            let status = response.status();
            if !status.is_success() {
                let may_pass = status.is_server_error() || status == http::StatusCode::TOO_MANY_REQUESTS;
                return Err(NoToken::new(format!("its token endpoint answered with {}", status.as_u16()), may_pass));
            }
            let body = read_body(response, MAX_ANSWER_BYTES, None).await;
            body.map_err(|error| NoToken::new(format!("its token endpoint: {error}"), true))
        };
        let late = || NoToken::new("its token endpoint did not answer", true);
        let body = tokio::time::timeout(REQUEST_TIME, exchange).await.unwrap_or_else(|_| Err(late()))?;
        let wrong = || NoToken::new("its token endpoint gave no bearer token", false);
        let answer: Answer = serde_json::from_slice(body.bytes()).map_err(|_| wrong())?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") || answer.access_token.is_empty() {
            return Err(wrong());
        }
        let mut value = HeaderValue::try_from(format!("Bearer {}", answer.access_token)).map_err(|_| wrong())?;
        value.set_sensitive(true);
        let validity = answer.expires_in().map_or(DEFAULT_VALIDITY, |secs| {
            Duration::try_from_secs_f64(secs).unwrap_or(LONGEST_VALIDITY).min(LONGEST_VALIDITY)
        });
        Ok(Token { value, until: asked_at + validity.saturating_sub(MARGIN) })
    }
}

/// Body of a request for a token.
fn form(client: &ClientCredentials) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "client_credentials");
    for (name, value) in [("scope", &client.scope), ("audience", &client.audience)] {
        form.extend_pairs(value.iter().map(|value| (name, value)));
    }
    form.finish()
}

/// Answer of a token endpoint.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: String,
    expires_in: Option<Box<RawValue>>,
}

impl Answer {
    /// Seconds for which the token is valid. Some endpoints give them as a text.
    fn expires_in(&self) -> Option<f64> {
        let given = self.expires_in.as_deref()?;
        text(given).unwrap_or_else(|| given.get().to_owned()).trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use axum::{Router, routing::post};

    use super::*;
    use crate::egress::Allow;

    /// A token endpoint that numbers its tokens and is asked with these parameters.
    async fn endpoint(answer: fn(usize) -> String) -> (Arc<AtomicUsize>, ClientCredentials) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let handler = async move |headers: http::HeaderMap, body: String| {
            // `c:` and `s s`, encoded.
            assert_eq!(headers["authorization"], "Basic YyUzQTpzK3M=");
            assert_eq!(body, "grant_type=client_credentials&scope=a+b");
            answer(counted.fetch_add(1, SeqCst))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/token", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/token", post(handler))).await });
        let client = ClientCredentials {
            token_url: url.parse().expect("a URL"),
            client_id: "c:".to_owned(),
            client_secret: "s s".to_owned(),
            scope: Some("a b".to_owned()),
            audience: None,
        };
        (asked, client)
    }

    fn egress() -> Egress {
        Egress::new(&Arc::new("127.0.0.1".parse::<Allow>().expect("an address"))).expect("a client")
    }

    #[tokio::test]
    async fn a_token_is_used_until_it_expires_or_is_refused() {
        let answer = |number| format!(r#"{{"access_token":"t{number}","token_type":"Bearer","expires_in":90}}"#);
        let (asked, client) = endpoint(answer).await;
        let (egress, clock) = (egress(), Clock::stopped());
        let tokens = Tokens::new(clock.clone());
        let get = async || tokens.header(&egress, &client).await.expect("a token").to_str().expect("ASCII").to_owned();
        assert_eq!((get().await, get().await), ("Bearer t0".to_owned(), "Bearer t0".to_owned()));
        clock.advance(Duration::from_secs(59));
        assert_eq!(get().await, "Bearer t0");
        clock.advance(Duration::from_secs(1));
        assert_eq!(get().await, "Bearer t1");
        tokens.forget(&client);
        assert_eq!(tokens.mask(&client, "it is t1.".to_owned()), "it is ***.");
        assert_eq!(get().await, "Bearer t2");
        assert_eq!(asked.load(SeqCst), 3);
        let other = ClientCredentials { client_secret: "other".to_owned(), ..client.clone() };
        assert!(tokens.header(&egress, &other).await.is_err(), "the endpoint closes the connection");
    }

    #[tokio::test]
    async fn the_validity_of_a_token_may_be_a_text() {
        let (_, client) =
            endpoint(|number| format!(r#"{{"access_token":"t{number}","token_type":"bearer","expires_in":"3600"}}"#))
                .await;
        let clock = Clock::stopped();
        let (tokens, egress) = (Tokens::new(clock.clone()), egress());
        let get = async || tokens.header(&egress, &client).await.expect("a token").to_str().expect("ASCII").to_owned();
        assert_eq!(get().await, "Bearer t0");
        clock.advance(Duration::from_mins(50));
        assert_eq!(get().await, "Bearer t0");
        clock.advance(Duration::from_mins(10));
        assert_eq!(get().await, "Bearer t1");
    }

    #[tokio::test]
    async fn what_is_no_bearer_token_is_refused() {
        for answer in [
            |_| r#"{"access_token":"t","token_type":"mac"}"#.to_owned(),
            |_| r#"{"access_token":"","token_type":"bearer"}"#.to_owned(),
            |_| r#"{"access_token":"a\nb","token_type":"bearer"}"#.to_owned(),
            |_| "{}".to_owned(),
            |_| "page".to_owned(),
        ] {
            let (_, client) = endpoint(answer).await;
            let error = Tokens::new(Clock::default()).header(&egress(), &client).await.expect_err("no token");
            assert_eq!(error.to_string(), "no access token: its token endpoint gave no bearer token");
            assert!(!error.may_pass);
        }
        let (_, client) = endpoint(|_| String::new()).await;
        let nothing = Egress::new(&Arc::default()).expect("a client");
        let error = Tokens::new(Clock::default()).header(&nothing, &client).await.expect_err("not allowed");
        assert_eq!(error.to_string(), "no access token: the address of token_url is not allowed");
    }
}
