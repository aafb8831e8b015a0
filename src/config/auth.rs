//! Authentication settings: `AUTH_ENABLED`, `JWT_*`, `API_KEY_*` and `BOOTSTRAP_API_KEY`, the credentials that are
//! accepted and issued.

use std::{path::PathBuf, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};

use super::{Live, Reader, Section, placeholder};
use crate::access::{
    Role,
    api_key::{self, ApiKey},
    verifying_key::VerifyingKey,
};

/// Minimum length of an HMAC key: 256 bits, the output of the weakest algorithm.
const MIN_JWT_SECRET_BYTES: usize = 32;

/// Authentication settings.
#[derive(Clone, Debug)]
pub struct Auth {
    /// `AUTH_ENABLED`; by default true if a key to verify tokens or a first API key is set.
    pub enabled: bool,
    /// `JWT_SECRET`, `JWT_SECRET_PREVIOUS` and `JWT_PUBLIC_KEY`.
    pub keys: Live<TokenKeys>,
    /// `JWT_ALGORITHM`, one of the HMAC family.
    pub algorithm: jsonwebtoken::Algorithm,
    /// `JWT_EXPIRATION_MINUTES`: lifetime of tokens issued here.
    pub token_lifetime: Duration,
    /// `API_KEY_HEADER` as a parsed header name.
    pub api_key_header: http::HeaderName,
    /// `API_KEY_HEADER` as it is written.
    pub api_key_header_text: String,
    /// `API_KEY_ENVIRONMENT`: part of the API keys that are created here.
    pub api_key_environment: String,
    /// `BOOTSTRAP_API_KEY`: credentials of the first caller.
    pub bootstrap_api_key: Option<ApiKey>,
    /// `JWT_JWKS`: key set of an external token issuer.
    pub jwks: Option<JwksSource>,
    /// `JWT_ISSUER`: the `iss` that accepted tokens must have and issued tokens get.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: the `aud` that accepted tokens must have and issued tokens get.
    pub audience: Option<String>,
    /// `JWT_DEFAULT_ROLE`: role of a token that names none. `None` rejects such tokens.
    pub default_role: Option<Role>,
}

/// Keys of tokens. They can change while the process runs.
#[derive(Debug)]
pub struct TokenKeys {
    /// `JWT_SECRET`: signs tokens, and verifies them.
    pub secret: Option<SecretString>,
    /// Whether `JWT_PUBLIC_KEY` is set: the public key of an external token issuer.
    pub has_public_key: bool,
    /// Keys that verify tokens: those of `JWT_SECRET`, `JWT_SECRET_PREVIOUS` and `JWT_PUBLIC_KEY`.
    pub verifying: Vec<VerifyingKey>,
}

/// Location of a key set.
#[derive(Clone, Debug)]
pub enum JwksSource {
    /// An `http` or `https` address.
    Url(url::Url),
    /// Path of a file.
    File(PathBuf),
}

impl Auth {
    /// Whether tokens are accepted, besides API keys.
    #[must_use]
    pub fn verifies_tokens(&self) -> bool {
        !self.keys.current().verifying.is_empty() || self.jwks.is_some()
    }
}

