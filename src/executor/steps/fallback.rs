//! Fallbacks: the agents that a step calls in the place of its own.
//!
//! An agent is left when its circuit breaker is open, at once, or when its attempts are used up, and only after a failure
//! that another agent may mend ([`may_mend`]). Then the fallbacks that it names are called in their order, each with its
//! own settings. Those of a fallback are not followed, so that there are no circles. All attempts together are limited,
//! and the time limits of the step and of the run hold for all of them.
//!
//! Each attempt is a row of its own with the name of the agent that it calls. A fallback that does not exist has such a
//! row too, which says so. After an interruption the step continues with the agent that was called last.

use std::{collections::VecDeque, mem, time::Duration};

use super::Run;
use crate::{
    executor::{
        agent_call::CallErrorKind,
        agents::Seen,
        retry::{AttemptNumber, RetryDecision},
        surroundings::Surroundings,
    },
    telemetry::catalogue::AGENTS,
};

/// Maximum number of attempts at a step whose agent was replaced.
const MAX_ATTEMPTS: u32 = 20;
/// HTTP statuses below 500 that say something about the agent, not about the request.
const OF_AGENT: [u16; 8] = [401, 402, 403, 404, 405, 408, 410, 429];
/// Reason in metrics for an agent that does not exist or must not be called.
const NOT_FOUND: &str = "not_found";

/// Agents of a step, of which one is called.
pub(super) struct Callees {
    current: String,
    /// Number of the attempt, from 1.
    number: AttemptNumber,
    /// Agents that were not called yet; `None`: not known, since the step's own agent was not called yet.
    left: Option<VecDeque<String>>,
    /// Errors of the agents that were left.
    causes: Vec<String>,
    /// Kind of the last error of a call.
    fault: Option<CallErrorKind>,
}

/// Failed attempt.
pub(super) struct FailedAttempt {
    pub(super) cause: String,
    pub(super) fault: Option<CallErrorKind>,
    /// Pause before the next attempt that calls the same agent; `None`: there is none.
    pub(super) pause: Option<Duration>,
    /// Whether another agent may mend it.
    pub(super) may_mend: bool,
    /// Fallbacks of the agent.
    pub(super) fallbacks: Vec<String>,
}

/// What follows a failed attempt.
#[derive(Debug, PartialEq)]
struct Next {
    /// Pause before the next attempt.
    pause: Duration,
    /// The agent that is left, if it is, and why.
    left: Option<(String, &'static str)>,
}

impl Callees {
    pub(super) fn new(agent_name: &str) -> Self {
        let number = AttemptNumber { at_step: 1, of_agent: 1 };
        Self { current: agent_name.to_owned(), number, left: None, causes: Vec::new(), fault: None }
    }

    /// Name of the agent that the next attempt calls.
    pub(super) fn current(&self) -> &str {
        &self.current
    }

    /// Kind of the last error of a call, if there was one.
    pub(super) fn fault(&self) -> Option<CallErrorKind> {
        self.fault
    }

    pub(super) fn number(&self) -> AttemptNumber {
        self.number
    }

    /// What follows a failed attempt. The error: nothing, and the step fails with it.
    fn after(&mut self, failed: FailedAttempt) -> Result<Next, String> {
        let FailedAttempt { cause, fault, pause, may_mend, fallbacks } = failed;
        self.fault = fault.or(self.fault);
        let left = self.left.get_or_insert_with(|| fallbacks.into());
        let is_replaced = !self.causes.is_empty();
        let is_last = (is_replaced || !left.is_empty()) && self.number.at_step >= MAX_ATTEMPTS;
        let is_left = pause.is_none() || fault == Some(CallErrorKind::CircuitOpen);
        if is_left
            && may_mend
            && !is_last
            && let Some(next) = left.pop_front()
        {
            let reason = fault.map_or(NOT_FOUND, CallErrorKind::as_str);
            self.causes.push(cause);
            let left = mem::replace(&mut self.current, next);
            self.number = AttemptNumber { at_step: self.number.at_step + 1, of_agent: 1 };
            return Ok(Next { pause: Duration::ZERO, left: Some((left, reason)) });
        }
        if let Some(pause) = pause.filter(|_| !is_last) {
            self.number = AttemptNumber { at_step: self.number.at_step + 1, of_agent: self.number.of_agent + 1 };
            return Ok(Next { pause, left: None });
        }
        self.causes.push(cause);
        Err(super::joined(&self.causes))
    }
}

impl Run {
    /// The pause before the next attempt, of whatever agent. The error: there is none, and the step fails with it.
    pub(super) fn next_call(
        &self,
        callees: &mut Callees,
        step_id: &str,
        failed: FailedAttempt,
    ) -> Result<Duration, String> {
        let Next { pause, left } = callees.after(failed)?;
        if let Some((agent, reason)) = left.filter(|_| self.executor.simulated().is_none()) {
            metrics::counter!("executor_agent_fallbacks_total", "reason" => reason, "agent" => AGENTS.of(&agent))
                .increment(1);
            let (run_id, fallback) = (&self.run_id, callees.current());
            tracing::warn!(
                run_id,
                step_id,
                agent,
                fallback,
                reason,
                "step {step_id} of run {run_id} goes on with agent {fallback} instead of {agent}: {reason}"
            );
        }
        Ok(pause)
    }

