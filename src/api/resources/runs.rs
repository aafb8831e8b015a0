//! Handlers of `/runs`.

pub mod cancel;
pub mod pause;
pub mod read;
pub mod retry;
pub mod steps;
pub mod wire;
