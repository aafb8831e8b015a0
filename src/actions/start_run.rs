//! Starting a run: the cached definition, the run writer, and the handling of its rejections.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId, QuotaExceeded},
    cache::{Cache, SingleFlight},
    db::{
        self,
        idempotency::IdempotencyKey,
        runs::{Definition, RunRow},
        triggers::Startable,
        workflows::PinnedDefinition,
    },
    input::FieldError,
    offload::{Offload, Overloaded},
    outbox::{self, Relay},
    run_writer::{RunWriter, StartError, StartRun, StartedRun},
    usage::Limits,
    workflow::{Deadline, FlowKeys, InputSchema, WorkflowStatus},
};

/// Maximum bytes of cached definitions with their compiled schemas; at most twice as much is in memory.
const CACHED_BYTES: usize = 32 << 20;
/// Overhead of an entry besides its content.
const OVERHEAD_BYTES: usize = 1 << 10;
/// Minimum bytes of an input of which keys are computed on another thread.
const LARGE_INPUT_BYTES: usize = 64 << 10;
/// Number of attempts if the definition keeps changing while runs of it are started.
const ATTEMPTS: usize = 5;

/// Reason why no run was started.
#[derive(Debug, thiserror::Error)]
pub enum StartRunError {
    /// There is no such definition.
    #[error("workflow not found")]
    WorkflowNotFound,
    /// The definition is not active.
    #[error("the workflow is {0}")]
    NotActive(String),
    /// The input does not satisfy the definition's schema.
    #[error("the input does not satisfy the workflow's input_schema")]
    InvalidInput(Vec<FieldError>),
    /// Plan and input together do not fit into a Kafka record.
    #[error("plan and input are too large for a message")]
    TooLarge,
    /// The backlog of messages for Kafka is full.
    #[error("too many messages are waiting")]
    BacklogFull,
    /// The quota of queued runs is used up.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// Too many requests wait for the database.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The service is overloaded with checks.
    #[error(transparent)]
    Busy(#[from] Overloaded),
    /// The idempotency key belongs to a request with another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
    /// The first request with the key is in flight.
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

/// Result of the request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly each request makes the large one, and it is not stored")]
pub enum Outcome {
    /// New run, committed.
    Started(StartedRun),
    /// Run that the same key started before, in its current state.
    Replayed(Box<RunRow>),
}

/// Cache of definitions by id. An entry may be stale: the statement of the run writer checks it.
pub struct Definitions {
    cache: Mutex<Cache<Uuid, Cached>>,
    /// Reads in progress.
    reads: SingleFlight<(OrganizationId, Uuid)>,
}

impl Default for Definitions {
    fn default() -> Self {
        Self { cache: Mutex::new(Cache::new(CACHED_BYTES)), reads: SingleFlight::default() }
    }
}

/// Definition with its compiled schema, if it has one.
#[derive(Clone)]
struct Cached {
    definition: Arc<Definition>,
    schema: Option<Arc<InputSchema>>,
}

impl Definitions {
    fn cache(&self) -> MutexGuard<'_, Cache<Uuid, Cached>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, id: Uuid) -> Option<Cached> {
        self.cache().get(&id)
    }

    /// Removes a stale definition from the cache, unless it has been read again since.
    fn invalidate(&self, stale: &Arc<Definition>) {
        let mut cache = self.cache();
        if cache.get(&stale.id).is_some_and(|cached| Arc::ptr_eq(&cached.definition, stale)) {
            cache.remove(&stale.id);
        }
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
        let cached = || self.cached(id).filter(|cached| cached.definition.organization == *organization);
        self.reads.read((organization.clone(), id), cached, self.read(pool, offload, organization, id)).await
    }

    async fn read(
        &self,
        pool: &db::Pool,
        offload: &Offload,
        organization: &OrganizationId,
        id: Uuid,
    ) -> Result<Cached, StartRunError> {
        let row = db::workflows::startable(pool, organization, id).await?.ok_or(StartRunError::WorkflowNotFound)?;
        self.compiled(offload, organization, row).await
    }

    /// Compiles a definition that was read, and stores it in the cache.
    async fn compiled(
        &self,
        offload: &Offload,
        organization: &OrganizationId,
        row: PinnedDefinition,
    ) -> Result<Cached, StartRunError> {
        if row.status != WorkflowStatus::Active.as_str() {
            return Err(StartRunError::NotActive(row.status));
        }
        // A schema that cannot be compiled was written by another program or under other limits: no input satisfies it.
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
            flow: row.flow_control.map(|flow| flow.0),
            stamp: row.stamp,
        });
        let found = Cached { definition, schema: schema.map(Arc::new) };
        self.cache().insert(row.id, found.clone(), found.bytes());
        Ok(found)
    }

    /// The definition as it is now: from the cache if that has it with the same stamp, else read by the connection of a
    /// transaction, so that no second connection is taken.
    pub(super) async fn current(
        &self,
        conn: &mut PgConnection,
        offload: &Offload,
        organization: &OrganizationId,
        found: &Startable,
    ) -> Result<Checked, StartRunError> {
        if found.status != WorkflowStatus::Active.as_str() {
            return Err(StartRunError::NotActive(found.status.clone()));
        }
        let is_same =
            |cached: &Cached| cached.definition.stamp == found.stamp && cached.definition.organization == *organization;
        if let Some(cached) = self.cached(found.id).filter(is_same) {
            return Ok(Checked(cached));
        }
        let row = db::workflows::startable(conn, organization, found.id).await?;
        let row = row.ok_or(StartRunError::WorkflowNotFound)?;
        Ok(Checked(self.compiled(offload, organization, row).await?))
    }

    /// Returns the definition if its schema accepts the input.
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
            // The schema may have changed.
            Err(StartRunError::InvalidInput(_)) if was_cached => {
                self.invalidate(&found.definition);
                let found = self.get(pool, offload, organization, id).await?;
                found.check(offload, input).await?;
                Ok(found.definition)
            }
            Err(error) => Err(error),
        }
    }
}