impl Section for Auth {
    fn read(reader: &mut Reader) -> Option<Self> {
        let jwt_secret = secret(reader, "jwt_secret").ok();
        let previous_secret = secret(reader, "jwt_secret_previous").ok();
        if reader.has("jwt_secret_previous") && !reader.has("jwt_secret") {
            reader.problem::<()>("jwt_secret_previous", "has an effect only with JWT_SECRET");
        }
        let keys = ["jwt_secret", "jwt_public_key", "jwt_jwks", "bootstrap_api_key"];
        // Without any of these keys, API keys still work: the first one is created at the start.
        let enabled = reader.boolean("auth_enabled", keys.iter().any(|name| reader.has(name)));
        let public_key = reader.parsed("jwt_public_key", None, |pem| Ok(Some(VerifyingKey::from_pem(pem)?)));
        let api_key_environment = reader.parsed("api_key_environment", "live".to_owned(), |value| {
            let fits = api_key::is_environment(value);
            if fits { Ok(value.to_owned()) } else { Err("must have 1 to 16 small letters and digits".to_owned()) }
        });
        let bootstrap_api_key = reader.parsed("bootstrap_api_key", None, |value| {
            let key = ApiKey::parse(value).ok_or("is not an API key; make one with: workflow-api api-key")?;
            Ok(Some(key))
        });
        let jwks = reader.parsed("jwt_jwks", None, |value| parse_jwks_source(value).map(Some));
        let default_role = reader.parsed("jwt_default_role", Some(Role::Viewer), |value| match value {
            "none" => Ok(None),
            name => name.parse().map(Some).map_err(|error| format!("{error}, or none; not {name:?}")),
        });
        let algorithm = reader.parsed("jwt_algorithm", jsonwebtoken::Algorithm::HS256, |value| match value {
            "HS256" => Ok(jsonwebtoken::Algorithm::HS256),
            "HS384" => Ok(jsonwebtoken::Algorithm::HS384),
            "HS512" => Ok(jsonwebtoken::Algorithm::HS512),
            _ => Err(format!("must be HS256, HS384 or HS512, not {value:?}")),
        });
        let minutes: Option<u64> = reader.number("jwt_expiration_minutes", 60, 1..=525_600);
        let api_key_header = reader.parsed("api_key_header", http::HeaderName::from_static("x-api-key"), |value| {
            value.parse().map_err(|_| format!("is not a legal header name: {value:?}"))
        });
        let (algorithm, jwt_secret, public_key) = (algorithm?, jwt_secret?, public_key?);
        let secrets = [&jwt_secret, &previous_secret?].map(|secret| {
            let secret = secret.as_ref()?.expose_secret().as_bytes();
            Some(VerifyingKey::from_secret(algorithm, secret))
        });
        let has_public_key = public_key.is_some();
        let verifying = secrets.into_iter().flatten().chain(public_key).collect();
        Some(Self {
            enabled: enabled?,
            keys: Live::new(TokenKeys { secret: jwt_secret, has_public_key, verifying }),
            algorithm,
            token_lifetime: Duration::from_secs(minutes? * 60),
            api_key_header: api_key_header?,
            api_key_header_text: reader.text("api_key_header", "X-API-Key"),
            api_key_environment: api_key_environment?,
            bootstrap_api_key: bootstrap_api_key?,
            jwks: jwks?,
            issuer: reader.get("jwt_issuer").map(str::to_owned),
            audience: reader.get("jwt_audience").map(str::to_owned),
            default_role: default_role?,
        })
    }
}

/// A secret that signs tokens, if it is set. An error means that a problem was added to the reader.
fn secret(reader: &mut Reader, name: &str) -> Result<Option<SecretString>, ()> {
    let Some(secret) = reader.get(name).map(str::to_owned) else { return Ok(None) };
    let made_by = "make one with: openssl rand -hex 32";
    if secret.len() < MIN_JWT_SECRET_BYTES {
        reader.problem::<()>(name, format!("must have at least {MIN_JWT_SECRET_BYTES} bytes; {made_by}"));
        return Err(());
    }
    if let Some(reason) = placeholder::reason(&secret) {
        reader.problem::<()>(name, format!("{reason}; {made_by}"));
        return Err(());
    }
    Ok(Some(secret.into()))
}

/// Parses an address or the path of a file.
fn parse_jwks_source(text: &str) -> Result<JwksSource, String> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(JwksSource::Url(url)),
        Ok(_) => Err("must be an http or https address, or the path of a file".to_owned()),
        Err(_) if std::path::Path::new(text).is_file() => Ok(JwksSource::File(text.into())),
        Err(_) => Err("is neither an address nor the path of a file".to_owned()),
    }
}
