//! Starting a run: the definition from the cache, then the run writer, then whatever its refusal means.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId, QuotaExceeded},
    db::{self, idempotency::IdempotencyKey, runs::RunRow},
    input::FieldError,
    outbox::{self, MAX_BACKLOG, Relay},
    run_writer::{Definition, RunWriter, StartError, StartRun, StartedRun},
    workflow::{InputSchema, WorkflowStatus},
};

/// Definitions that are kept in memory.
const MAX_CACHED: usize = 1024;
/// Bytes of an input that is checked without leaving the worker; the time for more could be felt by other requests.
const MAX_CHECKED_AT_ONCE: usize = 4 << 10;
/// Looks at a definition that changes again and again while runs of it are started.
const ATTEMPTS: usize = 5;

/// Why no run was started.
#[derive(Debug, thiserror::Error)]
pub enum StartRunError {
    /// There is no such definition.
    #[error("workflow not found")]
    WorkflowNotFound,
    /// The definition's status does not allow it.
    #[error("the workflow is {0}")]
    NotActive(String),
    /// The input does not satisfy the definition's schema.
    #[error("the input does not satisfy the workflow's input_schema")]
    InvalidInput(Vec<FieldError>),
    /// Plan and input together do not fit into a Kafka record.
    #[error("plan and input are too large for a message")]
    TooLarge,
    /// Too much waits for Kafka already.
    #[error("too many messages are waiting")]
    BacklogFull,
    /// As many runs of the organisation are queued as may be.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// Too many requests wait for the database.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The idempotency key belongs to a request with another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
    /// The first request with the key is under way.
    #[error("a request with the idempotency key is under way")]
    KeyInFlight,
    /// The database failed.
    #[error(transparent)]
    Db(Arc<db::Error>),
}

impl From<db::Error> for StartRunError {
    fn from(error: db::Error) -> Self {
        Self::Db(Arc::new(error))
    }
}

/// What became of the request.
#[derive(Debug)]
pub enum Outcome {
    /// A new run, committed.
    Started(StartedRun),
    /// The run that the same key started before, as it is now.
    Replayed(Box<RunRow>),
}

/// Definitions by id, as last read. An entry may be stale: the run writer's statement proves it fresh.
#[derive(Default)]
pub struct Definitions(RwLock<HashMap<Uuid, Cached>>);

/// A definition, and its compiled schema if it has one.
#[derive(Clone)]
struct Cached {
    definition: Arc<Definition>,
    schema: Option<Arc<InputSchema>>,
}

impl Definitions {
    fn cached(&self, id: Uuid) -> Option<Cached> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn forget(&self, id: Uuid) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    async fn get(&self, pool: &db::Pool, organization: &OrganizationId, id: Uuid) -> Result<Cached, StartRunError> {
        if let Some(cached) = self.cached(id) {
            let is_own = cached.definition.organization == *organization;
            return if is_own { Ok(cached) } else { Err(StartRunError::WorkflowNotFound) };
        }
        let row = db::workflows::startable(pool, organization, id).await?.ok_or(StartRunError::WorkflowNotFound)?;
        if row.status != WorkflowStatus::Active.as_str() {
            return Err(StartRunError::NotActive(row.status));
        }
        // One that cannot be compiled was written by another program, or under other limits: nobody can satisfy it.
        let schema = row.input_schema.map(|schema| InputSchema::compile(&schema.0)).transpose().map_err(|text| {
            let message = format!("The workflow's input_schema {text}");
            StartRunError::InvalidInput(vec![FieldError::new("body.input_data", "schema_error", message)])
        })?;
        let definition = Arc::new(Definition {
            id: row.id,
            organization: organization.clone(),
            name: row.name,
            version: row.version,
            plan: row.workflow_data.0,
            stamp: row.stamp,
        });
        let found = Cached { definition, schema: schema.map(Arc::new) };
        let mut cached = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(id, found.clone());
        Ok(found)
    }

    /// The definition, if its schema takes the input.
    async fn checked(
        &self,
        pool: &db::Pool,
        organization: &OrganizationId,
        id: Uuid,
        input: &RawValue,
    ) -> Result<Arc<Definition>, StartRunError> {
        let was_cached = self.cached(id).is_some();
        let found = self.get(pool, organization, id).await?;
        match found.check(input).await {
            Ok(()) => Ok(found.definition),
            // Perhaps the schema is another one by now.
            Err(_) if was_cached => {
                self.forget(id);
                let found = self.get(pool, organization, id).await?;
                found.check(input).await?;
                Ok(found.definition)
            }
            Err(error) => Err(error),
        }
    }
}