    /// Agents of a step whose own agent has that name. If an attempt was interrupted that called one of its fallbacks,
    /// the step continues there.
    pub(super) async fn callees(&self, agent_name: &str, interrupted: Option<&str>) -> Callees {
        let mut callees = Callees::new(agent_name);
        let called = interrupted.filter(|called| !called.is_empty() && *called != agent_name);
        if let (Some(called), Surroundings::Executor(executor)) = (called, &self.executor) {
            let seen = Seen { since: self.executor.clock.instant(), version: None };
            // Without the agent the step fails in its first attempt, which says why.
            if let Ok(own) = self.find_agent(executor, agent_name, seen).await
                && let Some(place) = own.fallbacks.iter().position(|fallback| fallback == called)
            {
                callees.current = called.to_owned();
                callees.left = Some(own.fallbacks[place + 1..].iter().cloned().collect());
                callees.causes.push(format!("agent '{agent_name}' was left before an interruption"));
            }
        }
        callees
    }
}

/// Whether another agent may mend a failure, given the last HTTP status and whether the same agent may: one that does not
/// work can be replaced, but a request that is refused for what it says would be refused again.
pub(super) fn may_mend(fault: CallErrorKind, http_status: Option<u16>, again: RetryDecision) -> bool {
    match fault {
        CallErrorKind::CircuitOpen
        | CallErrorKind::NotAllowed
        | CallErrorKind::Unusable
        | CallErrorKind::Network
        | CallErrorKind::Timeout
        | CallErrorKind::Http5xx
        | CallErrorKind::Invalid => true,
        CallErrorKind::Http4xx => match http_status {
            Some(300..400) => true,
            Some(status @ 400..) => OF_AGENT.contains(&status),
            // Gateways answer errors with 200 too.
            _ => again != RetryDecision::Never,
        },
        CallErrorKind::OutOfMemory | CallErrorKind::Refused => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(fault: CallErrorKind, pause: Option<u64>, fallbacks: &[&str]) -> FailedAttempt {
        FailedAttempt {
            cause: fault.as_str().to_owned(),
            fault: Some(fault),
            pause: pause.map(Duration::from_secs),
            may_mend: may_mend(fault, None, RetryDecision::Never),
            fallbacks: fallbacks.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn later() -> Next {
        Next { pause: Duration::from_secs(1), left: None }
    }

    fn left(agent: &str, reason: &'static str) -> Next {
        Next { pause: Duration::ZERO, left: Some((agent.to_owned(), reason)) }
    }

    #[test]
    fn an_agent_is_left_when_its_circuit_is_open_or_its_attempts_are_used_up() {
        let mut callees = Callees::new("a");
        let all = &["b", "c"];
        assert_eq!(callees.after(failed(CallErrorKind::Network, Some(1), all)), Ok(later()));
        assert_eq!((callees.current(), callees.number().of_agent), ("a", 2));
        assert_eq!(callees.after(failed(CallErrorKind::Network, None, all)), Ok(left("a", "network")));
        assert_eq!((callees.current(), callees.number().of_agent, callees.number().at_step), ("b", 1, 3));
        // The fallbacks of a fallback are not followed.
        assert_eq!(callees.after(failed(CallErrorKind::CircuitOpen, Some(1), &["z"])), Ok(left("b", "circuit_open")));
        assert_eq!(callees.current(), "c");
        assert_eq!(callees.after(failed(CallErrorKind::CircuitOpen, Some(1), &["z"])), Ok(later()));
        assert_eq!(callees.current(), "c", "there is no other");
        let end = callees.after(failed(CallErrorKind::Timeout, None, &["z"]));
        assert_eq!(end, Err("network; circuit_open; timeout".to_owned()));
    }

    #[test]
    fn a_failure_that_no_other_agent_mends_ends_the_step() {
        for fault in [CallErrorKind::Refused, CallErrorKind::OutOfMemory, CallErrorKind::Http4xx] {
            let end = Callees::new("a").after(failed(fault, None, &["b"]));
            assert_eq!(end, Err(fault.as_str().to_owned()));
        }
        let again = RetryDecision::Later;
        for (status, expected) in [(302, true), (400, false), (401, true), (404, true), (422, false), (429, true)] {
            let found = may_mend(CallErrorKind::Http4xx, Some(status), RetryDecision::Never);
            assert_eq!(found, expected, "{status}");
        }
        assert!(may_mend(CallErrorKind::Http4xx, Some(200), again));
        assert!(!may_mend(CallErrorKind::Http4xx, Some(200), RetryDecision::Never));
    }

    #[test]
    fn the_attempts_of_all_agents_together_are_limited() {
        let mut callees = Callees::new("a");
        let mut made = 1;
        loop {
            // Each agent is tried ten times.
            let pause = (callees.number().of_agent < 10).then_some(1);
            if callees.after(failed(CallErrorKind::Network, pause, &["b", "c", "d"])).is_err() {
                break;
            }
            made += 1;
        }
        assert_eq!((made, callees.current()), (MAX_ATTEMPTS, "b"));
    }
}
