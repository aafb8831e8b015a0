//! Who may do what, and the forms of what proves it.

pub mod api_key;
pub mod organization;
pub mod quota;
pub mod verifying_key;

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use self::{
    organization::OrganizationId,
    quota::{Countable, QuotaExceeded, Quotas},
};

/// What a caller is to the service. `docs/access.md` says what each may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks, and changes nothing.
    Viewer,
    /// Starts, cancels and retries runs.
    Operator,
    /// Changes agents and workflows.
    Editor,
    /// May do everything.
    Admin,
    /// A program that executes runs.
    Executor,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Editor, Self::Admin, Self::Executor];

    /// What it may do.
    #[must_use]
    pub fn permissions(self) -> &'static [Permission] {
        use Permission::{AgentsRead, AgentsSecrets, AgentsWrite, RunsRead, RunsWrite, WorkflowsRead, WorkflowsWrite};
        match self {
            Self::Viewer => &[AgentsRead, WorkflowsRead, RunsRead],
            Self::Operator => &[AgentsRead, WorkflowsRead, RunsRead, RunsWrite],
            Self::Editor => &[AgentsRead, AgentsWrite, WorkflowsRead, WorkflowsWrite, RunsRead],
            Self::Admin => &Permission::ALL,
            Self::Executor => &[AgentsRead, AgentsSecrets, WorkflowsRead, RunsRead, RunsWrite],
        }
    }

    /// As in tokens, in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Editor => "editor",
            Self::Admin => "admin",
            Self::Executor => "executor",
        }
    }
}

/// There is no role of that name.
#[derive(Debug, thiserror::Error)]
#[error("must be one of viewer, operator, editor, admin, executor")]
pub struct NoSuchRole;

impl FromStr for Role {
    type Err = NoSuchRole;

    fn from_str(name: &str) -> Result<Self, NoSuchRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == name).ok_or(NoSuchRole)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a role consists of, and what a key may be narrowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Sees agents, their credentials masked.
    AgentsRead,
    /// Registers, changes and deletes agents.
    AgentsWrite,
    /// Sees the credentials of agents.
    AgentsSecrets,
    /// Sees and checks definitions.
    WorkflowsRead,
    /// Creates, changes and deletes definitions.
    WorkflowsWrite,
    /// Sees runs.
    RunsRead,
    /// Starts, cancels and retries runs.
    RunsWrite,
    /// Makes, sees and revokes API keys.
    KeysManage,
    /// Sees who did what.
    AuditRead,
    /// Sees records that no executor could use, whatever they hold, and decides on them.
    DeadLettersManage,
    /// Sees its organisation; in the default one makes and changes all.
    OrganizationsManage,
}

impl Permission {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::AgentsRead,
        Self::AgentsWrite,
        Self::AgentsSecrets,
        Self::WorkflowsRead,
        Self::WorkflowsWrite,
        Self::RunsRead,
        Self::RunsWrite,
        Self::KeysManage,
        Self::AuditRead,
        Self::DeadLettersManage,
        Self::OrganizationsManage,
    ];

    /// As in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AgentsRead => "agents:read",
            Self::AgentsWrite => "agents:write",
            Self::AgentsSecrets => "agents:secrets",
            Self::WorkflowsRead => "workflows:read",
            Self::WorkflowsWrite => "workflows:write",
            Self::RunsRead => "runs:read",
            Self::RunsWrite => "runs:write",
            Self::KeysManage => "keys:manage",
            Self::AuditRead => "audit:read",
            Self::DeadLettersManage => "dead-letters:manage",
            Self::OrganizationsManage => "organizations:manage",
        }
    }

    /// The permission of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.as_str() == name)
    }
}

/// Who does something, as logs, audit entries and `…_by` columns say it.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The token's `sub`; `api-key:` and the name of an API key; `system` for the service itself, and for everybody
    /// while authentication is off.
    pub subject: String,
    /// Whose everything is that the actor sees and makes.
    pub organization: OrganizationId,
    /// The API key that it is, or that its token was issued for.
    pub key_id: Option<Uuid>,
    /// Where the request comes from.
    pub address: Option<IpAddr>,
    /// Of the request.
    pub correlation_id: String,
    /// The request's `traceparent`, if it is valid.
    pub traceparent: Option<Arc<str>>,
}

impl Actor {
    /// Who acts without anybody having been asked for anything.
    pub const SYSTEM: &str = "system";
    /// Whoever has the address of a callback, and has not said more.
    pub const CALLBACK: &str = "callback";
    /// Subjects that no token has.
    pub const RESERVED: [&str; 2] = [Self::SYSTEM, Self::CALLBACK];

    /// The service itself.
    #[must_use]
    pub fn system() -> Self {
        Self {
            subject: Self::SYSTEM.to_owned(),
            organization: OrganizationId::default(),
            key_id: None,
            address: None,
            correlation_id: String::new(),
            traceparent: None,
        }
    }
}

/// What an API key allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The most it can be.
    pub role: Role,
    /// Of the role's permissions only these; `None`: all of them.
    pub scopes: Option<Vec<Permission>>,
    /// Only for workflows of these names; `None`: for all.
    pub workflows: Option<Vec<String>>,
}

impl Grant {
    /// All that a role may do.
    #[must_use]
    pub fn of(role: Role) -> Self {
        Self { role, scopes: None, workflows: None }
    }

    /// Whether it allows that.
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        self.role.permissions().contains(&permission)
            && self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&permission))
    }
}
