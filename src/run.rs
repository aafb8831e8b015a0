//! States of a run, and the order in which they may follow each other.

use serde::Serialize;

/// State of a run, spelled as in the `status` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[serde(rename_all = "UPPERCASE")]
#[sqlx(type_name = "text", rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// Accepted and durable; its message is in the outbox or in Kafka.
    Pending,
    /// Claimed by an executor.
    Running,
    /// Ended successfully.
    Completed,
    /// Ended by a failed step or because it could not be executed.
    Failed,
    /// Ended by a caller.
    Cancelled,
}

impl RunStatus {
    /// All states, in the order in which a run can meet them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The state of that name, if there is one; the column is free text that other programs write too.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// As in the `status` column and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// Whether the state is final, except for a retry.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether a caller may cancel the run.
    #[must_use]
    pub fn is_cancellable(self) -> bool {
        matches!(self, Self::Pending | Self::Running)
    }

    /// Whether a caller may start the run again.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled)
    }
}

/// Severity of an entry of a run's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A normal event.
    Info,
    /// A problem that may resolve itself.
    Warning,
    /// The event that ended the run.
    Error,
}

/// The kinds of entries above [`Level::Info`].
const ALARMING: [(&str, Level); 5] = [
    ("agent.failed", Level::Warning),
    ("attempt.failed", Level::Warning),
    ("run.cancelled", Level::Warning),
    ("run.failed", Level::Error),
    ("run.taken_over", Level::Warning),
];

impl Level {
    /// All levels.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// Level of an entry of that kind.
    #[must_use]
    pub fn of(kind: &str) -> Self {
        ALARMING.iter().find(|(alarming, _)| *alarming == kind).map_or(Self::Info, |(_, level)| *level)
    }

    /// Name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// The kinds of this level and the more severe ones; empty for all kinds.
    #[must_use]
    pub fn kinds(self) -> Vec<String> {
        let severe = ALARMING.iter().filter(|(_, level)| *level >= self && self > Self::Info);
        severe.map(|(kind, _)| (*kind).to_owned()).collect()
    }
}

/// State of a run as other protocols show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not begun.
    Submitted,
    /// It goes on.
    Working,
    /// It waits for an answer.
    Waiting,
    /// It has ended well.
    Completed,
    /// It has failed.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl State {
    /// State of a run with that status. Another program may write other statuses while a run goes on.
    #[must_use]
    pub fn of(status: &str, is_waiting: bool) -> Self {
        match RunStatus::parse(status) {
            Some(RunStatus::Pending) => Self::Submitted,
            Some(RunStatus::Completed) => Self::Completed,
            Some(RunStatus::Failed) => Self::Failed,
            Some(RunStatus::Cancelled) => Self::Cancelled,
            Some(RunStatus::Running) | None if is_waiting => Self::Waiting,
            Some(RunStatus::Running) | None => Self::Working,
        }
    }

    /// Whether the run has ended.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether the run does not go on by itself.
    #[must_use]
    pub fn is_settled(self) -> bool {
        self.is_terminal() || self == Self::Waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_can_be_cancelled_or_retried_or_is_completed() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::parse(status.as_str()), Some(status));
            assert_eq!(status.is_cancellable(), !status.is_terminal());
            assert_eq!(status.is_retryable(), status.is_terminal() && status != RunStatus::Completed);
        }
    }
}
