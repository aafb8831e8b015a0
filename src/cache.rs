//! Cache: entries in memory, bounded by their weight.
//!
//! Entries are in two generations. New entries go into the young generation, and old entries that are looked up return
//! to it. When it is full it becomes the old one, and the previous old one is dropped. So entries in use stay, others
//! are dropped, and finding an entry in use is one look-up in a hash map. `moka` has more features (expiry, concurrent
//! readers, eviction by frequency of use), and its look-up costs about three times as much.

use std::{
    collections::HashMap,
    hash::Hash,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

/// Cache. Values are cheap to clone.
pub struct Cache<K, V> {
    young: HashMap<K, Entry<V>>,
    old: HashMap<K, Entry<V>>,
    /// Weight of the young generation.
    weight: usize,
    /// Weight of a full generation.
    kept: usize,
}

struct Entry<V> {
    value: V,
    weight: usize,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// An empty cache. The entries used last are kept up to the weight `kept` together, and never more than twice as
    /// much. An entry that is heavier has a generation to itself.
    #[must_use]
    pub fn new(kept: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, kept }
    }

    /// The value of the key.
    pub fn get(&mut self, key: &K) -> Option<V> {
        if let Some(entry) = self.young.get(key) {
            return Some(entry.value.clone());
        }
        let (key, entry) = self.old.remove_entry(key)?;
        let value = entry.value.clone();
        self.put(key, entry);
        Some(value)
    }

    /// The value of the key, created if there is none; its weight is 1.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> V {
        self.get(&key).unwrap_or_else(|| {
            let value = make();
            self.insert(key, value.clone(), 1);
            value
        })
    }

    /// Sets the value of the key.
    pub fn insert(&mut self, key: K, value: V, weight: usize) {
        self.remove(&key);
        self.put(key, Entry { value, weight });
    }

    /// Removes the key.
    pub fn remove(&mut self, key: &K) {
        if let Some(entry) = self.young.remove(key) {
            self.weight -= entry.weight;
        }
        self.old.remove(key);
    }

    /// Adds an entry that is in neither generation.
    fn put(&mut self, key: K, entry: Entry<V>) {
        if self.weight + entry.weight > self.kept && !self.young.is_empty() {
            self.old = mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += entry.weight;
        self.young.insert(key, entry);
    }
}

/// Maximum number of keys in a [`SingleFlight`]. With more keys, several callers may read the same value.
const FLIGHTS: usize = 1024;

/// Single flight: of several callers that miss the same key of a cache, one reads the value and the others wait for it.
pub struct SingleFlight<K>(Mutex<Cache<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for SingleFlight<K>
where
    K: Eq + Hash,
{
    fn default() -> Self {
        Self(Mutex::new(Cache::new(FLIGHTS)))
    }
}

impl<K: Eq + Hash> SingleFlight<K> {
    /// Returns the value that `read` reads and puts into the cache, or that `cached` finds there after another read. If
    /// the other read fails or is cancelled, all waiting callers read themselves: its error may not be theirs.
    pub async fn read<V, E>(
        &self,
        key: K,
        cached: impl Fn() -> Option<V>,
        read: impl Future<Output = Result<V, E>>,
    ) -> Result<V, E> {
        let flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(key, Arc::default);
        let first = flight.try_lock();
        if first.is_err() {
            drop(flight.lock().await);
            if let Some(value) = cached() {
                return Ok(value);
            }
        }
        read.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    #[test]
    fn entries_in_use_stay_and_others_are_dropped() {
        let mut cache = Cache::new(4);
        for key in 0..1000 {
            cache.insert(key, key, 1);
            assert_eq!(cache.get(&0), Some(0), "in use, at {key}");
            assert!(cache.young.len() + cache.old.len() <= 8, "bounded, at {key}");
        }
        assert_eq!((cache.get(&1), cache.get(&999)), (None, Some(999)));
    }

    #[test]
    fn the_entries_used_last_are_found_up_to_the_weight_that_is_kept() {
        let mut cache = Cache::new(100);
        for key in 0..150 {
            assert_eq!(cache.get_or_insert_with(key, || key), key);
        }
        for key in (50..150).rev() {
            assert_eq!(cache.get(&key), Some(key));
        }
    }

    #[test]
    fn weights_count_and_a_heavy_entry_is_kept_alone() {
        let mut cache = Cache::new(10);
        cache.insert("a", 1, 6);
        cache.insert("a", 2, 6);
        cache.insert("b", 3, 4);
        assert_eq!((cache.weight, cache.old.len()), (10, 0));
        cache.insert("heavy", 4, 100);
        assert_eq!((cache.weight, cache.old.len(), cache.young.len()), (100, 2, 1));
        assert_eq!(cache.get(&"a"), Some(2));
        assert_eq!((cache.get(&"b"), cache.weight), (None, 6));
        cache.remove(&"a");
        assert_eq!((cache.get(&"a"), cache.weight), (None, 0));
    }

    #[tokio::test]
    async fn of_several_callers_that_miss_a_key_one_reads_it() {
        let (flights, cache, reads) = (SingleFlight::default(), Mutex::new(Cache::new(10)), AtomicUsize::new(0));
        let (flights, cache, reads) = (&flights, &cache, &reads);
        let get = |key: &'static str| {
            let cached = move || cache.lock().expect("no panic").get(&key);
            flights.read(key, cached, async move {
                let number = reads.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                if number == 0 {
                    return Err("the first one fails");
                }
                cache.lock().expect("no panic").insert(key, key, 1);
                Ok(key)
            })
        };
        assert_eq!(get("a").await, Err("the first one fails"));
        let found = join_all(["a", "a", "b", "a", "b"].map(get)).await;
        assert_eq!(found, ["a", "a", "b", "a", "b"].map(Ok));
        assert_eq!(reads.load(SeqCst), 3, "the failed read, and one of each key");
    }

    #[tokio::test]
    async fn a_cancelled_read_does_not_block_the_next_one() {
        let flights = SingleFlight::default();
        let mut cancelled = Box::pin(flights.read("a", || None, std::future::pending::<Result<(), ()>>()));
        assert!(cancelled.as_mut().now_or_never().is_none());
        let mut next = Box::pin(flights.read("a", || None, async { Ok::<(), ()>(()) }));
        assert!(next.as_mut().now_or_never().is_none());
        drop(cancelled);
        assert_eq!(next.await, Ok(()));
    }
}
