//! Who may do what, and the forms of what proves it.

pub mod verifying_key;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

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
