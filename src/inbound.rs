//! Inbound webhooks: how the deliveries of other services are verified and read. Pure.
//!
//! A delivery is verified over the bytes as they arrived, and read only then. The rules of the providers are presets;
//! `src/inbound/vectors.json` has signatures of their own libraries, where there are any in Python.

mod delivery;
mod signature;
mod verify;

pub use self::{
    delivery::{Delivery, Greeting, MAX_BODY_BYTES, Unreadable},
    verify::{Failure, Proof, WINDOW_SECS},
};

use http::HeaderName;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::signature::{Algorithm, Encoding, StandardKey};
use crate::{
    expression,
    input::{FieldError, Node, Read, members, object_of, request_object, to_raw},
};

/// Maximum number of secrets that are valid at a time.
pub const MAX_SECRETS: usize = 3;
/// Length range of a secret: a shorter one can be guessed.
const SECRET_CHARS: std::ops::RangeInclusive<usize> = 8..=500;
/// Length range of the name of a header.
const HEADER_CHARS: std::ops::RangeInclusive<usize> = 1..=100;
/// Maximum length of the text before a signature.
const MAX_PREFIX_CHARS: usize = 50;
/// Maximum length of an expression.
const MAX_EXPRESSION_CHARS: usize = 2000;

/// Rules of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Nothing is signed: the token in the address is the only proof.
    None,
    /// GitHub.
    Github,
    /// Stripe.
    Stripe,
    /// Slack.
    Slack,
    /// Standard Webhooks, which Svix sends too.
    Standard,
    /// A signature by HMAC, as the other members describe it.
    Hmac,
    /// User name and password (RFC 7617).
    Basic,
    /// A secret in a header.
    Header,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 8] =
        [Self::None, Self::Github, Self::Stripe, Self::Slack, Self::Standard, Self::Hmac, Self::Basic, Self::Header];

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Github => "github",
            Self::Stripe => "stripe",
            Self::Slack => "slack",
            Self::Standard => "standard",
            Self::Hmac => "hmac",
            Self::Basic => "basic",
            Self::Header => "header",
        }
    }

    /// Whether a delivery needs a secret, so that its address need not be one.
    #[must_use]
    pub fn needs_secret(self) -> bool {
        self != Self::None
    }

    /// Whether a delivery of the provider has an id of its own.
    fn has_id(self) -> bool {
        matches!(self, Self::Github | Self::Stripe | Self::Slack | Self::Standard)
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        one_of(node, &Self::ALL, Self::as_str)
    }
}

/// What an HMAC is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Signed {
    /// The body.
    #[serde(rename = "{body}")]
    Body,
    /// The time, a dot, and the body.
    #[serde(rename = "{timestamp}.{body}")]
    TimestampAndBody,
}

impl Signed {
    const ALL: [Self; 2] = [Self::Body, Self::TimestampAndBody];

    fn as_str(self) -> &'static str {
        match self {
            Self::Body => "{body}",
            Self::TimestampAndBody => "{timestamp}.{body}",
        }
    }
}

/// Webhook trigger, as a request describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// How its deliveries are verified and read.
    pub config: Config,
    /// Its secrets, if they are given.
    pub secrets: Option<Vec<String>>,
}

/// How the deliveries of a trigger are verified and read. It is stored and shown in this form, without the secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Rules of the provider.
    pub preset: Preset,
    /// Header of the signature or the secret, for `hmac` and `header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Text before the signature or the secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Hash function, for `hmac`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// Encoding of the signature, for `hmac`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// What is signed, for `hmac`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<Signed>,
    /// Header with the signed time, for `hmac`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_header: Option<String>,
    /// Header with the id of a delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_header: Option<String>,
    /// Expression whose value is the id of a delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<String>,
    /// Expression that a delivery must satisfy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

