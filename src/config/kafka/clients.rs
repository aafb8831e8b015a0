//! Settings of the Kafka clients: TLS, authentication, and further properties of librdkafka.

use std::fmt;

use rdkafka::{ClientConfig, config::RDKafkaLogLevel, consumer::BaseConsumer, error::KafkaError};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::properties;
use crate::config::Reader;

/// Settings of the Kafka clients that can change while the process runs.
#[derive(Clone, Default)]
pub struct Clients {
    properties: Vec<(String, String)>,
    /// Client credentials for tokens, with `KAFKA_SASL_MECHANISM=OAUTHBEARER`.
    pub oauth: Option<Oauth>,
}

/// Client credentials at an authorisation server: `KAFKA_OAUTH_*`.
#[derive(Clone, Debug)]
pub struct Oauth {
    /// `KAFKA_OAUTH_TOKEN_URL`.
    pub token_url: Url,
    /// `KAFKA_OAUTH_CLIENT_ID`.
    pub client_id: String,
    /// `KAFKA_OAUTH_CLIENT_SECRET`.
    pub client_secret: SecretString,
    /// `KAFKA_OAUTH_SCOPE`.
    pub scope: Option<String>,
}

impl PartialEq for Oauth {
    fn eq(&self, other: &Self) -> bool {
        self.token_url == other.token_url
            && self.client_id == other.client_id
            && self.client_secret.expose_secret() == other.client_secret.expose_secret()
            && self.scope == other.scope
    }
}

/// Shows the names of the properties only: a value can be a secret.
impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.properties.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Clients").field("properties", &names).field("oauth", &self.oauth).finish()
    }
}

impl Clients {
    /// Sets the properties. They take precedence over others of the same name.
    pub fn apply(&self, config: &mut ClientConfig) {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
    }
}

const PROTOCOL: &str = "kafka_security_protocol";
const MECHANISM: &str = "kafka_sasl_mechanism";
const PASSWORD: [&str; 2] = ["kafka_sasl_username", "kafka_sasl_password"];
const OAUTH: [&str; 3] = ["kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret"];
const OAUTH_SCOPE: &str = "kafka_oauth_scope";

/// Settings that are texts in PEM form, each with its property and a part of its text.
const PEM: [(&str, &str, &str); 3] = [
    ("kafka_ssl_ca", "ssl.ca.pem", "BEGIN CERTIFICATE"),
    ("kafka_ssl_certificate", "ssl.certificate.pem", "BEGIN CERTIFICATE"),
    ("kafka_ssl_key", "ssl.key.pem", "PRIVATE KEY"),
];
const KEY_PASSWORD: (&str, &str) = ("kafka_ssl_key_password", "ssl.key.password");

impl Clients {
    /// Reads and checks the settings. `None` means that problems were added to the reader.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let protocol = reader.parsed(PROTOCOL, "PLAINTEXT".to_owned(), |value| match value.to_ascii_uppercase() {
            known if ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"].contains(&known.as_str()) => Ok(known),
            _ => Err(format!("must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL, not {value:?}")),
        });
        let mut properties = properties::read(reader);
        let protocol = protocol?;
        if protocol != "PLAINTEXT" {
            properties.push(("security.protocol".to_owned(), protocol.to_ascii_lowercase()));
        }
        let has_tls = protocol.ends_with("SSL");
        let tls = read_tls(reader, has_tls);
        let sasl = read_sasl(reader, protocol.starts_with("SASL"));
        properties.extend(tls?);
        let Self { properties: sasl, oauth } = sasl?;
        properties.extend(sasl);
        let clients = Self { properties, oauth };
        if let Err((name, problem)) = clients.check() {
            return reader.problem(name, problem);
        }
        Some(clients)
    }

    /// Creates a client without brokers, which uses these properties but connects to nothing. The error is a setting and
    /// its problem.
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.properties.is_empty() {
            return Ok(());
        }
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Emerg);
        self.apply(&mut config);
        let problem = match config.create::<BaseConsumer>() {
            Ok(_) => return Ok(()),
            Err(KafkaError::ClientCreation(text)) => text,
            Err(error) => error.to_string(),
        };
        let settings = PEM.iter().map(|(setting, property, _)| (*setting, *property)).chain([KEY_PASSWORD]);
        let named = settings.clone().find(|(_, property)| problem.contains(property)).map(|(setting, _)| setting);
        Err((named.unwrap_or(PROTOCOL), format!("cannot be used: {problem}")))
    }
}

