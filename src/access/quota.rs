//! Quotas of an organisation.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Countable resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Countable {
    /// Agents that are not deleted.
    Agents,
    /// Names with a version that is not deleted.
    Workflows,
    /// API keys that are neither revoked nor expired.
    ApiKeys,
    /// Runs that are accepted and not yet started.
    QueuedRuns,
}

impl Countable {
    /// Name for people.
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

/// Quotas of an organisation; null: the value of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quotas {
    /// Maximum number of agents that are not deleted.
    #[schema(minimum = 0)]
    pub agents: Option<i32>,
    /// Maximum number of workflow names with a version that is not deleted.
    #[schema(minimum = 0)]
    pub workflows: Option<i32>,
    /// Maximum number of API keys that are neither revoked nor expired.
    #[schema(minimum = 0)]
    pub api_keys: Option<i32>,
    /// Maximum number of runs that are accepted and not yet started.
    #[schema(minimum = 0)]
    pub queued_runs: Option<i32>,
}

impl Quotas {
    /// Maximum of this resource.
    #[must_use]
    pub fn of(&self, what: Countable) -> Option<i32> {
        match what {
            Countable::Agents => self.agents,
            Countable::Workflows => self.workflows,
            Countable::ApiKeys => self.api_keys,
            Countable::QueuedRuns => self.queued_runs,
        }
    }

    /// These quotas; `those` are the defaults for the ones that are not set.
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

/// Error: the organisation has reached a quota.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the organisation may have {limit} {} and has them already", .what.as_str())]
pub struct QuotaExceeded {
    /// Resource of the quota.
    pub what: Countable,
    /// Maximum number.
    pub limit: i32,
}
