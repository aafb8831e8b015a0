//! Handlers of `/workflows`.

pub mod execute;
pub mod read;
pub mod save;
pub mod wire;
