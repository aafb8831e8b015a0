//! Starting a run: the definition from the cache, then the run writer, then whatever its refusal means.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use serde_json::value::RawValue;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    db::{self, idempotency::IdempotencyKey, runs::RunRow},
    outbox::{self, MAX_BACKLOG, Relay},
    run_writer::{Definition, RunWriter, StartError, StartRun, StartedRun},
    workflow::WorkflowStatus,
};

/// Definitions that are kept in memory.
const MAX_CACHED: usize = 1024;
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
    /// Plan and input together do not fit into a Kafka record.
    #[error("plan and input are too large for a message")]
    TooLarge,
    /// Too much waits for Kafka already.
    #[error("too many messages are waiting")]
    BacklogFull,
    /// Too many requests wait for the database.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The idempotency key belongs to a request with another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
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
pub struct Definitions(RwLock<HashMap<Uuid, Arc<Definition>>>);

impl Definitions {
    fn cached(&self, id: Uuid) -> Option<Arc<Definition>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn forget(&self, id: Uuid) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    async fn get(&self, pool: &PgPool, id: Uuid) -> Result<Arc<Definition>, StartRunError> {
        if let Some(definition) = self.cached(id) {
            return Ok(definition);
        }
        let row = db::workflows::startable(pool, id).await?.ok_or(StartRunError::WorkflowNotFound)?;
        if row.status != WorkflowStatus::Active.as_str() {
            return Err(StartRunError::NotActive(row.status));
        }
        let definition = Arc::new(Definition {
            id: row.id,
            name: row.name,
            version: row.version,
            plan: row.workflow_data.0,
            stamp: row.stamp,
        });
        let mut cached = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MAX_CACHED {
            cached.clear();
        }
        cached.insert(id, Arc::clone(&definition));
        Ok(definition)
    }
}

/// Where runs are started.
pub struct Starter<'a> {
    /// Definitions.
    pub definitions: &'a Definitions,
    /// For what the writer does not do.
    pub pool: &'a PgPool,
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
    /// The caller.
    pub triggered_by: String,
    /// Of the request.
    pub correlation_id: String,
    /// Of the request.
    pub key: Option<IdempotencyKey>,
}

/// Starts a run of the definition's present content. Returns after the commit; a repeat with the same key returns
/// the first run.
pub async fn start_run(starter: Starter<'_>, request: Request) -> Result<Outcome, StartRunError> {
    let Starter { definitions, pool, relay, writer } = starter;
    if relay.backlog() >= MAX_BACKLOG {
        return Err(StartRunError::BacklogFull);
    }
    let Request { workflow_id, input, triggered_by, correlation_id, key } = request;
    let mut start =
        StartRun { definition: definitions.get(pool, workflow_id).await?, input, triggered_by, correlation_id, key };
    for _ in 0..ATTEMPTS {
        if !outbox::fits_a_record(&start.definition.plan, &start.input) {
            return Err(StartRunError::TooLarge);
        }
        start = match writer.start_run(start).await {
            Ok(started) => return Ok(Outcome::Started(started)),
            Err(StartError::Refused(refused)) => *refused,
            Err(StartError::Overloaded) => return Err(StartRunError::Overloaded),
            Err(StartError::Db(error)) => return Err(StartRunError::Db(error)),
        };
        if let Some(key) = &start.key
            && let Some(taken) = db::idempotency::find(pool, &key.scope, &key.key).await?
        {
            if taken.fingerprint != key.fingerprint {
                return Err(StartRunError::KeyReused);
            }
            if let Some(run) = db::runs::find(pool, &taken.resource_id).await? {
                return Ok(Outcome::Replayed(Box::new(run)));
            }
        }
        definitions.forget(workflow_id);
        start.definition = definitions.get(pool, workflow_id).await?;
    }
    Err(StartRunError::Overloaded)
}