/// Properties of TLS.
fn read_tls(reader: &mut Reader, has_tls: bool) -> Option<Vec<(String, String)>> {
    let given = PEM.iter().map(|(setting, ..)| *setting).chain([KEY_PASSWORD.0]);
    if !has_tls {
        return refuse_unused(reader, given, "KAFKA_SECURITY_PROTOCOL is SSL or SASL_SSL").then(Vec::new);
    }
    let mut properties = Vec::new();
    let mut is_valid = true;
    for (setting, property, part) in PEM {
        // Files of variables cannot hold line breaks.
        let Some(text) = reader.get(setting).map(|text| text.replace("\\n", "\n")) else { continue };
        if text.contains(part) {
            properties.push((property.to_owned(), text));
        } else {
            reader.problem::<()>(setting, format!("is not in PEM form: \"{part}\" is missing"));
            is_valid = false;
        }
    }
    let (certificate, key) = (reader.has(PEM[1].0), reader.has(PEM[2].0));
    if certificate != key {
        let (missing, given) = if key { (PEM[1].0, PEM[2].0) } else { (PEM[2].0, PEM[1].0) };
        reader.problem::<()>(missing, format!("is required with {}", given.to_ascii_uppercase()));
        is_valid = false;
    }
    if let Some(password) = reader.get(KEY_PASSWORD.0) {
        properties.push((KEY_PASSWORD.1.to_owned(), password.to_owned()));
    }
    is_valid.then_some(properties)
}

/// Properties of SASL, and the client credentials for tokens.
fn read_sasl(reader: &mut Reader, has_sasl: bool) -> Option<Clients> {
    let of_tokens = OAUTH.into_iter().chain([OAUTH_SCOPE]);
    if !has_sasl {
        let given = [MECHANISM].into_iter().chain(PASSWORD).chain(of_tokens);
        let condition = "KAFKA_SECURITY_PROTOCOL is SASL_SSL or SASL_PLAINTEXT";
        return refuse_unused(reader, given, condition).then(Clients::default);
    }
    let mechanism = reader.required(MECHANISM)?.to_ascii_uppercase();
    let mut properties = vec![("sasl.mechanism".to_owned(), mechanism.clone())];
    match mechanism.as_str() {
        "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512" => {
            let is_clean = refuse_unused(reader, of_tokens, "KAFKA_SASL_MECHANISM is OAUTHBEARER");
            let [username, password] = PASSWORD.map(|name| reader.required(name));
            properties.push(("sasl.username".to_owned(), username?));
            properties.push(("sasl.password".to_owned(), password?));
            is_clean.then_some(Clients { properties, oauth: None })
        }
        "OAUTHBEARER" => {
            let is_clean = refuse_unused(reader, PASSWORD.into_iter(), "KAFKA_SASL_MECHANISM is PLAIN or SCRAM");
            let [url, id, secret] = OAUTH.map(|name| reader.required(name));
            let token_url = url.and_then(|url| match Url::parse(&url) {
                Ok(url) if matches!(url.scheme(), "http" | "https") => Some(url),
                _ => reader.problem(OAUTH[0], "must be an http or https address"),
            });
            let scope = reader.get(OAUTH_SCOPE).map(str::to_owned);
            let oauth = Oauth { token_url: token_url?, client_id: id?, client_secret: secret?.into(), scope };
            is_clean.then_some(Clients { properties, oauth: Some(oauth) })
        }
        _ => {
            let problem = format!("must be PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, not {mechanism:?}");
            reader.problem(MECHANISM, problem)
        }
    }
}

/// Adds a problem for each of the settings that is given and has no effect. Returns whether there is none.
fn refuse_unused(reader: &mut Reader, settings: impl Iterator<Item = &'static str>, condition: &str) -> bool {
    let given: Vec<&str> = settings.filter(|name| reader.has(name)).collect();
    for name in &given {
        reader.problem::<()>(name, format!("has an effect only if {condition}"));
    }
    given.is_empty()
}