impl Cached {
    async fn check(&self, input: &RawValue) -> Result<(), StartRunError> {
        let Some(schema) = &self.schema else { return Ok(()) };
        if input.get().len() <= MAX_CHECKED_AT_ONCE {
            return schema.check(input).map_err(StartRunError::InvalidInput);
        }
        let (schema, input) = (Arc::clone(schema), input.to_owned());
        match tokio::task::spawn_blocking(move || schema.check(&input)).await {
            Ok(checked) => checked.map_err(StartRunError::InvalidInput),
            Err(_) => Err(StartRunError::Overloaded),
        }
    }
}

/// Where runs are started.
pub struct Starter<'a> {
    /// Definitions.
    pub definitions: &'a Definitions,
    /// For what the writer does not do.
    pub pool: &'a db::Pool,
    /// For the backlog.
    pub relay: &'a Relay,
    /// The hot path.
    pub writer: &'a RunWriter,
}

/// What is asked for.
pub struct Request {
    /// The definition.
    pub workflow_id: Uuid,
    /// A JSON object.
    pub input: Box<RawValue>,
    /// From 0 to 9; of what waits for an executor, higher ones are first.
    pub priority: i16,
    /// The caller.
    pub actor: Arc<Actor>,
    /// How many runs of the organisation may be queued.
    pub max_queued: Option<i32>,
    /// Of the request.
    pub key: Option<IdempotencyKey>,
}

/// Starts a run of the definition's present content. Returns after the commit; a repeat with the same key returns
/// the first run.
pub async fn start_run(starter: Starter<'_>, request: Request) -> Result<Outcome, StartRunError> {
    let (pool, key, actor) = (starter.pool, request.key.clone(), Arc::clone(&request.actor));
    match (start_or_find(starter, request).await, key) {
        (Err(StartRunError::Db(error)), _) => Err(StartRunError::Db(error)),
        // What stands in the way now did not when the first request with the key came.
        (Err(refusal), Some(key)) => replay(pool, &actor.organization, &key).await?.ok_or(refusal),
        (other, _) => other,
    }
}

/// The run that the key made, if it was used.
async fn replay(
    pool: &db::Pool,
    organization: &OrganizationId,
    key: &IdempotencyKey,
) -> Result<Option<Outcome>, StartRunError> {
    let Some(taken) = db::idempotency::find(pool, &key.scope, &key.key).await? else { return Ok(None) };
    if taken.fingerprint != key.fingerprint {
        return Err(StartRunError::KeyReused);
    }
    Ok(db::runs::find(pool, organization, &taken.resource_id).await?.map(|run| Outcome::Replayed(Box::new(run))))
}

async fn start_or_find(starter: Starter<'_>, request: Request) -> Result<Outcome, StartRunError> {
    let Starter { definitions, pool, relay, writer } = starter;
    if relay.backlog() >= MAX_BACKLOG {
        return Err(StartRunError::BacklogFull);
    }
    let Request { workflow_id, input, priority, actor, max_queued, key } = request;
    let definition = definitions.checked(pool, &actor.organization, workflow_id, &input).await?;
    let has_key = key.is_some();
    let mut start = StartRun { definition, input, priority, actor, max_queued, key };
    for _ in 0..ATTEMPTS {
        if !outbox::fits_a_record(&start.definition.plan, &start.input) {
            return Err(StartRunError::TooLarge);
        }
        start = match writer.start_run(start).await {
            Ok(started) => return Ok(Outcome::Started(started)),
            Err(StartError::Refused(refused)) => *refused,
            Err(StartError::Quota(exceeded)) => return Err(exceeded.into()),
            Err(StartError::Overloaded) => return Err(StartRunError::Overloaded),
            Err(StartError::Db(error)) if has_key && error.is_lock_timeout() => return Err(StartRunError::KeyInFlight),
            Err(StartError::Db(error)) => return Err(StartRunError::Db(error)),
        };
        if let Some(key) = &start.key
            && let Some(replayed) = replay(pool, &start.actor.organization, key).await?
        {
            return Ok(replayed);
        }
        definitions.forget(workflow_id);
        start.definition = definitions.checked(pool, &start.actor.organization, workflow_id, &start.input).await?;
    }
    Err(StartRunError::Overloaded)
}
