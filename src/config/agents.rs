//! Agent settings: `ENCRYPTION_KEY`, `EGRESS_ALLOW`, `DEFAULT_AGENT_*` and `CIRCUIT_BREAKER_*`.

use std::time::Duration;

use super::{Reader, Section};
use crate::{
    agent::{Defaults, MAX_DELAY_MS, RetryConfig},
    breaker::{self, Rules},
    egress::{Allow, BadEntry},
    vault::Vault,
};

impl Section for Vault {
    fn read(reader: &mut Reader) -> Option<Self> {
        reader.parsed("encryption_key", Self::default(), Self::parse)
    }
}

impl Section for Allow {
    fn read(reader: &mut Reader) -> Option<Self> {
        reader
            .parsed("egress_allow", Self::default(), |value| value.parse().map_err(|error: BadEntry| error.to_string()))
    }
}

impl Section for Defaults {
    fn read(reader: &mut Reader) -> Option<Self> {
        let default = Self::default();
        let timeout_ms = reader.number("default_agent_timeout_ms", default.timeout_ms, 1000..=300_000);
        let retry = default.retry_config;
        let longest = MAX_DELAY_MS.unsigned_abs();
        let max_retries = reader.number("default_agent_max_retries", retry.max_retries, 0..=10);
        let initial_delay_ms = reader.number("default_agent_initial_delay_ms", retry.initial_delay_ms, 100..=longest);
        let max_delay_ms = reader.number("default_agent_max_delay_ms", retry.max_delay_ms, 1000..=longest);
        let backoff_multiplier =
            reader.parsed("default_agent_backoff_multiplier", retry.backoff_multiplier, |value| match value.parse() {
                Ok(factor) if (1.0..=1000.0).contains(&factor) => Ok(factor),
                _ => Err(format!("must be a number from 1 to 1000, not {value:?}")),
            });
        if initial_delay_ms.zip(max_delay_ms).is_some_and(|(initial, max)| initial > max) {
            reader.problem::<()>("default_agent_max_delay_ms", "must not be below DEFAULT_AGENT_INITIAL_DELAY_MS");
        }
        let (max_retries, initial_delay_ms, max_delay_ms) = (max_retries?, initial_delay_ms?, max_delay_ms?);
        let backoff_multiplier = backoff_multiplier?;
        let retry_config = RetryConfig { max_retries, initial_delay_ms, max_delay_ms, backoff_multiplier };
        Some(Self { timeout_ms: timeout_ms?, retry_config })
    }
}

impl Section for Rules {
    fn read(reader: &mut Reader) -> Option<Self> {
        let default = Rules::default();
        let enabled = reader.boolean("circuit_breaker_enabled", default.enabled);
        let max = breaker::MAX_CALLS;
        let failure_threshold = reader.number("circuit_breaker_failure_threshold", default.failure_threshold, 1..=max);
        let rate = default.failure_rate_threshold;
        let failure_rate_threshold =
            reader.parsed("circuit_breaker_failure_rate_threshold", rate, |value| match value.parse::<f64>() {
                Ok(rate) if rate > 0.0 && rate <= 1.0 => Ok(rate),
                _ => Err(format!("must be a number above 0 and at most 1, not {value:?}")),
            });
        let timeout = default.timeout.as_secs();
        let timeout = reader.number("circuit_breaker_timeout_seconds", timeout, 1..=breaker::MAX_TIMEOUT_SECS);
        let max_calls = default.half_open_max_calls;
        let half_open_max_calls = reader.number("circuit_breaker_half_open_max_calls", max_calls, 1..=max);
        let window = default.window.as_secs();
        let window = reader.number("circuit_breaker_window_size_seconds", window, 1..=breaker::MAX_WINDOW_SECS);
        Some(Self {
            enabled: enabled?,
            failure_threshold: failure_threshold?,
            failure_rate_threshold: failure_rate_threshold?,
            timeout: Duration::from_secs(timeout?),
            half_open_max_calls: half_open_max_calls?,
            window: Duration::from_secs(window?),
        })
    }
}