request_object! {
    /// How deliveries are verified and read.
    #[schema(as = WebhookTriggerConfig, example = json!({"preset": "github", "secrets": ["a secret that GitHub has too"]}))]
    pub struct ConfigBody: deny_unknown_fields {
        /// Rules of the provider; `none`: the token in the address is the only proof.
        #[schema(value_type = String, example = "github")]
        preset: Preset = required(Preset::read),
        /// Secrets, all of which are tried; at least one unless the preset is `none`. They are never shown. Absent in an
        /// update: those that are stored. `basic`: `user:password`. `standard`: `whsec_…` or, for ed25519, `whpk_…`.
        #[schema(max_items = 3, example = json!(["a secret that GitHub has too"]))]
        secrets: Option<Vec<String>> = nullable(read_secrets),
        /// `hmac` and `header`: name of the header with the signature or the secret.
        #[schema(min_length = 1, max_length = 100, example = json!(null))]
        header: Option<String> = nullable(read_header),
        /// `hmac` and `header`: text before the signature or the secret, such as `sha256=`.
        #[schema(max_length = 50, example = json!(null))]
        prefix: Option<String> = nullable(|node| node.string(0..=MAX_PREFIX_CHARS)),
        /// `hmac`: hash function; the default is `sha256`. `sha1` is only for providers that know nothing better.
        #[schema(value_type = Option<String>, example = json!(null))]
        algorithm: Option<Algorithm> = nullable(|node| one_of(node, &Algorithm::ALL, Algorithm::as_str)),
        /// `hmac`: encoding of the signature; the default is `hex`.
        #[schema(value_type = Option<String>, example = json!(null))]
        encoding: Option<Encoding> = nullable(|node| one_of(node, &Encoding::ALL, Encoding::as_str)),
        /// `hmac`: what is signed; the default is `{body}`.
        #[schema(value_type = Option<String>, example = json!(null))]
        signed: Option<Signed> = nullable(|node| one_of(node, &Signed::ALL, Signed::as_str)),
        /// `hmac` with `{timestamp}.{body}`: name of the header with the time, in seconds since 1970.
        #[schema(min_length = 1, max_length = 100, example = json!(null))]
        timestamp_header: Option<String> = nullable(read_header),
        /// Name of a header with the id of the delivery: a repeat with the same id starts no second run. Only for presets
        /// whose deliveries have no id of their own.
        #[schema(min_length = 1, max_length = 100, example = json!(null))]
        dedupe_header: Option<String> = nullable(read_header),
        /// The same, as an expression: `${trigger.body.id}`.
        #[schema(max_length = 2000, example = json!(null))]
        dedupe: Option<String> = nullable(read_expression),
        /// Condition on the delivery, such as `${trigger.body.action} == 'opened'`; others start no run.
        #[schema(max_length = 2000, example = json!(null))]
        filter: Option<String> = nullable(read_expression),
    }
}

fn one_of<T: Copy>(node: &Node<'_>, all: &[T], name_of: fn(T) -> &'static str) -> Read<T> {
    node.parsed(|text| {
        let names = || all.iter().map(|one| name_of(*one)).collect::<Vec<_>>().join(", ");
        all.iter().copied().find(|one| name_of(*one) == text).ok_or_else(|| format!("must be one of {}", names()))
    })
}

fn read_header(node: &Node<'_>) -> Read<String> {
    let name = node.string(HEADER_CHARS)?;
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(_) => Err(vec![FieldError::rule(node.path(), "must be the name of a header")]),
    }
}

fn read_expression(node: &Node<'_>) -> Read<String> {
    let text = node.not_blank(1..=MAX_EXPRESSION_CHARS)?;
    match expression::check(&text) {
        Ok(()) => Ok(text),
        Err(error) => Err(vec![FieldError::rule(node.path(), error)]),
    }
}

fn read_secrets(node: &Node<'_>) -> Read<Vec<String>> {
    let nodes = node.list()?;
    if nodes.len() > MAX_SECRETS {
        return Err(vec![FieldError::rule(node.path(), format!("must have at most {MAX_SECRETS} entries"))]);
    }
    nodes.iter().map(|node| node.not_blank(SECRET_CHARS)).collect()
}

impl Webhook {
    /// Reads a configuration, with the secrets if they are given. What is stored and shown is read in the same way.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        ConfigBody::parse(node)
    }

    /// The configuration with the secrets, as [`Webhook::read`] reads it.
    #[must_use]
    pub fn to_given(&self) -> Box<RawValue> {
        let stored = to_raw(&self.config);
        let Some(secrets) = &self.secrets else { return stored };
        let secrets = to_raw(secrets);
        let config = members(&stored).unwrap_or_default();
        let all = config.iter().map(|(name, value)| (name.as_str(), *value)).chain([("secrets", &*secrets)]);
        object_of(all)
    }

    /// Checks that there are secrets if the preset needs them. `has_stored`: there are some from before, of the same preset.
    pub fn check_secrets(&self, path: &str, has_stored: bool) -> Read<()> {
        let has_some = self.secrets.is_some() || has_stored;
        if has_some || !self.config.preset.needs_secret() {
            return Ok(());
        }
        Err(vec![FieldError::missing(format!("{path}.secrets"))])
    }
}

