//! Handlers of `/workflows`.

pub mod execute;
pub mod flow;
pub mod read;
pub mod save;
pub mod wire;
