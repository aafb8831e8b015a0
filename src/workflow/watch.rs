//! What is watched of the runs of a workflow: their deadline, and the silence of the workflow. It belongs to the workflow,
//! not to its content: a change makes no new version.

use serde::Serialize;

use crate::input::{FieldError, Node, Object, Patch, Read};

/// Longest deadline: a leap year.
const MAX_DEADLINE_SECONDS: i64 = 366 * 86_400;
/// Longest silence: a year.
const MAX_SILENCE_HOURS: i64 = 8760;

/// What happens to a run that misses its deadline, besides the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadlineAction {
    /// Nothing.
    Notify,
    /// It is cancelled.
    Cancel,
}

impl DeadlineAction {
    /// Name in requests, answers and rows.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Cancel => "cancel",
        }
    }

    /// Parses a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Notify, Self::Cancel].into_iter().find(|action| action.as_str() == name)
    }

    /// Reads the member `deadline_action`.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        node.parsed(|name| Self::parse(name).ok_or_else(|| "must be one of notify, cancel".to_owned()))
    }
}

/// Reads the member `deadline_seconds`.
pub fn read_deadline(node: &Node<'_>) -> Read<i32> {
    small(node, 1..=MAX_DEADLINE_SECONDS)
}

fn read_silence(node: &Node<'_>) -> Read<i32> {
    small(node, 1..=MAX_SILENCE_HOURS)
}

fn small(node: &Node<'_>, range: std::ops::RangeInclusive<i64>) -> Read<i32> {
    i32::try_from(node.int(range)?).map_err(|_| vec![FieldError::rule(node.path(), "is too large")])
}

/// Deadline of runs, as far as it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deadline {
    /// Seconds from the creation of the run, or from its last retry.
    pub seconds: Option<i32>,
    /// What happens besides the event; `None`: nothing.
    pub action: Option<DeadlineAction>,
}

/// What is watched of the runs of a workflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Watch {
    /// Deadline of its runs.
    pub deadline_seconds: Option<i32>,
    /// What happens to a run that misses it.
    pub deadline_action: Option<DeadlineAction>,
    /// Hours without a success that are silence.
    pub silence_hours: Option<i32>,
}

impl Watch {
    /// Members that [`Watch::read`] reads.
    pub const MEMBERS: [&'static str; 3] = ["deadline_seconds", "deadline_action", "silence_hours"];

    /// Reads the members of a definition.
    pub fn read(body: &Object<'_>, errors: &mut Vec<FieldError>) -> Self {
        Self {
            deadline_seconds: body.nullable("deadline_seconds", errors, read_deadline),
            deadline_action: body.nullable("deadline_action", errors, DeadlineAction::read),
            silence_hours: body.nullable("silence_hours", errors, read_silence),
        }
    }
}

/// Changes of what is watched.
#[derive(Clone, Debug, Default)]
pub struct WatchPatch {
    deadline_seconds: Patch<i32>,
    deadline_action: Patch<DeadlineAction>,
    silence_hours: Patch<i32>,
}

impl WatchPatch {
    /// Reads the members of an update.
    pub fn read(body: &Object<'_>, errors: &mut Vec<FieldError>) -> Self {
        Self {
            deadline_seconds: body.patch("deadline_seconds", errors, read_deadline),
            deadline_action: body.patch("deadline_action", errors, DeadlineAction::read),
            silence_hours: body.patch("silence_hours", errors, read_silence),
        }
    }

    /// What is watched after the update.
    #[must_use]
    pub fn apply(&self, current: Watch) -> Watch {
        Watch {
            deadline_seconds: self.deadline_seconds.clone().or(current.deadline_seconds),
            deadline_action: self.deadline_action.clone().or(current.deadline_action),
            silence_hours: self.silence_hours.clone().or(current.silence_hours),
        }
    }
}

/// Patch that sets all of it.
impl From<Watch> for WatchPatch {
    fn from(new: Watch) -> Self {
        Self {
            deadline_seconds: new.deadline_seconds.map_or(Patch::Null, Patch::Value),
            deadline_action: new.deadline_action.map_or(Patch::Null, Patch::Value),
            silence_hours: new.silence_hours.map_or(Patch::Null, Patch::Value),
        }
    }
}
