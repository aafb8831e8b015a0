//! Statement that starts runs.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    access::{Actor, Countable, OrganizationId},
    db::{
        Error, PooledConnection,
        flow::{self, Decided, FlowKey, FlowState},
        idempotency::IdempotencyKey,
        organizations,
    },
    id,
    input::to_raw,
    timestamp::Timestamp,
    usage::Limits,
    workflow::{Deadline, DeadlineAction, FlowControl, FlowKeys},
};

/// Definition as it was read, and the stamp that proves it unchanged when the run is written.
#[derive(Debug)]
pub struct Definition {
    /// Id of the definition.
    pub id: Uuid,
    /// Organisation of the definition and of its runs.
    pub organization: OrganizationId,
    /// Name of the workflow.
    pub name: String,
    /// Version of the content.
    pub version: i32,
    /// Plan for the message.
    pub plan: Box<RawValue>,
    /// Flow control of the workflow.
    pub flow: Option<FlowControl>,
    /// See [`PinnedDefinition::stamp`](crate::db::workflows::PinnedDefinition::stamp).
    pub stamp: String,
}

/// Run to start.
#[derive(Debug)]
pub struct NewRun {
    /// Id of the run.
    pub run_id: String,
    /// Definition that it executes.
    pub definition: Arc<Definition>,
    /// Input, a JSON object.
    pub input: Box<RawValue>,
    /// Priority from 0 to 9.
    pub priority: i16,
    /// Actor that starts the run.
    pub actor: Arc<Actor>,
    /// Idempotency key of the request, if it has one.
    pub key: Option<IdempotencyKey>,
    /// Label of the conversation that the run belongs to.
    pub context_id: Option<String>,
    /// Limits of the run itself.
    pub limits: Option<Limits>,
    /// Deadline of the run itself; what it lacks, the definition says.
    pub deadline: Deadline,
    /// Trigger that starts the run.
    pub trigger: Option<Box<StartingTrigger>>,
    /// Creation time of the run and of its audit entry.
    pub created_at: Timestamp,
    /// Id of the message.
    pub event_id: Uuid,
    /// Whether the message is in the batch of messages, [`StartBatch::messages`]; else any process sends it.
    pub is_queued: bool,
    /// Id of the audit entry.
    pub audit_id: Uuid,
    /// Keys of flow control, [`FlowControl::keys`]; `None`: it is not controlled, and starts at once. A controlled run is
    /// held: its message is written when it is admitted.
    pub flow: Option<FlowKeys>,
}

impl NewRun {
    /// Its keys of flow control.
    fn flow_keys(&self) -> impl Iterator<Item = FlowKey> + '_ {
        let Definition { organization, name, .. } = &*self.definition;
        self.flow.iter().flat_map(move |keys| FlowKey::of(keys, organization.as_str(), name))
    }
}

/// Trigger that starts a run, as the run's row says it.
#[derive(Clone, Debug, Serialize)]
pub struct StartingTrigger {
    /// Kind of the trigger.
    pub kind: &'static str,
    /// Id of the trigger.
    pub id: Uuid,
    /// When the trigger was due.
    pub at: DateTime<Utc>,
    /// Number of runs before this one in a chain of which each has caused the next one.
    pub depth: i16,
}

/// Batch of runs to start in one statement.
#[derive(Debug)]
pub struct StartBatch {
    /// Runs in the order in which a quota admits them.
    pub runs: Vec<NewRun>,
    /// Quota. If there is one, all runs belong to its organisation.
    pub quota: Option<Quota>,
    /// Messages that a process has queued, if it has any.
    pub messages: Option<MessageBatch>,
}

/// Messages of the runs that are started together, in the memory of one process.
#[derive(Clone, Copy, Debug)]
pub struct MessageBatch {
    /// Id of the batch.
    pub id: Uuid,
    /// Process that sends the messages.
    pub owner: Uuid,
}

/// Maximum number of queued runs of an organisation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said by the names")]
pub struct Quota {
    pub organization: OrganizationId,
    pub max_queued: i32,
}

/// Result of a batch.
#[derive(Debug)]
pub struct Started {
    /// Ids of the runs that now exist. A run is missing if its definition has another stamp by now, or if its
    /// idempotency key is taken; nothing was written for it.
    pub run_ids: Vec<String>,
    /// Number of runs of the batch that the quota admitted; nothing was written for the others.
    pub admitted: usize,
    /// What was decided for controlled runs, of the batch and others of their keys.
    pub decided: Decided,
    /// States of the runs, if some are controlled.
    pub states: Vec<FlowState>,
}

