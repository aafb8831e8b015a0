//! States of tasks.

/// State of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// The agent has accepted the task.
    Submitted,
    /// The agent works on it.
    Working,
    /// It has ended successfully.
    Completed,
    /// It has ended with an error.
    Failed,
    /// It was cancelled.
    Canceled,
    /// The agent does not execute it.
    Rejected,
    /// The agent needs further input.
    InputRequired,
    /// The agent needs an authorisation.
    AuthRequired,
    /// A state that the protocol does not have, or has as unknown. It counts as under way.
    Unknown(String),
}

impl TaskState {
    /// State of that name, in the spelling of 0.3 (`input-required`) or 1.0 (`TASK_STATE_INPUT_REQUIRED`).
    #[must_use]
    pub fn parse(name: &str) -> Self {
        let plain = match name.strip_prefix("TASK_STATE_") {
            Some(state) => state.to_lowercase().replace('_', "-"),
            None => name.to_owned(),
        };
        match plain.as_str() {
            "submitted" => Self::Submitted,
            "working" => Self::Working,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "canceled" | "cancelled" => Self::Canceled,
            "rejected" => Self::Rejected,
            "input-required" => Self::InputRequired,
            "auth-required" => Self::AuthRequired,
            _ => Self::Unknown(plain),
        }
    }

    /// Name, in the spelling of 0.3.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
            Self::InputRequired => "input-required",
            Self::AuthRequired => "auth-required",
            Self::Unknown(name) => name,
        }
    }

    /// Whether the agent goes on with the task by itself.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        matches!(self, Self::Submitted | Self::Working | Self::Unknown(_))
    }

    /// Whether the task waits for its client.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::InputRequired | Self::AuthRequired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_known_in_both_spellings() {
        for (old, new, state) in [
            ("submitted", "TASK_STATE_SUBMITTED", TaskState::Submitted),
            ("working", "TASK_STATE_WORKING", TaskState::Working),
            ("completed", "TASK_STATE_COMPLETED", TaskState::Completed),
            ("failed", "TASK_STATE_FAILED", TaskState::Failed),
            ("canceled", "TASK_STATE_CANCELED", TaskState::Canceled),
            ("rejected", "TASK_STATE_REJECTED", TaskState::Rejected),
            ("input-required", "TASK_STATE_INPUT_REQUIRED", TaskState::InputRequired),
            ("auth-required", "TASK_STATE_AUTH_REQUIRED", TaskState::AuthRequired),
        ] {
            assert_eq!((TaskState::parse(old), TaskState::parse(new)), (state.clone(), state.clone()));
            assert_eq!(state.as_str(), old);
        }
        for unknown in ["unknown", "TASK_STATE_UNSPECIFIED", "pondering"] {
            assert!(TaskState::parse(unknown).is_under_way(), "{unknown}");
        }
        assert!(TaskState::AuthRequired.is_interrupted() && !TaskState::AuthRequired.is_under_way());
        assert!(!TaskState::Rejected.is_interrupted() && !TaskState::Rejected.is_under_way());
    }
}
