//! The hot path: starting runs, many in one commit.
//!
//! Requests queue up in memory; a writer task takes whatever is there, writes run, outbox, idempotency and audit
//! rows of all of them in one statement, and answers each after the commit. While one commit is on its way the next
//! batch gathers, so batches grow with the load and a lone request waits for nobody. The tasks own their
//! connections and run on when a client hangs up.
//!
//! Large inputs take the database long: half a million numbers, a quarter of a second. They have a queue and a writer of
//! their own, so that no small one is in the same statement or waits behind it, and an organisation has few in it.
//!
//! If it dies here: nothing was acknowledged, and the statement committed whole or not at all. If the answer to the
//! commit is lost, the statement is repeated on another connection, where it finds its own rows if they are there;
//! with no connection to be had, the caller gets 503 and the rows, if they exist, are given back for any relay to send.

use std::{sync::Arc, time::Duration};

use serde_json::value::RawValue;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::{Actor, Countable, OrganizationId, QuotaExceeded},
    db::{
        self,
        idempotency::IdempotencyKey,
        runs::{Quota, StartBatch, Started, existing, start},
    },
    id,
    lifecycle::Lifecycle,
    offload::{Busy, Turns},
    outbox::{ExecutedRun, Relay, Reservation},
    timestamp::Timestamp,
};

/// Requests that may wait for a writer; with more, the service is overloaded and says so.
const QUEUE: usize = 4096;
/// Requests in one statement.
const MAX_BATCH: usize = 256;
/// Payload in one statement; a single larger request still goes through.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Writers at work at the same time: one commits while another writes.
const WRITERS: u32 = 2;
/// Bytes of an input that is large.
const LARGE_INPUT_BYTES: usize = 64 << 10;
/// Large inputs of one organisation that are queued or written at a time.
const LARGE_INPUTS_EACH: usize = 2;
/// A request with a large input waits no longer for its organisation's turn.
const MAX_TURN_WAIT: Duration = Duration::from_secs(3);
/// Repeats of a batch that collides with other transactions.
const MAX_COLLISIONS: usize = 2;

/// A definition as it was read, and the stamp that proves it unchanged when the run is written.
#[derive(Debug)]
pub struct Definition {
    /// Of the row.
    pub id: Uuid,
    /// Whose it is, and the runs of it.
    pub organization: OrganizationId,
    /// Of the workflow.
    pub name: String,
    /// Of the content.
    pub version: i32,
    /// The plan that goes into the message.
    pub plan: Box<RawValue>,
    /// See `db::workflows::Startable::stamp`.
    pub stamp: String,
}

/// A run to start.
#[derive(Debug)]
pub struct StartRun {
    /// What it executes.
    pub definition: Arc<Definition>,
    /// Its input, a JSON object.
    pub input: Box<RawValue>,
    /// From 0 to 9.
    pub priority: i16,
    /// Who asks.
    pub actor: Arc<Actor>,
    /// How many runs of the organisation may be queued.
    pub max_queued: Option<i32>,
    /// Of the request, if it has one.
    pub key: Option<IdempotencyKey>,
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

/// A run that is committed.
#[derive(Debug)]
pub struct StartedRun {
    /// What was asked for.
    pub request: StartRun,
    /// The run's id.
    pub run_id: String,
    /// The run's creation.
    pub created_at: Timestamp,
}

/// Why a run was not started. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The definition has changed since it was read, or the idempotency key is taken: look, and decide again.
    #[error("the definition has changed or the idempotency key is taken")]
    Refused(Box<StartRun>),
    /// As many runs of the organisation are queued as may be.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// Too many requests wait already.
    #[error("too many requests are waiting to be written")]
    Overloaded,
    /// The database failed. With a lost connection, the run may exist all the same.
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

/// Where runs are started. Cheap to clone.
#[derive(Clone)]
pub struct RunWriter {
    queue: mpsc::Sender<Job>,
    large: mpsc::Sender<Job>,
    large_turns: Arc<Turns>,
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
            let (queue, jobs) = mpsc::channel(QUEUE);
            let jobs = Arc::new(Mutex::new(jobs));
            for _ in 0..writers {
                let (pool, relay) = (pool.clone(), relay.clone());
                let writer = Writer { pool, connection: None, keeps_connection, relay, audit };
                lifecycle.spawn("run writer", writer.run(Arc::clone(&jobs), drained.clone()));
            }
            queue
        };
        // A small pool keeps connections for everything else.
        let writers = WRITERS.min(u32::try_from(pool.max() / 4).unwrap_or(WRITERS).max(1));
        let queue = start(writers, true);
        Self { queue, large: start(1, false), large_turns: Arc::new(Turns::new(LARGE_INPUTS_EACH)) }
    }

    /// Starts a run; returns after the commit. Dropping the future does not stop the writing.
    pub async fn start_run(&self, request: StartRun) -> Result<StartedRun, StartError> {
        let is_large = request.input.get().len() >= LARGE_INPUT_BYTES;
        let _turn = if is_large {
            let turn = self.large_turns.take(&request.actor.organization);
            let turn = tokio::time::timeout(MAX_TURN_WAIT, turn).await;
            Some(turn.map_err(|_| StartError::Overloaded)?.map_err(|Busy| StartError::Overloaded)?)
        } else {
            None
        };
        let queue = if is_large { &self.large } else { &self.queue };
        let (answer, answered) = oneshot::channel();
        let job =
            Job { request, run_id: id::new_run_id(), event_id: Uuid::now_v7(), created_at: Timestamp::now(), answer };
        queue.try_send(job).map_err(|_| StartError::Overloaded)?;
        // A writer always answers; it drops an answer only when the process is torn down.
        answered.await.unwrap_or(Err(StartError::Overloaded))
    }
}

