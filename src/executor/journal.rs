//! Journal: writes the changes of all drivers, in batches of one statement and one commit. The changes that one driver
//! submits together are written together or not at all.
//!
//! Large jobs take the database long: JSON with many numbers takes half a second for each MiB. They have a queue and
//! writers of their own, so that no small job waits behind them, and each organisation has one large job at a time. A
//! statement that exceeds its time-out is repeated a few times; then the run fails, since it would never be written.
//!
//! Drivers may be stopped at any moment. The statements run in separate tasks that are never stopped, so no connection
//! is left in an unknown state. While the database is down a change waits, until its run is released.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{monitoring::Monitoring, own_connection::OwnConnection, retry};
use crate::{
    batch,
    db::{
        self,
        executions::{Change, LeaseState, Locked},
        monitoring::Outgoing,
    },
    lifecycle::Lifecycle,
    offload::OrganizationPermits,
};

/// Number of writer tasks of a lane, each with its own connection: while one waits for its commit, the next batch
/// collects.
const WRITERS: usize = 2;
/// Maximum bytes of inputs and outputs in one statement, unless a single change is larger.
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Bytes of inputs and outputs from which on a job is large.
const LARGE_JOB_BYTES: usize = 256 << 10;

/// Lane: a queue with its own writers.
#[derive(Clone, Copy)]
struct Lane {
    /// Maximum number of runs in one statement.
    max_batch: usize,
    /// Whether connections are kept. Otherwise they are held only while there is something to write.
    keeps_connections: bool,
    statement_timeout: Duration,
    /// Number of time-outs of a statement for several runs, before each run is written alone.
    max_timeouts: u32,
    /// Number of time-outs of a statement for one run, before the run fails.
    max_timeouts_alone: u32,
}

/// Small jobs are slow only if the database is overloaded, which may last a while.
const SMALL: Lane = Lane {
    max_batch: 200,
    keeps_connections: true,
    statement_timeout: Duration::from_secs(5),
    max_timeouts: 12,
    max_timeouts_alone: 12,
};
/// The largest row, of 16 MiB, takes a busy database up to 8 s.
const LARGE: Lane = Lane {
    max_batch: 1,
    keeps_connections: false,
    statement_timeout: Duration::from_secs(20),
    max_timeouts: 1,
    max_timeouts_alone: 3,
};
/// Time for the other statements of a write.
const TIME_AROUND_STATEMENT: Duration = Duration::from_secs(3);

/// An agent's name and the version of its row; `None`: there is none.
pub(super) type AgentSeen = (String, Option<i64>);

/// Result of writing a run's changes.
#[derive(Debug)]
pub(super) enum Written {
    /// Committed. The list has the version at that time of each agent that their steps call.
    Done(Vec<AgentSeen>),
    /// The lease is lost, or the driver must stop: nothing was written.
    Lost,
    /// The database refuses a value in these changes, which are returned.
    Refused(Vec<Change>),
    /// The statement exceeded its time-out again and again.
    Slow,
    /// A defect of this program or the schema. It was logged.
    Failed,
}

struct Job {
    /// Changes of one run, at least one.
    changes: Vec<Change>,
    stop: CancellationToken,
    answer: oneshot::Sender<Written>,
    /// Turn of its organisation, if the job is large.
    turn: Option<OwnedSemaphorePermit>,
}

/// Handle of the journal. Cheap to clone.
#[derive(Clone)]
pub(super) struct Journal {
    small: mpsc::Sender<Job>,
    large: mpsc::Sender<Job>,
    large_turns: Arc<OrganizationPermits>,
}

/// Guard that counts a waiting job in the metric.
struct WaitingJob;

impl WaitingJob {
    fn new() -> Self {
        metrics::gauge!("executor_journal_waiting").increment(1);
        Self
    }
}

impl Drop for WaitingJob {
    fn drop(&mut self) {
        metrics::gauge!("executor_journal_waiting").decrement(1);
    }
}

