//! Starting a run: the definition from the cache, then the run writer, then whatever its refusal means.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId, QuotaExceeded},
    cache::Cache,
    db::{
        self,
        idempotency::IdempotencyKey,
        runs::{Definition, RunRow},
    },
    input::FieldError,
    offload::{Offload, Overloaded},
    outbox::{self, MAX_BACKLOG, Relay},
    run_writer::{RunWriter, StartError, StartRun, StartedRun},
    workflow::{InputSchema, WorkflowStatus},
};

/// Bytes of the definitions that are kept in memory, with their compiled schemas; at most twice as much is there.
const CACHED_BYTES: usize = 32 << 20;
/// What an entry takes beside its content.
const OVERHEAD_BYTES: usize = 1 << 10;
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
    /// Too much is to be checked already.
    #[error(transparent)]
    Busy(#[from] Overloaded),
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
pub struct Definitions(Mutex<Cache<Uuid, Cached>>);

impl Default for Definitions {
    fn default() -> Self {
        Self(Mutex::new(Cache::new(CACHED_BYTES)))
    }
}

/// A definition, and its compiled schema if it has one.
#[derive(Clone)]
struct Cached {
    definition: Arc<Definition>,
    schema: Option<Arc<InputSchema>>,
}

impl Definitions {
    fn cache(&self) -> MutexGuard<'_, Cache<Uuid, Cached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, id: Uuid) -> Option<Cached> {
        self.cache().get(&id)
    }

    fn forget(&self, id: Uuid) {
        self.cache().remove(&id);
    }

    async fn get(
        &self,
        pool: &db::Pool,
        offload: &Offload,
        organization: &OrganizationId,
        id: Uuid,
    ) -> Result<Cached, StartRunError> {
        if let Some(cached) = self.cached(id) {
            let is_own = cached.definition.organization == *organization;
            return if is_own { Ok(cached) } else { Err(StartRunError::WorkflowNotFound) };
        }
        let row = db::workflows::startable(pool, organization, id).await?.ok_or(StartRunError::WorkflowNotFound)?;
        if row.status != WorkflowStatus::Active.as_str() {
            return Err(StartRunError::NotActive(row.status));
        }
        // One that cannot be compiled was written by another program, or under other limits: nobody can satisfy it.
        let schema = match row.input_schema {
            None => None,
            Some(schema) => {
                let compiled = offload.run_soon(organization, move || InputSchema::compile(&schema.0)).await?;
                Some(compiled.map_err(|text| StartRunError::InvalidInput(unusable_schema(&text)))?)
            }
        };
        let definition = Arc::new(Definition {
            id: row.id,
            organization: organization.clone(),
            name: row.name,
            version: row.version,
            plan: row.workflow_data.0,
            stamp: row.stamp,
        });
        let found = Cached { definition, schema: schema.map(Arc::new) };
        self.cache().insert(id, found.clone(), found.bytes());
        Ok(found)
    }

    /// The definition, if its schema takes the input.
    async fn checked(
        &self,
        pool: &db::Pool,
        offload: &Offload,
        organization: &OrganizationId,
        id: Uuid,
        input: &RawValue,
    ) -> Result<Arc<Definition>, StartRunError> {
        let was_cached = self.cached(id).is_some();
        let found = self.get(pool, offload, organization, id).await?;
        match found.check(offload, input).await {
            Ok(()) => Ok(found.definition),
            // Perhaps the schema is another one by now.
            Err(StartRunError::InvalidInput(_)) if was_cached => {
                self.forget(id);
                let found = self.get(pool, offload, organization, id).await?;
                found.check(offload, input).await?;
                Ok(found.definition)
            }
            Err(error) => Err(error),
        }
    }
}

/// What is wrong with an input for which there is no schema that works.
pub(super) fn unusable_schema(text: &str) -> Vec<FieldError> {
    vec![FieldError::new("body.input_data", "schema_error", format!("The workflow's input_schema {text}"))]
}

impl Cached {
    /// Bytes that it takes, roughly.
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES
            + self.definition.plan.get().len()
            + self.definition.name.len()
            + self.schema.as_ref().map_or(0, |schema| schema.bytes())
    }

    async fn check(&self, offload: &Offload, input: &RawValue) -> Result<(), StartRunError> {
        let Some(schema) = &self.schema else { return Ok(()) };
        if let Some(checked) = schema.check_small(input) {
            return checked.map_err(StartRunError::InvalidInput);
        }
        let (schema, input) = (Arc::clone(schema), input.to_owned());
        let checked = offload.run_soon(&self.definition.organization, move || schema.check(&input)).await?;
        checked.map_err(StartRunError::InvalidInput)
    }
}

/// Where runs are started.
pub struct Starter<'a> {
    /// Definitions.
    pub definitions: &'a Definitions,
    /// For what the writer does not do.
    pub pool: &'a db::Pool,
    /// For schemas.
    pub offload: &'a Offload,
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
    let Starter { definitions, pool, offload, relay, writer } = starter;
    if relay.backlog() >= MAX_BACKLOG {
        return Err(StartRunError::BacklogFull);
    }
    let Request { workflow_id, input, priority, actor, max_queued, key } = request;
    let definition = definitions.checked(pool, offload, &actor.organization, workflow_id, &input).await?;
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
        let organization = &start.actor.organization;
        start.definition = definitions.checked(pool, offload, organization, workflow_id, &start.input).await?;
    }
    Err(StartRunError::Overloaded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::to_raw;

    #[test]
    fn definitions_are_kept_up_to_so_many_bytes_together() {
        let entry = |bytes: usize| Cached {
            definition: Arc::new(Definition {
                id: Uuid::nil(),
                organization: OrganizationId::stored("default"),
                name: String::new(),
                version: 1,
                plan: to_raw(&"x".repeat(bytes - 2)),
                stamp: String::new(),
            }),
            schema: None,
        };
        let definitions = Definitions::default();
        let ids: Vec<_> = (0..3).map(Uuid::from_u128).collect();
        for id in &ids {
            let large = entry(CACHED_BYTES / 4 * 3);
            definitions.cache().insert(*id, large.clone(), large.bytes());
        }
        let found: Vec<_> = ids.iter().map(|id| definitions.cached(*id).is_some()).collect();
        assert_eq!(found, [false, true, true]);
        definitions.forget(ids[1]);
        assert!(definitions.cached(ids[1]).is_none());
    }
}
