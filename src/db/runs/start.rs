//! The statement that starts runs.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    access::{Countable, OrganizationId},
    db::{Error, PooledConnection, organizations},
    timestamp::Timestamp,
};

/// Columns of a batch of runs to start, one entry a run; see [`start`].
#[derive(Default)]
#[expect(missing_docs, reason = "each is a column of workflow_runs, outbox or idempotency_keys")]
pub struct StartBatch {
    pub run_id: Vec<String>,
    pub definition_id: Vec<Uuid>,
    pub version: Vec<i32>,
    pub stamp: Vec<String>,
    pub workflow_name: Vec<String>,
    pub input_data: Vec<String>,
    pub triggered_by: Vec<String>,
    pub correlation_id: Vec<String>,
    pub created_at: Vec<Timestamp>,
    pub event_id: Vec<Uuid>,
    pub owner: Vec<Option<Uuid>>,
    pub key_scope: Vec<Option<String>>,
    pub key: Vec<Option<String>>,
    pub fingerprint: Vec<Option<Vec<u8>>>,
    pub audit_id: Vec<Uuid>,
    pub entity_id: Vec<Uuid>,
    pub key_id: Vec<Option<Uuid>>,
    pub address: Vec<Option<String>>,
    pub priority: Vec<i16>,
    pub traceparent: Vec<Option<String>>,
    pub quota: Option<Quota>,
}

impl StartBatch {
    /// The first of these runs.
    fn truncated(&self, count: usize) -> Self {
        fn first<T: Clone>(of: &[T], count: usize) -> Vec<T> {
            of.iter().take(count).cloned().collect()
        }
        Self {
            run_id: first(&self.run_id, count),
            definition_id: first(&self.definition_id, count),
            version: first(&self.version, count),
            stamp: first(&self.stamp, count),
            workflow_name: first(&self.workflow_name, count),
            input_data: first(&self.input_data, count),
            triggered_by: first(&self.triggered_by, count),
            correlation_id: first(&self.correlation_id, count),
            created_at: first(&self.created_at, count),
            event_id: first(&self.event_id, count),
            owner: first(&self.owner, count),
            key_scope: first(&self.key_scope, count),
            key: first(&self.key, count),
            fingerprint: first(&self.fingerprint, count),
            audit_id: first(&self.audit_id, count),
            entity_id: first(&self.entity_id, count),
            key_id: first(&self.key_id, count),
            address: first(&self.address, count),
            priority: first(&self.priority, count),
            traceparent: first(&self.traceparent, count),
            quota: None,
        }
    }
}

/// How many runs of an organisation may be queued. All runs of a batch that has one are of that organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Quota {
    pub organization: OrganizationId,
    pub max_queued: i32,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Started {
    /// The runs that now exist. One is missing if its definition is no longer what the stamp says, or if its
    /// idempotency key is taken; nothing was written for it.
    pub run_ids: Vec<String>,
    /// So many of the batch the quota left room for; for the others nothing was written.
    pub admitted: usize,
}

/// Starts runs, those that the quota leaves room for, in the order of the batch.
pub async fn start(conn: &mut PooledConnection, batch: &StartBatch, audit: bool) -> Result<Started, Error> {
    let size = batch.run_id.len();
    let Some(Quota { organization, max_queued }) = &batch.quota else {
        return Ok(Started { run_ids: insert_all(conn, batch, audit).await?, admitted: size });
    };
    conn.begin().await?;
    match start_within(conn, organization, *max_queued, batch, audit).await {
        Ok(started) => {
            conn.commit().await?;
            Ok(started)
        }
        Err(error) => {
            conn.rollback().await?;
            Err(error)
        }
    }
}

