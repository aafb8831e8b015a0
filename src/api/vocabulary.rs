//! The words of the API, which resources and gate share: callers, errors, what is taken from requests and what answers consist
//! of.

pub mod client;
pub mod counts;
pub mod cursor;
pub mod error;
pub mod etag;
pub mod extract;
pub mod memory;
pub mod page;
pub mod parameters;
pub mod prefer;
pub mod sets;
pub mod signing;
