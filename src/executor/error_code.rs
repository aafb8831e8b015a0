//! Error codes of failed runs, in metrics. A run whose step failed because of a call of an agent has the name of
//! [`CallErrorKind`](super::agent_call::CallErrorKind) instead.

/// A step failed without a failed call of an agent.
pub(super) const STEP_FAILED: &str = "step_failed";
/// The run took too long.
pub(super) const RUN_TIMEOUT: &str = "run_timeout";
/// A limit of one run is exceeded.
pub(super) const RUN_BUDGET: &str = "run_budget";
/// A limit that the workflow or the start of the run sets is exceeded.
pub(super) const BUDGET_EXCEEDED: &str = "budget_exceeded";
/// The plan cannot be executed.
pub(super) const INVALID_PLAN: &str = "invalid_plan";
/// Too many executors died with the run.
pub(super) const TAKEOVERS: &str = "takeovers";
/// The database refuses a value of the run.
pub(super) const REFUSED_BY_DATABASE: &str = "refused_by_database";
/// Statements of the run exceed their time-out again and again.
pub(super) const STATEMENT_TIMEOUT: &str = "statement_timeout";
/// A defect of this program.
pub(super) const INTERNAL_ERROR: &str = "internal_error";
