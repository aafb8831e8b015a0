//! Cache of the console's sessions, as the database returned them in the last seconds.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    cache::{Cache, SingleFlight},
    clock::Clock,
    db::{self, console_sessions::SessionRow},
    timestamp::Timestamp,
};

/// Lifetime of an entry. It is shorter than the 5 s after which a session that was ended must be refused everywhere.
const LIFE: Duration = Duration::from_secs(4);
/// Number of sessions that are kept.
const MAX_ENTRIES: usize = 4096;

/// Time of the read, and the row if there is one.
type Entry = (Instant, Option<Arc<SessionRow>>);

/// Cache of sessions by the hash of their secret.
pub struct SessionCache {
    pool: db::Pool,
    clock: Clock,
    entries: Mutex<Cache<[u8; 32], Entry>>,
    reads: SingleFlight<[u8; 32]>,
}

impl SessionCache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new(pool: db::Pool, clock: Clock) -> Self {
        Self { pool, clock, entries: Mutex::new(Cache::new(MAX_ENTRIES)), reads: SingleFlight::default() }
    }

    /// Finds the session, unless it has ended.
    pub async fn find(&self, hash: [u8; 32]) -> Result<Option<Arc<SessionRow>>, db::Error> {
        let (_, found) = match self.recent(hash) {
            Some(entry) => entry,
            None => self.reads.read(hash, || self.recent(hash), self.read(hash)).await?,
        };
        let now = Timestamp::from(self.clock.now());
        Ok(found.filter(|row| now < row.expires_at))
    }

    /// Removes the entry, so that the next use reads it again.
    pub fn invalidate(&self, hash: &[u8; 32]) {
        self.entries().remove(hash);
    }

    fn recent(&self, hash: [u8; 32]) -> Option<Entry> {
        let entry = self.entries().get(&hash)?;
        (self.clock.since(entry.0) < LIFE).then_some(entry)
    }

    async fn read(&self, hash: [u8; 32]) -> Result<Entry, db::Error> {
        let (pool, read_at) = (self.pool.clone(), self.clock.instant());
        // A task of its own, since the client may disconnect.
        let row = db::bounded(async move { db::console_sessions::find(&pool, &hash).await }).await?.map(Arc::new);
        self.entries().insert(hash, (read_at, row.clone()), 1);
        Ok((read_at, row))
    }

    fn entries(&self) -> MutexGuard<'_, Cache<[u8; 32], Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