struct Writer {
    pool: db::Pool,
    /// Held from the first batch on, so that no batch waits for the pool.
    connection: Option<db::PooledConnection>,
    /// Otherwise it is held only while there is something to write.
    keeps_connection: bool,
    relay: Relay,
    audit: bool,
}

impl Writer {
    async fn run(mut self, jobs: Arc<Mutex<mpsc::Receiver<Job>>>, drained: CancellationToken) {
        let mut waiting = Vec::with_capacity(MAX_BATCH);
        loop {
            if !self.keeps_connection {
                self.connection = None;
            }
            {
                let mut jobs = jobs.lock().await;
                tokio::select! {
                    biased;
                    count = jobs.recv_many(&mut waiting, MAX_BATCH) => if count == 0 { return },
                    () = drained.cancelled() => return,
                }
            }
            while !waiting.is_empty() {
                let size = batch_size(&waiting);
                let batch: Vec<Job> = waiting.drain(..size).collect();
                self.write(batch).await;
            }
        }
    }

    /// Those of each organisation that has a quota in a statement of their own.
    async fn write(&mut self, batch: Vec<Job>) {
        let mut without = Vec::with_capacity(batch.len());
        let mut within: Vec<(Quota, Vec<Job>)> = Vec::new();
        for job in batch {
            match Quota::of(&job.request) {
                None => without.push(job),
                Some(quota) => match within.iter_mut().find(|(known, _)| *known == quota) {
                    Some((_, jobs)) => jobs.push(job),
                    None => within.push((quota, vec![job])),
                },
            }
        }
        if !without.is_empty() {
            self.write_under(None, without).await;
        }
        for (quota, jobs) in within {
            self.write_under(Some(quota), jobs).await;
        }
    }