impl Journal {
    /// Starts the writers. They end when `done` is cancelled: no driver is left then.
    pub(super) fn start(
        pool: &db::Pool,
        monitoring: Option<&Monitoring>,
        lifecycle: &Lifecycle,
        give_up: &CancellationToken,
        done: &CancellationToken,
    ) -> Self {
        let start = |lane: Lane| {
            // The queue is not bounded: each driver has at most one job in it.
            let (queue, jobs) = batch::queue(Semaphore::MAX_PERMITS);
            for _ in 0..WRITERS {
                let writer = Writer {
                    lane,
                    pool: pool.clone(),
                    connection: OwnConnection::new(pool.clone(), lane.statement_timeout),
                    monitoring: monitoring.cloned(),
                    give_up: give_up.clone(),
                };
                lifecycle.spawn("executor journal", jobs.clone().work_with(writer, done.clone()));
            }
            queue
        };
        Self { small: start(SMALL), large: start(LARGE), large_turns: Arc::new(OrganizationPermits::new(1)) }
    }

    /// Writes changes of one run, in their order. Waits while the database is down, unless `stop` is cancelled.
    pub(super) async fn write(&self, changes: Vec<Change>, stop: &CancellationToken) -> Written {
        let _waiting = WaitingJob::new();
        let organization = changes.first().map(|change| change.of.organization.clone());
        let (queue, turn) = match organization.filter(|_| bytes_of(&changes) >= LARGE_JOB_BYTES) {
            None => (&self.small, None),
            Some(organization) => tokio::select! {
                biased;
                () = stop.cancelled() => return Written::Lost,
                // A turn is never refused here.
                turn = self.large_turns.take(&organization) => (&self.large, turn.ok()),
            },
        };
        let (answer, answered) = oneshot::channel();
        if queue.try_send(Job { changes, stop: stop.clone(), answer, turn }).is_err() {
            return Written::Lost;
        }
        // A writer always answers, except when the process is torn down.
        answered.await.unwrap_or(Written::Lost)
    }
}

struct Writer {
    lane: Lane,
    pool: db::Pool,
    connection: OwnConnection,
    monitoring: Option<Monitoring>,
    /// Cancelled when the process ends, with or without the database.
    give_up: CancellationToken,
}

impl batch::Worker for Writer {
    type Job = Job;
    const MAX_BYTES: usize = MAX_BATCH_BYTES;

    fn max_jobs(&self) -> usize {
        self.lane.max_batch
    }

    fn bytes(job: &Job) -> usize {
        bytes_of(&job.changes)
    }

    /// Writes a batch and answers all of its jobs.
    async fn work(&mut self, batch: Vec<Job>) {
        metrics::histogram!("executor_journal_batch_size")
            .record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        let (jobs, waiters): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.changes, (job.stop, job.answer, job.turn))).unzip();
        let lengths: Vec<usize> = jobs.iter().map(Vec::len).collect();
        let changes: Arc<Vec<Change>> = Arc::new(jobs.into_iter().flatten().collect());
        let are_all_stopped = || waiters.iter().all(|(stop, ..)| stop.is_cancelled());
        let written = self.write_until(&changes, Locked::Skip, are_all_stopped).await;
        let is_poisoned = matches!(&written, Err(error) if !error.is_retryable());
        let mut held: HashMap<String, Vec<AgentSeen>> = HashMap::new();
        for change in written.unwrap_or_default() {
            held.entry(change.run_id).or_default().extend(seen(change.agent_name, change.agent_version));
        }
        let mut rest = &changes[..];
        for (length, (stop, answer, _turn)) in lengths.into_iter().zip(waiters) {
            let (of_run, others) = rest.split_at(length);
            rest = others;
            let agents = of_run.first().and_then(|change| held.remove(&change.run_id));
            let outcome = if let Some(agents) = agents {
                Written::Done(agents)
            } else if stop.is_cancelled() && !is_poisoned {
                Written::Lost
            } else {
                // Lost, locked by another transaction, or refused because of another run in the batch: writing it alone
                // shows which.
                self.write_alone(of_run.to_vec(), &stop).await
            };
            // If the process is torn down, the receiver is gone.
            drop(answer.send(outcome));
        }
    }

    fn idle(&mut self) {
        if !self.lane.keeps_connections {
            self.connection.close();
        }
    }
}

