//! Organisations in memory: whether they let their members in, and how much they may have.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    access::{OrganizationId, Quotas},
    db::{self, organizations::OrganizationRow},
};

/// How long an organisation is taken for what it was when it was read. Under the 5 s after which a suspended one must
/// let nobody in.
const LIFE: Duration = Duration::from_secs(4);
/// Organisations that are kept, those that do not exist among them.
const MAX_ENTRIES: usize = 4096;

/// What was read, if there is such an organisation, and when.
type Entry = (Instant, Option<Arc<OrganizationRow>>);

/// The organisations. Cheap to clone.
#[derive(Clone)]
pub struct Organizations {
    pool: db::Pool,
    entries: Arc<Mutex<HashMap<OrganizationId, Entry>>>,
}

impl Organizations {
    /// None is known yet.
    #[must_use]
    pub fn new(pool: db::Pool) -> Self {
        Self { pool, entries: Arc::default() }
    }

    /// Whether it exists and lets its members in.
    pub async fn is_active(&self, id: &OrganizationId) -> Result<bool, db::Error> {
        // That one always does.
        Ok(id.is_default() || self.find(id).await?.is_some_and(|row| row.is_active()))
    }

    /// Its own quotas.
    pub async fn quotas(&self, id: &OrganizationId) -> Result<Quotas, db::Error> {
        Ok(self.find(id).await?.map(|row| row.quotas).unwrap_or_default())
    }

    /// Has it read again before it is used again.
    pub fn invalidate(&self, id: &OrganizationId) {
        self.entries().remove(id);
    }

    async fn find(&self, id: &OrganizationId) -> Result<Option<Arc<OrganizationRow>>, db::Error> {
        if let Some((read_at, row)) = self.entries().get(id)
            && read_at.elapsed() < LIFE
        {
            return Ok(row.clone());
        }
        let read_at = Instant::now();
        let (pool, wanted) = (self.pool.clone(), id.clone());
        // In a task of its own: whoever asks may hang up.
        let row = db::bounded(async move { db::organizations::find(&pool, &wanted).await }).await?.map(Arc::new);
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, (read_at, row)| row.is_some() && read_at.elapsed() < LIFE);
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
