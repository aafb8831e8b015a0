//! Cache of organisations: their status and their quotas.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    access::{OrganizationId, Quotas},
    clock::Clock,
    db::{self, organizations::OrganizationRow},
};

/// Lifetime of an entry. It is shorter than the 5 s after which the credentials of a suspended organisation must be
/// refused.
const LIFE: Duration = Duration::from_secs(4);
/// Maximum number of entries, including organisations that do not exist.
const MAX_ENTRIES: usize = 4096;

/// Time of the read, and the row if the organisation exists.
type Entry = (Instant, Option<Arc<OrganizationRow>>);

/// Cache of organisations. Cheap to clone.
#[derive(Clone)]
pub struct Organizations {
    pool: db::Pool,
    clock: Clock,
    entries: Arc<Mutex<HashMap<OrganizationId, Entry>>>,
}

impl Organizations {
    /// Creates an empty cache.
    #[must_use]
    pub fn new(pool: db::Pool, clock: Clock) -> Self {
        Self { pool, clock, entries: Arc::default() }
    }

    /// Whether the organisation exists and is active.
    pub async fn is_active(&self, id: &OrganizationId) -> Result<bool, db::Error> {
        // The default organisation is always active.
        Ok(id.is_default() || self.find(id).await?.is_some_and(|row| row.is_active()))
    }

    /// Quotas of the organisation itself, without those of the settings.
    pub async fn quotas(&self, id: &OrganizationId) -> Result<Quotas, db::Error> {
        Ok(self.find(id).await?.map(|row| row.quotas).unwrap_or_default())
    }

    /// Removes the entry, so that the next use reads it again.
    pub fn invalidate(&self, id: &OrganizationId) {
        self.entries().remove(id);
    }

    async fn find(&self, id: &OrganizationId) -> Result<Option<Arc<OrganizationRow>>, db::Error> {
        if let Some((read_at, row)) = self.entries().get(id)
            && self.clock.since(*read_at) < LIFE
        {
            return Ok(row.clone());
        }
        let read_at = self.clock.instant();
        let (pool, wanted) = (self.pool.clone(), id.clone());
        // A task of its own, since the client may disconnect.
        let row = db::bounded(async move { db::organizations::find(&pool, &wanted).await }).await?.map(Arc::new);
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, (read_at, row)| row.is_some() && self.clock.since(*read_at) < LIFE);
        }
        if entries.len() < MAX_ENTRIES {
            entries.insert(id.clone(), (read_at, row.clone()));
        }
        Ok(row)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<OrganizationId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
