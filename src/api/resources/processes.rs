//! `/system/processes`: the processes of the service, and the schema that they share.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        sets,
    },
    db::{
        self,
        migrations::{self, SchemaState},
        processes::{self, ProcessRow},
    },
    timestamp::Timestamp,
};

/// Processes of the service, and the schema that they share.
#[derive(Serialize, ToSchema)]
pub struct Processes {
    /// The processes with a heartbeat, those of the API first; at most 1000.
    items: Vec<Process>,
    /// The schema of their database.
    schema: DatabaseSchema,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    timestamp: Timestamp,
}

/// Process of the service.
#[derive(Serialize, ToSchema)]
pub struct Process {
    /// Id; a new one at each registration.
    id: Uuid,
    /// What it does.
    #[schema(value_type = sets::ProcessRole)]
    role: String,
    /// Version of its program; null: it is older than this member.
    #[schema(example = "0.1.0")]
    version: Option<String>,
    /// Name of its host; in a container that of the container. Null: not known.
    #[schema(example = "executor-7d9f-x2x8k")]
    host: Option<String>,
    /// When it registered: at its start, and again after it was declared dead.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// Its last heartbeat. Processes send one every two seconds.
    #[schema(value_type = String, format = DateTime)]
    heartbeat_at: Timestamp,
    /// False: it has sent none for 8 seconds. Others take its work over, and it leaves the list.
    is_alive: bool,
    /// Whether it has given this answer.
    has_answered: bool,
    /// Runs that an executor drives; null: it is none, or has not told it yet.
    active_runs: Option<i64>,
    /// Records in its partitions of Kafka that an executor has not processed yet; null: it is none, or does not know it yet.
    consumer_lag: Option<i64>,
}

impl Process {
    fn new(row: ProcessRow, own: Option<Uuid>) -> Self {
        Self {
            has_answered: own == Some(row.id),
            id: row.id,
            role: row.role,
            version: row.version,
            host: row.host,
            started_at: row.started_at.into(),
            heartbeat_at: row.heartbeat_at.into(),
            is_alive: row.is_alive,
            active_runs: row.active_runs,
            consumer_lag: row.consumer_lag,
        }
    }
}

/// Schema of the database.
#[derive(Serialize, ToSchema)]
pub struct DatabaseSchema {
    /// Number of the latest migration that was run.
    #[schema(example = 20_261_130_000_272_i64)]
    version: Option<i64>,
    /// When the last migration was run.
    #[schema(value_type = Option<String>, format = DateTime)]
    changed_at: Option<Timestamp>,
    /// Migrations of the answering process's program that were not run yet.
    pending: usize,
    /// Migrations that were run and that this program does not have, because it is older.
    unknown: usize,
}

impl From<SchemaState> for DatabaseSchema {
    fn from(SchemaState { version, changed_at, pending, unknown }: SchemaState) -> Self {
        Self { version, changed_at: changed_at.map(Timestamp::from), pending, unknown }
    }
}

/// List the processes
///
/// API processes and executors by their heartbeats, and the schema of the database. For administrators of the default
/// organisation, because they work for all organisations.
#[utoipa::path(
    get, path = "/system/processes", tag = "system",
    responses(
        (status = 200, body = Processes),
        (status = 403, description = "The caller does not belong to the default organization", body = ErrorBody),
    ),
)]
pub async fn list_processes(State(app): State<App>, caller: Caller) -> Result<Json<Processes>, ApiError> {
    if !caller.organization().is_default() {
        return Err(ApiError::forbidden("The caller may not see the processes, which work for all organizations"));
    }
    let pool = app.pool.clone();
    let read = db::bounded(async move { Ok((processes::list(&pool).await?, migrations::state(&pool).await?)) });
    let (rows, schema) = read.await?;
    let own = app.registration.current();
    Ok(Json(Processes {
        items: rows.into_iter().map(|row| Process::new(row, own)).collect(),
        schema: schema.into(),
        timestamp: Timestamp::now(),
    }))
}
