//! Runs with their outputs, as the API shows a run by itself: many in one statement.

use serde_json::value::RawValue;
use sqlx::{AssertSqlSafe, FromRow as _, PgExecutor, Row as _, types::Json};

use super::RunRow;
use crate::{
    access::OrganizationId,
    db::{
        Error,
        usage::{OF_RUN, RunUsage},
    },
};

/// Maximum stored bytes of an input or an output that is read together with those of other runs. PostgreSQL compresses
/// JSON to as little as a hundredth of its length.
pub const SMALL_BYTES: i32 = 8 << 10;

/// Run with its output.
#[derive(Clone, Debug)]
pub struct ShownRun {
    /// Row of the run.
    pub run: RunRow,
    /// Output of the last completed step of the main chain, if the run is completed.
    pub output: Option<Json<Box<RawValue>>>,
    /// What it has used, if it was counted.
    pub usage: Option<Json<RunUsage>>,
}

/// Result for one of several runs.
#[derive(Clone, Debug)]
pub enum Found {
    /// The organisation has no such run.
    Nothing,
    /// The run.
    Run(Box<ShownRun>),
    /// The run exists, and its input or output is larger than the limit.
    Large,
}

/// Finds each organisation's run by id, if its input and output have at most `max_bytes` stored bytes each. The results are
/// in the order of `wanted`.
pub async fn find_shown(
    db: impl PgExecutor<'_>,
    wanted: &[(&OrganizationId, &str)],
    max_bytes: i32,
) -> Result<Vec<Found>, Error> {
    // `pg_column_size` returns the stored size without reading the value. The sub-selects around the parameters hide the
    // number of runs from the planner, which would otherwise plan each statement anew.
    let sql = format!(
        "
        SELECT wanted.place, is_small AND coalesce(pg_column_size(output_data), 0) <= $3 AS is_whole,
            run_id, workflow_id, workflow_name, workflow_definition_id, workflow_version, status,
            CASE WHEN is_small THEN input_data END AS input_data, triggered_by, created_at, updated_at, completed_at,
            cancelled_at, cancelled_by, CASE WHEN is_small THEN error_message END AS error_message, correlation_id,
            priority, paused_at AT TIME ZONE 'UTC' AS paused_at, parent_run_id, parent_step_id, traceparent, limits,
            deadline_at AT TIME ZONE 'UTC' AS deadline_at, deadline_missed_at AT TIME ZONE 'UTC' AS deadline_missed_at,
            trigger_kind, trigger_id, trigger_at, chain_depth,
            flow_stage, flow_state, flow_key,
            CASE WHEN pg_column_size(output_data) <= $3 THEN output_data END AS output_data, {OF_RUN} AS usage
        FROM unnest((SELECT $1::text[]), (SELECT $2::text[])) WITH ORDINALITY AS wanted (id, organization, place)
            JOIN (
                SELECT *, coalesce(pg_column_size(input_data), 0) <= $3
                    AND coalesce(pg_column_size(error_message), 0) <= $3 AS is_small
                FROM workflow_runs
            ) AS run ON run_id = wanted.id AND organization_id = wanted.organization
            LEFT JOIN LATERAL (
                SELECT output_data FROM step_executions AS step
                WHERE run.status = 'COMPLETED' AND step.run_id = run.run_id AND step.status = 'COMPLETED'
                    AND step.parent_step_id IS NULL
                ORDER BY step.completed_at DESC NULLS LAST, step.started_at DESC, step.id DESC LIMIT 1
            ) AS step ON true"
    );
    let (organizations, run_ids): (Vec<_>, Vec<_>) = wanted.iter().map(|(of, run_id)| (of.as_str(), *run_id)).unzip();
    let query = sqlx::query(AssertSqlSafe(sql)).bind(run_ids).bind(organizations).bind(max_bytes);
    let mut found = vec![Found::Nothing; wanted.len()];
    for row in query.fetch_all(db).await? {
        let (place, is_whole): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        let found = usize::try_from(place - 1).ok().and_then(|index| found.get_mut(index));
        let found = found.ok_or_else(|| sqlx::Error::Decode("a place that was not asked for".into()))?;
        *found = if is_whole {
            let (output, usage) = (row.try_get("output_data")?, row.try_get("usage")?);
            Found::Run(Box::new(ShownRun { run: RunRow::from_row(&row)?, output, usage }))
        } else {
            Found::Large
        };
    }
    Ok(found)
}
