//! Answers to the steps of a simulated run: from a recording, from a mock, or instead of one.

use std::{sync::PoisonError, time::Duration};

use serde_json::value::RawValue;

use super::{Awaited, BegunWait, MissingMock, SUB_RUN, SimulatedRun, mocks::Mock};
use crate::{
    db::waits::{ChildRun, WaitCondition},
    executor::{
        agent_call::{CallErrorKind, Conversation, Interrupted},
        agent_question::AgentQuestion,
        answer, memory,
        retry::{self, AttemptNumber, RetryDecision},
    },
    input::{in_words, member, object_of, text},
    workflow::{OnQuestion, wait_config::check_decision},
};

/// Result of an attempt to call an agent.
pub(in crate::executor) struct Simulated {
    pub(in crate::executor) result: Result<Box<RawValue>, String>,
    /// Pause before the next attempt; `None`: there is no further one.
    pub(in crate::executor) pause: Option<Duration>,
    pub(in crate::executor) fault: Option<CallErrorKind>,
    /// Question that the agent has asked instead.
    pub(in crate::executor) question: Option<Box<Interrupted>>,
    /// Fallbacks of the agent.
    pub(in crate::executor) fallbacks: Vec<String>,
}

impl Simulated {
    /// What a question means for a step.
    fn of_question(question: AgentQuestion, agent_name: &str, on_question: OnQuestion) -> Self {
        let (result, fault, question) = match on_question {
            OnQuestion::Output => (Ok(question.output()), None, None),
            OnQuestion::Fail => {
                let cause = answer::cannot_answer(&question);
                (Err(format!("agent '{agent_name}': {cause}")), Some(CallErrorKind::Refused), None)
            }
            OnQuestion::Ask => {
                let cause = answer::cannot_answer(&question).to_string();
                (Err(cause), None, Some(Box::new(Interrupted::without_task(question))))
            }
        };
        Self { result, pause: None, fault, question, fallbacks: Vec::new() }
    }
}

/// Answer to an attempt from a recording or a mock.
struct Answer {
    from: &'static str,
    delay: Duration,
    result: Result<Box<RawValue>, Failure>,
    answered_by: Option<String>,
}

struct Failure {
    code: CallErrorKind,
    message: Option<String>,
    pause: NextAttempt,
}

/// Pause after a failed attempt.
enum NextAttempt {
    /// By the settings of the agent.
    BySettings,
    /// As recorded; `None`: there was no further attempt.
    Recorded(Option<Duration>),
}

impl SimulatedRun {
    /// The next answer to the attempt at this path.
    fn answer(&self, (path, step_id): (&str, &str), attempt: u32, input: &RawValue) -> Option<Answer> {
        let recording = self.world.recording.as_ref().filter(|_| self.prefix.is_empty());
        if let Some((recorded, has_more)) = recording.and_then(|recording| recording.take(path, step_id)) {
            let pause = has_more.then_some(recorded.pause);
            let failure = |message: String| Failure {
                code: CallErrorKind::Refused,
                message: Some(message),
                pause: NextAttempt::Recorded(pause),
            };
            let result = recorded.result.clone().map_err(failure);
            return Some(Answer { from: "recording", delay: recorded.duration, result, answered_by: None });
        }
        let mock = self.mocks.get(step_id)?;
        self.world.record().use_mock(&self.prefix, step_id);
        let Mock { answer, failure, delay, answered_by, .. } = mock;
        let (delay, answered_by) = (*delay, answered_by.clone());
        if let Some(failure) = failure.as_ref().filter(|failure| failure.is_of(attempt)) {
            let failed =
                Failure { code: failure.code, message: failure.message.clone(), pause: NextAttempt::BySettings };
            return Some(Answer { from: "failure", delay, result: Err(failed), answered_by });
        }
        let answer = answer.as_ref()?;
        let result = answer.make(&self.input, input).map_err(|cause| {
            self.warn_mock(step_id, "mock_failed", format!("The mock has no value: {cause}"));
            let message = Some(format!("the mock has no value: {cause}"));
            Failure { code: CallErrorKind::Invalid, message, pause: NextAttempt::BySettings }
        });
        Some(Answer { from: answer.name(), delay, result, answered_by })
    }

    fn warn_mock(&self, step_id: &str, kind: &'static str, message: String) {
        self.world.record().warn(format!("{}steps.{step_id}", self.prefix), kind, message);
    }

