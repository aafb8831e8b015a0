//! The A2A protocol, versions 0.3 and 1.0, <https://a2a-protocol.org>: requests, answers, stream events and agent cards.
//! Pure.
//!
//! What an agent sends is read in the form of either version, whatever was asked: some servers answer a request of 0.3 in
//! the form of 1.0. Unknown members are ignored, and an unknown state counts as under way.

pub mod canonical;
pub mod card;
pub mod reply;
pub mod request;
pub mod shown;
pub mod signature;
pub mod state;
pub mod stream;

pub use self::{
    card::{Binding, Card, Interface},
    reply::{Message, Part, Reply, RpcError, StatusMessage, Task},
    signature::Signature,
    state::TaskState,
};

/// Header with the version on each request of 1.0. Without it a server assumes 0.3.
pub const VERSION_HEADER: &str = "a2a-version";
/// Media type of the HTTP+JSON binding.
pub const MEDIA_TYPE: &str = "application/a2a+json";

/// Error code: the server knows no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// Error code: there is no such task.
pub const TASK_NOT_FOUND: i32 = -32001;
/// Error code: the task cannot be cancelled, for example because it has ended.
pub const TASK_NOT_CANCELABLE: i32 = -32002;
/// Error code: the agent sends no push notifications.
pub const PUSH_NOT_SUPPORTED: i32 = -32003;
/// Error code: the agent does not support the operation, for example streaming.
pub const UNSUPPORTED_OPERATION: i32 = -32004;
/// Error code: the agent does not support the version.
pub const VERSION_NOT_SUPPORTED: i32 = -32009;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 0.2 and 0.3, whose requests have the same form.
    V03,
    /// 1.0 and later minor versions.
    V1,
}

/// Operation of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sends a message.
    Send,
    /// Sends a message, and streams the events of its task.
    Stream,
    /// Reads a task.
    Get,
    /// Cancels a task.
    Cancel,
    /// Reads the card for authenticated clients.
    ExtendedCard,
}

impl Version {
    /// Name, `Major.Minor`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V03 => "0.3",
            Self::V1 => "1.0",
        }
    }

    /// Version of that name; patch versions do not count. `None`: the protocol has no such version yet.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.trim().trim_start_matches('v').split('.');
        match (numbers.next()?, numbers.next().unwrap_or("0")) {
            ("0", "2" | "3") => Some(Self::V03),
            ("1", _) => Some(Self::V1),
            _ => None,
        }
    }

    /// The other version.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V03 => Self::V1,
            Self::V1 => Self::V03,
        }
    }

    /// JSON-RPC method of the operation.
    #[must_use]
    pub fn method(self, operation: Operation) -> &'static str {
        match (self, operation) {
            (Self::V03, Operation::Send) => "message/send",
            (Self::V03, Operation::Stream) => "message/stream",
            (Self::V03, Operation::Get) => "tasks/get",
            (Self::V03, Operation::Cancel) => "tasks/cancel",
            (Self::V03, Operation::ExtendedCard) => "agent/getAuthenticatedExtendedCard",
            (Self::V1, Operation::Send) => "SendMessage",
            (Self::V1, Operation::Stream) => "SendStreamingMessage",
            (Self::V1, Operation::Get) => "GetTask",
            (Self::V1, Operation::Cancel) => "CancelTask",
            (Self::V1, Operation::ExtendedCard) => "GetExtendedAgentCard",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_as_major_and_minor() {
        for (name, expected) in [
            ("1.0", Some(Version::V1)),
            ("1.0.1", Some(Version::V1)),
            ("1.7", Some(Version::V1)),
            ("1", Some(Version::V1)),
            ("0.3", Some(Version::V03)),
            ("0.3.0", Some(Version::V03)),
            ("0.2.6", Some(Version::V03)),
            (" v0.3 ", Some(Version::V03)),
            ("0.1", None),
            ("2.0", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(name), expected, "{name}");
        }
        assert_eq!(Version::V1.other().as_str(), "0.3");
    }
}
