//! `/system/storage`: sizes of the tables, and status of retention.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use chrono::TimeDelta;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
    },
    db::{
        self,
        retention::Pass,
        storage::{Next, TableSize},
    },
    timestamp::Timestamp,
};

/// Period for which the next deletions are counted.
const AHEAD: TimeDelta = TimeDelta::days(1);

/// Storage of the service in the database.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "total_bytes": 4_080_218_931_i64,
    "tables": [{
        "name": "workflow_runs", "row_estimate": 10_000_000, "dead_row_estimate": 81_000, "bytes": 4_080_218_931_i64,
        "index_bytes": 1_930_100_736, "large_value_bytes": 8192, "bytes_per_day": 45_335_766.4, "rows_per_day": 111_111.1,
    }],
    "retention": {
        "default_days": 90, "organizations": 1, "workflows": 3, "lag_seconds": 0.0,
        "next": {"runs": 10_000, "is_exact": false, "oldest_ended_at": "2026-08-30T10:00:00Z", "until": "2026-11-29T10:00:00Z"},
        "pass": null,
        "last_pass": {
            "started_at": "2026-11-28T09:59:10.120450Z", "ended_at": "2026-11-28T10:00:00.511021Z", "runs": 1200,
            "rows": {"workflow_runs": 1200, "step_executions": 3600, "run_events": 12_000}, "archived": true,
        },
        "archive": {"location": "s3://runs/production", "failing_since": null, "error": null},
    },
}))]
pub struct Storage {
    /// Size of all tables.
    total_bytes: i64,
    /// The tables, the largest first.
    tables: Vec<Table>,
    /// Deletion of old runs.
    retention: Retention,
}

/// Size of a table; of a partitioned one all partitions together. Numbers of rows are those of the database's
/// statistics.
#[derive(Serialize, ToSchema)]
#[schema(as = StorageTable)]
pub struct Table {
    /// Name of the table.
    name: String,
    /// Approximate number of rows.
    row_estimate: i64,
    /// Approximate number of deleted rows that are not vacuumed yet.
    dead_row_estimate: i64,
    /// Size with indexes and large values.
    bytes: i64,
    /// Size of the indexes.
    index_bytes: i64,
    /// Size of values that are stored separately because of their size.
    large_value_bytes: i64,
    /// Growth in bytes per day, over the last week at most; null before the second day.
    bytes_per_day: Option<f64>,
    /// Growth in rows per day.
    rows_per_day: Option<f64>,
}

impl From<TableSize> for Table {
    fn from(size: TableSize) -> Self {
        let TableSize { name, row_estimate, dead_row_estimate, bytes, index_bytes, large_value_bytes, .. } = size;
        let (bytes_per_day, rows_per_day) = (size.bytes_per_day, size.rows_per_day);
        Self {
            name,
            row_estimate,
            dead_row_estimate,
            bytes,
            index_bytes,
            large_value_bytes,
            bytes_per_day,
            rows_per_day,
        }
    }
}

/// Retention: the deletion of runs that ended long ago.
#[derive(Serialize, ToSchema)]
#[schema(as = StorageRetention)]
pub struct Retention {
    /// `RUN_RETENTION_DAYS`; 0: runs are kept for ever.
    default_days: i32,
    /// Number of organisations with their own value.
    organizations: usize,
    /// Number of workflows with their own value.
    workflows: usize,
    /// Delay of the deletion: time since the end of the retention of the oldest run that is not deleted yet.
    lag_seconds: f64,
    /// Runs that are deleted within a day.
    next: NextDeletion,
    /// The current pass, once it has deleted runs.
    pass: Option<Deletion>,
    /// The last pass that has deleted runs.
    last_pass: Option<Deletion>,
    /// Archive of deleted runs; null: runs are not archived.
    archive: Option<ArchiveState>,
}

/// Runs that are deleted within a day.
#[derive(Serialize, ToSchema)]
pub struct NextDeletion {
    /// Number of runs whose retention is over by then, as far as they were counted. Those that belong to a run that
    /// has not ended, or is kept, are deleted with that run.
    runs: u64,
    /// Whether all of them were counted.
    is_exact: bool,
    /// End of the run that ended first.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest_ended_at: Option<Timestamp>,
    /// End of the period.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
}

/// Pass of the deletion.
#[derive(Serialize, ToSchema)]
#[schema(as = RetentionPass)]
pub struct Deletion {
    /// Time of its first deletion.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Its end; null while it is in progress.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// Number of deleted runs, of all organisations.
    runs: u64,
    /// Number of deleted rows by table.
    rows: BTreeMap<String, u64>,
    /// Whether the runs are in the archive.
    archived: bool,
}

impl Deletion {
    fn of(pass: Pass) -> Option<Self> {
        Some(Self {
            started_at: pass.started_at?.into(),
            ended_at: pass.ended_at.map(Timestamp::from),
            runs: pass.organizations.values().map(|deleted| deleted.runs).sum(),
            rows: pass.rows,
            archived: pass.is_archived,
        })
    }
}

/// Archive of deleted runs.
#[derive(Serialize, ToSchema)]
pub struct ArchiveState {
    /// `RUN_ARCHIVE`.
    #[schema(example = "s3://runs/production")]
    location: String,
    /// Time since which it cannot be written; nothing is deleted meanwhile. Null: no failure is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Timestamp>,
    /// Reason why it cannot be written.
    error: Option<String>,
}

/// Get the storage
///
/// Sizes and growth of the tables, and the runs that retention deletes next. For administrators of the default
/// organisation, because it concerns all organisations. No table is read for it.
#[utoipa::path(
    get, path = "/system/storage", tag = "system",
    responses(
        (status = 200, body = Storage),
        (status = 403, description = "The caller does not belong to the default organization", body = ErrorBody),
    ),
)]
pub async fn get_storage(State(app): State<App>, caller: Caller) -> Result<Json<Storage>, ApiError> {
    if !caller.organization().is_default() {
        return Err(ApiError::forbidden("The caller may not see the storage of all organizations"));
    }
    let (pool, default_days) = (app.pool.clone(), app.config.retention.days);
    let read = db::bounded(async move {
        let tables = db::storage::tables(&pool).await?;
        let status = db::retention::status(&pool).await?;
        let (now, policies) = db::retention::policies(&pool, default_days).await?;
        let next = db::storage::next(&pool, &policies, status.scan.clone(), now + AHEAD).await?;
        Ok((tables, status, policies, now, next))
    });
    let (tables, status, policies, now, Next { runs, is_exact, oldest }) = read.await?;
    let lag = status.scan.lag(now).and_then(|lag| lag.to_std().ok()).unwrap_or_default();
    let archive = app.config.retention.archive.as_ref().map(|archive| ArchiveState {
        location: archive.location(),
        failing_since: status.archive_failed_since.map(Timestamp::from),
        error: status.archive_error,
    });
    Ok(Json(Storage {
        total_bytes: tables.iter().map(|table| table.bytes).sum(),
        tables: tables.into_iter().map(Table::from).collect(),
        retention: Retention {
            default_days,
            organizations: policies.organizations.len(),
            workflows: policies.workflows.len(),
            lag_seconds: lag.as_secs_f64(),
            next: NextDeletion {
                runs,
                is_exact,
                oldest_ended_at: oldest.map(Timestamp::from),
                until: (now + AHEAD).into(),
            },
            pass: Deletion::of(status.pass),
            last_pass: status.last_pass.and_then(|pass| Deletion::of(pass.0)),
            archive,
        },
    }))
}
