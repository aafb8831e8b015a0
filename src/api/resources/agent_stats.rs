//! `/agents/{agent_id}/stats`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::agents::not_found;
use crate::{
    agent::latency::{self, BUCKETS, Buckets},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::AgentId,
    },
    db::{self, agent_hours::HourRow},
    usage::Cost,
};

/// Calls of an agent by executors.
#[derive(Serialize, ToSchema)]
pub struct AgentStats {
    /// Id of the agent.
    agent_id: uuid::Uuid,
    /// Its name.
    name: String,
    /// The hours that began in the last 24 hours.
    last_24_hours: AgentCalls,
    /// The hours that began in the last 7 days.
    last_7_days: AgentCalls,
}

/// Calls of an agent in some time.
#[derive(Default, Serialize, ToSchema)]
pub struct AgentCalls {
    /// Calls that have ended, with a result that says something about the agent.
    calls: u64,
    /// Calls without an output.
    failures: u64,
    /// Share of the calls with an output; null without calls.
    success_ratio: Option<f64>,
    /// Duration in milliseconds that half of the calls did not exceed, from a histogram; null without calls.
    p50_ms: Option<f64>,
    /// Duration in milliseconds that 95 % of the calls did not exceed, in the same way.
    p95_ms: Option<f64>,
    /// Tokens of inputs and outputs, as the answers said.
    tokens: u64,
    /// Cost by the price of the agent, as an exact decimal number.
    #[schema(value_type = String, example = "0.00010195")]
    cost: Cost,
}

impl AgentCalls {
    fn of<'a>(hours: impl Iterator<Item = &'a HourRow>) -> Self {
        let number = |count: i64| u64::try_from(count).unwrap_or_default();
        let (mut calls, mut failures, mut buckets): (u64, u64, Buckets) = (0, 0, [0; BUCKETS]);
        let (mut tokens, mut cost) = (0, Cost::ZERO);
        for hour in hours {
            calls += number(hour.calls);
            failures += number(hour.failures);
            tokens += number(hour.tokens);
            cost = cost + hour.cost.0;
            buckets.iter_mut().zip(&hour.latency).for_each(|(sum, more)| *sum += number(*more));
        }
        let ratio = |calls: u64| (calls.saturating_sub(failures)) as f64 / calls as f64;
        Self {
            calls,
            failures,
            success_ratio: (calls > 0).then(|| (ratio(calls) * 1e4).round() / 1e4),
            p50_ms: latency::quantile(&buckets, 0.5),
            p95_ms: latency::quantile(&buckets, 0.95),
            tokens,
            cost,
        }
    }
}

/// Get figures of an agent
///
/// Calls by the executors of this service, and how long they took. Executors add their counts every 5 s.
#[utoipa::path(
    get, path = "/agents/{agent_id}/stats", tag = "agents", params(("agent_id" = uuid::Uuid, Path)),
    responses((status = 200, body = AgentStats), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody)),
)]
pub async fn get_agent_stats(
    State(app): State<App>,
    caller: Caller,
    AgentId(id): AgentId,
) -> Result<Json<AgentStats>, ApiError> {
    let agent = db::agents::find(&app.pool, caller.organization(), id).await?.ok_or_else(not_found)?;
    let hours = db::agent_hours::of_last_week(&app.pool, id).await?;
    Ok(Json(AgentStats {
        agent_id: id,
        name: agent.name,
        last_24_hours: AgentCalls::of(hours.iter().filter(|hour| hour.is_of_last_day)),
        last_7_days: AgentCalls::of(hours.iter()),
    }))
}