    /// Warns of an answer that a run would not take: there it is refused, and the step goes on waiting.
    pub(super) fn warn_refused(&self, step_id: &str, why: &str) {
        self.warn_mock(
            step_id,
            "mock_refused",
            format!("A run refuses the answer of the mock, so nothing answers it: {why}"),
        );
    }

    /// Path and step id of the open attempt with this row id, after its source is noted.
    fn position(&self, attempt_id: &str) -> (String, String, u32) {
        let mut record = self.world.record();
        let found = record.open(attempt_id).map(|open| (open.path.clone(), open.step_id.clone(), open.attempt));
        let (path, step_id, attempt) = found.unwrap_or_default();
        (path.strip_prefix(&self.prefix).map(str::to_owned).unwrap_or(path), step_id, attempt)
    }

    fn note_source(&self, attempt_id: &str, from: &'static str) {
        if let Some(open) = self.world.record().open(attempt_id) {
            open.answered_from = Some(from);
        }
    }

    /// Attempt to call an agent.
    pub(in crate::executor) async fn attempt(
        &self,
        agent_name: &str,
        (attempt_id, number): (&str, AttemptNumber),
        (input, conversation): (&RawValue, Conversation<'_>),
    ) -> Simulated {
        self.within_limits().await;
        let (path, step_id, _) = self.position(attempt_id);
        let settings = self.settings_of(agent_name);
        // The failures of a mock come before its questions.
        let nth = if conversation.answered.is_some() { u32::MAX } else { number.at_step };
        let answer = self.answer((&path, &step_id), nth, input).unwrap_or_else(|| self.missing(&step_id, input));
        self.note_source(attempt_id, answer.from);
        let is_recorded = answer.from == "recording";
        let mut result = answer.result;
        if answer.delay >= settings.timeout && !is_recorded {
            self.common.clock.sleep(settings.timeout).await;
            result = Err(Failure { code: CallErrorKind::Timeout, message: None, pause: NextAttempt::BySettings });
        } else {
            self.common.clock.sleep(answer.delay).await;
        }
        match result {
            Ok(output) => {
                let question = self.next_question(attempt_id, &step_id).filter(|_| !is_recorded);
                question.map_or(
                    Simulated { result: Ok(output), pause: None, fault: None, question: None, fallbacks: Vec::new() },
                    |question| Simulated::of_question(question, agent_name, conversation.on_question),
                )
            }
            Err(Failure { code, message, pause }) => {
                let time_left = self.world.max_run_duration;
                // The longest pause that the agent's settings allow, so that the result is always the same.
                let pause = match pause {
                    NextAttempt::BySettings => {
                        retry::pause(&settings.retry, number.of_agent, decision(code), 1.0, time_left)
                    }
                    NextAttempt::Recorded(pause) => pause,
                };
                let message = match message {
                    Some(message) if is_recorded => message,
                    Some(message) => format!("agent '{agent_name}': {message}"),
                    None => format!("agent '{agent_name}': {}", default_message(code, settings.timeout)),
                };
                Simulated {
                    result: Err(message),
                    pause,
                    fault: Some(code),
                    question: None,
                    fallbacks: settings.fallbacks,
                }
            }
        }
    }

    /// Answer to a step without a mock.
    fn missing(&self, step_id: &str, input: &RawValue) -> Answer {
        let (from, result, what) = match self.world.missing {
            MissingMock::Echo => ("echo", Ok(input.to_owned()), "its output is its input"),
            MissingMock::Null => ("null", Ok(RawValue::NULL.to_owned()), "its output is null"),
            MissingMock::Fail => {
                let message = Some("the test has no mock for this step".to_owned());
                let code = CallErrorKind::Unusable;
                ("missing", Err(Failure { code, message, pause: NextAttempt::BySettings }), "it fails")
            }
        };
        self.warn_mock(step_id, "mock_missing", format!("There is no mock for the step, so {what}"));
        Answer { from, delay: Duration::ZERO, result, answered_by: None }
    }

    /// Begins to wait for something outside of the run.
    pub(in crate::executor) fn begin_wait(&self, attempt_id: &str, awaited: WaitCondition, input: &RawValue) {
        let awaited = match awaited {
            WaitCondition::Time => return,
            WaitCondition::Callback { .. } => self.callback(attempt_id, input),
            WaitCondition::Run(child) => self.child(attempt_id, child),
        };
        let wait = BegunWait { attempt_id: attempt_id.to_owned(), awaited };
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(wait);
    }

    fn callback(&self, attempt_id: &str, input: &RawValue) -> Awaited {
        let (path, step_id, attempt) = self.position(attempt_id);
        let Some(answer) = self.answer((&path, &step_id), attempt, input) else {
            let message = "There is no mock for the callback, so nothing answers it".to_owned();
            self.warn_mock(&step_id, "mock_missing", message);
            return Awaited::Answer(None);
        };
        self.note_source(attempt_id, answer.from);
        let is_recorded = answer.from == "recording";
        match answer.result {
            Ok(output) if is_recorded => {
                let (answer_data, by) = recorded_answer(&output);
                self.set_result(attempt_id, answer_data);
                Awaited::Answer(Some((answer.delay, by)))
            }
            Ok(output) => {
                let config = self.plan.steps.get(&step_id).and_then(|step| step.callback_config.as_ref());
                let is_approval = config.is_some_and(|config| config.approval.is_some());
                let checked = if is_approval { check_decision(&output, false) } else { Ok(()) };
                if let Err(errors) = checked {
                    self.warn_refused(&step_id, &in_words(&errors, "body"));
                    return Awaited::Answer(None);
                }
                self.set_result(attempt_id, output);
                Awaited::Answer(Some((answer.delay, answer.answered_by)))
            }
            // A recorded rejection is one again. Other callbacks that failed had no answer.
            Err(Failure { message: Some(message), .. }) if is_recorded && message.starts_with("it was rejected") => {
                self.set_result(attempt_id, object_of([("approved", RawValue::FALSE)]));
                Awaited::Answer(Some((answer.delay, None)))
            }
            Err(_) => Awaited::Answer(None),
        }
    }

    fn child(&self, attempt_id: &str, child: Box<ChildRun>) -> Awaited {
        let (path, step_id, attempt) = self.position(attempt_id);
        let is_mocked = self.is_mocked(&step_id);
        let answer = self.answer((&path, &step_id), attempt, &child.input);
        match answer {
            Some(Answer { from, delay, result, .. }) if is_mocked || from == "recording" => {
                self.note_source(attempt_id, from);
                let ended = result.map(|output| self.set_result(attempt_id, output));
                let cause = |failure: Failure| failure.message.unwrap_or_else(|| "the mock fails".to_owned());
                Awaited::MockedRun(delay, ended.map_err(cause))
            }
            _ => {
                self.note_source(attempt_id, "run");
                let mocks = self.mocks.get(&step_id).and_then(|mock| mock.inner.clone()).unwrap_or_default();
                Awaited::Run { child, mocks, prefix: format!("{}{path}{SUB_RUN}", self.prefix) }
            }
        }
    }
}

/// Answer to a callback, and the subject that gave it, from the recorded output of its step.
fn recorded_answer(output: &RawValue) -> (Box<RawValue>, Option<String>) {
    let by = member(output, "decided_by").and_then(text);
    (output.to_owned(), by)
}

/// Whether another attempt may succeed.
fn decision(code: CallErrorKind) -> RetryDecision {
    match code {
        CallErrorKind::CircuitOpen
        | CallErrorKind::Network
        | CallErrorKind::Timeout
        | CallErrorKind::Http5xx
        | CallErrorKind::OutOfMemory => RetryDecision::Later,
        CallErrorKind::NotAllowed
        | CallErrorKind::Unusable
        | CallErrorKind::Http4xx
        | CallErrorKind::Invalid
        | CallErrorKind::Refused => RetryDecision::Never,
    }
}

/// Message of a failure without one of its own.
fn default_message(code: CallErrorKind, timeout: Duration) -> String {
    match code {
        CallErrorKind::CircuitOpen => "its circuit breaker is open".to_owned(),
        CallErrorKind::NotAllowed => "its address is not allowed".to_owned(),
        CallErrorKind::Unusable => "its URL cannot be called".to_owned(),
        CallErrorKind::Network => "cannot be connected".to_owned(),
        CallErrorKind::Timeout => format!("no complete answer within {} ms", timeout.as_millis()),
        CallErrorKind::Http4xx => "HTTP 400: Bad Request".to_owned(),
        CallErrorKind::Http5xx => "HTTP 503: Service Unavailable".to_owned(),
        CallErrorKind::Invalid => "the answer is not valid".to_owned(),
        CallErrorKind::OutOfMemory => memory::OUT_OF_MEMORY.to_owned(),
        CallErrorKind::Refused => "the agent refused".to_owned(),
    }
}
