//! Pieces of outputs that agents stream, on their way to the event streams of the API. They are never the truth: a piece
//! may be lost, and all are deleted soon after their attempt has ended.

use serde_json::value::RawValue;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;

use super::{Error, Pool};
use crate::timestamp::Timestamp;

/// Pieces to write, as columns.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct NewDeltas {
    pub run_id: Vec<String>,
    /// Token of the lease under which the run is executed; the pieces of a lost lease are not written.
    pub lease_token: Vec<Uuid>,
    pub attempt_id: Vec<String>,
    pub step_id: Vec<String>,
    pub artifact_id: Vec<Option<String>>,
    pub append: Vec<bool>,
    pub text: Vec<Option<String>>,
    pub data: Vec<Option<String>>,
}

/// Writes pieces in their order.
pub async fn insert(db: &Pool, new: NewDeltas) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO step_deltas (run_id, attempt_id, step_id, artifact_id, append, text, data)
         SELECT d.run_id, d.attempt_id, d.step_id, d.artifact_id, d.append, d.text, d.data::jsonb
         FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::text[], $8::text[])
             WITH ORDINALITY AS d (run_id, lease_token, attempt_id, step_id, artifact_id, append, text, data, place)
         JOIN workflow_runs r ON r.run_id = d.run_id AND r.lease_token = d.lease_token
         ORDER BY d.place",
    )
    .bind(new.run_id)
    .bind(new.lease_token)
    .bind(new.attempt_id)
    .bind(new.step_id)
    .bind(new.artifact_id)
    .bind(new.append)
    .bind(new.text)
    .bind(new.data)
    .execute(db)
    .await?;
    Ok(())
}

/// Deletes the pieces of attempts that have ended, given with their runs.
pub async fn delete(db: &Pool, run_ids: &[String], attempt_ids: &[String]) -> Result<(), Error> {
    let sql = "DELETE FROM step_deltas WHERE run_id = ANY ($1) AND attempt_id = ANY ($2)";
    sqlx::query(sql).bind(run_ids).bind(attempt_ids).execute(db).await?;
    Ok(())
}

/// Deletes pieces that are older than any attempt: those of executors that have died.
pub async fn delete_old(db: &Pool) -> Result<(), Error> {
    sqlx::query("DELETE FROM step_deltas WHERE at < now() - interval '10 minutes'").execute(db).await?;
    Ok(())
}

/// Piece of an output.
#[derive(Clone, Debug, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct DeltaRow {
    pub id: i64,
    pub attempt_id: String,
    pub step_id: String,
    pub artifact_id: Option<String>,
    pub append: bool,
    pub text: Option<String>,
    pub data: Option<Json<Box<RawValue>>>,
    pub at: Timestamp,
}

/// Pieces of a run after the number `after`.
pub async fn after(db: impl PgExecutor<'_>, run_id: &str, after: i64, limit: i64) -> Result<Vec<DeltaRow>, Error> {
    let sql = "SELECT id, attempt_id, step_id, artifact_id, append, text, data, at AT TIME ZONE 'UTC' AS at
               FROM step_deltas WHERE run_id = $1 AND id > $2 ORDER BY id LIMIT $3";
    Ok(sqlx::query_as(sql).bind(run_id).bind(after).bind(limit).fetch_all(db).await?)
}
