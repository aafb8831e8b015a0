//! Shared reads: concurrent requests for the same, such as a page of a list, share one read of the database.
//!
//! A request never gets the result of a read that began before it. Requests that arrive during a read share the next one.
//! So no answer is stale, a single request does not wait, and the same is read at most once at a time, for any number of
//! clients.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Callers that wait for the next read.
type Waiters<T> = Vec<oneshot::Sender<T>>;

/// Active reads by key, each with the callers that arrived since it began. Cheap to clone.
pub struct SharedReads<T>(Arc<Mutex<HashMap<[u8; 32], Waiters<T>>>>);

impl<T> Clone for SharedReads<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for SharedReads<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + 'static> SharedReads<T> {
    /// Result of a `read` that begins after this call. It runs in its own task, so the caller may be cancelled. `None` if
    /// the read panicked.
    pub async fn get<F>(&self, key: [u8; 32], read: impl Fn() -> F + Send + 'static) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut active = self.active();
            let is_first = !active.contains_key(&key);
            active.entry(key).or_default().push(answer);
            is_first
        };
        if is_first {
            let mut reads = ActiveRead { reads: self.clone(), key, has_ended: false };
            tokio::spawn(async move {
                while let Some(waiting) = reads.next() {
                    let found = read().await;
                    for answer in waiting {
                        // A cancelled caller needs no result.
                        let _ = answer.send(found.clone());
                    }
                }
            });
        }
        answered.await.ok()
    }

    fn active(&self) -> MutexGuard<'_, HashMap<[u8; 32], Waiters<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Active read of a key.
struct ActiveRead<T: Clone + Send + 'static> {
    reads: SharedReads<T>,
    key: [u8; 32],
    has_ended: bool,
}

impl<T: Clone + Send + 'static> ActiveRead<T> {
    /// Callers that arrived since the last call; `None` ends the read if there are none.
    fn next(&mut self) -> Option<Waiters<T>> {
        let mut active = self.reads.active();
        let waiting = active.get_mut(&self.key).map(std::mem::take).unwrap_or_default();
        if waiting.is_empty() {
            // From now on, another read of the key may begin.
            active.remove(&self.key);
            self.has_ended = true;
        }
        Some(waiting).filter(|waiting| !waiting.is_empty())
    }
}

impl<T: Clone + Send + 'static> Drop for ActiveRead<T> {
    /// Removes the key after a panic, so that no caller waits forever.
    fn drop(&mut self) {
        if !self.has_ended {
            self.reads.active().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn requests_that_arrive_during_a_read_share_the_next_one() {
        let reads = SharedReads::<usize>::default();
        let (count, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let request = || {
            let (reads, count, gate) = (reads.clone(), Arc::clone(&count), Arc::clone(&gate));
            tokio::spawn(async move {
                let read = move || {
                    let (count, gate) = (Arc::clone(&count), Arc::clone(&gate));
                    async move {
                        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire().await.expect("open").forget();
                        number
                    }
                };
                reads.get([0; 32], read).await
            })
        };
        let first = request();
        while count.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let later: Vec<_> = (0..9).map(|_| request()).collect();
        while reads.active().get(&[0; 32]).is_none_or(|waiting| waiting.len() < 9) {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.expect("no panic"), Some(1));
        for one in later {
            assert_eq!(one.await.expect("no panic"), Some(2));
        }
        gate.add_permits(1);
        assert_eq!(request().await.expect("no panic"), Some(3), "nothing is kept");
    }

    #[tokio::test]
    async fn a_read_that_panics_leaves_no_caller_waiting() {
        let reads = SharedReads::<u8>::default();
        assert_eq!(reads.get([1; 32], || async { panic!("a test") }).await, None);
        assert_eq!(reads.get([1; 32], || async { 1 }).await, Some(1));
    }
}
