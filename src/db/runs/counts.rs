//! Numbers of runs over time. Each statement reads a bounded number of index entries.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::{access::OrganizationId, db::Error, run::RunStatus, timestamp::Timestamp};

/// Maximum number of runs of each status that are counted, the latest ones first.
const MAX_COUNTED: i64 = 20_000;
/// Maximum number of failed runs that are counted by workflow, the latest ones first.
const MAX_FAILED: i64 = 10_000;
/// Number of workflows with the most failed runs.
const MAX_WORKFLOWS: i64 = 10;

/// Runs to count.
#[derive(Clone, Copy, Debug)]
pub struct CountFilter<'a> {
    /// Organisation of the runs.
    pub organization: &'a OrganizationId,
    /// Exact `workflow_id`.
    pub workflow_id: Option<&'a str>,
    /// Created at this time or later.
    pub from: Timestamp,
    /// Created before this time.
    pub to: Timestamp,
}

/// Number of runs of a status that were created in a span of time.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Bucket {
    /// Begin of the span.
    pub begin: Timestamp,
    /// Status of the runs.
    pub status: String,
    /// Number of runs, at least one.
    pub runs: i64,
    /// Creation of the oldest of them.
    pub oldest: Timestamp,
}

/// Numbers of runs over time.
#[derive(Debug)]
pub struct Counts {
    /// Numbers by span and status, in the order of time.
    pub buckets: Vec<Bucket>,
    /// Time from which all runs are counted, if that is later than the requested one.
    pub counted_from: Option<Timestamp>,
}

/// Counts runs by their creation, in spans of `span_secs`, which begin at multiples of it, and by their present status.
pub async fn over_time(conn: &mut PgConnection, filter: CountFilter<'_>, span_secs: f64) -> Result<Counts, Error> {
    // Served by the index of a status in an organisation, or in a workflow.
    let of_workflow = filter.workflow_id.map_or("", |_| "AND workflow_id = $7");
    let sql = format!(
        "SELECT date_bin(make_interval(secs => $5), r.created_at, TIMESTAMP '2000-01-01') AS begin, s.status,
             count(*) AS runs, min(r.created_at) AS oldest
         FROM unnest($1::text[]) AS s (status), LATERAL (
             SELECT created_at FROM workflow_runs
             WHERE status = s.status AND organization_id = $2 AND created_at >= $3 AND created_at < $4 {of_workflow}
             ORDER BY created_at DESC LIMIT $6) AS r
         GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql))
        .bind(RunStatus::ALL.map(RunStatus::as_str).to_vec())
        .bind(filter.organization.as_str())
        .bind(filter.from)
        .bind(filter.to)
        .bind(span_secs)
        .bind(MAX_COUNTED);
    if let Some(id) = filter.workflow_id {
        query = query.bind(id);
    }
    let buckets: Vec<Bucket> = query.fetch_all(conn).await?;
    let of_status = |status: RunStatus| buckets.iter().filter(move |bucket| bucket.status == status.as_str());
    let is_cut = |status: &RunStatus| of_status(*status).map(|bucket| bucket.runs).sum::<i64>() >= MAX_COUNTED;
    let oldest = |status| of_status(status).map(|bucket| bucket.oldest).min();
    let counted_from = RunStatus::ALL.into_iter().filter(is_cut).filter_map(oldest).max();
    Ok(Counts { buckets, counted_from })
}

/// Workflow with failed runs.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct FailingWorkflow {
    /// `workflow_id` of the runs.
    pub workflow_id: String,
    /// Name of the workflow.
    pub workflow_name: String,
    /// Number of failed runs.
    pub failed: i64,
}

/// Workflows with the most failed runs among the latest ones; the filter's workflow does not count.
pub async fn failing(conn: &mut PgConnection, filter: CountFilter<'_>) -> Result<Vec<FailingWorkflow>, Error> {
    let sql = "SELECT workflow_id, max(workflow_name) AS workflow_name, count(*) AS failed FROM (
                   SELECT workflow_id, workflow_name FROM workflow_runs
                   WHERE status = 'FAILED' AND organization_id = $1 AND created_at >= $2 AND created_at < $3
                   ORDER BY created_at DESC LIMIT $4) AS latest
               GROUP BY workflow_id ORDER BY failed DESC, workflow_id LIMIT $5";
    Ok(sqlx::query_as(sql)
        .bind(filter.organization.as_str())
        .bind(filter.from)
        .bind(filter.to)
        .bind(MAX_FAILED)
        .bind(MAX_WORKFLOWS)
        .fetch_all(conn)
        .await?)
}
