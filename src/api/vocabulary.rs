//! The words of the API, which resources and gate share: callers, errors, what is taken from requests and what answers consist
//! of.

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
pub mod memory;
pub mod organizations;
pub mod page;
pub mod parameters;
pub mod prefer;
pub mod request_permit;
pub mod sets;
pub mod signing;
pub mod streamed;
pub mod ticket;
pub mod token;
