//! Offloaded work: CPU-bound work on threads of its own, a few at a time, and one at a time for each organisation.
//!
//! On the threads that serve requests and drive runs such work would delay everything else. The submitter of the work
//! bounds it: nothing can interrupt it, and it continues when its result is not needed any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::access::OrganizationId;

/// Work for fewer bytes is done in place: it takes less than a millisecond.
pub const SMALL_BYTES: usize = 16 << 10;
/// Maximum time for which a request waits for its turn.
const MAX_WAIT: Duration = Duration::from_secs(3);
/// Number of remembered organisations from which on those without work are removed.
const MAX_IDLE: usize = 1000;

/// Error: the work was not begun, because too much other work waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much work is waiting")]
pub struct Overloaded;

/// Offload handle, with permits for all work and for each organisation. Cheap to clone.
#[derive(Clone)]
pub struct Offload(Arc<Permits>);

struct Permits {
    /// Maximum wait; see [`Offload::run_soon`].
    max_wait: Duration,
    all: Arc<Semaphore>,
    own: OrganizationPermits,
}

/// Permits of organisations, the same number for each.
pub struct OrganizationPermits {
    each: usize,
    by_organization: Mutex<HashMap<OrganizationId, Weak<Semaphore>>>,
}

impl OrganizationPermits {
    /// At most `each` permits at a time for each organisation.
    #[must_use]
    pub fn new(each: usize) -> Self {
        Self { each, by_organization: Mutex::default() }
    }

    /// A permit of the organisation, as soon as one is free, in the order of the calls.
    pub async fn take(&self, organization: &OrganizationId) -> Result<OwnedSemaphorePermit, Overloaded> {
        // They are never closed.
        self.of(organization).acquire_owned().await.map_err(|_| Overloaded)
    }

    fn of(&self, organization: &OrganizationId) -> Arc<Semaphore> {
        let mut known = self.by_organization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = known.get(organization).and_then(Weak::upgrade) {
            return permits;
        }
        if known.len() >= MAX_IDLE {
            known.retain(|_, permits| permits.strong_count() > 0);
        }
        let permits = Arc::new(Semaphore::new(self.each));
        known.insert(organization.clone(), Arc::downgrade(&permits));
        permits
    }
}

/// Permits that are held while the work is done.
struct Turn {
    _own: OwnedSemaphorePermit,
    _any: OwnedSemaphorePermit,
}

impl Default for Offload {
    /// One worker for each processor but one, which is left for everything else.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors.saturating_sub(1).max(1), MAX_WAIT)
    }
}

impl Offload {
    /// At most `at_a_time` pieces of work; a request waits at most `max_wait` for its turn.
    #[must_use]
    pub fn new(at_a_time: usize, max_wait: Duration) -> Self {
        let all = Arc::new(Semaphore::new(at_a_time));
        Self(Arc::new(Permits { max_wait, all, own: OrganizationPermits::new(1) }))
    }

    /// Does the organisation's work as soon as it has its turn.
    pub async fn run<T: Send + 'static>(
        &self,
        organization: &OrganizationId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let turn = self.turn(organization).await?;
        Self::work(turn, work).await
    }

    /// The same for a request, which is refused if its turn does not come soon.
    pub async fn run_soon<T: Send + 'static>(
        &self,
        organization: &OrganizationId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let turn = tokio::time::timeout(self.0.max_wait, self.turn(organization)).await.map_err(|_| Overloaded)??;
        Self::work(turn, work).await
    }

    /// The same for work that borrows. It runs on this thread, whose other tasks move to other threads.
    pub async fn run_in_place<T>(
        &self,
        organization: &OrganizationId,
        work: impl FnOnce() -> T,
    ) -> Result<T, Overloaded> {
        let _turn = self.turn(organization).await?;
        Ok(in_place(work))
    }

    /// Takes the organisation's own permit first, so that an organisation with much work delays no other.
    async fn turn(&self, organization: &OrganizationId) -> Result<Turn, Overloaded> {
        let own = self.0.own.take(organization).await?;
        // They are never closed.
        let any = Arc::clone(&self.0.all).acquire_owned().await.map_err(|_| Overloaded)?;
        Ok(Turn { _own: own, _any: any })
    }

    async fn work<T: Send + 'static>(turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Overloaded> {
        let span = tracing::Span::current();
        let done = tokio::task::spawn_blocking(move || {
            let result = span.in_scope(work);
            drop(turn);
            result
        });
        match done.await {
            Ok(result) => Ok(result),
            Err(ended) => match ended.try_into_panic() {
                Ok(cause) => std::panic::resume_unwind(cause),
                // The runtime ends.
                Err(_) => Err(Overloaded),
            },
        }
    }
}

/// Does work on this thread, whose other tasks move to other threads.
pub fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::poll;

    use super::*;

    fn organization(name: &str) -> OrganizationId {
        OrganizationId::stored(name)
    }

    #[tokio::test]
    async fn work_of_one_organisation_takes_turns_and_leaves_room_for_others() {
        let offload = Offload::new(2, MAX_WAIT);
        let (finish, until) = mpsc::channel::<()>();
        let ours = organization("ours");
        let long = offload.run(&ours, move || until.recv());
        let mut long = std::pin::pin!(long);
        assert!(poll!(&mut long).is_pending());
        let mut next = std::pin::pin!(offload.run(&ours, || 1));
        assert!(poll!(&mut next).is_pending());
        assert_eq!(offload.run(&organization("theirs"), || 2).await, Ok(2));
        assert!(poll!(&mut next).is_pending(), "the first is under way");
        drop(finish);
        assert!(long.await.is_ok_and(|received| received.is_err()));
        assert_eq!(next.await, Ok(1));
    }

    #[tokio::test]
    async fn a_request_whose_turn_does_not_come_is_refused_and_its_work_not_begun() {
        let offload = Offload::new(1, Duration::ZERO);
        let turn = offload.turn(&organization("ours")).await.expect("a turn");
        let refused = offload.run_soon(&organization("ours"), || unreachable!("it is not begun")).await;
        assert_eq!(refused, Err::<(), _>(Overloaded));
        let refused = offload.run_soon(&organization("theirs"), || unreachable!("it is not begun")).await;
        assert_eq!(refused, Err::<(), _>(Overloaded));
        drop(turn);
        assert_eq!(offload.run_soon(&organization("ours"), || 1).await, Ok(1));
    }

    #[tokio::test]
    async fn an_organisation_without_work_is_forgotten() {
        let offload = Offload::new(1, MAX_WAIT);
        for number in 0..=MAX_IDLE {
            assert_eq!(offload.run(&organization(&number.to_string()), || 1).await, Ok(1));
        }
        let known = offload.0.own.by_organization.lock().expect("not poisoned").len();
        assert!(known <= MAX_IDLE, "{known}");
    }
}
