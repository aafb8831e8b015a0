//! Conversation of a step with its agent: what happens when the agent asks back, and which conversation it continues.

use serde::{Serialize, Serializer};

use super::reading::{ID_CHARS, one_of};
use crate::input::{Node, Read};

/// Number of questions that an agent may ask in one step if the step says nothing else.
const DEFAULT_ROUNDS: i16 = 10;
/// Maximum number of questions that a step may allow.
pub const MAX_ROUNDS: i64 = 100;

/// Effect of a question of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnQuestion {
    /// The step fails.
    #[default]
    Fail,
    /// The run waits for an answer, which is sent to the agent.
    Ask,
    /// The step completes with the question.
    Output,
}

impl OnQuestion {
    /// All values.
    pub const ALL: [Self; 3] = [Self::Fail, Self::Ask, Self::Output];

    /// Name in definitions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Ask => "ask",
            Self::Output => "output",
        }
    }

    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        let name = one_of(node, &Self::ALL.map(Self::as_str))?;
        Ok(Self::ALL.into_iter().find(|value| value.as_str() == name).unwrap_or_default())
    }
}

impl Serialize for OnQuestion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Who answers the questions of an agent, and how many there may be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct QuestionConfig {
    /// Role that the answering person must have; `None`: the callback's address is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Maximum number of questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rounds: Option<i16>,
}

impl QuestionConfig {
    /// Maximum number of questions.
    #[must_use]
    pub fn rounds(config: Option<&Self>) -> i16 {
        config.and_then(|config| config.max_rounds).unwrap_or(DEFAULT_ROUNDS)
    }

    pub(super) fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors = Vec::new();
        let role = object.nullable("role", &mut errors, |node| node.not_blank(ID_CHARS));
        let max_rounds = object.nullable("max_rounds", &mut errors, |node| {
            // The range fits.
            node.int(1..=MAX_ROUNDS).map(|rounds| i16::try_from(rounds).unwrap_or(i16::MAX))
        });
        if errors.is_empty() { Ok(Self { role, max_rounds }) } else { Err(errors) }
    }
}
