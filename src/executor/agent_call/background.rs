//! Following a task of an agent by queries until it is done.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    Failure, Wire,
    in_flight::InFlight,
    interrupted::{Interrupted, asked},
    jitter,
};
use crate::executor::{agent_question::AgentQuestion, retry::RetryDecision};

/// Pause before the first query of a task; later pauses grow.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const PAUSE_GROWTH: f64 = 1.5;
/// Longest pause that the agent can ask for.
const LONGEST_WANTED: Duration = Duration::from_secs(30);

/// State of a task.
pub(super) enum Polled {
    /// It has ended, with the output of the step or without.
    Ended(Result<Box<RawValue>, Failure>),
    /// It is under way, and the agent wants this pause before the next query.
    UnderWay(Option<Duration>),
    /// The agent asks. The failure is for a step that cannot answer.
    Question(Box<AgentQuestion>, Failure),
}

/// Task of an agent, as its kind asks for it.
pub(super) trait Work: Sync {
    /// Queries the task with this id.
    fn poll(&self, id: &str) -> impl Future<Output = Result<Polled, Failure>> + Send;
}

/// Queries the task until it is done. A failed query ends nothing: creating the task again would do the work twice.
/// `wanted` is the pause that the agent wants before the first query.
pub(super) async fn follow(
    wire: &Wire<'_>,
    mut in_flight: InFlight,
    wanted: Option<Duration>,
    work: &impl Work,
) -> Result<Box<RawValue>, Failure> {
    let (mut pause, mut wanted) = (FIRST_PAUSE, wanted);
    loop {
        // An agent that names a pause knows best.
        let wait = wanted.map_or_else(|| jitter(pause), |wanted| wanted.clamp(FIRST_PAUSE, LONGEST_WANTED));
        wire.request.executor.clock.sleep(wait).await;
        pause = pause.mul_f64(PAUSE_GROWTH).min(LONGEST_PAUSE);
        wanted = match work.poll(in_flight.task()).await {
            Ok(Polled::Ended(result)) => {
                in_flight.is_over();
                return result;
            }
            Ok(Polled::UnderWay(wanted)) => wanted,
            Ok(Polled::Question(question, failure)) => {
                return asked(wire, Interrupted::new(*question, in_flight), failure);
            }
            Err(Failure { again: RetryDecision::Later, .. }) => None,
            Err(Failure { again: RetryDecision::After(by_agent), .. }) => Some(by_agent),
            Err(failure) => return Err(failure),
        };
    }
}
