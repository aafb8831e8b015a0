//! Simulated failures: whether and how a call fails.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;

use super::Options;

/// Maximum delay of a call: twice the maximum time-out of an agent.
const MAX_DELAY: Duration = Duration::from_mins(10);
/// Maximum number of messages with a failure count; the oldest is dropped for a new one.
const MAX_COUNTED: usize = 10_000;
/// Maximum length of a key that is counted unhashed.
const MAX_KEY_BYTES: usize = 256;

/// Kind of a failure.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(super) enum Failure {
    /// HTTP 503, which callers retry.
    #[serde(rename = "503")]
    Unavailable,
    /// A JSON-RPC error with HTTP 200.
    #[serde(rename = "jsonrpc")]
    JsonRpc,
    /// The connection is closed without an answer.
    #[serde(rename = "close")]
    Close,
}

impl Failure {
    /// Name for the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "failed_503",
            Self::JsonRpc => "failed_jsonrpc",
            Self::Close => "failed_close",
        }
    }
}

/// Overrides of the process's options in the query of a URL.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct FailureOverrides {
    /// Delay before the answer.
    delay_ms: Option<u64>,
    /// Duration of a task, which is the answer then.
    pub(super) task_ms: Option<u64>,
    /// Number of questions that the agent asks before it completes the task.
    pub(super) asks: Option<u32>,
    /// Whether it asks for an authorisation and not for more text.
    #[serde(default)]
    pub(super) auth: bool,
    /// Kind of the failure; without `fail_times` every call fails.
    fail: Option<Failure>,
    /// Number of failures before the first success.
    fail_times: Option<u32>,
    /// Key of the count of `fail_times`; by default the message's id, which is new for each attempt of a step.
    key: Option<String>,
}

/// Failures of the process's options, and the counts.
pub(super) struct Failures {
    delay: Duration,
    rate: f64,
    times: u32,
    counts: Mutex<Counts>,
}

/// Failure count of each key, and the keys in the order of their first failure.
#[derive(Default)]
struct Counts {
    failed: HashMap<String, u32>,
    order: VecDeque<String>,
}

impl Failures {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            delay: Duration::from_millis(options.delay_ms),
            rate: options.fail_rate,
            times: options.fail_times,
            counts: Mutex::default(),
        }
    }

    /// Delay before the answer.
    pub(super) fn delay(&self, overrides: &FailureOverrides) -> Duration {
        overrides.delay_ms.map_or(self.delay, Duration::from_millis).min(MAX_DELAY)
    }

    /// Failure of this call, which is counted; `None`: it succeeds.
    pub(super) fn next(&self, overrides: &FailureOverrides, message_id: &str) -> Option<Failure> {
        let failure = overrides.fail.unwrap_or(Failure::Unavailable);
        let times = match (overrides.fail, overrides.fail_times) {
            (_, Some(times)) => times,
            (Some(_), None) => return Some(failure),
            (None, None) => self.times,
        };
        let key = overrides.key.as_deref().unwrap_or(message_id);
        if (times > 0 && self.count(key, times)) || (self.rate > 0.0 && rand::random::<f64>() < self.rate) {
            return Some(failure);
        }
        None
    }

    /// Whether the key has failed less often than that; if so, counts one more failure.
    fn count(&self, key: &str, times: u32) -> bool {
        let key = key.get(..MAX_KEY_BYTES).unwrap_or(key);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failed) = counts.failed.get_mut(key) {
            let fails = *failed < times;
            *failed += u32::from(fails);
            return fails;
        }
        if counts.order.len() >= MAX_COUNTED
            && let Some(oldest) = counts.order.pop_front()
        {
            counts.failed.remove(&oldest);
        }
        counts.order.push_back(key.to_owned());
        counts.failed.insert(key.to_owned(), 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(fail_rate: f64, fail_times: u32) -> Failures {
        let host = std::net::Ipv4Addr::LOCALHOST.into();
        Failures::new(&Options { host, port: 0, delay_ms: 5, fail_rate, fail_times })
    }

    fn overrides(query: &str) -> FailureOverrides {
        let uri = format!("/?{query}").parse().unwrap();
        axum::extract::Query::<FailureOverrides>::try_from_uri(&uri).unwrap().0
    }

    #[test]
    fn a_message_fails_as_often_as_requested_and_then_succeeds() {
        let failures = failures(0.0, 0);
        let twice = overrides("fail=jsonrpc&fail_times=2");
        assert_eq!(failures.next(&twice, "a"), Some(Failure::JsonRpc));
        assert_eq!(failures.next(&twice, "a"), Some(Failure::JsonRpc));
        assert_eq!(failures.next(&twice, "a"), None);
        assert_eq!(failures.next(&twice, "b"), Some(Failure::JsonRpc));
    }

    #[test]
    fn a_key_of_the_caller_counts_across_messages() {
        let failures = failures(0.0, 0);
        let once = overrides("fail_times=1&key=k");
        assert_eq!(failures.next(&once, "a"), Some(Failure::Unavailable));
        assert_eq!(failures.next(&once, "b"), None);
    }

    #[test]
    fn the_query_is_stronger_than_the_options() {
        let failures = failures(0.0, 1);
        assert_eq!(failures.next(&overrides("fail_times=0"), "a"), None);
        assert_eq!(failures.next(&FailureOverrides::default(), "a"), Some(Failure::Unavailable));
        assert_eq!(failures.next(&FailureOverrides::default(), "a"), None);
        assert_eq!(failures.next(&overrides("fail=close"), "a"), Some(Failure::Close));
        assert_eq!(failures.delay(&FailureOverrides::default()), Duration::from_millis(5));
        assert_eq!(failures.delay(&overrides("delay_ms=7")), Duration::from_millis(7));
        assert_eq!(failures.delay(&overrides("delay_ms=99999999999")), MAX_DELAY);
    }

    #[test]
    fn a_rate_of_one_always_fails_and_the_counts_stay_bounded() {
        assert_eq!(failures(1.0, 0).next(&FailureOverrides::default(), "a"), Some(Failure::Unavailable));
        let failures = failures(0.0, 1);
        for message in 0..MAX_COUNTED + 10 {
            failures.next(&FailureOverrides::default(), &message.to_string());
        }
        let counts = failures.counts.lock().unwrap();
        assert_eq!((counts.failed.len(), counts.order.len()), (MAX_COUNTED, MAX_COUNTED));
    }
}