/// Error for an input whose schema is unusable.
#[must_use]
pub fn unusable_schema(text: &str) -> Vec<FieldError> {
    vec![FieldError::new("body.input_data", "schema_error", format!("The workflow's input_schema {text}"))]
}

/// Definition that can be started, with its compiled schema.
pub(super) struct Checked(Cached);

impl Checked {
    /// The definition.
    pub(super) fn definition(&self) -> &Arc<Definition> {
        &self.0.definition
    }

    /// Checks an input.
    pub(super) async fn check(&self, offload: &Offload, input: &RawValue) -> Result<(), StartRunError> {
        self.0.check(offload, input).await
    }
}

impl Cached {
    /// Estimated size in bytes.
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

/// Services that start runs.
pub struct Starter<'a> {
    /// Cache of definitions.
    pub definitions: &'a Definitions,
    /// Pool for everything but the writer.
    pub pool: &'a db::Pool,
    /// Threads that check inputs.
    pub offload: &'a Offload,
    /// Relay, which knows the backlog.
    pub relay: &'a Relay,
    /// Run writer.
    pub writer: &'a RunWriter,
}

/// Request to start a run.
pub struct Request {
    /// Id of the definition.
    pub workflow_id: Uuid,
    /// Input, a JSON object.
    pub input: Box<RawValue>,
    /// Priority from 0 to 9: runs of a higher priority leave the queue first.
    pub priority: i16,
    /// Actor that starts the run.
    pub actor: Arc<Actor>,
    /// Maximum number of queued runs of the organisation.
    pub max_queued: Option<i32>,
    /// Idempotency key of the request.
    pub key: Option<IdempotencyKey>,
    /// Label of the conversation that the run belongs to.
    pub context_id: Option<String>,
    /// Limits of the run itself.
    pub limits: Option<Limits>,
    /// Deadline of the run itself.
    pub deadline: Deadline,
}

