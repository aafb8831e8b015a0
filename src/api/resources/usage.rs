//! What runs, steps and workflows have used.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::definition::LimitsBody;
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::WorkflowId,
        sets,
    },
    db::{
        self,
        usage::{self, Used},
    },
    usage::{Limits, Totals},
};

/// Hours of the sums of a workflow.
const DAY: i32 = 24;
const WEEK: i32 = 7 * DAY;

/// Sum of what calls of agents have used.
#[derive(Serialize, ToSchema)]
pub struct UsageSum {
    /// Calls that were counted.
    calls: i64,
    /// Tokens of their inputs.
    input_tokens: i64,
    /// Tokens of their outputs.
    output_tokens: i64,
    /// Tokens of both.
    tokens: i64,
    /// Cost by the prices of the agents at that time: an exact decimal number, without a currency.
    #[schema(value_type = String, example = "0.00445")]
    cost: crate::usage::Cost,
}

impl From<Used> for UsageSum {
    fn from(used: Used) -> Self {
        let Used { calls, input_tokens, output_tokens, cost } = used;
        Self { calls, input_tokens, output_tokens, tokens: input_tokens + output_tokens, cost }
    }
}

/// What a run has used together with its sub-runs.
#[derive(Serialize, ToSchema)]
pub struct RunUsage {
    #[serde(flatten)]
    total: UsageSum,
    /// The same without its sub-runs.
    own: UsageSum,
    /// Limits in force: the smaller ones of the workflow and of the run. Null: none besides those of its parent run.
    #[schema(value_type = Option<LimitsBody>)]
    limits: Option<Limits>,
    /// The limit into which a call or a step did not fit, of the run or of its parent run; null: none.
    #[schema(value_type = Option<sets::RunLimit>)]
    pub exceeded: Option<String>,
}

impl From<usage::RunUsage> for RunUsage {
    fn from(stored: usage::RunUsage) -> Self {
        let usage::RunUsage { own, total, limits, exceeded } = stored;
        Self { total: total.into(), own: own.into(), limits, exceeded }
    }
}

/// What one call of an agent has used.
#[derive(Serialize, ToSchema)]
pub struct CallUsage {
    /// Tokens of its input.
    input_tokens: i64,
    /// Tokens of its output.
    output_tokens: i64,
    /// Cost by the price of the agent at that time: an exact decimal number, without a currency.
    #[schema(value_type = String, example = "0.00445")]
    cost: crate::usage::Cost,
}

impl From<Used> for CallUsage {
    fn from(used: Used) -> Self {
        let Used { input_tokens, output_tokens, cost, .. } = used;
        Self { input_tokens, output_tokens, cost }
    }
}

/// What the calls of a simulated run have used, by the usage in its mocks.
#[derive(Serialize, ToSchema)]
pub struct SimulatedUsage {
    /// Calls of agents, those of sub-runs included.
    calls: i64,
    /// Tokens.
    tokens: i64,
    /// Cost by the prices of the agents: an exact decimal number, without a currency.
    #[schema(value_type = String, example = "0.00445")]
    cost: crate::usage::Cost,
}

impl From<Totals> for SimulatedUsage {
    fn from(Totals { calls, tokens, cost, .. }: Totals) -> Self {
        Self { calls, tokens, cost }
    }
}

/// What the runs of a workflow have used.
#[derive(Serialize, ToSchema)]
pub struct WorkflowUsage {
    /// In the last 24 hours.
    last_24_hours: UsageSum,
    /// In the last 7 days.
    last_7_days: UsageSum,
}

/// Get the usage of a workflow
///
/// What its runs have used, as far as they are kept. The runs of its sub-workflows count for those.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/usage", tag = "workflows",
    params(("workflow_id" = uuid::Uuid, Path)),
    responses((status = 200, body = WorkflowUsage), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn workflow_usage(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
) -> Result<Json<WorkflowUsage>, ApiError> {
    let organization = caller.organization();
    db::workflows::find(&app.pool, organization, id).await?.ok_or_else(ApiError::workflow_not_found)?;
    let id = id.to_string();
    let within = async |hours| usage::of_workflow(&app.pool, organization, &id, hours).await;
    Ok(Json(WorkflowUsage { last_24_hours: within(DAY).await?.into(), last_7_days: within(WEEK).await?.into() }))
}
