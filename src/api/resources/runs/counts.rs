//! `GET /runs/counts`: how many runs were created when, and what became of them.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::Query,
        parameters, sets,
    },
    db::runs::counts::{self, Bucket, CountFilter},
    input::{self, FieldError},
    timestamp::Timestamp,
};

/// Maximum number of spans in an answer: 31 days by the hour.
const MAX_SPANS: i64 = 744;
/// Number of spans if the query does not say when to begin.
const DEFAULT_SPANS: i32 = 24;

/// Length of the spans of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interval {
    Hour,
    Day,
}

impl Interval {
    fn read(query: &Query) -> Result<Self, FieldError> {
        match query.text("interval") {
            None | Some("hour") => Ok(Self::Hour),
            Some("day") => Ok(Self::Day),
            Some(_) => Err(FieldError::new("query.interval", "enum", "Input should be 'hour' or 'day'")),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    fn length(self) -> TimeDelta {
        match self {
            Self::Hour => TimeDelta::hours(1),
            Self::Day => TimeDelta::days(1),
        }
    }

    /// Begin of the span that this instant is in.
    fn begin(self, at: DateTime<Utc>) -> DateTime<Utc> {
        let secs = at.timestamp();
        DateTime::from_timestamp(secs - secs.rem_euclid(self.length().num_seconds()), 0).unwrap_or(at)
    }
}

/// Numbers of runs over time.
#[derive(Serialize, ToSchema)]
pub struct RunCounts {
    /// Length of the spans.
    #[schema(value_type = sets::CountInterval)]
    interval: &'static str,
    /// Begin of the first span.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// End of the last span that is counted, which may be in the middle of it.
    #[schema(value_type = String, format = DateTime)]
    to: Timestamp,
    /// Whether `from` is as requested. Of each status, the 20 000 latest runs are counted; earlier spans are left out.
    is_complete: bool,
    /// The spans, in the order of time. Those without runs are included.
    buckets: Vec<RunCountBucket>,
    /// The ten workflows with the most failed runs among the 10 000 latest failed runs between `from` and `to`; with
    /// `workflow_id` none.
    failing_workflows: Vec<FailingWorkflow>,
}

/// Numbers of runs that were created in a span of time.
#[derive(Serialize, ToSchema)]
pub struct RunCountBucket {
    /// Begin of the span, in UTC.
    #[schema(value_type = String, format = DateTime)]
    begin: Timestamp,
    /// Number of runs by their present status; a status without runs is omitted.
    #[schema(example = json!({"COMPLETED": 40, "FAILED": 2}))]
    runs: BTreeMap<String, i64>,
    /// Number of all these runs.
    total: i64,
}

/// Workflow with failed runs.
#[derive(Serialize, ToSchema)]
pub struct FailingWorkflow {
    /// `workflow_id` of the runs.
    workflow_id: String,
    /// Name of the workflow.
    workflow_name: String,
    /// Number of failed runs.
    failed: i64,
}

/// Count runs over time
///
/// By the hour or the day (UTC) of their creation, and by their present status. Without `created_after`, the last 24 spans;
/// the first span is counted as a whole.
#[utoipa::path(
    get, path = "/runs/counts", tag = "runs",
    params(
        ("interval" = Option<sets::CountInterval>, Query, description = "Length of the spans; absent is `hour`"),
        ("workflow_id" = Option<String>, Query, description = "Exactly this `workflow_id`"),
        parameters::Created,
    ),
    responses((status = 200, body = RunCounts), (status = 422, body = ErrorBody)),
)]
pub async fn count_runs(State(app): State<App>, caller: Caller, query: Query) -> Result<Json<RunCounts>, ApiError> {
    let interval = Interval::read(&query)?;
    let instant = |name: &str| query.text(name).map(|text| input::query_datetime(name, text)).transpose();
    let to = instant("created_before")?.unwrap_or_else(|| app.clock.now());
    let from = match instant("created_after")? {
        Some(from) => interval.begin(from),
        None => interval.begin(to) - interval.length() * (DEFAULT_SPANS - 1),
    };
    if from > to {
        return Err(FieldError::rule("query.created_after", "must not be later than created_before").into());
    }
    let spans = (to - from).num_seconds() / interval.length().num_seconds() + 1;
    if spans > MAX_SPANS {
        let message =
            format!("there would be {spans} spans, and there can be {MAX_SPANS}: choose a later time or days");
        return Err(FieldError::rule("query.created_after", message).into());
    }
    let workflow_id = query.text("workflow_id");
    let filter = CountFilter { organization: caller.organization(), workflow_id, from: from.into(), to: to.into() };
    let length = interval.length().as_seconds_f64();
    let (counts, failing) = app
        .reads
        .read(|mut conn| async move {
            let counts = counts::over_time(&mut conn, filter, length).await?;
            let failing = match workflow_id {
                None => counts::failing(&mut conn, filter).await?,
                Some(_) => Vec::new(),
            };
            Ok((counts, failing))
        })
        .await?;
    let first = counts.counted_from.map_or(from, |at| {
        let at = at.as_naive_utc().and_utc();
        // The span of the oldest run that was counted may have more.
        (interval.begin(at) + interval.length()).min(interval.begin(to))
    });
    Ok(Json(RunCounts {
        interval: interval.as_str(),
        from: first.into(),
        to: to.into(),
        is_complete: counts.counted_from.is_none(),
        buckets: buckets(interval, first, to, counts.buckets),
        failing_workflows: failing
            .into_iter()
            .map(|counts::FailingWorkflow { workflow_id, workflow_name, failed }| FailingWorkflow {
                workflow_id,
                workflow_name,
                failed,
            })
            .collect(),
    }))
}

/// All spans from the first one on, also those without runs.
fn buckets(interval: Interval, first: DateTime<Utc>, to: DateTime<Utc>, counted: Vec<Bucket>) -> Vec<RunCountBucket> {
    let mut by_begin: BTreeMap<DateTime<Utc>, BTreeMap<String, i64>> = BTreeMap::new();
    for Bucket { begin, status, runs, .. } in counted {
        by_begin.entry(begin.as_naive_utc().and_utc()).or_default().insert(status, runs);
    }
    let mut spans = Vec::new();
    let mut begin = first;
    while begin < to || spans.is_empty() {
        let runs = by_begin.remove(&begin).unwrap_or_default();
        spans.push(RunCountBucket { begin: begin.into(), total: runs.values().sum(), runs });
        begin += interval.length();
    }
    spans
}