/// Starts a run of the definition's current content. Returns after the commit; a repeat with the same key returns the
/// first run.
pub async fn start_run(starter: Starter<'_>, request: Request) -> Result<Outcome, StartRunError> {
    let (pool, key, actor) = (starter.pool, request.key.clone(), Arc::clone(&request.actor));
    match (start_or_find(starter, request).await, key) {
        (Err(StartRunError::Db(error)), _) => Err(StartRunError::Db(error)),
        // The rejection may be newer than the first request with the key.
        (Err(refusal), Some(key)) => replay(pool, &actor.organization, &key).await?.ok_or(refusal),
        (other, _) => other,
    }
}

/// Run that the key has started, if it was used.
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
    if relay.is_full() {
        return Err(StartRunError::BacklogFull);
    }
    let Request { workflow_id, input, priority, actor, max_queued, key, context_id, limits, deadline } = request;
    let definition = definitions.checked(pool, offload, &actor.organization, workflow_id, &input).await?;
    let has_key = key.is_some();
    let mut start = StartRun {
        definition,
        input,
        priority,
        actor,
        max_queued,
        key,
        context_id,
        limits: limits.map(Box::new),
        deadline,
        flow: None,
    };
    for _ in 0..ATTEMPTS {
        if !outbox::fits_a_record(&start.definition.plan, &start.input) {
            return Err(StartRunError::TooLarge);
        }
        start.flow = flow_keys(offload, &start.definition, &start.input).await?;
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
        definitions.invalidate(&start.definition);
        let organization = &start.actor.organization;
        start.definition = definitions.checked(pool, offload, organization, workflow_id, &start.input).await?;
    }
    Err(StartRunError::Overloaded)
}

/// Keys of flow control of a run with that input. A large input is read on another thread.
pub(super) async fn flow_keys(
    offload: &Offload,
    definition: &Arc<Definition>,
    input: &RawValue,
) -> Result<Option<Box<FlowKeys>>, StartRunError> {
    let Some(flow) = &definition.flow else { return Ok(None) };
    let keys = if input.get().len() <= LARGE_INPUT_BYTES {
        flow.keys(input)
    } else {
        let (flow, input) = (flow.clone(), input.to_owned());
        offload.run_soon(&definition.organization, move || flow.keys(&input)).await?
    };
    keys.map(|keys| keys.map(Box::new)).map_err(|error| StartRunError::InvalidInput(vec![error]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::to_raw;

    #[test]
    fn definitions_are_kept_up_to_so_many_bytes_together() {
        let entry = |id: Uuid, bytes: usize| Cached {
            definition: Arc::new(Definition {
                id,
                organization: OrganizationId::stored("default"),
                name: String::new(),
                version: 1,
                plan: to_raw(&"x".repeat(bytes - 2)),
                flow: None,
                stamp: String::new(),
            }),
            schema: None,
        };
        let definitions = Definitions::default();
        let ids: Vec<_> = (0..3).map(Uuid::from_u128).collect();
        for id in &ids {
            let large = entry(*id, CACHED_BYTES / 4 * 3);
            definitions.cache().insert(*id, large.clone(), large.bytes());
        }
        let found: Vec<_> = ids.iter().map(|id| definitions.cached(*id).is_some()).collect();
        assert_eq!(found, [false, true, true]);
        let stale = definitions.cached(ids[1]).expect("cached").definition;
        let fresh = entry(ids[1], 10);
        definitions.cache().insert(ids[1], fresh.clone(), fresh.bytes());
        definitions.invalidate(&stale);
        assert!(definitions.cached(ids[1]).is_some(), "the newer entry stays");
        definitions.invalidate(&fresh.definition);
        assert!(definitions.cached(ids[1]).is_none());
    }
}