    async fn write_under(&mut self, quota: Option<Quota>, batch: Vec<Job>) {
        metrics::histogram!("run_writer_batch_size").record(batch.len() as f64);
        let jobs: Vec<(Job, Option<Reservation>)> = batch
            .into_iter()
            .map(|job| {
                let bytes = job.request.definition.plan.get().len() + job.request.input.get().len();
                let reservation = self.relay.reserve(bytes);
                (job, reservation)
            })
            .collect();
        let columns = Arc::new(StartBatch { quota, ..columns(&jobs) });
        match self.write_with_retries(&columns).await {
            Ok(Started { run_ids, admitted }) => {
                tracing::debug!(runs = run_ids.len(), "runs were written");
                let all = run_ids.len() == jobs.len();
                for (index, (job, reservation)) in jobs.into_iter().enumerate() {
                    match &columns.quota {
                        Some(quota) if index >= admitted => drop(job.answer.send(Err(quota.exceeded().into()))),
                        _ => {
                            let is_written = all || run_ids.contains(&job.run_id);
                            self.answer(job, reservation, is_written);
                        }
                    }
                }
            }
            // One bad request must not fail its neighbours: each is written alone.
            Err(db::Error::Refused(_) | db::Error::Bug(_)) if jobs.len() > 1 => {
                for (job, reservation) in jobs {
                    drop(reservation);
                    Box::pin(self.write(vec![job])).await;
                }
            }
            // Somebody else is about to use one of the keys: whoever has none does not wait for that.
            Err(error) if error.is_lock_timeout() && jobs.len() > 1 => {
                let jobs = jobs.into_iter().map(|(job, _)| job);
                let (keyed, others): (Vec<_>, Vec<_>) = jobs.partition(|job| job.request.key.is_some());
                if keyed.is_empty() || others.is_empty() {
                    for job in keyed.into_iter().chain(others) {
                        Box::pin(self.write(vec![job])).await;
                    }
                } else {
                    Box::pin(self.write(others)).await;
                    Box::pin(self.write(keyed)).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for (job, reservation) in jobs {
                    if let Some(reservation) = reservation {
                        self.relay.abandon(reservation, job.event_id, job.run_id);
                    }
                    // Nobody waits if the client has hung up.
                    drop(job.answer.send(Err(StartError::Db(Arc::clone(&error)))));
                }
            }
        }
    }

    fn answer(&self, job: Job, reservation: Option<Reservation>, is_written: bool) {
        let Job { request, run_id, event_id, created_at, answer } = job;
        if !is_written {
            drop(answer.send(Err(StartError::Refused(Box::new(request)))));
            return;
        }
        if let Some(reservation) = reservation {
            let correlation_id = Some(request.actor.correlation_id.as_str());
            let organization = &request.definition.organization;
            let traceparent = request.actor.traceparent.as_deref();
            let run =
                ExecutedRun { run_id: &run_id, correlation_id, traceparent, priority: request.priority, organization };
            self.relay.execute(reservation, event_id, run, &request.definition.plan, &request.input);
        }
        drop(answer.send(Ok(StartedRun { request, run_id, created_at })));
    }

    /// Tries again after a collision, and once on another connection if the one that was held turns out dead: the
    /// database was restarted, or another one took over. Such an attempt may have been committed all the same; the
    /// next one then runs into its runs.
    async fn write_with_retries(&mut self, columns: &Arc<StartBatch>) -> Result<Started, db::Error> {
        let mut collisions = 0;
        let mut is_repeat = false;
        loop {
            let was_held = self.connection.is_some();
            match self.try_write(columns).await {
                Err(db::Error::Collision(_)) if collisions < MAX_COLLISIONS => collisions += 1,
                Err(error) if error.is_lock_timeout() => return Err(error),
                Err(db::Error::Unavailable(_)) if was_held && !is_repeat => is_repeat = true,
                // A conflict with one's own rows, or nothing written because one's own idempotency key is taken.
                Ok(_) | Err(db::Error::Conflict { .. }) if is_repeat => {
                    let (pool, columns) = (self.pool.clone(), Arc::clone(columns));
                    let admitted = columns.run_id.len();
                    let run_ids = db::bounded(async move { existing(&pool, &columns.run_id).await }).await?;
                    return Ok(Started { run_ids, admitted });
                }
                result => return result,
            }
        }
    }

    async fn try_write(&mut self, columns: &Arc<StartBatch>) -> Result<Started, db::Error> {
        let held = self.connection.take();
        let (pool, columns, audit) = (self.pool.clone(), Arc::clone(columns), self.audit);
        let (connection, written) = db::bounded(async move {
            let mut connection = match held {
                Some(connection) => connection,
                None => pool.acquire().await.map_err(db::Error::from)?,
            };
            // One that is silent keeps no batch waiting, nor the next one when it is there again.
            let written = pool.unless_silent(start(&mut connection, &columns, audit)).await;
            Ok((connection, written))
        })
        .await?;
        if let Err(db::Error::Unavailable(_) | db::Error::Bug(_)) = written {
            // Whatever state it is in, the next batch gets another one.
            connection.discard();
        } else {
            self.connection = Some(connection);
        }
        written
    }
}

/// How many of the waiting requests go into the next statement.
fn batch_size(waiting: &[Job]) -> usize {
    let mut bytes = 0;
    let fitting = waiting.iter().take_while(|job| {
        bytes += job.request.input.get().len();
        bytes <= MAX_BATCH_BYTES
    });
    fitting.count().max(1)
}

fn columns(jobs: &[(Job, Option<Reservation>)]) -> StartBatch {
    let mut columns = StartBatch::default();
    for (job, reservation) in jobs {
        let request = &job.request;
        columns.run_id.push(job.run_id.clone());
        columns.definition_id.push(request.definition.id);
        columns.version.push(request.definition.version);
        columns.stamp.push(request.definition.stamp.clone());
        columns.workflow_name.push(request.definition.name.clone());
        columns.input_data.push(request.input.get().to_owned());
        columns.priority.push(request.priority);
        columns.traceparent.push(request.actor.traceparent.as_deref().map(str::to_owned));
        columns.triggered_by.push(request.actor.subject.clone());
        columns.correlation_id.push(request.actor.correlation_id.clone());
        columns.created_at.push(job.created_at);
        columns.event_id.push(job.event_id);
        columns.owner.push(reservation.as_ref().map(Reservation::owner));
        columns.key_scope.push(request.key.as_ref().map(|key| key.scope.clone()));
        columns.key.push(request.key.as_ref().map(|key| key.key.clone()));
        columns.fingerprint.push(request.key.as_ref().map(|key| key.fingerprint.clone()));
        columns.audit_id.push(Uuid::now_v7());
        columns.entity_id.push(id::run_entity_id(&job.run_id));
        columns.key_id.push(request.actor.key_id);
        columns.address.push(request.actor.address.map(|address| address.to_string()));
    }
    columns
}
