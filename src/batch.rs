//! Batching: jobs queue up in memory, and a few workers take all waiting jobs, one batch at a time.
//!
//! There is no timer. While the statement of one batch is under way the next one collects, so batches grow with the
//! load and a lone job waits for no other. The workers run in tasks of their own: a statement continues when the
//! submitter of a job stops waiting.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// Worker: it writes or reads batches.
pub trait Worker: Send + 'static {
    /// Job, with the channel for its answer.
    type Job: Send + 'static;
    /// Maximum bytes of a batch, unless a single job is larger.
    const MAX_BYTES: usize;

    /// Maximum number of jobs in a batch.
    fn max_jobs(&self) -> usize;

    /// The size of a job.
    fn bytes(job: &Self::Job) -> usize;

    /// Does the work of a batch and answers all of its jobs.
    fn work(&mut self, batch: Vec<Self::Job>) -> impl Future<Output = ()> + Send;

    /// Called when there is nothing to do.
    fn idle(&mut self) {}
}

/// The receiving end of a queue, shared by its workers.
pub struct Jobs<J>(Arc<Mutex<mpsc::Receiver<J>>>);

impl<J> Clone for Jobs<J> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A queue with that capacity of jobs.
#[must_use]
pub fn queue<J>(capacity: usize) -> (mpsc::Sender<J>, Jobs<J>) {
    let (sender, receiver) = mpsc::channel(capacity);
    (sender, Jobs(Arc::new(Mutex::new(receiver))))
}

impl<J: Send + 'static> Jobs<J> {
    /// Passes batches of jobs to the worker, until `done` is cancelled and the queue is empty, or no submitter is left.
    pub async fn work_with<W: Worker<Job = J>>(self, mut worker: W, done: CancellationToken) {
        let mut waiting = Vec::with_capacity(worker.max_jobs());
        loop {
            worker.idle();
            {
                let mut jobs = self.0.lock().await;
                tokio::select! {
                    biased;
                    count = jobs.recv_many(&mut waiting, worker.max_jobs()) => if count == 0 { return },
                    () = done.cancelled() => return,
                }
                if waiting.len() < worker.max_jobs() {
                    // The first job wakes the worker before other tasks that are ready have submitted theirs.
                    tokio::task::yield_now().await;
                    while waiting.len() < worker.max_jobs()
                        && let Ok(job) = jobs.try_recv()
                    {
                        waiting.push(job);
                    }
                }
            }
            while !waiting.is_empty() {
                let batch = waiting.drain(..fitting::<W>(&waiting)).collect();
                worker.work(batch).await;
            }
        }
    }
}

/// Number of waiting jobs that fit into one batch; at least one.
fn fitting<W: Worker>(waiting: &[W::Job]) -> usize {
    let mut bytes = 0;
    let fitting = waiting.iter().take_while(|job| {
        bytes += W::bytes(job);
        bytes <= W::MAX_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worker that records the sizes of its batches.
    struct Notes(mpsc::UnboundedSender<Vec<usize>>);

    impl Worker for Notes {
        type Job = usize;
        const MAX_BYTES: usize = 10;

        fn max_jobs(&self) -> usize {
            4
        }

        fn bytes(job: &usize) -> usize {
            *job
        }

        async fn work(&mut self, batch: Vec<usize>) {
            drop(self.0.send(batch));
        }
    }

    #[tokio::test]
    async fn a_batch_has_the_waiting_jobs_within_its_limits_and_the_queue_is_emptied_before_the_end() {
        let (queue, jobs) = queue(100);
        let (batches, mut written) = mpsc::unbounded_channel();
        for bytes in [1, 2, 3, 4, 5, 6, 20, 1, 1] {
            queue.try_send(bytes).expect("room");
        }
        let done = CancellationToken::new();
        done.cancel();
        jobs.work_with(Notes(batches), done).await;
        let mut all = Vec::new();
        while let Some(batch) = written.recv().await {
            all.push(batch);
        }
        assert_eq!(all, [vec![1, 2, 3, 4], vec![5], vec![6], vec![20], vec![1], vec![1]]);
    }
}
