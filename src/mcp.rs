//! The Model Context Protocol, <https://modelcontextprotocol.io>, over streamable HTTP: what both sides share, and what a
//! client sends and reads. Pure.
//!
//! The revision 2026-07-28 has no sessions: each request says in `_meta` and in headers what it is. Older ones begin with a
//! handshake. Unknown members are ignored.

pub mod reply;
pub mod request;
pub mod tools;

/// Revision without sessions, in which each request says what its client can do.
pub const MODERN: &str = "2026-07-28";
/// Revisions with a handshake; the newest one first.
pub const LEGACY: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// Extension for tool calls that take longer.
pub const TASKS: &str = "io.modelcontextprotocol/tasks";
/// Member of `_meta`: the revision.
pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Member of `_meta`: the capabilities of the client.
pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// Member of `_meta`: name and version of the client.
pub const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
/// Member of `_meta`: name and version of the server.
pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
/// Member of `_meta` that repeats of a call share.
pub const IDEMPOTENCY_KEY: &str = "idempotencyKey";

/// Header with the revision.
pub const VERSION_HEADER: &str = "mcp-protocol-version";
/// Header with the method.
pub const METHOD_HEADER: &str = "mcp-method";
/// Header with the name of the tool, or the id of the task.
pub const NAME_HEADER: &str = "mcp-name";
/// Header with the session of an older revision.
pub const SESSION_HEADER: &str = "mcp-session-id";

/// Error code: a header differs from the body, or is missing.
pub const HEADER_MISMATCH: i32 = -32020;
/// Error code: the client lacks a capability that the request needs.
pub const MISSING_CAPABILITY: i32 = -32021;
/// Error code: the server does not know the revision.
pub const UNSUPPORTED_VERSION: i32 = -32022;
/// Error code: the server does not know the method.
pub const METHOD_NOT_FOUND: i32 = -32601;

/// Revision of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revision {
    /// [`MODERN`].
    Modern,
    /// One of [`LEGACY`].
    Legacy(&'static str),
}

impl Revision {
    /// The newest revision with a handshake.
    pub const NEWEST_LEGACY: Self = Self::Legacy(LEGACY[0]);

    /// Name of the revision.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Modern => MODERN,
            Self::Legacy(name) => name,
        }
    }

    /// Reads a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name == MODERN {
            return Some(Self::Modern);
        }
        LEGACY.into_iter().find(|known| *known == name).map(Self::Legacy)
    }
}

/// What requests to a server need to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Revision to speak.
    pub revision: Revision,
    /// Session of an older revision, if the server keeps one.
    pub session: Option<String>,
}

impl Link {
    /// Link to a server without sessions.
    pub const MODERN: Self = Self { revision: Revision::Modern, session: None };

    /// Whether it is of the revision without sessions.
    #[must_use]
    pub fn is_modern(&self) -> bool {
        self.revision == Revision::Modern
    }
}

/// Name and version of this program, as client and as server.
#[must_use]
pub fn own_info() -> serde_json::Value {
    serde_json::json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})
}
