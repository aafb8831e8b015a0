//! Circuit breaker: an agent that keeps failing is not called for a while, and then probed carefully. Pure; the storage
//! of a breaker between calls ensures its atomicity.
//!
//! *Closed*: calls are made and counted by the second, as far back as the window. After a failure it opens if the last
//! `failure_threshold` calls have all failed, or if of at least as many calls the share `failure_rate_threshold` has
//! failed. *Open*: no calls for `timeout`. Then *half open*: at most `half_open_max_calls` probes. If all of these
//! succeed it closes with an empty history; any that fails opens it again. A probe has a lease: if its result is never
//! reported, its slot is free at the end of the lease.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::input::{FieldError, Node, Read, member, text};

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Whether the breaker is used. Otherwise every call is made and none is counted.
    pub enabled: bool,
    /// Failures in a row that open it; also the minimum number of calls for the failure rate.
    pub failure_threshold: u32,
    /// Failure rate that opens it, above 0, at most 1.
    pub failure_rate_threshold: f64,
    /// How long it stays open.
    pub timeout: Duration,
    /// Probes while it is half open, and successes that close it.
    pub half_open_max_calls: u32,
    /// How far back calls count.
    pub window: Duration,
}

impl Default for Rules {
    /// Those of the reference deployment.
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: 5,
            failure_rate_threshold: 0.5,
            timeout: Duration::from_mins(1),
            half_open_max_calls: 3,
            window: Duration::from_mins(2),
        }
    }
}

/// Largest `failure_threshold` and `half_open_max_calls`.
pub const MAX_CALLS: u32 = 1000;
/// Longest `timeout`, a day.
pub const MAX_TIMEOUT_SECS: u64 = 86_400;
/// Longest `window`: calls are kept by the second.
pub const MAX_WINDOW_SECS: u64 = 3600;

impl Rules {
    /// These rules, replaced by those in the agent's `circuit_breaker_config`. Unreadable values in it are ignored;
    /// this service does not store such values, but other programs may.
    #[must_use]
    pub fn of_agent(self, config: Option<&RawValue>) -> Self {
        let Some(config) = config else { return self };
        // As numbers are read elsewhere, also from text.
        let number = |name: &str| {
            let value = member(config, name)?;
            text(value).as_deref().unwrap_or(value.get()).trim().parse::<f64>().ok()
        };
        // Within range, and so without loss.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
        let count = |name: &str, default: u32| {
            number(name).map_or(default, |count| count.clamp(1.0, f64::from(MAX_CALLS)) as u32)
        };
        let secs = |name: &str, default: Duration, max: u64| {
            number(name).map_or(default, |secs| Duration::from_secs_f64(secs.clamp(1.0, max as f64)))
        };
        let rate = number("failure_rate_threshold").filter(|rate| *rate > 0.0 && *rate <= 1.0);
        Self {
            enabled: member(config, "enabled").map_or(self.enabled, |enabled| enabled.get() != "false"),
            failure_threshold: count("failure_threshold", self.failure_threshold),
            failure_rate_threshold: rate.unwrap_or(self.failure_rate_threshold),
            timeout: secs("timeout_seconds", self.timeout, MAX_TIMEOUT_SECS),
            half_open_max_calls: count("half_open_max_calls", self.half_open_max_calls),
            window: secs("window_size_seconds", self.window, MAX_WINDOW_SECS),
        }
    }

    /// Reads a `circuit_breaker_config` to store: an object whose known members are valid.
    pub fn read_config(node: &Node<'_>) -> Read<Box<RawValue>> {
        let config = node.free_object()?;
        let object = node.object()?;
        let mut errors = Vec::new();
        object.nullable("enabled", &mut errors, Node::boolean);
        for (name, max) in [
            ("failure_threshold", u64::from(MAX_CALLS)),
            ("timeout_seconds", MAX_TIMEOUT_SECS),
            ("half_open_max_calls", u64::from(MAX_CALLS)),
            ("window_size_seconds", MAX_WINDOW_SECS),
        ] {
            object.nullable(name, &mut errors, |node| node.int(1..=max.try_into().unwrap_or(i64::MAX)));
        }
        object.nullable("failure_rate_threshold", &mut errors, |node| match node.float(0.0)? {
            rate if rate > 0.0 && rate <= 1.0 => Ok(rate),
            _ => Err(vec![FieldError::rule(node.path(), "must be above 0 and at most 1")]),
        });
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

/// State of a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Calls are made.
    #[default]
    Closed,
    /// No calls are made.
    Open,
    /// A few calls are made as probes.
    HalfOpen,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// As in the `state` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Closed, Self::Open, Self::HalfOpen].into_iter().find(|state| state.as_str() == name)
    }
}

