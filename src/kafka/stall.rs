//! Stall detection of a producer: messages without a delivery report, although brokers answer.
//!
//! librdkafka can keep the messages of a partition for good, without a report: its issue 5430 has one way, a partition
//! whose leader was away for a moment. Only a new client helps.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// Token of a message: it is held until the delivery report.
#[derive(Debug)]
pub struct Token(#[expect(dead_code, reason = "only the number of references counts")] Arc<()>);

/// Detector. Messages are told apart by two generations, so that it costs the same for any number of them.
#[derive(Default)]
pub(super) struct StallDetector(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: Arc<()>,
    /// Messages from before `since`.
    old: Weak<()>,
    since: Option<Instant>,
}

impl StallDetector {
    /// Token of a new message.
    pub(super) fn token(&self) -> Token {
        Token(Arc::clone(&self.generations().young))
    }

    /// Time that the oldest messages have waited at least, while brokers answered.
    pub(super) fn waited(&self, is_answered: bool, now: Instant) -> Duration {
        let mut generations = self.generations();
        if generations.old.strong_count() == 0 {
            let young = mem::take(&mut generations.young);
            generations.old = Arc::downgrade(&young);
            generations.since = Some(now);
        } else if !is_answered {
            generations.since = Some(now);
        }
        generations.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Forgets the messages of a client that is replaced.
    pub(super) fn reset(&self) {
        *self.generations() = Generations::default();
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_without_a_report_count_and_only_while_brokers_answer() {
        let (detector, start) = (StallDetector::default(), Instant::now());
        let waited = |secs, is_answered| detector.waited(is_answered, start + Duration::from_secs(secs)).as_secs();
        let stuck = detector.token();
        assert_eq!(waited(0, true), 0, "from the first look");
        drop(detector.token());
        assert_eq!(waited(10, true), 10);
        assert_eq!(waited(20, false), 0, "an outage is not a stall");
        assert_eq!(waited(50, true), 30);
        drop(stuck);
        let late = detector.token();
        assert_eq!(waited(60, true), 0, "the reported messages are forgotten");
        assert_eq!(waited(70, true), 10);
        detector.reset();
        assert_eq!(waited(80, true), 0, "the messages of a replaced client are forgotten");
        drop(late);
    }

    #[test]
    fn a_steady_flow_is_no_stall() {
        let (detector, start) = (StallDetector::default(), Instant::now());
        let mut in_flight = Vec::new();
        for second in 0..100 {
            in_flight.push(detector.token());
            let waited = detector.waited(true, start + Duration::from_secs(second));
            assert!(waited <= Duration::from_secs(4), "{waited:?}");
            if in_flight.len() > 3 {
                in_flight.remove(0);
            }
        }
    }
}
