//! Questions that agents ask in a simulated run, and the answers to them.

use std::{sync::PoisonError, time::Duration};

use serde_json::value::RawValue;

use super::{Awaited, BegunWait, SimulatedRun};
use crate::{
    executor::agent_question::AgentQuestion,
    input::{FieldError, Node, Patch, Read, in_words, keep},
    workflow::{
        InputSchema,
        wait_config::{MAX_WAIT_SECS, check_decision},
    },
};

/// Maximum number of questions of a mock.
const MAX_QUESTIONS: usize = 100;
/// Length range of a question.
const CHARS: std::ops::RangeInclusive<usize> = 1..=10_000;

/// Question of a mock.
#[derive(Debug)]
pub(super) struct MockedQuestion {
    is_auth: bool,
    text: String,
    answer_schema: Option<Box<RawValue>>,
    /// The answer; `None`: nobody answers.
    answer: Option<Box<RawValue>>,
    answered_by: Option<String>,
    /// Virtual time until the answer.
    delay: Duration,
}

impl MockedQuestion {
    const MEMBERS: [&'static str; 6] = ["question", "auth", "answer_schema", "answer", "answered_by", "delay_seconds"];

    pub(super) fn read_all(node: &Node<'_>) -> Read<Vec<Self>> {
        let nodes = node.list()?;
        if nodes.len() > MAX_QUESTIONS {
            return Err(vec![FieldError::rule(node.path(), format!("must have at most {MAX_QUESTIONS} questions"))]);
        }
        let mut errors = Vec::new();
        let questions: Vec<_> = nodes.iter().filter_map(|node| keep(Self::read(node), &mut errors)).collect();
        if errors.is_empty() { Ok(questions) } else { Err(errors) }
    }

    fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let text = object.required("question", &mut errors, |node| node.string(CHARS));
        let is_auth = object.nullable("auth", &mut errors, Node::boolean);
        let answer_schema = object.nullable("answer_schema", &mut errors, Node::free_object);
        let answer = object.patch("answer", &mut errors, |node| Ok(node.raw().to_owned()));
        let answered_by = object.nullable("answered_by", &mut errors, |node| node.string(1..=255));
        let delay = object.nullable("delay_seconds", &mut errors, read_delay);
        match text {
            Some(text) if errors.is_empty() => Ok(Self {
                is_auth: is_auth.unwrap_or_default(),
                text,
                answer_schema,
                answer: if let Patch::Value(answer) = answer { Some(answer) } else { None },
                answered_by,
                delay: delay.unwrap_or_default(),
            }),
            _ => Err(errors),
        }
    }

    /// Whether a run would take the answer; the error: why not.
    fn accepts(&self, answer: &RawValue) -> Result<(), String> {
        if self.is_auth {
            return check_decision(answer, true).map_err(|errors| in_words(&errors, "body"));
        }
        // A run does not use a schema that cannot be compiled either.
        let schema = self.answer_schema.as_ref().and_then(|schema| InputSchema::compile(schema).ok());
        let checked = schema.map_or(Ok(()), |schema| schema.check(answer));
        checked.map_err(|errors| in_words(&errors, "body.input_data"))
    }
}

/// Reads a virtual time.
pub(super) fn read_delay(node: &Node<'_>) -> Read<Duration> {
    let secs = node.float(0.0)?;
    let delay = Some(secs).filter(|secs| *secs <= MAX_WAIT_SECS as f64);
    delay
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok())
        .ok_or_else(|| vec![FieldError::rule(node.path(), format!("must be at most {MAX_WAIT_SECS} seconds"))])
}

impl SimulatedRun {
    /// The next question of the mock to this attempt, if there is one.
    pub(super) fn next_question(&self, attempt_id: &str, step_id: &str) -> Option<AgentQuestion> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asked.entry(attempt_id.to_owned()).or_default();
        let MockedQuestion { is_auth, text, answer_schema, .. } = self.mocks.get(step_id)?.questions.get(*count)?;
        *count += 1;
        Some(AgentQuestion::of_test(*is_auth, text.clone(), answer_schema.clone()))
    }

    /// Begins to wait for the answer to the question of that number.
    pub(in crate::executor) fn begin_question(&self, attempt_id: &str, step_id: &str, round: i16) {
        if let Some(open) = self.world.record().open(attempt_id) {
            open.status = "PENDING";
        }
        let index = usize::try_from(round - 1).unwrap_or_default();
        let question = self.mocks.get(step_id).and_then(|mock| mock.questions.get(index));
        let answered = question.and_then(|question| {
            let answer = question.answer.clone()?;
            if let Err(why) = question.accepts(&answer) {
                self.warn_refused(step_id, &why);
                return None;
            }
            self.set_result(attempt_id, answer);
            Some((question.delay, question.answered_by.clone()))
        });
        let wait = BegunWait { attempt_id: attempt_id.to_owned(), awaited: Awaited::Answer(answered) };
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(wait);
    }
}
