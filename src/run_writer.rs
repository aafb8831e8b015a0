//! Run writer: starts runs, many in one commit.
//!
//! Requests are written in batches ([`batch`]). The run, outbox, idempotency and audit rows of a batch are written by
//! one statement, and each request is answered after the commit. Each writer has a connection of its own.
//!
//! Large inputs are slow to write: half a million numbers take a quarter of a second. They have a queue and a writer of
//! their own, so that no small input is in the same statement or waits behind it, and each organisation has only a few
//! of them in progress. So have the runs of workflows with flow control, which wait for the locks of their keys.
//!
//! After a crash: nothing was acknowledged, and the statement committed entirely or not at all. If the answer to the
//! commit is lost, the statement is repeated on another connection, where it finds its own rows if they exist. Without
//! a connection, the caller gets 503 and the rows, if they exist, are released for any relay to send.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::{Actor, Countable, QuotaExceeded},
    batch,
    db::{
        self,
        flow::{Decided, FlowState},
        idempotency::IdempotencyKey,
        runs::{Definition, MessageBatch, NewRun, Quota, StartBatch, Started, existing, start},
    },
    id,
    lifecycle::Lifecycle,
    offload::{OrganizationPermits, Overloaded},
    outbox::{ExecutedRun, Relay, Reservation},
    timestamp::Timestamp,
    usage::Limits,
    workflow::{Deadline, FlowKeys},
};

/// Maximum number of queued requests; beyond that the service is overloaded.
const QUEUE: usize = 4096;
/// Maximum number of requests in one statement.
const MAX_BATCH: usize = 256;
/// Maximum payload bytes in one statement; a single larger request is still written.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Number of concurrent writers: one commits while another writes.
const WRITERS: u32 = 2;
/// Minimum bytes of a large input.
const LARGE_INPUT_BYTES: usize = 64 << 10;
/// Maximum number of large inputs of one organisation that are queued or written at a time.
const LARGE_INPUTS_EACH: usize = 2;
/// Maximum wait of a request with a large input for a permit of its organisation.
const MAX_TURN_WAIT: Duration = Duration::from_secs(3);
/// Maximum number of retries of a batch that collides with other transactions.
const MAX_COLLISIONS: usize = 2;

/// Request to start a run.
#[derive(Debug)]
pub struct StartRun {
    /// Definition that the run executes.
    pub definition: Arc<Definition>,
    /// Input, a JSON object.
    pub input: Box<RawValue>,
    /// Priority from 0 to 9.
    pub priority: i16,
    /// Actor that starts the run.
    pub actor: Arc<Actor>,
    /// Maximum number of queued runs of the organisation.
    pub max_queued: Option<i32>,
    /// Idempotency key of the request, if it has one.
    pub key: Option<IdempotencyKey>,
    /// Label of the conversation that the run belongs to.
    pub context_id: Option<String>,
    /// Limits of the run itself.
    pub limits: Option<Box<Limits>>,
    /// Deadline of the run itself.
    pub deadline: Deadline,
    /// Keys of flow control, if the run is controlled.
    pub flow: Option<Box<FlowKeys>>,
}

impl Quota {
    fn of(request: &StartRun) -> Option<Self> {
        let organization = request.actor.organization.clone();
        request.max_queued.map(|max_queued| Self { organization, max_queued })
    }

    fn exceeded(&self) -> QuotaExceeded {
        QuotaExceeded { what: Countable::QueuedRuns, limit: self.max_queued }
    }
}

/// Started and committed run.
#[derive(Debug)]
pub struct StartedRun {
    /// Request that started it.
    pub request: StartRun,
    /// Id of the run.
    pub run_id: String,
    /// Creation time of the run.
    pub created_at: Timestamp,
    /// What was decided for a controlled run.
    pub state: Option<Box<FlowState>>,
}

/// Reason why a run was not started. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The definition has changed since it was read, or the idempotency key is taken: the caller must read them again.
    #[error("the definition has changed or the idempotency key is taken")]
    Refused(Box<StartRun>),
    /// The quota of queued runs is used up.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// Too many requests are queued.
    #[error("too many requests are waiting to be written")]
    Overloaded,
    /// The database failed. After a lost connection, the run may exist all the same.
    #[error(transparent)]
    Db(Arc<db::Error>),
}

