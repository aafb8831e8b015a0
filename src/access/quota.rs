//! How much an organisation may have.

use serde::{Deserialize, Serialize};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Countable {
    /// Those that are not deleted.
    Agents,
    /// Names with a version that is not deleted.
    Workflows,
    /// Those that are neither revoked nor expired.
    ApiKeys,
    /// Runs that have been accepted and not yet begun.
    QueuedRuns,
}

impl Countable {
    /// For people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agents => "agents",
            Self::Workflows => "workflows",
            Self::ApiKeys => "API keys",
            Self::QueuedRuns => "queued runs",
        }
    }
}

/// The most that an organisation may have of each; `None`: as many as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Of [`Countable::Agents`].
    pub agents: Option<i32>,
    /// Of [`Countable::Workflows`].
    pub workflows: Option<i32>,
    /// Of [`Countable::ApiKeys`].
    pub api_keys: Option<i32>,
    /// Of [`Countable::QueuedRuns`].
    pub queued_runs: Option<i32>,
}

impl Quotas {
    /// The most of these.
    #[must_use]
    pub fn of(&self, what: Countable) -> Option<i32> {
        match what {
            Countable::Agents => self.agents,
            Countable::Workflows => self.workflows,
            Countable::ApiKeys => self.api_keys,
            Countable::QueuedRuns => self.queued_runs,
        }
    }

    /// These, and where they say nothing, those.
    #[must_use]
    pub fn or(self, those: Self) -> Self {
        Self {
            agents: self.agents.or(those.agents),
            workflows: self.workflows.or(those.workflows),
            api_keys: self.api_keys.or(those.api_keys),
            queued_runs: self.queued_runs.or(those.queued_runs),
        }
    }
}

/// The organisation has as many as it may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the organisation may have {limit} {} and has them already", .what.as_str())]
pub struct QuotaExceeded {
    /// Of what.
    pub what: Countable,
    /// How many.
    pub limit: i32,
}