/// The calls of one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Second since the epoch.
    pub at: i64,
    /// Number of successes.
    pub succeeded: u32,
    /// Number of failures.
    pub failed: u32,
    /// Number of failures after the last success.
    pub failed_last: u32,
}

impl Calls {
    /// One call.
    #[must_use]
    pub fn one(at: i64, has_succeeded: bool) -> Self {
        let failed = u32::from(!has_succeeded);
        Self { at, succeeded: u32::from(has_succeeded), failed, failed_last: failed }
    }

    /// Adds calls of the same second that came later.
    pub fn add(&mut self, later: Self) {
        self.failed_last = later.failed_last + if later.succeeded == 0 { self.failed_last } else { 0 };
        self.succeeded += later.succeeded;
        self.failed += later.failed;
    }
}

/// Probe: a call in the half-open state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Id of the probe.
    pub token: Uuid,
    /// End of its lease. After this the probe counts as lost.
    pub until: DateTime<Utc>,
}

/// Admission decision for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The call is made.
    Made,
    /// The call is made, and its result must be reported to [`Breaker::settle`] with this token.
    Probe(Uuid),
    /// The call is not made.
    Rejected,
}

/// The breaker of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Whether calls are made.
    pub state: State,
    /// When it opened last; not if it has closed since.
    pub opened_at: Option<DateTime<Utc>>,
    /// The calls of the window, oldest first; while it is closed.
    pub calls: Vec<Calls>,
    /// Those under way; while it is half open.
    pub probes: Vec<Probe>,
    /// Number of successful probes since it is half open.
    pub probes_succeeded: u32,
}

impl Breaker {
    /// When an open breaker lets the first probe through.
    #[must_use]
    pub fn retry_at(&self, rules: &Rules) -> Option<DateTime<Utc>> {
        let opened_at = self.opened_at.filter(|_| self.state == State::Open)?;
        opened_at.checked_add_signed(TimeDelta::from_std(rules.timeout).ok()?)
    }

    /// Calls and failures of the window.
    #[must_use]
    pub fn counts(&self, rules: &Rules, now: DateTime<Utc>) -> (u32, u32) {
        let since = window_start(rules, now);
        let of_window = self.calls.iter().filter(|calls| calls.at >= since);
        of_window.fold((0, 0), |(calls, failures), second| {
            (calls + second.succeeded + second.failed, failures + second.failed)
        })
    }

    /// Admits or rejects a call. `lease`: time after which the lease of a probe ends.
    pub fn admit(&mut self, rules: &Rules, now: DateTime<Utc>, lease: Duration) -> Admission {
        match self.state {
            State::Closed => return Admission::Made,
            State::Open if self.retry_at(rules).is_some_and(|at| now < at) => return Admission::Rejected,
            State::Open => {
                *self = Self { state: State::HalfOpen, opened_at: self.opened_at, ..Self::default() };
            }
            State::HalfOpen => self.probes.retain(|probe| now < probe.until),
        }
        if self.probes_succeeded >= rules.half_open_max_calls {
            // The limit is now lower than when the last probe succeeded.
            *self = Self::default();
            return Admission::Made;
        }
        let taken = u64::from(self.probes_succeeded) + self.probes.len() as u64;
        if taken >= u64::from(rules.half_open_max_calls) {
            return Admission::Rejected;
        }
        let token = Uuid::new_v4();
        let until = TimeDelta::from_std(lease).ok().and_then(|lease| now.checked_add_signed(lease)).unwrap_or(now);
        self.probes.push(Probe { token, until });
        Admission::Probe(token)
    }

    /// Counts calls that have ended. Those that end while it is not closed were begun before, and do not count.
    pub fn record(&mut self, rules: &Rules, now: DateTime<Utc>, calls: &[Calls]) {
        if self.state != State::Closed {
            return;
        }
        let since = window_start(rules, now);
        let mut all = std::mem::take(&mut self.calls);
        all.extend(calls);
        all.sort_by_key(|second| second.at);
        for second in all.into_iter().filter(|second| second.at >= since) {
            match self.calls.last_mut() {
                Some(last) if last.at == second.at => last.add(second),
                _ => self.calls.push(second),
            }
        }
        if calls.iter().any(|second| second.failed > 0) && self.is_too_bad(rules, now) {
            self.open(now);
        }
    }

