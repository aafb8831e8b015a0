//! When a delivery is sent again, and when an endpoint is disabled.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// Shortest pause after an answer that asks for one, or a time-out.
const SLOW_DOWN: Duration = Duration::from_mins(1);
/// Shortest time between the failures for which an endpoint is disabled.
pub const DISABLE_SPAN_HOURS: i64 = 12;
/// Number of time-outs in a row after which an endpoint gets one delivery at a time.
pub const MAX_TIMEOUTS: i32 = 5;
/// Number of failed attempts in a row after which an endpoint is shown with a warning.
pub const WARNING_FAILURES: i32 = 4;

/// Result of an attempt, as the schedule needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// An answer with this status.
    Status(u16),
    /// No answer in time.
    Timeout,
    /// No connection, or one that broke.
    Network,
    /// The address is not allowed.
    NotAllowed,
}

impl Ended {
    /// Whether the delivery has arrived.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::Status(200..=299))
    }

    /// Whether the receiver says that the endpoint is gone for good.
    #[must_use]
    pub fn is_gone(self) -> bool {
        self == Self::Status(410)
    }

    /// Name in the database, on the wire and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status(200..=299) => "success",
            Self::Status(_) => "status",
            Self::Timeout => "timeout",
            Self::Network => "network",
            Self::NotAllowed => "not_allowed",
        }
    }

    fn asks_for_time(self) -> bool {
        matches!(self, Self::Status(429 | 502 | 503 | 504) | Self::Timeout)
    }
}

/// Pause before the next attempt; `None` if the schedule is exhausted. `failed` is the number of attempts that have failed
/// since the schedule began, and `number` the number of the last one in all.
#[must_use]
pub fn pause(
    schedule: &[Duration],
    failed: usize,
    (delivery, number): (Uuid, i32),
    ended: Ended,
    retry_after: Option<Duration>,
) -> Option<Duration> {
    let planned = schedule.get(failed.checked_sub(1)?)?.mul_f64(jitter(delivery, number));
    let least = if ended.asks_for_time() { planned.max(SLOW_DOWN) } else { planned };
    Some(retry_after.map_or(least, |asked| asked.clamp(least, 2 * least)))
}

/// Factor from 0.8 to 1.2 that belongs to an attempt, so that it is the same wherever it is computed.
fn jitter(delivery: Uuid, number: i32) -> f64 {
    let digest = Sha256::new_with_prefix(delivery.as_bytes()).chain_update(number.to_be_bytes()).finalize();
    let part = u16::from_be_bytes([digest[0], digest[1]]);
    0.8 + 0.4 * f64::from(part) / f64::from(u16::MAX)
}

/// Whether an endpoint is to be disabled: it has failed for that long without a success, and there are two failures that
/// are 12 hours apart.
#[must_use]
pub fn is_given_up(failing_since: DateTime<Utc>, last_failure: DateTime<Utc>, disable_after: TimeDelta) -> bool {
    let span = last_failure - failing_since;
    span >= disable_after && span >= TimeDelta::hours(DISABLE_SPAN_HOURS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: [u64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];

    fn schedule() -> Vec<Duration> {
        DEFAULT.map(Duration::from_secs).to_vec()
    }

    #[test]
    fn every_pause_is_within_a_fifth_of_the_schedule_and_the_same_when_computed_again() {
        let mut seen = std::collections::BTreeSet::new();
        for delivery in (0..200).map(Uuid::from_u128) {
            for (index, planned) in schedule().iter().enumerate() {
                let number = i32::try_from(index + 1).expect("small");
                let of = || pause(&schedule(), index + 1, (delivery, number), Ended::Status(500), None);
                let found = of().expect("a pause");
                assert_eq!(of(), Some(found));
                assert!(found >= planned.mul_f64(0.799) && found <= planned.mul_f64(1.201), "{found:?} of {planned:?}");
                seen.insert(found);
            }
            assert_eq!(pause(&schedule(), 10, (delivery, 10), Ended::Network, None), None, "nine pauses, ten attempts");
        }
        assert!(seen.len() > 1500, "{}", seen.len());
    }

    /// Pitfall 14: `Retry-After: 31536000` parks nothing for a year.
    #[test]
    fn retry_after_is_honoured_between_the_pause_and_twice_the_pause() {
        let key = (Uuid::from_u128(7), 2);
        let of = |ended, asked: Option<u64>| {
            pause(&schedule(), 2, key, ended, asked.map(Duration::from_secs)).expect("a pause")
        };
        let least = of(Ended::Status(500), None);
        assert_eq!(of(Ended::Status(500), Some(31_536_000)), 2 * least);
        assert_eq!(of(Ended::Status(500), Some(1)), least);
        let between = least.as_secs() + 60;
        assert_eq!(of(Ended::Status(503), Some(between)), Duration::from_secs(between));
    }

    #[test]
    fn an_answer_that_asks_for_time_and_a_timeout_pause_for_a_minute_at_least() {
        let of = |ended| pause(&schedule(), 1, (Uuid::nil(), 1), ended, None).expect("a pause");
        for ended in [429, 502, 503, 504].map(Ended::Status).into_iter().chain([Ended::Timeout]) {
            assert_eq!(of(ended), SLOW_DOWN, "{ended:?}");
        }
        for ended in [Ended::Status(500), Ended::Status(302), Ended::Network, Ended::NotAllowed] {
            assert!(of(ended) <= Duration::from_secs(6), "{ended:?}");
        }
    }

    /// Pitfall 4: time without success decides, not the number of failures.
    #[test]
    fn an_endpoint_is_given_up_by_time_and_not_by_count() {
        let since: DateTime<Utc> = "2026-11-01T00:00:00Z".parse().expect("a time");
        let after = |hours| is_given_up(since, since + TimeDelta::hours(hours), TimeDelta::hours(120));
        assert!(!after(1) && !after(119) && after(120) && after(121));
        let soon = |hours| is_given_up(since, since + TimeDelta::hours(hours), TimeDelta::hours(1));
        assert!(!soon(2) && !soon(11) && soon(12), "two failures must be 12 hours apart");
    }
}
