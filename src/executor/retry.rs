//! Retry decision: whether and when an attempt is repeated. Pure.

use std::time::Duration;

use crate::agent::RetryConfig;

/// Longest pause that a configuration may set, 24 days.
const MAX_DELAY_MS: u64 = i32::MAX as u64;
/// First and longest pause between two attempts to reach the database.
const DATABASE_PAUSE: Duration = Duration::from_millis(50);
const MAX_DATABASE_PAUSE: Duration = Duration::from_secs(1);

/// Retry decision of an agent's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Never: the same request would fail in the same way.
    Never,
    /// Later: the request may succeed then.
    Later,
    /// After the pause that the agent requested.
    After(Duration),
}

/// Number of an attempt, from 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptNumber {
    /// Among those at the step.
    pub(super) at_step: u32,
    /// Among those that call the same agent.
    pub(super) of_agent: u32,
}

/// Maximum number of attempts at one step.
pub(super) fn max_attempts(config: &RetryConfig) -> u32 {
    // Callers store 0 for no retries; the reference deployment never calls such an agent.
    config.max_retries.max(1)
}

/// The pause after the failed attempt of that number, counted from 1; `None`: it was the last one. The pause is the
/// fraction `chance`, from 0 to 1, of the configured pause (full jitter), or the pause that the agent requested if that
/// is longer. It is not longer than the time that the run has left.
pub(super) fn pause(
    config: &RetryConfig,
    attempt: u32,
    again: RetryDecision,
    chance: f64,
    time_left: Duration,
) -> Option<Duration> {
    if again == RetryDecision::Never || attempt >= max_attempts(config) {
        return None;
    }
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let growth = config.backoff_multiplier.max(1.0).powi(exponent);
    let max = Duration::from_millis(config.max_delay_ms.min(MAX_DELAY_MS)).as_secs_f64();
    // A product that is not a number or too large becomes the longest pause.
    let secs = (Duration::from_millis(config.initial_delay_ms.min(MAX_DELAY_MS)).as_secs_f64() * growth).min(max);
    let spread = Duration::from_secs_f64(secs * chance);
    let pause = if let RetryDecision::After(wanted) = again { spread.max(wanted) } else { spread };
    Some(pause.min(time_left))
}

/// The pause after that number of failures, less one, to reach the database.
pub(super) fn database_pause(failures: u32) -> Duration {
    (DATABASE_PAUSE * 2_u32.pow(failures.min(10))).min(MAX_DATABASE_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    #[test]
    fn pauses_grow_up_to_a_limit_and_end_with_the_last_attempt() {
        let config = RetryConfig { max_retries: 5, initial_delay_ms: 100, max_delay_ms: 350, backoff_multiplier: 2.0 };
        let pauses: Vec<_> = (1..=5)
            .map(|attempt| pause(&config, attempt, RetryDecision::Later, 1.0, LONG).map(|pause| pause.as_millis()))
            .collect();
        assert_eq!(pauses, [Some(100), Some(200), Some(350), Some(350), None]);
        for (chance, expected) in [(0.0, 0), (0.25, 50), (1.0, 200)] {
            let pause = pause(&config, 2, RetryDecision::Later, chance, LONG).expect("not the last").as_millis();
            assert_eq!(pause, expected);
        }
        assert_eq!(pause(&config, 1, RetryDecision::Never, 0.5, LONG), None);
    }

    #[test]
    fn odd_settings_give_bounded_pauses_and_at_least_one_attempt() {
        let none = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        assert_eq!(max_attempts(&none), 1);
        assert_eq!(pause(&none, 1, RetryDecision::Later, 0.5, LONG), None);
        for backoff_multiplier in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            let odd = RetryConfig { max_retries: 10, backoff_multiplier, ..RetryConfig::default() };
            let pause = pause(&odd, 9, RetryDecision::Later, 1.0, LONG).expect("not the last");
            assert!(pause <= Duration::from_secs(36), "{backoff_multiplier}: {pause:?}");
        }
    }

    #[test]
    fn an_agent_may_ask_for_a_longer_pause_within_bounds() {
        let config = RetryConfig::default();
        let secs = |again| pause(&config, 1, again, 1.0, LONG).map(|pause| pause.as_secs());
        assert_eq!(secs(RetryDecision::After(Duration::from_secs(5))), Some(5));
        assert_eq!(secs(RetryDecision::After(Duration::from_mins(10))), Some(600));
        assert_eq!(secs(RetryDecision::After(Duration::ZERO)), Some(1));
        assert_eq!(secs(RetryDecision::After(Duration::MAX)), Some(3600), "the run's time ends first");
    }
}
