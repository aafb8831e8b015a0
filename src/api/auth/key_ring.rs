//! API keys in memory: what the database said of each key that was used in the last seconds.
//!
//! An entry lives for [`LIFE`], so that a revoked key ends everywhere within that time, whatever becomes of this
//! process's loop. The loop reads the keys in use again before that, all with one statement, so that requests find
//! theirs here; and it notes when they were used.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    access::{Grant, OrganizationId},
    db::{
        self,
        api_keys::{ApiKeyRow, KeyName},
    },
    lifecycle::Lifecycle,
    timestamp::Timestamp,
};

/// How long a key is taken for what it was when it was read. Under the 5 s after which a revoked key must be useless.
const LIFE: Duration = Duration::from_secs(4);
/// How often the keys in use are read again.
const READ_EVERY: Duration = Duration::from_millis(1500);
/// Entries that are kept, those of keys that do not exist among them.
const MAX_ENTRIES: usize = 4096;
/// A use is noted if the last one that was noted is so old.
const NOTE_EVERY: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// A key that counts.
#[derive(Debug)]
pub struct Holder {
    /// Of the row.
    pub id: Uuid,
    /// Names it in logs, audit rows and `…_by` columns: `api-key:<name>`.
    pub subject: String,
    /// Whose key it is.
    pub organization: OrganizationId,
    /// What it allows.
    pub grant: Arc<Grant>,
    expires_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
}

impl Holder {
    fn read(row: &ApiKeyRow) -> Option<Arc<Self>> {
        let grant = row.grant().filter(|_| row.revoked_at.is_none()).map(Arc::new)?;
        let subject = format!("{SUBJECT_PREFIX}{}", row.name);
        Some(Arc::new(Self {
            id: row.id,
            subject,
            organization: OrganizationId::stored(&row.organization_id),
            grant,
            expires_at: row.expires_at,
            last_used_at: row.last_used_at,
        }))
    }

    fn counts(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// Subjects of keys begin with this, and no others do.
pub const SUBJECT_PREFIX: &str = "api-key:";

struct Entry {
    /// `None`: there is no such key, or it is revoked.
    holder: Option<Arc<Holder>>,
    /// Before it was asked for.
    read_at: Instant,
    /// Since the loop came by.
    is_used: bool,
}

/// The keys. Cheap to clone.
#[derive(Clone)]
pub struct KeyRing(Arc<Shared>);

struct Shared {
    pool: PgPool,
    entries: Mutex<HashMap<KeyName, Entry>>,
}

impl KeyRing {
    /// Starts the loop.
    #[must_use]
    pub fn start(pool: PgPool, lifecycle: &Lifecycle) -> Self {
        let this = Self(Arc::new(Shared { pool, entries: Mutex::default() }));
        let (ring, stop) = (this.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("key-ring", async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(READ_EVERY) => {}
                    () = stop.cancelled() => {}
                }
                // Also when the process stops: the last uses are noted.
                if let Err(error) = ring.turn().await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "keys were not read again: {error}");
                }
            }
        });
        this
    }

    /// The key of that name, if it counts.
    pub async fn find(&self, name: KeyName) -> Result<Option<Arc<Holder>>, db::Error> {
        let now = Timestamp::now();
        if let Some(entry) = self.entries().get_mut(&name)
            && entry.read_at.elapsed() < LIFE
        {
            entry.is_used = true;
            return Ok(entry.holder.clone().filter(|holder| holder.counts(now)));
        }
        let read_at = Instant::now();
        let pool = self.0.pool.clone();
        // In a task of its own: whoever asks may hang up.
        let rows = db::bounded(async move { db::api_keys::find_many(&pool, &[name]).await }).await?;
        let holder = rows.first().and_then(|(_, row)| Holder::read(row));
        self.keep(name, Entry { holder: holder.clone(), read_at, is_used: true });
        Ok(holder.filter(|holder| holder.counts(now)))
    }

    /// Has the key read again before it is used again.
    pub fn forget(&self, id: Uuid) {
        self.entries().retain(|_, entry| entry.holder.as_ref().is_none_or(|holder| holder.id != id));
    }

    fn keep(&self, name: KeyName, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| entry.holder.is_some() && entry.read_at.elapsed() < LIFE);
        }
        if entries.len() < MAX_ENTRIES {
            entries.insert(name, entry);
        }
    }

    /// Reads the keys again that were used since the last turn, lets go of the others, and notes the use.
    async fn turn(&self) -> Result<(), db::Error> {
        let mut used = Vec::new();
        let mut to_note = Vec::new();
        let now = Timestamp::now().naive();
        self.entries().retain(|name, entry| {
            if !std::mem::take(&mut entry.is_used) {
                return entry.read_at.elapsed() < LIFE;
            }
            if let Some(holder) = &entry.holder {
                used.push(*name);
                let is_noted = |at: Timestamp| now - at.naive() < NOTE_EVERY;
                if !holder.last_used_at.is_some_and(is_noted) {
                    to_note.push(holder.id);
                }
            }
            true
        });
        if used.is_empty() {
            return Ok(());
        }
        let pool = self.0.pool.clone();
        let read_at = Instant::now();
        let (names, rows) = db::bounded(async move {
            if !to_note.is_empty() {
                db::api_keys::touch(&pool, &to_note).await?;
            }
            Ok((used.clone(), db::api_keys::find_many(&pool, &used).await?))
        })
        .await?;
        let rows: HashMap<KeyName, ApiKeyRow> = rows.into_iter().collect();
        let mut entries = self.entries();
        for name in names {
            let holder = rows.get(&name).and_then(Holder::read);
            // One that was forgotten meanwhile stays forgotten.
            if let Some(entry) = entries.get_mut(&name)
                && entry.read_at < read_at
            {
                (entry.holder, entry.read_at) = (holder, read_at);
            }
        }
        Ok(())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<KeyName, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