impl ConfigBody {
    /// Reads the object at the node.
    fn parse(node: &Node<'_>) -> Read<Webhook> {
        let body = Self::read(&node.object()?)?;
        let at = |name: &str| format!("{}.{name}", node.path());
        let mut errors = Vec::new();
        body.check_members(&at, &mut errors);
        body.check_secrets(&at, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let Self { preset, secrets, header, prefix, algorithm, encoding, signed, .. } = body;
        let Self { timestamp_header, dedupe_header, dedupe, filter, .. } = body;
        let config = Config {
            preset,
            header,
            prefix: prefix.filter(|prefix| !prefix.is_empty()),
            algorithm: algorithm.or((preset == Preset::Hmac).then_some(Algorithm::Sha256)),
            encoding: encoding.or((preset == Preset::Hmac).then_some(Encoding::Hex)),
            signed: signed.or((preset == Preset::Hmac).then_some(Signed::Body)),
            timestamp_header,
            dedupe_header,
            dedupe,
            filter,
        };
        Ok(Webhook { config, secrets })
    }

    /// Checks that the members are those of the preset.
    fn check_members(&self, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
        let preset = self.preset;
        let is_hmac = preset == Preset::Hmac;
        let has_header = is_hmac || preset == Preset::Header;
        for (name, is_given, is_allowed) in [
            ("header", self.header.is_some(), has_header),
            ("prefix", self.prefix.is_some(), has_header),
            ("algorithm", self.algorithm.is_some(), is_hmac),
            ("encoding", self.encoding.is_some(), is_hmac),
            ("signed", self.signed.is_some(), is_hmac),
            ("timestamp_header", self.timestamp_header.is_some(), is_hmac),
            ("dedupe_header", self.dedupe_header.is_some(), !preset.has_id()),
            ("dedupe", self.dedupe.is_some(), !preset.has_id()),
        ] {
            if is_given && !is_allowed {
                errors.push(FieldError::rule(at(name), format!("the preset {} has no {name}", preset.as_str())));
            }
        }
        if has_header && self.header.is_none() {
            errors.push(FieldError::missing(at("header")));
        }
        let signs_time = self.signed == Some(Signed::TimestampAndBody);
        if is_hmac && signs_time && self.timestamp_header.is_none() {
            errors.push(FieldError::missing(at("timestamp_header")));
        }
        if is_hmac && !signs_time && self.timestamp_header.is_some() {
            // A time that is not signed could be changed.
            errors.push(FieldError::rule(
                at("timestamp_header"),
                format!("needs signed: {}", Signed::TimestampAndBody.as_str()),
            ));
        }
        if self.dedupe_header.is_some() && self.dedupe.is_some() {
            errors.push(FieldError::rule(at("dedupe"), "cannot be given together with dedupe_header"));
        }
    }

    fn check_secrets(&self, at: &dyn Fn(&str) -> String, errors: &mut Vec<FieldError>) {
        let Some(secrets) = &self.secrets else { return };
        if !self.preset.needs_secret() {
            if !secrets.is_empty() {
                errors.push(FieldError::rule(at("secrets"), "the preset none has no secrets"));
            }
        } else if secrets.is_empty() {
            errors.push(FieldError::rule(at("secrets"), "at least one secret is needed"));
        }
        for (index, secret) in secrets.iter().enumerate() {
            let is_usable = match self.preset {
                Preset::Standard => StandardKey::parse(secret).is_some(),
                Preset::Basic => secret.split_once(':').is_some_and(|(_, password)| !password.is_empty()),
                _ => true,
            };
            if !is_usable {
                let text = if self.preset == Preset::Basic {
                    "must be user:password"
                } else {
                    "must be base64 of at least 16 bytes after whsec_, or of the 32 bytes of a public key after whpk_"
                };
                errors.push(FieldError::rule(format!("{}.{index}", at("secrets")), text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The fields with errors, or the stored form.
    fn read(body: &Value) -> Result<Value, Vec<String>> {
        let parsed = Webhook::read(&Node::new("body.config", &to_raw(body)));
        let parsed = parsed.map_err(|errors| errors.into_iter().map(|error| error.field).collect::<Vec<_>>())?;
        Ok(serde_json::to_value(parsed.config).expect("JSON"))
    }

    const SECRET: &str = "a long secret";

    #[test]
    fn a_configuration_has_the_members_of_its_preset() {
        for (body, expected) in [
            (json!({"preset": "github", "secrets": [SECRET]}), json!({"preset": "github"})),
            (json!({"preset": "none"}), json!({"preset": "none"})),
            (
                json!({"preset": "hmac", "header": "X-Sig", "secrets": [SECRET]}),
                json!({"preset": "hmac", "header": "x-sig", "algorithm": "sha256", "encoding": "hex",
                    "signed": "{body}"}),
            ),
            (
                json!({"preset": "hmac", "header": "x-sig", "prefix": "sha1=", "algorithm": "sha1", "encoding": "base64",
                    "signed": "{timestamp}.{body}", "timestamp_header": "X-Time", "dedupe": "${trigger.body.id}"}),
                json!({"preset": "hmac", "header": "x-sig", "prefix": "sha1=", "algorithm": "sha1", "encoding": "base64",
                    "signed": "{timestamp}.{body}", "timestamp_header": "x-time", "dedupe": "${trigger.body.id}"}),
            ),
            (
                json!({"preset": "header", "header": "x-key", "secrets": [SECRET], "filter": "${trigger.body.a} == 1"}),
                json!({"preset": "header", "header": "x-key", "filter": "${trigger.body.a} == 1"}),
            ),
        ] {
            let stored = read(&body).expect("it is valid");
            assert_eq!(stored, expected);
            assert_eq!(read(&stored), Ok(expected), "what is shown may be sent back");
        }
    }

    /// C3, test 7: an empty secret is refused when the trigger is saved.
    #[test]
    fn a_configuration_that_means_nothing_is_refused_with_the_field() {
        for (body, fields) in [
            (json!({}), &["preset"][..]),
            (json!({"preset": "gitlab"}), &["preset"]),
            (json!({"preset": "github", "secrets": []}), &["secrets"]),
            (json!({"preset": "github", "secrets": [""]}), &["secrets.0"]),
            (json!({"preset": "github", "secrets": ["         "]}), &["secrets.0"]),
            (json!({"preset": "github", "secrets": [SECRET, "short"]}), &["secrets.1"]),
            (json!({"preset": "github", "secrets": [SECRET, SECRET, SECRET, SECRET]}), &["secrets"]),
            (json!({"preset": "none", "secrets": [SECRET]}), &["secrets"]),
            (json!({"preset": "basic", "secrets": ["nopassword"]}), &["secrets.0"]),
            (json!({"preset": "basic", "secrets": ["nopassword:"]}), &["secrets.0"]),
            (json!({"preset": "standard", "secrets": ["whsec_not base64!"]}), &["secrets.0"]),
            (json!({"preset": "standard", "secrets": ["whsec_c2hvcnQ="]}), &["secrets.0"]),
            (json!({"preset": "standard", "secrets": ["whpk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}), &["secrets.0"]),
            (json!({"preset": "github", "header": "x", "secrets": [SECRET]}), &["header"]),
            (json!({"preset": "github", "dedupe_header": "x"}), &["dedupe_header"]),
            (json!({"preset": "hmac"}), &["header"]),
            (json!({"preset": "hmac", "header": "no name"}), &["header"]),
            (json!({"preset": "hmac", "header": "x", "algorithm": "md5"}), &["algorithm"]),
            (json!({"preset": "hmac", "header": "x", "signed": "{timestamp}.{body}"}), &["timestamp_header"]),
            (json!({"preset": "hmac", "header": "x", "timestamp_header": "t"}), &["timestamp_header"]),
            (json!({"preset": "none", "dedupe_header": "x", "dedupe": "1"}), &["dedupe"]),
            (json!({"preset": "none", "filter": "${trigger.body"}), &["filter"]),
            (json!({"preset": "none", "unknown": 1}), &["unknown"]),
        ] {
            let fields: Vec<_> = fields.iter().map(|field| format!("body.config.{field}")).collect();
            assert_eq!(read(&body).expect_err(&body.to_string()), fields, "{body}");
        }
    }
}
