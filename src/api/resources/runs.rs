//! Handlers of `/runs`.

pub mod bulk;
pub mod cancel;
pub mod counts;
pub mod pause;
pub mod read;
pub mod retry;
pub mod steps;
pub mod wire;