impl Writer {
    async fn write_alone(&mut self, changes: Vec<Change>, stop: &CancellationToken) -> Written {
        let changes = Arc::new(changes);
        match self.write_until(&changes, Locked::Wait, || stop.is_cancelled()).await {
            Ok(held) if held.is_empty() => Written::Lost,
            Ok(held) => Written::Done(
                held.into_iter().filter_map(|change| seen(change.agent_name, change.agent_version)).collect(),
            ),
            Err(error) if error.is_statement_timeout() && !stop.is_cancelled() && !self.give_up.is_cancelled() => {
                Written::Slow
            }
            Err(error) if error.is_retryable() => Written::Lost,
            Err(db::Error::Refused(_)) => Written::Refused(changes.to_vec()),
            Err(error) => {
                let run_id = changes.first().map(|change| change.run_id.as_str()).unwrap_or_default();
                tracing::error!(error = &error as &dyn std::error::Error, run_id, "run {run_id} cannot be written");
                Written::Failed
            }
        }
    }

    /// Repeats the statement until it succeeds, fails for good, has exceeded its time-out too often, or is not needed
    /// any more.
    async fn write_until(
        &mut self,
        changes: &Arc<Vec<Change>>,
        locked: Locked,
        is_unwanted: impl Fn() -> bool,
    ) -> Result<Vec<LeaseState>, db::Error> {
        let max_timeouts = match locked {
            Locked::Skip => self.lane.max_timeouts,
            Locked::Wait => self.lane.max_timeouts_alone,
        };
        let (mut failures, mut timeouts) = (0, 0);
        let prepared = self.monitoring.as_ref().and_then(|monitoring| monitoring.prepare(changes.iter().map(Some)));
        let outgoing = prepared.as_ref().map(|prepared| Arc::clone(&prepared.row));
        let result = loop {
            let result = self.try_write(changes, locked, outgoing.as_ref()).await;
            match &result {
                Err(error) if error.is_retryable() && !is_unwanted() && !self.give_up.is_cancelled() => {
                    let is_timeout = error.is_statement_timeout();
                    timeouts += u32::from(is_timeout);
                    let cause = if is_timeout { "statement_timeout" } else { "unavailable" };
                    metrics::counter!("executor_journal_failures_total", "cause" => cause).increment(1);
                    if is_timeout && timeouts == max_timeouts {
                        break result;
                    }
                    if failures == 0 || timeouts == 1 {
                        let why = match error {
                            _ if is_timeout => "the statement took longer than its time-out".to_owned(),
                            _ if error.is_lock_timeout() => "a row is locked".to_owned(),
                            error => error.to_string(),
                        };
                        let (changes, bytes) = (changes.len(), bytes_of(changes));
                        let error = error as &dyn std::error::Error;
                        tracing::warn!(error, changes, bytes, "steps are written later: {why}");
                    }
                    tokio::time::sleep(retry::database_pause(failures)).await;
                    failures += 1;
                }
                _ => break result,
            }
        };
        if let Some((monitoring, prepared)) = self.monitoring.as_ref().zip(prepared) {
            match &result {
                Ok(held) => {
                    let run_ids: Vec<&str> = held.iter().map(|change| change.run_id.as_str()).collect();
                    monitoring.committed(prepared, &run_ids, failures > 0);
                }
                Err(_) => monitoring.failed(&prepared),
            }
        }
        result
    }

    async fn try_write(
        &mut self,
        changes: &Arc<Vec<Change>>,
        locked: Locked,
        outgoing: Option<&Arc<Outgoing>>,
    ) -> Result<Vec<LeaseState>, db::Error> {
        let mut connection = self.connection.take().await?;
        let (pool, changes, outgoing) = (self.pool.clone(), Arc::clone(changes), outgoing.cloned());
        let timeout = self.lane.statement_timeout + TIME_AROUND_STATEMENT;
        let (connection, result) = db::bounded_by(timeout, async move {
            let write = db::executions::write(&mut connection, &changes, locked, outgoing.as_deref());
            let result = pool.unless_silent(write).await;
            Ok((connection, result))
        })
        .await?;
        self.connection.keep(connection, &result);
        result
    }
}

/// The agent that a change has seen, if a step that calls an agent begins in it.
fn seen(agent_name: Option<String>, version: Option<i64>) -> Option<AgentSeen> {
    agent_name.filter(|name| !name.is_empty()).map(|name| (name, version))
}

fn bytes_of(changes: &[Change]) -> usize {
    changes.iter().map(Change::bytes).sum()
}