/// Starts the runs that the quota admits, in the order of the batch. If some are controlled, it is decided in the same
/// transaction which of them start.
pub async fn start(conn: &mut PooledConnection, batch: &StartBatch, audit: bool) -> Result<Started, Error> {
    let StartBatch { runs, quota, messages } = batch;
    if quota.is_none() && runs.iter().all(|run| run.flow.is_none()) {
        return Ok(Started {
            run_ids: insert_all(conn, runs, *messages, audit).await?,
            admitted: runs.len(),
            decided: Decided::default(),
            states: Vec::new(),
        });
    }
    conn.begin().await?;
    match start_within(conn, quota.as_ref(), runs, *messages, audit).await {
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

/// Starts as many of these runs as the quota admits, and decides for those that are controlled, in the caller's
/// transaction.
pub async fn start_within(
    conn: &mut PgConnection,
    quota: Option<&Quota>,
    runs: &[NewRun],
    messages: Option<MessageBatch>,
    audit: bool,
) -> Result<Started, Error> {
    let admitted = match quota {
        None => runs.len(),
        Some(Quota { organization, max_queued }) => {
            organizations::lock_quota(conn, organization, Countable::QueuedRuns).await?;
            let limit = i64::from(*max_queued);
            let queued = organizations::count(&mut *conn, organization, Countable::QueuedRuns, limit).await?;
            usize::try_from(limit - queued).unwrap_or_default().min(runs.len())
        }
    };
    let runs = &runs[..admitted];
    let mut keys: Vec<FlowKey> = runs.iter().flat_map(NewRun::flow_keys).collect();
    keys.sort_unstable();
    keys.dedup();
    if !keys.is_empty() {
        flow::lock(&mut *conn, &keys).await?;
    }
    let run_ids = if runs.is_empty() { Vec::new() } else { insert_all(conn, runs, messages, audit).await? };
    let (mut decided, mut states) = (Decided::default(), Vec::new());
    if !keys.is_empty() {
        decided = flow::admit(&mut *conn, &keys).await?;
        states = flow::states(&mut *conn, &run_ids).await?;
    }
    Ok(Started { run_ids, admitted, decided, states })
}

/// Writes the run, outbox, idempotency and audit rows of all runs in one statement; outside of a transaction, in one
/// commit. Controlled runs are held; who does not decide for them leaves that to the loop that admits runs.
async fn insert_all(
    conn: &mut PgConnection,
    runs: &[NewRun],
    messages: Option<MessageBatch>,
    audit: bool,
) -> Result<Vec<String>, Error> {
    /// Values of one column for all rows.
    fn column<'r, T>(runs: &'r [NewRun], of: impl Fn(&'r NewRun) -> T) -> Vec<T> {
        runs.iter().map(of).collect()
    }
    let key = |of: fn(&IdempotencyKey) -> &str| column(runs, move |run| run.key.as_ref().map(of));
    Ok(sqlx::query_scalar(
        "WITH request AS MATERIALIZED (
            SELECT r.*, d.organization_id, coalesce(own_deadline, d.deadline_seconds) AS deadline,
                coalesce(own_action, d.deadline_action) AS action
            FROM unnest($1::text[], $2::uuid[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[],
                $8::text[], $9::timestamp[], $10::uuid[], $11::boolean[], $12::text[], $13::text[], $14::bytea[],
                $15::uuid[], $16::uuid[], $18::uuid[], $19::text[], $20::smallint[], $21::text[], $24::text[], $25::text[], $26::int[], $27::text[],
                $28::text[], $29::text[])
                AS r (run_id, definition_id, version, stamp, workflow_name, input_data, triggered_by, correlation_id,
                    created_at, event_id, is_queued, key_scope, key, fingerprint, audit_id, entity_id, key_id, address,
                    priority, traceparent, context_id, limits, own_deadline, own_action, started_by, flow)
            JOIN workflow_definitions d ON d.id = r.definition_id AND d.xmin::text = r.stamp
        ), claimed AS (
            INSERT INTO idempotency_keys (scope, key, fingerprint, run_id)
            SELECT key_scope, key, fingerprint, run_id FROM request WHERE key IS NOT NULL
            ORDER BY key_scope, key              -- one order for all writers, so that they cannot deadlock
            ON CONFLICT DO NOTHING
            RETURNING run_id
        ), accepted AS MATERIALIZED (
            SELECT *, input_data::jsonb AS input, started_by::jsonb AS cause FROM request
            WHERE key IS NULL OR run_id IN (SELECT run_id FROM claimed)
        ), run AS (
            INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
                triggered_by, created_at, updated_at, workflow_version, correlation_id, execution_event_id,
                organization_id, priority, traceparent, context_id, limits, deadline_seconds, deadline_action, deadline_at,
                deadline_due_at, trigger_kind, trigger_id, trigger_at, chain_depth, flow_stage, flow_key, flow_rest,
                flow_state, flow_at, redispatch_at)
            SELECT run_id, definition_id::text, workflow_name, definition_id::text, 'PENDING', input,
                triggered_by, created_at, created_at, version, correlation_id, event_id, organization_id, priority,
                traceparent, context_id, limits::jsonb, deadline, CASE WHEN deadline IS NOT NULL THEN action END,
                now() + make_interval(secs => deadline), now() + make_interval(secs => deadline),
                cause ->> 'kind', (cause ->> 'id')::uuid, (cause ->> 'at')::timestamptz,
                coalesce((cause ->> 'depth')::smallint, 0), flow::jsonb ->> 'stage', flow::jsonb ->> 'key',
                flow::jsonb -> 'rest', CASE WHEN flow IS NOT NULL THEN 'arrived' END, CASE WHEN flow IS NOT NULL THEN now() END,
                -- The sweep for lost messages, of the release before too, leaves a held run alone.
                CASE WHEN flow IS NOT NULL THEN 'infinity'::timestamptz END
            FROM accepted
        ), message AS (
            INSERT INTO outbox (run_id, event_id, kind)
            SELECT run_id, event_id, 'execution' FROM accepted WHERE NOT is_queued
        ), messages AS (
            INSERT INTO outbox_batches (id, owner, run_ids, event_ids)
            SELECT $22, $23, array_agg(run_id), array_agg(event_id) FROM accepted WHERE is_queued HAVING count(*) > 0
        ), entry AS (
            INSERT INTO audit_logs (id, entity_type, entity_id, entity_name, action, user_id, key_id, address,
                correlation_id, organization_id, changes, created_at, updated_at)
            SELECT audit_id, 'run', entity_id, run_id, 'execute', triggered_by, key_id, address, correlation_id,
                organization_id, jsonb_build_object('workflow_id', definition_id, 'workflow_name', workflow_name,
                    -- Digest as in `body_digest`, of the input that GET /runs/{run_id} shows.
                    'input_data', jsonb_build_object('bytes', octet_length(input::text),
                        'sha256', encode(sha256(convert_to(input::text, 'UTF8')), 'hex'))), created_at, created_at
            FROM accepted WHERE $17
        )
        SELECT run_id FROM accepted",
    )
    .bind(column(runs, |run| run.run_id.as_str()))
    .bind(column(runs, |run| run.definition.id))
    .bind(column(runs, |run| run.definition.version))
    .bind(column(runs, |run| run.definition.stamp.as_str()))
    .bind(column(runs, |run| run.definition.name.as_str()))
    .bind(column(runs, |run| run.input.get()))
    .bind(column(runs, |run| run.actor.subject.as_str()))
    .bind(column(runs, |run| run.actor.correlation_id.as_str()))
    .bind(column(runs, |run| run.created_at.as_naive_utc()))
    .bind(column(runs, |run| run.event_id))
    .bind(column(runs, |run| run.flow.is_none().then_some(run.is_queued)))
    .bind(key(|key| &key.scope))
    .bind(key(|key| &key.key))
    .bind(column(runs, |run| run.key.as_ref().map(|key| key.fingerprint.as_slice())))
    .bind(column(runs, |run| run.audit_id))
    .bind(column(runs, |run| id::run_entity_id(&run.run_id)))
    .bind(audit)
    .bind(column(runs, |run| run.actor.key_id))
    .bind(column(runs, |run| run.actor.address.map(|address| address.to_string())))
    .bind(column(runs, |run| run.priority))
    .bind(column(runs, |run| run.actor.traceparent.as_deref()))
    .bind(messages.map(|batch| batch.id))
    .bind(messages.map(|batch| batch.owner))
    .bind(column(runs, |run| run.context_id.as_deref()))
    .bind(column(runs, |run| run.limits.as_ref().map(|limits| to_raw(limits).get().to_owned())))
    .bind(column(runs, |run| run.deadline.seconds))
    .bind(column(runs, |run| run.deadline.action.map(DeadlineAction::as_str)))
    .bind(column(runs, |run| run.trigger.as_deref().map(|trigger| to_raw(trigger).get().to_owned())))
    .bind(column(runs, |run| run.flow.as_ref().map(|keys| keys.to_json().get().to_owned())))
    .fetch_all(conn)
    .await?)
}
