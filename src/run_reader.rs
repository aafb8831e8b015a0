//! Run reader: finds runs by id, many in one statement.
//!
//! Requests are answered in batches ([`batch`]). A statement begins after all of its requests have arrived, so no answer is
//! stale. A run that is not small is read by a statement of its own, for which
//! nobody else waits.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use metrics::Histogram;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    access::OrganizationId,
    batch,
    db::{
        self,
        runs::{Found, SMALL_BYTES, ShownRun, find_shown},
    },
    lifecycle::Lifecycle,
};

/// Maximum number of queued requests; beyond that the database is too slow.
const QUEUE: usize = 4096;
/// Maximum number of requests in one statement.
const MAX_BATCH: usize = 32;
/// Number of concurrent readers: one statement that takes long does not delay all requests.
const READERS: usize = 2;

type Answer = Result<Found, Arc<db::Error>>;

struct Job {
    organization: OrganizationId,
    run_id: String,
    answer: oneshot::Sender<Answer>,
}

impl Job {
    fn wanted(&self) -> (&OrganizationId, &str) {
        (&self.organization, &self.run_id)
    }
}

/// Handle of the run reader. Cheap to clone.
#[derive(Clone)]
pub struct RunReader {
    queue: mpsc::Sender<Job>,
    pool: db::Pool,
}

impl RunReader {
    /// Starts the reader tasks. They end when `drained` is cancelled and the queue is empty.
    #[must_use]
    pub fn start(pool: &db::Pool, lifecycle: &Lifecycle, drained: &CancellationToken) -> Self {
        let (queue, jobs) = batch::queue(QUEUE);
        for _ in 0..READERS {
            let reader = Reader { pool: pool.clone(), batch_size: metrics::histogram!("run_reader_batch_size") };
            lifecycle.spawn("run reader", jobs.clone().work_with(reader, drained.clone()));
        }
        Self { queue, pool: pool.clone() }
    }

    /// Finds the organisation's run, as it is after this call.
    pub async fn find(
        &self,
        organization: &OrganizationId,
        run_id: &str,
    ) -> Result<Option<Box<ShownRun>>, Arc<db::Error>> {
        // Without a place in the queue it cannot be decided whether the run exists.
        let busy = || Arc::new(db::Error::Unavailable(sqlx::Error::PoolTimedOut));
        let (answer, answered) = oneshot::channel();
        let job = Job { organization: organization.clone(), run_id: run_id.to_owned(), answer };
        self.queue.try_send(job).map_err(|_| busy())?;
        let found = match answered.await.map_err(|_| busy())?? {
            Found::Large => find_shown(&self.pool, &[(organization, run_id)], i32::MAX).await?.pop(),
            found => Some(found),
        };
        Ok(if let Some(Found::Run(run)) = found { Some(run) } else { None })
    }
}

struct Reader {
    pool: db::Pool,
    batch_size: Histogram,
}

impl batch::Worker for Reader {
    type Job = Job;
    /// Not known before they are read; the statement limits it.
    const MAX_BYTES: usize = usize::MAX;

    fn max_jobs(&self) -> usize {
        MAX_BATCH
    }

    fn bytes(_: &Job) -> usize {
        0
    }

    async fn work(&mut self, mut batch: Vec<Job>) {
        batch.retain(|job| !job.answer.is_closed());
        if !batch.is_empty() {
            self.batch_size.record(batch.len() as f64);
            self.answer(batch).await;
        }
    }
}

impl Reader {
    async fn answer(&self, batch: Vec<Job>) {
        let wanted: Vec<_> = batch.iter().map(Job::wanted).collect();
        match self.read(&wanted).await {
            Ok(found) => {
                for (job, found) in batch.into_iter().zip(found) {
                    // Fails only if the request has ended.
                    drop(job.answer.send(Ok(found)));
                }
            }
            // One damaged row must not fail the others: each is read alone.
            Err(error) if !error.is_retryable() && batch.len() > 1 => {
                for job in batch {
                    Box::pin(self.answer(vec![job])).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for job in batch {
                    drop(job.answer.send(Err(Arc::clone(&error))));
                }
            }
        }
    }

    /// Reads the runs, on another connection if the first one is lost.
    async fn read(&self, wanted: &[(&OrganizationId, &str)]) -> Result<Vec<Found>, db::Error> {
        match self.try_read(wanted).await {
            Err(error) if error.is_connection_lost() => self.try_read(wanted).await,
            found => found,
        }
    }

    /// A row of another program can have a value at which the driver panics, such as the timestamp `infinity`.
    async fn try_read(&self, wanted: &[(&OrganizationId, &str)]) -> Result<Vec<Found>, db::Error> {
        let found = AssertUnwindSafe(find_shown(&self.pool, wanted, SMALL_BYTES)).catch_unwind().await;
        // The panic itself was logged by the panic hook.
        found.unwrap_or_else(|_| Err(db::Error::Bug(sqlx::Error::WorkerCrashed)))
    }
}
