//! Tokens whose keys are in a set that somebody else keeps.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use jsonwebtoken::{Algorithm, EncodingKey, jwk::Jwk};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::{clock::Clock, db::migrations::MIGRATOR};

use super::{RSA, RSA_NEXT, SECRET, claims, ec, ed, look, rsa, secret, signed};
use crate::service::{Service, config, eventually};

/// Whoever signs tokens, as far as the service sees it.
#[derive(Clone)]
struct Provider {
    /// What is answered now.
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
    url: String,
}

impl Provider {
    async fn start(keys: &[Value]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks", listener.local_addr().expect("an address"));
        let this = Self { answer: Arc::default(), asked: Arc::default(), url };
        this.publish(keys);
        let answer = |State(this): State<Self>| async move {
            this.asked.fetch_add(1, Ordering::SeqCst);
            let (status, text) = this.answer.lock().expect("not poisoned").clone();
            (status, [("location", "/elsewhere")], text).into_response()
        };
        let elsewhere = |State(this): State<Self>| async move { this.answer.lock().expect("not poisoned").1.clone() };
        let router = Router::new().route("/jwks", get(answer)).route("/elsewhere", get(elsewhere));
        let router = router.with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        this
    }

    fn publish(&self, keys: &[Value]) {
        self.answer_with(StatusCode::OK, json!({"keys": keys}).to_string());
    }

    fn answer_with(&self, status: StatusCode, text: String) {
        *self.answer.lock().expect("not poisoned") = (status, text);
    }
}

/// The public half of a key, under that name, with these members instead of or beside the usual ones.
fn jwk(kid: &str, key: &EncodingKey, algorithm: Algorithm, more: &Value) -> Value {
    let jwk = Jwk::from_encoding_key(key, algorithm).expect("a key");
    let mut jwk = serde_json::to_value(jwk).expect("JSON");
    let members = jwk.as_object_mut().expect("an object");
    members.insert("kid".to_owned(), json!(kid));
    members.extend(more.as_object().expect("an object").clone());
    jwk
}

