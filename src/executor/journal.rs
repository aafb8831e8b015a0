//! The journal: the writes of all drivers, in batches of one statement and one commit. What one driver hands over is
//! written at once or not at all.
//!
//! Drivers may be stopped at any moment; the statements run here, in tasks that nobody stops, so that no connection
//! is left in an unknown state. While the database is away a change waits, until its run is given up.

use std::{collections::HashMap, sync::Arc};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{monitoring::Monitoring, retry};
use crate::{
    batch,
    db::{
        self,
        executions::{Change, Held, Locked},
        monitoring::Outgoing,
    },
    lifecycle::Lifecycle,
};

/// Tasks that write, each with a connection of its own: while one waits for its commit, the next batch gathers.
const WRITERS: usize = 2;
/// Runs in one statement.
const MAX_BATCH: usize = 200;
/// Bytes of inputs and outputs in one statement, unless a single change is larger.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// An agent's name, and the version of its row; `None`: there is none.
pub(super) type AgentSeen = (String, Option<i64>);

/// What became of a run's changes.
#[derive(Debug)]
pub(super) enum Written {
    /// They are committed, and this is what the agents were by then which their steps call.
    Done(Vec<AgentSeen>),
    /// The run is no longer held, or is to be left alone: nothing was written.
    Lost,
    /// The database refuses a value in them: here they are back.
    Refused(Vec<Change>),
    /// Something is wrong with this program or the schema. It was logged.
    Failed,
}

struct Job {
    /// All of one run, at least one.
    changes: Vec<Change>,
    stop: CancellationToken,
    answer: oneshot::Sender<Written>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Journal {
    queue: mpsc::Sender<Job>,
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
        // Not bounded: each driver has at most one job in it.
        let (queue, jobs) = batch::queue(Semaphore::MAX_PERMITS);
        for _ in 0..WRITERS {
            let writer = Writer {
                pool: pool.clone(),
                connection: None,
                monitoring: monitoring.cloned(),
                give_up: give_up.clone(),
            };
            lifecycle.spawn("executor journal", jobs.clone().write_with(writer, done.clone()));
        }
        Self { queue }
    }

    /// Writes changes of one run, in their order, however long the database is away, unless `stop` is cancelled.
    pub(super) async fn write(&self, changes: Vec<Change>, stop: &CancellationToken) -> Written {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Job { changes, stop: stop.clone(), answer }).is_err() {
            return Written::Lost;
        }
        // A writer always answers, except when the process is torn down.
        answered.await.unwrap_or(Written::Lost)
    }
}

struct Writer {
    pool: db::Pool,
    connection: Option<db::PooledConnection>,
    monitoring: Option<Monitoring>,
    /// The process ends, with or without the database.
    give_up: CancellationToken,
}

impl batch::Writer for Writer {
    type Job = Job;
    const MAX_JOBS: usize = MAX_BATCH;
    const MAX_BYTES: usize = MAX_BATCH_BYTES;

    fn bytes(job: &Job) -> usize {
        job.changes.iter().map(Change::bytes).sum()
    }

    /// Writes a batch and answers all of it.
    async fn write(&mut self, batch: Vec<Job>) {
        metrics::histogram!("executor_journal_batch_size")
            .record(f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX)));
        let (jobs, waiters): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.changes, (job.stop, job.answer))).unzip();
        let lengths: Vec<usize> = jobs.iter().map(Vec::len).collect();
        let changes: Arc<Vec<Change>> = Arc::new(jobs.into_iter().flatten().collect());
        let are_all_stopped = || waiters.iter().all(|(stop, _)| stop.is_cancelled());
        let written = self.write_until(&changes, Locked::Skip, are_all_stopped).await;
        let is_poisoned = matches!(&written, Err(error) if !error.is_retryable());
        let mut held: HashMap<String, Vec<AgentSeen>> = HashMap::new();
        for change in written.unwrap_or_default() {
            held.entry(change.run_id).or_default().extend(seen(change.agent_name, change.agent_version));
        }
        let mut rest = &changes[..];
        for (length, (stop, answer)) in lengths.into_iter().zip(waiters) {
            let (of_run, others) = rest.split_at(length);
            rest = others;
            let agents = of_run.first().and_then(|change| held.remove(&change.run_id));
            let outcome = if let Some(agents) = agents {
                Written::Done(agents)
            } else if stop.is_cancelled() && !is_poisoned {
                Written::Lost
            } else {
                // Lost, locked by somebody, or a neighbour of a bad one: alone it will show.
                self.write_alone(of_run.to_vec(), &stop).await
            };
            // Nobody waits if the process is torn down.
            drop(answer.send(outcome));
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
            Err(error) if error.is_retryable() => Written::Lost,
            Err(db::Error::Refused(_)) => Written::Refused(changes.to_vec()),
            Err(error) => {
                let run_id = changes.first().map(|change| change.run_id.as_str()).unwrap_or_default();
                tracing::error!(error = &error as &dyn std::error::Error, run_id, "run {run_id} cannot be written");
                Written::Failed
            }
        }
    }

    /// Repeats the statement until it succeeds, or fails for good, or nobody wants it any more.
    async fn write_until(
        &mut self,
        changes: &Arc<Vec<Change>>,
        locked: Locked,
        is_unwanted: impl Fn() -> bool,
    ) -> Result<Vec<Held>, db::Error> {
        let mut failures = 0;
        let prepared = self.monitoring.as_ref().and_then(|monitoring| monitoring.prepare(changes));
        let outgoing = prepared.as_ref().map(|prepared| Arc::clone(&prepared.row));
        let result = loop {
            let result = self.try_write(changes, locked, outgoing.as_ref()).await;
            match &result {
                Err(error) if error.is_retryable() && !is_unwanted() && !self.give_up.is_cancelled() => {
                    if failures == 0 {
                        tracing::warn!(error = error as &dyn std::error::Error, "steps are written later: {error}");
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
    ) -> Result<Vec<Held>, db::Error> {
        if self.connection.is_none() {
            let pool = self.pool.clone();
            let prepared = db::bounded(async move {
                let mut connection = pool.acquire_own().await?;
                db::executions::always_use_indexes(&mut connection).await?;
                Ok(connection)
            });
            self.connection = Some(prepared.await?);
        }
        let Some(mut connection) = self.connection.take() else { return Ok(Vec::new()) };
        let (pool, changes, outgoing) = (self.pool.clone(), Arc::clone(changes), outgoing.cloned());
        let (connection, result) = db::bounded(async move {
            let write = db::executions::write(&mut connection, &changes, locked, outgoing.as_deref());
            let result = pool.unless_silent(write).await;
            Ok((connection, result))
        })
        .await?;
        // After such an error it is in whatever state, and the next statement gets another one.
        if !matches!(result, Err(db::Error::Unavailable(_) | db::Error::Bug(_))) {
            self.connection = Some(connection);
        }
        result
    }
}

/// The agent that a change has seen, if a step begins in it that calls one.
fn seen(agent_name: Option<String>, version: Option<i64>) -> Option<AgentSeen> {
    agent_name.filter(|name| !name.is_empty()).map(|name| (name, version))
}