struct Job {
    request: StartRun,
    run_id: String,
    event_id: Uuid,
    created_at: Timestamp,
    answer: oneshot::Sender<Result<StartedRun, StartError>>,
}

/// Handle of the run writer. Cheap to clone.
#[derive(Clone)]
pub struct RunWriter {
    queue: mpsc::Sender<Job>,
    /// Runs that flow control may hold.
    controlled: mpsc::Sender<Job>,
    large: mpsc::Sender<Job>,
    large_turns: Arc<OrganizationPermits>,
}

impl RunWriter {
    /// Starts the writer tasks. They end when `drained` is cancelled and the queue is empty.
    #[must_use]
    pub fn start(
        pool: &db::Pool,
        relay: &Relay,
        audit: bool,
        lifecycle: &Lifecycle,
        drained: &CancellationToken,
    ) -> Self {
        let start = |writers: u32, keeps_connection: bool| {
            let (queue, jobs) = batch::queue::<Job>(QUEUE);
            for _ in 0..writers {
                let (pool, relay) = (pool.clone(), relay.clone());
                let writer = Writer { pool, connection: None, keeps_connection, relay, audit };
                lifecycle.spawn("run writer", jobs.clone().work_with(writer, drained.clone()));
            }
            queue
        };
        // With a small pool, enough connections are left for everything else.
        let writers = WRITERS.min(u32::try_from(pool.max() / 4).unwrap_or(WRITERS).max(1));
        let queue = start(writers, true);
        let (controlled, large) = (start(1, false), start(1, false));
        Self { queue, controlled, large, large_turns: Arc::new(OrganizationPermits::new(LARGE_INPUTS_EACH)) }
    }

    /// Starts a run; returns after the commit. Dropping the future does not cancel the write.
    pub async fn start_run(&self, request: StartRun) -> Result<StartedRun, StartError> {
        let is_large = request.input.get().len() >= LARGE_INPUT_BYTES;
        let _turn = if is_large {
            let turn = self.large_turns.take(&request.actor.organization);
            let turn = tokio::time::timeout(MAX_TURN_WAIT, turn).await;
            Some(turn.map_err(|_| StartError::Overloaded)?.map_err(|Overloaded| StartError::Overloaded)?)
        } else {
            None
        };
        let queue = match (is_large, &request.flow) {
            (true, _) => &self.large,
            (false, Some(_)) => &self.controlled,
            (false, None) => &self.queue,
        };
        let (answer, answered) = oneshot::channel();
        let job =
            Job { request, run_id: id::new_run_id(), event_id: Uuid::now_v7(), created_at: Timestamp::now(), answer };
        queue.try_send(job).map_err(|_| StartError::Overloaded)?;
        // A writer always answers; the answer is dropped only when the process ends.
        answered.await.unwrap_or(Err(StartError::Overloaded))
    }
}

struct Writer {
    pool: db::Pool,
    /// Connection, held from the first batch on, so that no batch waits for the pool.
    connection: Option<db::PooledConnection>,
    /// Whether the connection is kept between batches.
    keeps_connection: bool,
    relay: Relay,
    audit: bool,
}

impl batch::Worker for Writer {
    type Job = Job;
    const MAX_BYTES: usize = MAX_BATCH_BYTES;

    fn max_jobs(&self) -> usize {
        MAX_BATCH
    }

    fn bytes(job: &Job) -> usize {
        job.request.input.get().len()
    }

    async fn work(&mut self, batch: Vec<Job>) {
        self.write_by_quota(batch).await;
    }

    fn idle(&mut self) {
        if !self.keeps_connection {
            self.connection = None;
        }
    }
}

