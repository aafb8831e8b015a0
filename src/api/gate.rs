//! What surrounds every request: admission, limits, authentication, permissions, bodies, headers; and the documentation.

pub mod access;
pub mod auth;
pub mod body;
pub mod compression;
pub mod cors;
pub mod docs;
pub mod headers;
pub mod load;
pub mod rate_limit;
pub mod request;
