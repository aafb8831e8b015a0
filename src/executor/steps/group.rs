//! Concurrent branches, limited by their block and by the run.

use std::iter::Peekable;

use futures_util::{FutureExt, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::Semaphore;

use super::activity::{Activity, Idle};

/// Group of branches that begin in order. Dropping it drops the branches under way; the others never begin.
pub(super) struct Group<'a, T> {
    // The type is erased here: a closure's type, as part of a future's, would be too much for the compiler.
    waiting: Peekable<Box<dyn Iterator<Item = BoxFuture<'a, T>> + Send + 'a>>,
    under_way: FuturesUnordered<BoxFuture<'a, T>>,
    limit: usize,
    slots: &'a Semaphore,
    activity: &'a Activity,
    /// The block itself only waits for its branches.
    _idle: Idle<'a>,
}

impl<'a, T: 'a> Group<'a, T> {
    /// Limits the branches under way to `limit`. Each of them but the first takes one of the run's `slots`: so each
    /// block makes progress, and all blocks of a run together have at most one branch for each slot and block.
    pub(super) fn new<F: Future<Output = T> + Send + 'a>(
        branches: impl Iterator<Item = F> + Send + 'a,
        limit: Option<i64>,
        slots: &'a Semaphore,
        activity: &'a Activity,
    ) -> Self {
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX).max(1));
        let waiting: Box<dyn Iterator<Item = BoxFuture<'a, T>> + Send + 'a> = Box::new(branches.map(FutureExt::boxed));
        let (waiting, under_way) = (waiting.peekable(), FuturesUnordered::new());
        Self { waiting, under_way, limit, slots, activity, _idle: activity.idle() }
    }

    /// The result of the next branch that ends; `None` if there is no other.
    pub(super) async fn next(&mut self) -> Option<T> {
        while self.under_way.len() < self.limit && self.waiting.peek().is_some() {
            let slot = if self.under_way.is_empty() {
                None
            } else {
                let Ok(slot) = self.slots.try_acquire() else { break };
                Some(slot)
            };
            if let Some(branch) = self.waiting.next() {
                let busy = self.activity.begin();
                self.under_way.push(branch.inspect(move |_| drop((slot, busy))).boxed());
            }
        }
        self.under_way.next().await
    }

    /// Whether further branches are under way beside those that have ended.
    pub(super) fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::clock::Clock;

    /// The most concurrent branches, out of 20, with this limit and that number of slots.
    async fn most(limit: Option<i64>, slots: usize) -> usize {
        let (now, most, slots) = (AtomicUsize::new(0), AtomicUsize::new(0), Semaphore::new(slots));
        let branches = (0..20).map(|number| {
            let (now, most) = (&now, &most);
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                number
            }
        });
        let activity = Activity::new(Clock::default());
        let mut group = Group::new(branches, limit, &slots, &activity);
        let mut ended = Vec::new();
        while let Some(number) = group.next().await {
            ended.push(number);
        }
        ended.sort_unstable();
        assert_eq!(ended, (0..20).collect::<Vec<_>>());
        assert!(!group.is_busy());
        drop(group);
        most.into_inner()
    }

    #[tokio::test]
    async fn no_more_are_under_way_than_block_and_run_allow() {
        assert_eq!(most(None, 100).await, 20);
        assert_eq!(most(Some(3), 100).await, 3);
        assert_eq!(most(Some(1), 100).await, 1);
        assert_eq!(most(None, 4).await, 5);
        // Without any slot it still makes progress.
        assert_eq!(most(None, 0).await, 1);
    }
}
