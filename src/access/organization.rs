//! Organisations: tenants that own all data. Nothing of one organisation can be seen or reached from another.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use serde::{Deserialize, Serialize};

/// Maximum length of an organisation's id.
const MAX_CHARS: usize = 63;

/// Id of an organisation: 1 to 63 small letters, digits and hyphens, neither beginning nor ending with a hyphen.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrganizationId(Arc<str>);

/// Error: the text is not the id of an organisation.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("must be 1 to 63 small letters, digits and hyphens, neither beginning nor ending with a hyphen")]
pub struct NoOrganizationId;

impl OrganizationId {
    /// Id of the default organisation: that of callers which name none, and of all that another program writes. It
    /// always exists; its administrators manage the others.
    pub const DEFAULT: &str = "default";

    /// Parses an id.
    pub fn parse(text: &str) -> Result<Self, NoOrganizationId> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=MAX_CHARS).contains(&text.len()) && text.bytes().all(is_inner);
        if fits && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text.into()))
        } else {
            Err(NoOrganizationId)
        }
    }

    /// The id from one of the service's own columns, which contain only valid ids.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// Id in tokens, in the database and on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is [`Self::DEFAULT`].
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self.0 == *Self::DEFAULT
    }
}

impl Default for OrganizationId {
    fn default() -> Self {
        static DEFAULT: LazyLock<OrganizationId> = LazyLock::new(|| OrganizationId(OrganizationId::DEFAULT.into()));
        DEFAULT.clone()
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for OrganizationId {
    type Error = NoOrganizationId;

    fn try_from(text: String) -> Result<Self, NoOrganizationId> {
        Self::parse(&text)
    }
}

impl From<OrganizationId> for String {
    fn from(id: OrganizationId) -> Self {
        id.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_host_label() {
        for id in ["default", "a", "0", "acme-2", &"x".repeat(63)] {
            assert_eq!(OrganizationId::parse(id).expect(id).as_str(), id);
        }
        for text in ["", "-a", "a-", "Acme", "a b", "a_b", "ä", "a\0", "a/b", &"x".repeat(64)] {
            assert!(OrganizationId::parse(text).is_err(), "{text}");
        }
    }
}
