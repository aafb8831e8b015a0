//! Cancellations from messages.
//!
//! Our API commits a cancellation before it sends the message. The message may arrive late, when the run was already
//! started again. So the row decides, and the message only makes the check happen sooner. The message of another
//! program, which has no `event_id`, is a command of its own.

use std::collections::{HashSet, VecDeque};

use super::Executor;
use crate::{
    db::{self, executions},
    kafka::{
        consumer::{Consumer, Position},
        message::CancellationRequest,
    },
};

/// Maximum number of remembered cancellations of unknown runs.
const MAX_EARLY: usize = 10_000;

/// Queue of cancellations that were read and not processed, and runs that were cancelled before they were known.
#[derive(Default)]
pub(super) struct Cancellations {
    waiting: Vec<(Position, CancellationRequest)>,
    /// Bytes of the waiting cancellations, as sent.
    bytes: usize,
    early: Early,
}

impl Cancellations {
    pub(super) fn push(&mut self, position: Position, bytes: usize, request: CancellationRequest) {
        self.bytes += bytes;
        self.waiting.push((position, request));
    }

    /// Number of waiting cancellations.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the waiting cancellations.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether this run was cancelled before it was known. Returns `true` once.
    pub(super) fn take_pending(&mut self, run_id: &str) -> bool {
        self.early.remove(run_id)
    }

    /// Stops the cancelled runs.
    pub(super) async fn process(&mut self, executor: &Executor, consumer: &Consumer) -> Result<(), db::Error> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (mut run_ids, mut by, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for (_, request) in self.waiting.iter().filter(|(_, request)| request.event_id.is_none()) {
            run_ids.push(storable(&request.run_id));
            by.push(request.cancelled_by.as_deref().map(storable));
            reasons.push(request.reason.as_deref().map(storable));
        }
        if !run_ids.is_empty() {
            let pool = executor.pool.clone();
            let unknown = db::bounded(async move { executions::cancel(&pool, &run_ids, &by, &reasons).await }).await?;
            self.early.extend(unknown);
        }
        let wanted: Vec<String> = self.waiting.iter().map(|(_, request)| request.run_id.clone()).collect();
        let (run_ids, lease_tokens) = executor.active.leases(Some(&wanted));
        if !run_ids.is_empty() {
            let (pool, ids, tokens) = (executor.pool.clone(), run_ids.clone(), lease_tokens.clone());
            let noticed = db::bounded(async move { executions::notice(&pool, &ids, &tokens).await }).await?;
            executor.active.notify(&noticed, &run_ids, &lease_tokens);
        }
        self.bytes = 0;
        for (position, request) in self.waiting.drain(..) {
            let CancellationRequest { run_id, correlation_id, .. } = request;
            tracing::debug!(run_id, correlation_id, "the cancellation of run {run_id} was read");
            consumer.done(position);
        }
        Ok(())
    }
}

/// Text without NUL, which the database does not accept.
fn storable(text: &str) -> String {
    text.replace('\0', "")
}

/// Bounded set of runs that were cancelled before they were known. The oldest is removed first.
#[derive(Default)]
struct Early {
    order: VecDeque<String>,
    run_ids: HashSet<String>,
}

impl Early {
    fn extend(&mut self, run_ids: Vec<String>) {
        for run_id in run_ids {
            if self.run_ids.insert(run_id.clone()) {
                self.order.push_back(run_id);
            }
            if self.order.len() > MAX_EARLY
                && let Some(oldest) = self.order.pop_front()
            {
                self.run_ids.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, run_id: &str) -> bool {
        self.run_ids.remove(run_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_cancellation_counts_once_and_not_for_ever() {
        let mut early = Early::default();
        early.extend(vec!["first".to_owned(), "first".to_owned()]);
        early.extend((0..MAX_EARLY - 1).map(|number| number.to_string()).collect());
        assert!(early.remove("0") && !early.remove("0"));
        early.extend(vec!["last".to_owned()]);
        assert!(!early.remove("first") && early.remove("last"));
    }
}
