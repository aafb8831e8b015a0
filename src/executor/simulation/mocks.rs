//! Mocks: the answers that a simulated run gets instead of those of agents, people and other workflows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::value::RawValue;

use super::questions::{MockedQuestion, read_delay};

use crate::{
    executor::agent_call::CallErrorKind,
    expression,
    input::{FieldError, Node, Object, Patch, Read, keep, text},
    mapping::{self, MAX_RESOLVED_BYTES, Scope},
};

/// Maximum characters of a failure's message.
const MESSAGE_CHARS: usize = 1000;
/// Maximum nesting of the mocks of sub-workflows.
const MAX_DEPTH: usize = 16;
/// Maximum number of failures of one mock.
const MAX_FAILURES: i64 = 1000;

/// Error codes that a mock can fail with: those of calls in the log of a run.
const CODES: [CallErrorKind; 10] = [
    CallErrorKind::CircuitOpen,
    CallErrorKind::NotAllowed,
    CallErrorKind::Unusable,
    CallErrorKind::Network,
    CallErrorKind::Timeout,
    CallErrorKind::Http4xx,
    CallErrorKind::Http5xx,
    CallErrorKind::Invalid,
    CallErrorKind::Refused,
    CallErrorKind::OutOfMemory,
];

/// Mocks by step id.
#[derive(Debug, Default)]
pub struct Mocks(HashMap<String, Mock>);

/// Mock of a step's answers.
#[derive(Debug)]
pub struct Mock {
    /// The answer; `None`: there is none, or a sub-workflow runs.
    pub(super) answer: Option<MockedAnswer>,
    /// Failures before the answer.
    pub(super) failure: Option<MockedFailure>,
    /// Virtual time until the answer.
    pub(super) delay: Duration,
    /// Subject that answers a callback.
    pub(super) answered_by: Option<String>,
    /// Questions that the agent asks before the answer.
    pub(super) questions: Vec<MockedQuestion>,
    /// Mocks of the steps of a sub-workflow, which runs.
    pub(super) inner: Option<Arc<Mocks>>,
}

/// Answer of a mock.
#[derive(Debug)]
pub(super) enum MockedAnswer {
    /// This value.
    Output(Box<RawValue>),
    /// This value with its references resolved.
    Template(Box<RawValue>),
    /// Value of this expression.
    Expression(String),
}

/// Failure of a mock.
#[derive(Debug)]
pub(super) struct MockedFailure {
    /// Number of attempts that fail; `None`: all of them.
    times: Option<u32>,
    pub(super) code: CallErrorKind,
    pub(super) message: Option<String>,
}

impl MockedFailure {
    /// Whether the attempt of that number, from 1, fails.
    pub(super) fn is_of(&self, attempt: u32) -> bool {
        self.times.is_none_or(|times| attempt <= times)
    }
}

impl MockedAnswer {
    /// Name in the report.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Output(_) => "output",
            Self::Template(_) => "template",
            Self::Expression(_) => "expression",
        }
    }

    /// The answer to a step with this input, in a run with that input.
    pub(super) fn make(&self, run_input: &RawValue, step_input: &RawValue) -> Result<Box<RawValue>, String> {
        let scope = Scope::of_mock(run_input, step_input);
        match self {
            Self::Output(output) => Ok(output.clone()),
            Self::Template(template) => mapping::resolve_value(template, &scope),
            Self::Expression(expression) => {
                expression::value(expression, &scope, MAX_RESOLVED_BYTES).map_err(|error| error.to_string())
            }
        }
    }
}

impl Mocks {
    /// Reads mocks, by step id.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        Self::read_at(node, 0)
    }

    fn read_at(node: &Node<'_>, depth: usize) -> Read<Self> {
        if depth > MAX_DEPTH {
            return Err(vec![FieldError::rule(node.path(), format!("mocks may be nested at most {MAX_DEPTH} deep"))]);
        }
        let (mut mocks, mut errors) = (HashMap::new(), Vec::new());
        for (step_id, node) in node.map()? {
            if let Some(mock) = keep(Mock::read(&node, depth), &mut errors) {
                mocks.insert(step_id, mock);
            }
        }
        if errors.is_empty() { Ok(Self(mocks)) } else { Err(errors) }
    }

    pub(super) fn get(&self, step_id: &str) -> Option<&Mock> {
        self.0.get(step_id)
    }

    /// Ids of the mocked steps, sorted.
    pub(super) fn step_ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.0.keys().map(String::as_str).collect();
        ids.sort_unstable();
        ids
    }
}

impl Mock {
    const MEMBERS: [&'static str; 8] =
        ["output", "template", "expression", "fail", "delay_seconds", "answered_by", "questions", "mocks"];

    fn read(node: &Node<'_>, depth: usize) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let json = |node: &Node<'_>| Ok(node.raw().to_owned());
        let output = match object.patch("output", &mut errors, json) {
            Patch::Absent => None,
            Patch::Null => Some(RawValue::NULL.to_owned()),
            Patch::Value(output) => Some(output),
        };
        let output = output.map(MockedAnswer::Output);
        let template = object.nullable("template", &mut errors, json).map(MockedAnswer::Template);
        let expression = object.nullable("expression", &mut errors, |node| {
            let expression = node.not_blank(1..=usize::MAX)?;
            expression::check(&expression).map_err(|error| vec![FieldError::rule(node.path(), error)])?;
            Ok(MockedAnswer::Expression(expression))
        });
        let failure = object.nullable("fail", &mut errors, MockedFailure::read);
        let delay = object.nullable("delay_seconds", &mut errors, read_delay);
        let questions = object.nullable("questions", &mut errors, MockedQuestion::read_all);
        let answered_by = object.nullable("answered_by", &mut errors, |node| node.string(1..=255));
        let inner = object.nullable("mocks", &mut errors, |node| Mocks::read_at(node, depth + 1));
        let given = [output.is_some(), template.is_some(), expression.is_some(), inner.is_some()];
        if errors.is_empty() && given.iter().filter(|given| **given).count() > 1 {
            errors.push(FieldError::rule(node.path(), "has one of output, template, expression and mocks"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            answer: output.or(template).or(expression),
            failure,
            delay: delay.unwrap_or_default(),
            answered_by,
            questions: questions.unwrap_or_default(),
            inner: inner.map(Arc::new),
        })
    }
}

impl MockedFailure {
    const MEMBERS: [&'static str; 3] = ["times", "code", "message"];

    fn read(node: &Node<'_>) -> Read<Self> {
        let object: Object<'_> = node.object()?;
        let mut errors = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let times = object.nullable("times", &mut errors, |node| {
            // The range fits.
            node.int(1..=MAX_FAILURES).map(|times| u32::try_from(times).unwrap_or(u32::MAX))
        });
        let code = object.nullable("code", &mut errors, |node| {
            let named = text(node.raw()).and_then(|name| CODES.into_iter().find(|code| code.as_str() == name));
            named.ok_or_else(|| {
                let names = CODES.map(CallErrorKind::as_str).join(", ");
                vec![FieldError::rule(node.path(), format!("must be one of {names}"))]
            })
        });
        let message = object.nullable("message", &mut errors, |node| node.string(1..=MESSAGE_CHARS));
        if errors.is_empty() {
            Ok(Self { times, code: code.unwrap_or(CallErrorKind::Http5xx), message })
        } else {
            Err(errors)
        }
    }
}
