//! Agent settings: `ENCRYPTION_KEY`, `EGRESS_ALLOW` and `CIRCUIT_BREAKER_*`.

use std::time::Duration;

use super::{Reader, Section};
use crate::{
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
