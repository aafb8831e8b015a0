//! Wire types of the flow control of a workflow.

#![expect(dead_code, reason = "describes what `workflow::FlowControl` reads")]

use utoipa::ToSchema;

use crate::api::vocabulary::sets;

/// Limit of the runs of a workflow that are under way at a time: that have started, and have not ended. Runs that wait,
/// are paused or are taken over by another executor count. It holds for all versions of the name.
#[derive(ToSchema)]
#[schema(as = WorkflowConcurrency, example = json!({"key": "${workflow.input.customer}", "limit": 3}))]
pub struct ConcurrencyBody {
    /// Expression over the input, with a text, a number or a truth value: runs with different values do not count
    /// together. Absent or null: all runs of the workflow do.
    #[schema(min_length = 1, max_length = 500, example = "${workflow.input.customer}")]
    key: Option<String>,
    /// Maximum number of runs.
    #[schema(minimum = 1, maximum = 1000)]
    limit: i64,
    /// What happens to a further run; the default is `queue`.
    #[schema(required = false)]
    policy: sets::ConcurrencyPolicy,
}

/// Rate at which runs of a workflow start. Starts are spread evenly: with 10 in 60 s, one every 6 s. It holds for all
/// versions of the name.
#[derive(ToSchema)]
#[schema(as = WorkflowThrottle, example = json!({"limit": 10, "period_seconds": 60}))]
pub struct ThrottleBody {
    /// Expression over the input, as in `concurrency`; absent or null: all runs of the workflow share the rate.
    #[schema(min_length = 1, max_length = 500, example = "${workflow.input.customer}")]
    key: Option<String>,
    /// Number of runs that start in a period.
    #[schema(minimum = 1, maximum = 10_000)]
    limit: i64,
    /// Length of the period in seconds.
    #[schema(minimum = 1, maximum = 86_400)]
    period_seconds: i64,
    /// Number of runs that may start at once after a pause; the default is 1.
    #[schema(required = false, minimum = 1, maximum = 10_000)]
    burst: i64,
    /// What happens to a run that comes too early; the default is `queue`.
    #[schema(required = false)]
    policy: sets::ThrottlePolicy,
}

/// Starts in a row of which the last one counts: a run begins when its key has been quiet for a period. A run that is
/// started within it takes the place of the one that is pending, which ends as cancelled. It holds for all versions of the
/// name.
#[derive(ToSchema)]
#[schema(as = WorkflowDebounce, example = json!({"key": "${workflow.input.document}", "period_seconds": 30}))]
pub struct DebounceBody {
    /// Expression over the input, as in `concurrency`; absent or null: all runs of the workflow replace each other.
    #[schema(min_length = 1, max_length = 500, example = "${workflow.input.document}")]
    key: Option<String>,
    /// Time in seconds without a further start.
    #[schema(minimum = 1, maximum = 86_400)]
    period_seconds: i64,
    /// Time in seconds after the first start of a row at which the last run begins anyway; absent or null: there is none.
    #[schema(minimum = 1, maximum = 86_400)]
    max_wait_seconds: Option<i64>,
}
