//! Access control: roles, permissions, and the forms of credentials.

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

/// Role of a caller. `docs/access.md` lists the permissions of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads, and changes nothing.
    Viewer,
    /// Starts, cancels and retries runs.
    Operator,
    /// Changes agents and workflows.
    Editor,
    /// Has all permissions.
    Admin,
    /// A program that executes runs.
    Executor,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Editor, Self::Admin, Self::Executor];

    /// Permissions of the role.
    #[must_use]
    pub fn permissions(self) -> &'static [Permission] {
        use Permission::{
            AgentsRead, AgentsSecrets, AgentsWrite, RunsRead, RunsWrite, WebhooksRead, WebhooksWrite, WorkflowsRead,
            WorkflowsWrite,
        };
        match self {
            Self::Viewer => &[AgentsRead, WorkflowsRead, RunsRead, WebhooksRead],
            Self::Operator => &[AgentsRead, WorkflowsRead, RunsRead, RunsWrite, WebhooksRead],
            Self::Editor => {
                &[AgentsRead, AgentsWrite, WorkflowsRead, WorkflowsWrite, RunsRead, WebhooksRead, WebhooksWrite]
            }
            Self::Admin => &Permission::ALL,
            Self::Executor => &[AgentsRead, AgentsSecrets, WorkflowsRead, RunsRead, RunsWrite, WebhooksRead],
        }
    }

    /// Name of the role in tokens, in the database and on the wire.
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

/// Error: no role has this name.
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

/// Permission: roles consist of permissions, and an API key can be restricted to some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Reads agents, with masked credentials.
    AgentsRead,
    /// Registers, changes and deletes agents.
    AgentsWrite,
    /// Reads the credentials of agents.
    AgentsSecrets,
    /// Reads and validates definitions.
    WorkflowsRead,
    /// Creates, changes and deletes definitions.
    WorkflowsWrite,
    /// Reads runs.
    RunsRead,
    /// Starts, cancels and retries runs.
    RunsWrite,
    /// Creates, lists and revokes API keys.
    KeysManage,
    /// Reads the audit trail.
    AuditRead,
    /// Reads records that no executor could use, whatever they contain, and decides on them.
    DeadLettersManage,
    /// Reads webhooks and the log of their deliveries.
    WebhooksRead,
    /// Creates, changes and deletes webhooks, and sends deliveries again.
    WebhooksWrite,
    /// Reads its own organisation; in the default organisation creates and changes all.
    OrganizationsManage,
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 13] = [
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
        Self::WebhooksRead,
        Self::WebhooksWrite,
        Self::OrganizationsManage,
    ];

    /// Name of the permission in the database and on the wire.
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
            Self::WebhooksRead => "webhooks:read",
            Self::WebhooksWrite => "webhooks:write",
            Self::OrganizationsManage => "organizations:manage",
        }
    }

    /// Finds the permission of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|permission| permission.as_str() == name)
    }
}

/// Actor: the author of an action, as logs, audit entries and `…_by` columns name it.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The `sub` of the token; `api-key:` and the name of an API key; `system` for the service itself, and for all
    /// callers while authentication is off.
    pub subject: String,
    /// Organisation of the actor. It owns all that the actor sees and creates.
    pub organization: OrganizationId,
    /// Id of the API key, or of the key that the token was issued for.
    pub key_id: Option<Uuid>,
    /// Address of the client.
    pub address: Option<IpAddr>,
    /// Correlation id of the request.
    pub correlation_id: String,
    /// The request's `traceparent`, if it is valid.
    pub traceparent: Option<Arc<str>>,
}

impl Actor {
    /// Subject of the service itself, and of callers while authentication is off.
    pub const SYSTEM: &str = "system";
    /// Subject of a caller that knows the address of a callback and has not authenticated otherwise.
    pub const CALLBACK: &str = "callback";
    /// Reserved subjects, which no token has.
    pub const RESERVED: [&str; 2] = [Self::SYSTEM, Self::CALLBACK];

    /// Prefix of the subjects of runs that triggers start.
    pub const TRIGGER_PREFIX: &str = "trigger:";

    /// Subject of the runs that the trigger of that name starts.
    #[must_use]
    pub fn of_trigger(name: &str) -> String {
        format!("{}{name}", Self::TRIGGER_PREFIX)
    }

    /// The actor of the service itself.
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

    /// The actor of the same request with its identity.
    #[must_use]
    pub fn identified(&self, subject: &str, organization: &OrganizationId, key_id: Option<Uuid>) -> Self {
        Self {
            subject: subject.to_owned(),
            organization: organization.clone(),
            key_id,
            address: self.address,
            correlation_id: self.correlation_id.clone(),
            traceparent: self.traceparent.clone(),
        }
    }
}

/// Rights of an API key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Upper limit: the key has no permission beyond this role.
    pub role: Role,
    /// Restriction to these permissions of the role; `None`: all of them.
    pub scopes: Option<Vec<Permission>>,
    /// Restriction to workflows of these names; `None`: all workflows.
    pub workflows: Option<Vec<String>>,
}

impl Grant {
    /// The unrestricted rights of a role.
    #[must_use]
    pub fn of(role: Role) -> Self {
        Self { role, scopes: None, workflows: None }
    }

    /// Whether the permission is granted.
    #[must_use]
    pub fn allows(&self, permission: Permission) -> bool {
        self.role.permissions().contains(&permission)
            && self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&permission))
    }
}