    fn is_too_bad(&self, rules: &Rules, now: DateTime<Utc>) -> bool {
        let (calls, failures) = self.counts(rules, now);
        let mut in_a_row = 0;
        for second in self.calls.iter().rev() {
            in_a_row += second.failed_last;
            if second.succeeded > 0 {
                break;
            }
        }
        let rate = f64::from(failures) / f64::from(calls.max(1));
        calls >= rules.failure_threshold
            && (in_a_row >= rules.failure_threshold || rate >= rules.failure_rate_threshold)
    }

    /// Ends a probe; `None`: its result shows nothing about the agent.
    pub fn settle(&mut self, rules: &Rules, now: DateTime<Utc>, token: Uuid, has_succeeded: Option<bool>) {
        let Some(index) = self.probes.iter().position(|probe| probe.token == token) else { return };
        self.probes.remove(index);
        match has_succeeded {
            None => {}
            Some(false) => self.open(now),
            Some(true) => {
                self.probes_succeeded += 1;
                if self.probes_succeeded >= rules.half_open_max_calls {
                    *self = Self::default();
                }
            }
        }
    }

    fn open(&mut self, now: DateTime<Utc>) {
        *self = Self { state: State::Open, opened_at: Some(now), ..Self::default() };
    }
}

fn window_start(rules: &Rules, now: DateTime<Utc>) -> i64 {
    now.timestamp() - i64::try_from(rules.window.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + secs, 0).expect("a time")
    }

    fn record(breaker: &mut Breaker, secs: i64, results: &str) {
        for result in results.chars() {
            breaker.record(&Rules::default(), at(secs), &[Calls::one(at(secs).timestamp(), result == '+')]);
        }
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        record(&mut breaker, 0, "-----");
        assert_eq!(breaker.state, State::Open);
        breaker
    }

    fn probe(breaker: &mut Breaker, secs: i64) -> Uuid {
        match breaker.admit(&Rules::default(), at(secs), LEASE) {
            Admission::Probe(token) => token,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_or_of_a_share_of_the_window() {
        for (results, expected) in [
            (vec![(0, "----")], State::Closed),
            (vec![(0, "-----")], State::Open),
            (vec![(0, "--"), (1, "-"), (3, "--")], State::Open),
            // 5 in a row after many that succeeded.
            (vec![(0, "++++++++++++++++++++"), (1, "----")], State::Closed),
            (vec![(0, "++++++++++++++++++++"), (1, "-----")], State::Open),
            // Half of at least 5, decided by a failure alone.
            (vec![(0, "++--")], State::Closed),
            (vec![(0, "++---")], State::Open),
            (vec![(0, "+-+-+-")], State::Open),
            (vec![(0, "+++-+-")], State::Closed),
            (vec![(0, "+++-+-+")], State::Closed),
            // Out of the window.
            (vec![(0, "----"), (121, "-")], State::Closed),
            (vec![(0, "----"), (120, "-")], State::Open),
        ] {
            let mut breaker = Breaker::default();
            for (secs, results) in &results {
                record(&mut breaker, *secs, results);
            }
            assert_eq!(breaker.state, expected, "{results:?}");
        }
    }

    /// What processes report is merged by time, whichever comes first.
    #[test]
    fn reports_of_several_processes_are_one_history() {
        let (mut one, mut other) = (Breaker::default(), Breaker::default());
        let second = |secs: i64, succeeded, failed, failed_last| Calls {
            at: at(secs).timestamp(),
            succeeded,
            failed,
            failed_last,
        };
        let (a, b) = ([second(0, 9, 0, 0), second(2, 0, 2, 2)], [second(1, 4, 1, 1), second(2, 1, 1, 0)]);
        for (breaker, reports) in [(&mut one, [a, b]), (&mut other, [b, a])] {
            for report in reports {
                breaker.record(&Rules::default(), at(2), &report);
            }
            assert_eq!((breaker.state, breaker.counts(&Rules::default(), at(2))), (State::Closed, (18, 4)));
            assert_eq!(breaker.calls.len(), 3);
        }
    }

    #[test]
    fn an_open_breaker_rejects_until_its_time_is_over_and_then_admits_so_many_probes() {
        let mut breaker = opened();
        assert_eq!(breaker.admit(&Rules::default(), at(59), LEASE), Admission::Rejected);
        // Late results of calls from before change nothing.
        record(&mut breaker, 30, "+++++");
        assert_eq!(breaker.state, State::Open);
        let probes = [60, 60, 61].map(|secs| probe(&mut breaker, secs));
        assert_eq!(breaker.state, State::HalfOpen);
        assert_eq!(breaker.admit(&Rules::default(), at(61), LEASE), Admission::Rejected);
        for (index, token) in probes.into_iter().enumerate() {
            assert_eq!(breaker.state, State::HalfOpen, "{index}");
            breaker.settle(&Rules::default(), at(62), token, Some(true));
        }
        assert_eq!(breaker, Breaker::default(), "closed, with an empty history");
        assert_eq!(breaker.admit(&Rules::default(), at(62), LEASE), Admission::Made);
        record(&mut breaker, 63, "-");
        assert_eq!(breaker.state, State::Closed);
    }

    #[test]
    fn a_probe_that_fails_opens_it_again() {
        let mut breaker = opened();
        let (first, second) = (probe(&mut breaker, 60), probe(&mut breaker, 60));
        breaker.settle(&Rules::default(), at(61), first, Some(false));
        assert_eq!((breaker.state, breaker.opened_at), (State::Open, Some(at(61))));
        breaker.settle(&Rules::default(), at(62), second, Some(true));
        assert_eq!(breaker.state, State::Open, "the others have nothing to say any more");
        assert_eq!(breaker.admit(&Rules::default(), at(120), LEASE), Admission::Rejected);
        probe(&mut breaker, 121);
    }

    #[test]
    fn a_probe_that_is_lost_or_says_nothing_frees_its_place() {
        let mut breaker = opened();
        let lost = [60, 60].map(|secs| probe(&mut breaker, secs));
        let mute = probe(&mut breaker, 60);
        assert_eq!(breaker.admit(&Rules::default(), at(69), LEASE), Admission::Rejected);
        breaker.settle(&Rules::default(), at(69), mute, None);
        let third = probe(&mut breaker, 69);
        assert_eq!(breaker.admit(&Rules::default(), at(69), LEASE), Admission::Rejected);
        // The leases of the first two are over.
        let others = [probe(&mut breaker, 70), probe(&mut breaker, 70)];
        breaker.settle(&Rules::default(), at(71), lost[0], Some(false));
        assert_eq!(breaker.state, State::HalfOpen, "a result that comes after its lease does not count");
        for token in [third, others[0], others[1]] {
            breaker.settle(&Rules::default(), at(71), token, Some(true));
        }
        assert_eq!(breaker.state, State::Closed);
    }

    #[test]
    fn rules_that_change_meanwhile_do_not_leave_it_stuck() {
        let mut breaker = opened();
        for _ in 0..2 {
            let token = probe(&mut breaker, 60);
            breaker.settle(&Rules::default(), at(60), token, Some(true));
        }
        let fewer = Rules { half_open_max_calls: 1, ..Rules::default() };
        assert_eq!(breaker.admit(&fewer, at(61), LEASE), Admission::Made);
        assert_eq!(breaker.state, State::Closed);
    }

    #[test]
    fn an_agents_config_is_stronger_than_the_settings() {
        let raw = |json: &'static str| check_json(json.as_bytes()).expect(json);
        let given = r#"{"enabled":false,"failure_threshold":2,"failure_rate_threshold":0.25,"timeout_seconds":7,
            "half_open_max_calls":1,"window_size_seconds":"9","note":"kept"}"#;
        let expected = Rules {
            enabled: false,
            failure_threshold: 2,
            failure_rate_threshold: 0.25,
            timeout: Duration::from_secs(7),
            half_open_max_calls: 1,
            window: Duration::from_secs(9),
        };
        assert_eq!(Rules::default().of_agent(Some(raw(given))), expected);
        assert!(Rules::read_config(&Node::new("c", raw(given))).is_ok_and(|kept| kept.get() == given));
        for other in ["{}", "null", "[]", r#"{"failure_threshold":null,"timeout_seconds":"x"}"#] {
            assert_eq!(Rules::default().of_agent(Some(raw(other))), Rules::default(), "{other}");
        }
        for (bad, field) in [
            (r#"{"enabled":"yes"}"#, "c.enabled"),
            (r#"{"failure_threshold":0}"#, "c.failure_threshold"),
            (r#"{"failure_rate_threshold":0}"#, "c.failure_rate_threshold"),
            (r#"{"failure_rate_threshold":1.5}"#, "c.failure_rate_threshold"),
            (r#"{"timeout_seconds":1e9}"#, "c.timeout_seconds"),
            (r#"{"window_size_seconds":3601}"#, "c.window_size_seconds"),
            ("[]", "c"),
        ] {
            let errors = Rules::read_config(&Node::new("c", raw(bad))).expect_err(bad);
            assert_eq!(errors[0].field, field, "{bad}");
        }
    }
}
