//! Timestamps on the wire and in the shared tables.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, SubsecRound, Utc};
use serde::{Serialize, Serializer};

/// Timestamp in UTC with microsecond precision, as in PostgreSQL.
///
/// On the wire it is `2026-02-03T09:00:00.120450Z`; the fraction is omitted if it is zero, as the contract's clients
/// expect. In the shared tables it is a `timestamp without time zone`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, sqlx::Type)]
#[sqlx(transparent)]
pub struct Timestamp(NaiveDateTime);

impl Timestamp {
    /// The present instant, for rows and messages that are written now. It must not be used for time limits.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "rows and messages say when they were written")]
    pub fn now() -> Self {
        Self::from(Utc::now())
    }

    /// The instant that is this much later than now, for those who read it.
    #[must_use]
    pub fn after_now(time: Duration) -> Self {
        Self(Self::now().0 + time)
    }

    /// The value for a `timestamp without time zone` column, in UTC.
    #[must_use]
    pub fn as_naive_utc(self) -> NaiveDateTime {
        self.0
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(instant: DateTime<Utc>) -> Self {
        Self(instant.naive_utc().trunc_subsecs(6))
    }
}

impl From<NaiveDateTime> for Timestamp {
    fn from(utc: NaiveDateTime) -> Self {
        Self(utc.trunc_subsecs(6))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let utc = self.0.and_utc();
        let digits = if utc.timestamp_subsec_micros() == 0 { SecondsFormat::Secs } else { SecondsFormat::Micros };
        // Ten times as fast as a format pattern.
        f.write_str(&utc.to_rfc3339_opts(digits, true))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Value of `Retry-After`: seconds, or an HTTP date.
#[must_use]
pub fn retry_after(value: &str, now: DateTime<Utc>) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let at = DateTime::parse_from_rfc2822(value).ok()?;
    (at.with_timezone(&Utc) - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_has_six_digits_or_none() {
        for (given, expected) in [
            ("2026-02-03T09:00:00.5", "2026-02-03T09:00:00.500000Z"),
            ("2026-02-03T09:00:00", "2026-02-03T09:00:00Z"),
            ("2026-02-03T09:00:00.1234567", "2026-02-03T09:00:00.123456Z"),
            ("1987-12-31T23:59:58.000009", "1987-12-31T23:59:58.000009Z"),
            ("0001-01-01T00:00:00.9", "0001-01-01T00:00:00.900000Z"),
            ("+12345-01-02T03:04:05", "+12345-01-02T03:04:05Z"),
        ] {
            let utc: NaiveDateTime = given.parse().expect("a literal");
            assert_eq!(Timestamp::from(utc).to_string(), expected);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: DateTime<Utc> = "2026-11-28T10:00:00Z".parse().expect("a time");
        let secs = |value| retry_after(value, now).map(|time| time.as_secs());
        assert_eq!(secs("120"), Some(120));
        assert_eq!(secs("Sat, 28 Nov 2026 10:05:00 GMT"), Some(300));
        assert_eq!(secs("99999999999999999999999"), Some(u64::from(u32::MAX)));
        for wrong in ["", "-5", "soon", "Sat, 28 Nov 2026 09:00:00 GMT", "1.5"] {
            assert_eq!(secs(wrong), None, "{wrong}");
        }
    }
}