fn token(kid: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    signed(&json!({"alg": algorithm, "kid": kid}), &claims(&json!({})), key, algorithm)
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_key_of_a_set_verifies_its_own_algorithm(pool: PgPool) {
    use Algorithm::{ES256, EdDSA, HS256, RS256, RS512};
    let oct = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"});
    let provider = Provider::start(&[
        json!({"kty": "unknown", "kid": "x"}),
        json!(7),
        oct,
        jwk("rsa", &rsa(RSA), RS256, &json!({})),
        jwk("ec", &ec(), ES256, &json!({"use": "sig"})),
        jwk("ed", &ed(), EdDSA, &json!({})),
        jwk("encrypts", &rsa(RSA), RS256, &json!({"use": "enc"})),
        jwk("other-alg", &rsa(RSA), RS256, &json!({"alg": "RS512"})),
    ])
    .await;
    let service = Service::start_with(config(&pool, &[("JWT_JWKS", &provider.url)]));
    service.get("/api/v1/agents").await.error(401);
    for (status, kid, key, algorithm) in [
        (200, "rsa", rsa(RSA), RS256),
        (200, "ec", ec(), ES256),
        (200, "ed", ed(), EdDSA),
        (401, "oct", secret(), HS256),
        (401, "encrypts", rsa(RSA), RS256),
        (401, "other-alg", rsa(RSA), RS512),
        (401, "other-alg", rsa(RSA), RS256),
        (401, "rsa", rsa(RSA_NEXT), RS256),
        (401, "ec", rsa(RSA), RS256),
        (401, "rsa", ec(), ES256),
        (401, "rsa", rsa(RSA), RS512),
    ] {
        let answer = look(&service, &token(kid, &key, algorithm)).await;
        assert_eq!(answer.status.as_u16(), status, "{kid} {algorithm:?}: {}", answer.text);
    }
    let nameless = signed(&json!({"alg": "RS256"}), &claims(&json!({})), &rsa(RSA), RS256);
    assert_eq!(look(&service, &nameless).await.status.as_u16(), 401, "no kid");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn keys_are_rotated_by_their_names_and_those_taken_out_do_not_count(pool: PgPool) {
    let rs256 = Algorithm::RS256;
    let provider = Provider::start(&[jwk("one", &rsa(RSA), rs256, &json!({}))]).await;
    let service = Service::start_with(config(&pool, &[("JWT_JWKS", &provider.url)]));
    let (old, new) = (token("one", &rsa(RSA), rs256), token("two", &rsa(RSA_NEXT), rs256));
    look(&service, &old).await.expect(200);
    look(&service, &new).await.error(401);
    provider.publish(&[jwk("two", &rsa(RSA_NEXT), rs256, &json!({}))]);
    service.clock.advance(Duration::from_secs(5));
    eventually("the new key is known", || async { (look(&service, &new).await.status == 200).then_some(()) }).await;
    // It had been verified before, and is not remembered.
    look(&service, &old).await.error(401);

    // A provider that is away takes nobody's key.
    for (status, text) in [(500, "{}"), (200, "rubbish"), (200, r#"{"keys":[]}"#), (302, "")] {
        provider.answer_with(StatusCode::from_u16(status).expect("a status"), text.to_owned());
        look(&service, &old).await.error(401);
        look(&service, &new).await.expect(200);
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn unknown_names_do_not_make_the_service_ask_again_and_again(pool: PgPool) {
    let rs256 = Algorithm::RS256;
    let provider = Provider::start(&[jwk("one", &rsa(RSA), rs256, &json!({}))]).await;
    let service = Service::start_by(config(&pool, &[("JWT_JWKS", &provider.url)]), Clock::stopped());
    look(&service, &token("one", &rsa(RSA), rs256)).await.expect(200);
    let (key, asked) = (rsa(RSA), || provider.asked.load(Ordering::SeqCst));
    let guess = async |name: usize| look(&service, &token(&format!("unknown-{name}"), &key, rs256)).await.error(401);
    for name in 0..100 {
        guess(name).await;
    }
    assert_eq!(asked(), 1);
    // Every five seconds it may be asked once more.
    service.clock.advance(Duration::from_secs(5));
    eventually("it is asked again", async || {
        guess(100).await;
        (asked() > 1).then_some(())
    })
    .await;
    for name in 101..200 {
        guess(name).await;
    }
    assert_eq!(asked(), 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_a_set_its_tokens_wait_and_those_of_the_secret_do_not(pool: PgPool) {
    let rs256 = Algorithm::RS256;
    let provider = Provider::start(&[]).await;
    // Not followed: what is there would be a set.
    let set = json!({"keys": [jwk("one", &rsa(RSA), rs256, &json!({}))]}).to_string();
    provider.answer_with(StatusCode::TEMPORARY_REDIRECT, set);
    let service = Service::start_with(config(&pool, &[("JWT_JWKS", &provider.url), ("JWT_SECRET", SECRET)]));
    let answer = look(&service, &token("one", &rsa(RSA), rs256)).await;
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.error(503)["code"], "keys_unavailable");
    look(&service, &token("one", &secret(), Algorithm::HS256)).await.expect(200);
    look(&service, &token("one", &secret(), Algorithm::HS512)).await.error(401);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_set_may_be_a_file(pool: PgPool) {
    let path = std::env::temp_dir().join(format!("jwks-{}.json", uuid::Uuid::new_v4()));
    let set = json!({"keys": [jwk("one", &ec(), Algorithm::ES256, &json!({}))]});
    std::fs::write(&path, set.to_string()).expect("a file");
    let service = Service::start_with(config(&pool, &[("JWT_JWKS", path.to_str().expect("UTF-8"))]));
    look(&service, &token("one", &ec(), Algorithm::ES256)).await.expect(200);
    look(&service, &token("two", &ec(), Algorithm::ES256)).await.error(401);
    std::fs::remove_file(&path).expect("it is there");
}
