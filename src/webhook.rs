//! Outgoing webhooks: types of events, signatures, the schedule of retries, and the bodies that are sent. Pure.

pub mod envelope;
pub mod events;
pub mod push;
pub mod schedule;
pub mod secret;

use serde::{Deserialize, Serialize};

use self::secret::Secret;

/// Maximum number of endpoints of an organisation.
pub const MAX_WEBHOOKS: i64 = 32;
/// Maximum number of old secrets that still sign.
pub const MAX_OLD_SECRETS: usize = 10;

/// What a delivery contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The event, with a link to its run.
    Thin,
    /// Also the input and the output of the run.
    Full,
}

impl Payload {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Thin, Self::Full];

    /// Name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Full => "full",
        }
    }

    /// Finds the value of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == name)
    }
}

/// Order of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// Each delivery for itself.
    Unordered,
    /// Those of a run one after the other.
    PerRun,
}

impl Ordering {
    /// All values.
    pub const ALL: [Self; 2] = [Self::Unordered, Self::PerRun];

    /// Name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unordered => "none",
            Self::PerRun => "per_run",
        }
    }

    /// Finds the value of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == name)
    }
}

/// What a recovery sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Deliveries that have failed.
    Failed,
    /// Events that were never sent: held while the endpoint was disabled, or from before it took them.
    Missing,
    /// All events.
    All,
}

impl Which {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Missing, Self::All];

    /// Name on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Missing => "missing",
            Self::All => "all",
        }
    }

    /// Finds the value of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|value| value.as_str() == name)
    }

    /// States of deliveries that it is about.
    #[must_use]
    pub fn states(self) -> &'static [&'static str] {
        match self {
            Self::Failed => &["failed"],
            Self::Missing => &["held"],
            Self::All => &["failed", "held", "delivered"],
        }
    }

    /// Whether it is about events without a delivery.
    #[must_use]
    pub fn includes_missing(self) -> bool {
        self != Self::Failed
    }
}

/// Secret with the time until which it signs.
#[derive(Clone, Serialize, Deserialize)]
pub struct TimedSecret {
    /// The secret, as its owner has it.
    pub secret: String,
    /// Seconds since the epoch; `None` for the current secret.
    pub until: Option<i64>,
}

/// What the vault keeps of an endpoint. It has no `Debug`, since it holds secrets.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Sealed {
    /// Secrets, the current one first.
    pub secrets: Vec<TimedSecret>,
    /// Custom headers.
    pub headers: Vec<(String, String)>,
}

impl Sealed {
    /// Secrets that sign at that time, the current one first.
    #[must_use]
    pub fn valid_at(&self, epoch_secs: i64) -> Vec<Secret> {
        let valid = self.secrets.iter().filter(|timed| timed.until.is_none_or(|until| until > epoch_secs));
        valid.filter_map(|timed| Secret::parse(&timed.secret).ok()).collect()
    }

    /// Makes a secret the current one. The one before signs for that many seconds more.
    pub fn rotate(&mut self, secret: &Secret, epoch_secs: i64, grace_secs: i64) {
        self.secrets.retain(|timed| timed.until.is_none_or(|until| until > epoch_secs));
        if let Some(current) = self.secrets.first_mut() {
            current.until = Some(epoch_secs.saturating_add(grace_secs));
        }
        if grace_secs == 0 && !self.secrets.is_empty() {
            self.secrets.remove(0);
        }
        self.secrets.insert(0, TimedSecret { secret: secret.text().to_owned(), until: None });
        self.secrets.truncate(1 + MAX_OLD_SECRETS);
    }
}

/// Whether an endpoint may have a custom header of that name (in lower case).
#[must_use]
pub fn is_own_header(name: &str) -> bool {
    let is_reserved =
        ["host", "user-agent", "connection", "transfer-encoding", "traceparent", "expect", "te", "upgrade"]
            .contains(&name)
            || name.starts_with("content-")
            || name.starts_with("webhook-")
            || name.starts_with("proxy-");
    !is_reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pitfall 11: within the grace both secrets sign; after it one.
    #[test]
    fn an_old_secret_signs_until_its_grace_is_over() {
        let secret = |byte: u8| Secret::hmac_of(&[byte; 32]);
        let mut sealed = Sealed::default();
        let texts =
            |sealed: &Sealed, at| sealed.valid_at(at).iter().map(|secret| secret.text().to_owned()).collect::<Vec<_>>();
        sealed.rotate(&secret(1), 1000, 0);
        assert_eq!(texts(&sealed, 1000), [secret(1).text()]);
        sealed.rotate(&secret(2), 1000, 60);
        assert_eq!(texts(&sealed, 1059), [secret(2).text(), secret(1).text()]);
        assert_eq!(texts(&sealed, 1060), [secret(2).text()]);
        sealed.rotate(&secret(3), 1030, 60);
        assert_eq!(texts(&sealed, 1059), [3, 2, 1].map(|byte| secret(byte).text().to_owned()));
        sealed.rotate(&secret(4), 1100, 0);
        assert_eq!(texts(&sealed, 1100), [secret(4).text()], "a grace of 0 ends the old one at once");
        for n in 0..30 {
            sealed.rotate(&secret(n), 2000, 600);
        }
        assert_eq!(sealed.secrets.len(), 1 + MAX_OLD_SECRETS);
    }

    #[test]
    fn reserved_headers_are_refused() {
        for name in ["host", "content-type", "content-length", "webhook-id", "user-agent", "connection", "traceparent"]
        {
            assert!(!is_own_header(name), "{name}");
        }
        for name in ["authorization", "x-tenant", "cookie"] {
            assert!(is_own_header(name), "{name}");
        }
    }
}
