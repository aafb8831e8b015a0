//! What executors and simulations have in common, as the steps of a run see it.

use tokio_util::sync::CancellationToken;

use super::memory::Memory;
use crate::{clock::Clock, config::RunBudget};

/// What both kinds of surroundings of a run have.
pub(super) struct Common {
    /// Clock for the time limits of runs, steps, retries and caches.
    pub(super) clock: Clock,
    /// Memory for the values of all runs.
    pub(super) memory: Memory,
    /// Prefix of the URLs of callbacks.
    pub(super) callbacks_url: String,
    /// Limits of one run.
    pub(super) run_budget: RunBudget,
    /// Soft stop: nothing new begins.
    pub(super) soft_stop: CancellationToken,
}