/// Starts as many of these runs as the quota leaves room for.
async fn start_within(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    max_queued: i32,
    batch: &StartBatch,
    audit: bool,
) -> Result<Started, Error> {
    organizations::lock_quota(conn, organization, Countable::QueuedRuns).await?;
    let limit = i64::from(max_queued);
    let queued = organizations::count(&mut *conn, organization, Countable::QueuedRuns, limit).await?;
    let size = batch.run_id.len();
    let admitted = usize::try_from(limit - queued).unwrap_or_default().min(size);
    let run_ids = match admitted {
        0 => Vec::new(),
        _ if admitted == size => insert_all(conn, batch, audit).await?,
        _ => insert_all(conn, &batch.truncated(admitted), audit).await?,
    };
    Ok(Started { run_ids, admitted })
}

/// Run, outbox, idempotency and audit rows of all of them in one statement, and outside of a transaction in one commit.
async fn insert_all(conn: &mut PgConnection, batch: &StartBatch, audit: bool) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar(
        "WITH request AS MATERIALIZED (
            SELECT r.*, d.organization_id FROM unnest($1::text[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::timestamp[], $10::uuid[], $11::uuid[], $12::text[], $13::text[], $14::bytea[],
                $15::uuid[], $16::uuid[], $18::uuid[], $19::text[], $20::smallint[], $21::text[])
                AS r (run_id, definition_id, version, stamp, workflow_name, input_data, triggered_by, correlation_id,
                    created_at, event_id, owner, key_scope, key, fingerprint, audit_id, entity_id, key_id, address,
                    priority, traceparent)
            JOIN workflow_definitions d ON d.id = r.definition_id AND d.xmin::text = r.stamp
        ), claimed AS (
            INSERT INTO idempotency_keys (scope, key, fingerprint, run_id)
            SELECT key_scope, key, fingerprint, run_id FROM request WHERE key IS NOT NULL
            ORDER BY key_scope, key              -- one order for all writers, so that they cannot deadlock
            ON CONFLICT DO NOTHING
            RETURNING run_id
        ), accepted AS MATERIALIZED (
            SELECT *, input_data::jsonb AS input FROM request
            WHERE key IS NULL OR run_id IN (SELECT run_id FROM claimed)
        ), run AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                triggered_by, created_at, updated_at, workflow_version, correlation_id, execution_event_id,
                organization_id, priority, traceparent)
            SELECT run_id, definition_id::text, workflow_name, definition_id::text, 'PENDING', input,
                triggered_by, created_at, created_at, version, correlation_id, event_id, organization_id, priority,
                traceparent
            FROM accepted
        ), message AS (
            INSERT INTO outbox (run_id, event_id, kind, owner)
            SELECT run_id, event_id, 'execution', owner FROM accepted
        ), entry AS (
            INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, user_id, key_id, address,
                correlation_id, organization_id, changes, created_at, updated_at)
            SELECT audit_id, 'run', entity_id, run_id, 'execute', triggered_by, key_id, address, correlation_id,
                organization_id, jsonb_build_object('workflow_id', definition_id, 'workflow_name', workflow_name,
                    -- As `body_digest` has it, of what GET /runs/{run_id} shows.
                    'input_data', jsonb_build_object('bytes', octet_length(input::text),
                        'sha256', encode(sha256(convert_to(input::text, 'UTF8')), 'hex'))), created_at, created_at
            FROM accepted WHERE $17
        )
        SELECT run_id FROM accepted",
    )
    .bind(&batch.run_id)
    .bind(&batch.definition_id)
    .bind(&batch.version)
    .bind(&batch.stamp)
    .bind(&batch.workflow_name)
    .bind(&batch.input_data)
    .bind(&batch.triggered_by)
    .bind(&batch.correlation_id)
    .bind(batch.created_at.iter().map(|at| at.naive()).collect::<Vec<_>>())
    .bind(&batch.event_id)
    .bind(&batch.owner)
    .bind(&batch.key_scope)
    .bind(&batch.key)
    .bind(&batch.fingerprint)
    .bind(&batch.audit_id)
    .bind(&batch.entity_id)
    .bind(audit)
    .bind(&batch.key_id)
    .bind(&batch.address)
    .bind(&batch.priority)
    .bind(&batch.traceparent)
    .fetch_all(conn)
    .await?)
}
