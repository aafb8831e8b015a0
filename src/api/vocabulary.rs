//! Shared types of the API, for resources and gate: callers, errors, extractors, and parts of answers.

pub mod accept;
pub mod api_key_cache;
pub mod app;
pub mod caller;
pub mod client;
pub mod counts;
pub mod cursor;
pub mod error;
pub mod etag;
pub mod extract;
pub mod headers;
pub mod idempotency;
pub mod json_rpc;
pub mod memory;
pub mod organizations;
pub mod page;
pub mod parameters;
pub mod prefer;
pub mod request_permit;
pub mod session;
pub mod session_cache;
pub mod sets;
pub mod signing;
pub mod streamed;
pub mod ticket;
pub mod token;
