//! Masking: removal of secrets from texts of others, which may repeat what they were sent.

use base64::{Engine as _, engine::general_purpose};
use url::Url;

use crate::input::to_raw;

/// Replacement of a secret in a text.
const MASK: &str = "***";
/// Minimum length of a URL query value or of a header that may be a secret: shorter ones are versions and switches.
const MIN_SECRET: usize = 4;
/// Minimum length of a secret whose encoded forms are masked, too: shorter ones would occur by chance.
const MIN_ENCODED_SECRET: usize = 8;

/// Secrets in all forms in which a server may repeat them. It has no `Debug`.
#[derive(Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Adds a secret as it is, and as encoded in JSON, in a URL and in base64.
    pub fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.is_empty() {
            return;
        }
        self.insert(secret.to_owned());
        self.insert(to_raw(secret).get().trim_matches('"').to_owned());
        if secret.len() >= MIN_ENCODED_SECRET {
            self.insert(form_encoded(secret));
            self.add_base64(secret);
        }
    }

    /// Adds a user and a secret in the forms in which they are sent together. A token endpoint gets both form-encoded.
    pub fn add_pair(&mut self, user: &str, secret: &str) {
        self.add_joined(user, secret);
        self.add_joined(&form_encoded(user), &form_encoded(secret));
    }

    /// Adds the password and the values of the query of a URL.
    pub fn add_url(&mut self, url: &str) {
        let Ok(url) = Url::parse(url) else { return };
        for (name, value) in url.query_pairs() {
            let secret = if value.is_empty() { name } else { value };
            if secret.len() >= MIN_SECRET {
                self.add(&secret);
            }
        }
        let password = url.password().unwrap_or_default();
        self.add(password);
        // It is sent as `Authorization: Basic`.
        let (user, password) = (percent_decoded(url.username()), percent_decoded(password));
        self.add(&password);
        self.add_joined(&user, &password);
    }

    /// Adds the value of a header, also without its scheme, such as `Bearer`, and the password of the scheme `Basic`.
    pub fn add_header(&mut self, value: &str) {
        let value = value.trim();
        if value.len() < MIN_SECRET {
            return;
        }
        self.add(value);
        let Some((scheme, credentials)) = value.split_once(' ') else { return };
        if credentials.trim().len() >= MIN_SECRET {
            self.add(credentials);
        }
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(pair) = general_purpose::STANDARD.decode(credentials.trim())
            && let Some((user, password)) = String::from_utf8_lossy(&pair).split_once(':')
        {
            self.add(password);
            self.add_joined(user, password);
        }
    }

    /// Removes the secrets from a text. This comes before the text is truncated, since a part of a secret would not be
    /// found.
    #[must_use]
    pub fn mask(&self, mut text: String) -> String {
        for form in &self.0 {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), MASK);
            }
        }
        text
    }

    /// [`mask`](Self::mask) of the beginning of a text, which may end within a secret.
    #[must_use]
    pub fn mask_beginning(&self, text: String) -> String {
        let mut text = self.mask(text);
        let ends = |form: &String| {
            (1..form.len()).rev().find(|&end| form.is_char_boundary(end) && text.ends_with(&form[..end]))
        };
        if let Some(cut) = self.0.iter().filter_map(ends).max() {
            text.truncate(text.len() - cut);
        }
        text
    }

    fn add_joined(&mut self, user: &str, secret: &str) {
        if secret.trim().is_empty() {
            return;
        }
        let pair = format!("{user}:{secret}");
        // With the scheme it does not occur by chance, however short it is.
        self.insert(format!("Basic {}", general_purpose::STANDARD_NO_PAD.encode(&pair)));
        if pair.len() >= MIN_ENCODED_SECRET {
            self.add_base64(&pair);
        }
    }

    /// Adds a secret in base64, also as it is in the base64 of a longer text.
    fn add_base64(&mut self, secret: &str) {
        for engine in [general_purpose::STANDARD_NO_PAD, general_purpose::URL_SAFE_NO_PAD] {
            self.insert(engine.encode(secret));
            for before in 0..3 {
                let bytes = [&[0; 2][..before], secret.as_bytes()].concat();
                let encoded = engine.encode(&bytes);
                // The characters at the edges also depend on what is next to the secret.
                let (from, to) =
                    ((before * 4).div_ceil(3), encoded.len() - usize::from(!bytes.len().is_multiple_of(3)));
                self.insert(encoded[from..to].to_owned());
            }
        }
    }

    /// One secret may be a part of another, so longer ones come first.
    fn insert(&mut self, form: String) {
        if form.is_empty() {
            return;
        }
        let order = |other: &String| form.len().cmp(&other.len()).then_with(|| other.cmp(&form));
        if let Err(at) = self.0.binary_search_by(order) {
            self.0.insert(at, form);
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

    #[test]
    fn the_values_of_headers_are_masked_with_and_without_their_scheme() {
        let mut secrets = Secrets::default();
        for value in ["Bearer 123456789", "Basic bWU6cGEkJHcwcmQ=", "a-token", "v1"] {
            secrets.add_header(value);
        }
        for (given, expected) in [
            ("Bearer 123456789", "***"),
            (r#"{"token":"123456789"}"#, r#"{"token":"***"}"#),
            ("basic bWU6cGEkJHcwcmQ=", "basic ***"),
            ("me, pa$$w0rd", "me, ***"),
            ("X-Token: a-token", "X-Token: ***"),
            ("v1 of me", "v1 of me"),
        ] {
            assert_eq!(secrets.mask(given.to_owned()), expected);
        }
    }

    #[test]
    fn a_text_that_is_cut_off_within_a_secret_ends_before_it() {
        let mut secrets = Secrets::default();
        secrets.add("a-long-secret");
        for (given, expected) in [
            ("got a-long-secret", "got ***"),
            ("got a-long-secre", "got "),
            ("got a", "got "),
            ("got it", "got it"),
            ("a-long-secreta-long-", "***"),
            ("", ""),
        ] {
            assert_eq!(secrets.mask_beginning(given.to_owned()), expected, "{given}");
        }
    }
}
