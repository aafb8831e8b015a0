//! Who is let in, and who may do what.

mod api_keys;
mod jwks;
mod lines;
mod organizations;
mod roles;
mod suspension;
mod tokens;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::clock::Clock;

use crate::service::{Answer, Service, config};

/// Long enough, and nobody's.
pub const SECRET: &str = "5b8719f27917be74b8d2acf60e4f759b0d0e5b0c10073abdff49a2f01aefc5cd";

pub const RSA: &str = include_str!("access/keys/rsa.pem");
pub const RSA_PUBLIC: &str = include_str!("access/keys/rsa.pub.pem");
pub const RSA_NEXT: &str = include_str!("access/keys/rsa-next.pem");
pub const EC: &str = include_str!("access/keys/ec.pem");
pub const EC_PUBLIC: &str = include_str!("access/keys/ec.pub.pem");
pub const ED: &str = include_str!("access/keys/ed.pem");
pub const ED_PUBLIC: &str = include_str!("access/keys/ed.pub.pem");

pub fn secret() -> EncodingKey {
    EncodingKey::from_secret(SECRET.as_bytes())
}

pub fn rsa(pem: &str) -> EncodingKey {
    EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a private key")
}

pub fn ec() -> EncodingKey {
    EncodingKey::from_ec_pem(EC.as_bytes()).expect("a private key")
}

pub fn ed() -> EncodingKey {
    EncodingKey::from_ed_pem(ED.as_bytes()).expect("a private key")
}

pub fn now() -> i64 {
    Clock::default().now().timestamp()
}

/// Claims that are let in, with these instead of or beside them.
pub fn claims(more: &Value) -> Value {
    let mut claims = json!({"sub": "someone", "role": "admin", "exp": now() + 300});
    claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    claims
}

/// A token whose header and claims are these texts, whatever they say.
pub fn signed_text(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let encode = |part: &str| BASE64_URL_SAFE_NO_PAD.encode(part);
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

/// A token with that header and those claims.
pub fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    signed_text(&header.to_string(), &claims.to_string(), key, algorithm)
}

/// Asks for the agents with that bearer token.
pub async fn look(service: &Service, token: &str) -> Answer {
    service.send("GET", "/api/v1/agents", &[("authorization", &format!("Bearer {token}"))], "").await
}

/// Asks for the agents with that API key.
pub async fn look_with_key(service: &Service, key: &str) -> Answer {
    service.send("GET", "/api/v1/agents", &[("x-api-key", key)], "").await
}

/// A service with authentication, and somebody who may do everything there.
pub struct Admin {
    pub service: Service,
    /// For `Authorization`.
    pub bearer: String,
}

impl Admin {
    pub fn start(pool: &PgPool, more: &[(&str, &str)]) -> Self {
        Self::start_by(pool, more, Clock::adjustable())
    }

    /// As [`Self::start`], with that clock.
    pub fn start_by(pool: &PgPool, more: &[(&str, &str)], clock: Clock) -> Self {
        let pairs: Vec<_> = [("JWT_SECRET", SECRET)].iter().chain(more).copied().collect();
        let claims = claims(&json!({"sub": "admin"}));
        let bearer = format!("Bearer {}", signed(&json!({"alg": "HS256"}), &claims, &secret(), Algorithm::HS256));
        Self { service: Service::start_by(config(pool, &pairs), clock), bearer }
    }

    async fn send(&self, method: &str, path: &str, body: String) -> Answer {
        let headers = [("authorization", self.bearer.as_str()), ("content-type", "application/json")];
        self.service.send(method, path, &headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, String::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, String::new()).await
    }

    /// Makes an API key; returns it and its id.
    pub async fn key(&self, body: &Value) -> (String, String) {
        let created = self.post("/api/v1/api-keys", body).await.expect(201);
        let text = |name: &str| created[name].as_str().expect("text").to_owned();
        (text("key"), text("id"))
    }
}