impl Writer {
    /// Writes the runs of each organisation with a quota in a statement of their own, and controlled runs apart from the
    /// others: they wait for the locks of their keys.
    async fn write_by_quota(&mut self, batch: Vec<Job>) {
        let mut without = Vec::with_capacity(batch.len());
        let mut within: Vec<(Option<Quota>, bool, Vec<Job>)> = Vec::new();
        for job in batch {
            let is_controlled = job.request.flow.is_some();
            match Quota::of(&job.request) {
                None if !is_controlled => without.push(job),
                quota => {
                    let is_same =
                        |known: &&mut (Option<Quota>, bool, Vec<Job>)| (&known.0, known.1) == (&quota, is_controlled);
                    match within.iter_mut().find(is_same) {
                        Some((.., jobs)) => jobs.push(job),
                        None => within.push((quota, is_controlled, vec![job])),
                    }
                }
            }
        }
        if !without.is_empty() {
            self.write_under(None, without).await;
        }
        for (quota, _, jobs) in within {
            self.write_under(quota, jobs).await;
        }
    }

    async fn write_under(&mut self, quota: Option<Quota>, batch: Vec<Job>) {
        metrics::histogram!("run_writer_batch_size").record(batch.len() as f64);
        let mut messages = None;
        let jobs: Vec<(Job, Option<Reservation>)> = batch
            .into_iter()
            .map(|job| {
                if job.request.flow.is_some() {
                    // Its message comes when it is admitted, from the sweep.
                    return (job, None);
                }
                let bytes = job.request.definition.plan.get().len() + job.request.input.get().len();
                let reservation = self.relay.reserve(bytes).filter(|reservation| {
                    let owner = reservation.owner();
                    // One owner, even if the process is registered anew meanwhile.
                    messages.get_or_insert_with(|| MessageBatch { id: Uuid::now_v7(), owner }).owner == owner
                });
                (job, reservation)
            })
            .collect();
        let run = |(job, reservation): &(Job, Option<Reservation>)| new_run(job, reservation.is_some());
        let batch = Arc::new(StartBatch { runs: jobs.iter().map(run).collect(), quota, messages });
        match self.write_with_retries(&batch).await {
            Ok(Started { run_ids, admitted, decided, states }) => {
                tracing::debug!(runs = run_ids.len(), "runs were written");
                let all = run_ids.len() == jobs.len();
                let is_written = |job: &Job| all || run_ids.contains(&job.run_id);
                if let Some(MessageBatch { id, .. }) = messages {
                    let owned =
                        |(job, reservation): &&(Job, Option<Reservation>)| reservation.is_some() && is_written(job);
                    self.relay.open_batch(id, jobs.iter().take(admitted).filter(owned).count());
                }
                self.relay.decided(decided);
                for (index, (job, reservation)) in jobs.into_iter().enumerate() {
                    match &batch.quota {
                        Some(quota) if index >= admitted => drop(job.answer.send(Err(quota.exceeded().into()))),
                        _ => {
                            let is_written = is_written(&job);
                            let state = states.iter().find(|state| state.run_id == job.run_id).cloned();
                            self.answer(job, (reservation, messages), is_written, state);
                        }
                    }
                }
            }
            // One bad request must not fail the others: each is written alone.
            Err(db::Error::Refused(_) | db::Error::Bug(_)) if jobs.len() > 1 => {
                for (job, reservation) in jobs {
                    drop(reservation);
                    Box::pin(self.write_by_quota(vec![job])).await;
                }
            }
            // Another transaction is about to use one of the keys: requests without a key do not wait for it.
            Err(error) if error.is_lock_timeout() && jobs.len() > 1 => {
                let jobs = jobs.into_iter().map(|(job, _)| job);
                let (keyed, others): (Vec<_>, Vec<_>) = jobs.partition(|job| job.request.key.is_some());
                if keyed.is_empty() || others.is_empty() {
                    for job in keyed.into_iter().chain(others) {
                        Box::pin(self.write_by_quota(vec![job])).await;
                    }
                } else {
                    Box::pin(self.write_by_quota(others)).await;
                    Box::pin(self.write_by_quota(keyed)).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                if let Some(MessageBatch { id, .. }) = messages {
                    self.relay.abandon_batch(id);
                }
                for (job, _) in jobs {
                    // The receiver is dropped if the client has disconnected.
                    drop(job.answer.send(Err(StartError::Db(Arc::clone(&error)))));
                }
            }
        }
    }

    fn answer(
        &self,
        job: Job,
        (reservation, messages): (Option<Reservation>, Option<MessageBatch>),
        is_written: bool,
        state: Option<FlowState>,
    ) {
        let Job { request, run_id, event_id, created_at, answer } = job;
        if !is_written {
            drop(answer.send(Err(StartError::Refused(Box::new(request)))));
            return;
        }
        if let Some(reservation) = reservation {
            let correlation_id = Some(request.actor.correlation_id.as_str());
            let organization = &request.definition.organization;
            let traceparent = request.actor.traceparent.as_deref();
            let priority = request.priority;
            let run =
                ExecutedRun { run_id: &run_id, correlation_id, traceparent, priority, organization, is_retry: false };
            let message = (event_id, messages.map(|batch| batch.id));
            self.relay.execute(reservation, message, run, &request.definition.plan, &request.input);
        }
        drop(answer.send(Ok(StartedRun { request, run_id, created_at, state: state.map(Box::new) })));
    }

    /// Retries after a collision, and once on another connection if the held one is dead because the database was
    /// restarted or failed over. Such an attempt may have been committed; the next one then conflicts with its runs.
    async fn write_with_retries(&mut self, batch: &Arc<StartBatch>) -> Result<Started, db::Error> {
        let mut collisions = 0;
        let mut is_repeat = false;
        loop {
            let was_held = self.connection.is_some();
            match self.try_write(batch).await {
                Err(db::Error::Collision(_)) if collisions < MAX_COLLISIONS => collisions += 1,
                Err(error) if error.is_lock_timeout() => return Err(error),
                Err(db::Error::Unavailable(_)) if was_held && !is_repeat => is_repeat = true,
                // Conflict with its own rows, or nothing written because its own idempotency key is taken.
                Ok(_) | Err(db::Error::Conflict { .. }) if is_repeat => {
                    let (pool, admitted) = (self.pool.clone(), batch.runs.len());
                    let run_ids: Vec<String> = batch.runs.iter().map(|run| run.run_id.clone()).collect();
                    let run_ids = db::bounded(async move { existing(&pool, &run_ids).await }).await?;
                    return Ok(Started { run_ids, admitted, decided: Decided::default(), states: Vec::new() });
                }
                result => return result,
            }
        }
    }

    async fn try_write(&mut self, batch: &Arc<StartBatch>) -> Result<Started, db::Error> {
        let held = self.connection.take();
        let (pool, batch, audit) = (self.pool.clone(), Arc::clone(batch), self.audit);
        let (connection, written) = db::bounded(async move {
            let mut connection = match held {
                Some(connection) => connection,
                None => pool.acquire().await.map_err(db::Error::from)?,
            };
            connection.keep();
            // A silent connection must not delay this batch, nor the next one after recovery.
            let written = pool.unless_silent(start(&mut connection, &batch, audit)).await;
            Ok((connection, written))
        })
        .await?;
        if let Err(db::Error::Unavailable(_) | db::Error::Bug(_)) = written {
            // Its state is unknown, so the next batch gets another connection.
            connection.discard();
        } else {
            self.connection = Some(connection);
        }
        written
    }
}

/// Row data of a job.
fn new_run(job: &Job, is_queued: bool) -> NewRun {
    let StartRun { definition, input, priority, actor, key, context_id, limits, deadline, flow, .. } = &job.request;
    NewRun {
        run_id: job.run_id.clone(),
        definition: Arc::clone(definition),
        input: input.clone(),
        priority: *priority,
        actor: Arc::clone(actor),
        key: key.clone(),
        context_id: context_id.clone(),
        limits: limits.as_deref().copied(),
        deadline: *deadline,
        trigger: None,
        created_at: job.created_at,
        event_id: job.event_id,
        is_queued,
        audit_id: Uuid::now_v7(),
        flow: flow.as_deref().cloned(),
    }
}
