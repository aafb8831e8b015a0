//! API keys in memory: what the database said of each key that was used in the last seconds.
//!
//! An entry lives for `LIFE`, so that a revoked key ends everywhere within that time, whatever becomes of this
//! process's loop. The loop reads the keys in use again before that, all with one statement, so that requests find
//! theirs here; and it notes when they were used.
//!
//! Whoever comes from where many wrong keys came from waits for `GATHER_FOR`, and is asked for together with all others
//! of his kind: guessing costs the database ten statements a second at most, and a key that is right is let in all the
//! same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::{Grant, OrganizationId},
    clock::Clock,
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

/// How long keys of suspects are gathered until they are asked for.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// How many are gathered at a time; those above are asked to come again.
const MAX_BATCHED: usize = 1024;

/// A key that counts.
#[derive(Debug)]
pub struct ValidApiKey {
    /// Of the row.
    pub id: Uuid,
    /// Names it in logs, audit rows and `…_by` columns: `api-key:<name>`.
    pub subject: String,
    /// Whose key it is.
    pub organization: OrganizationId,
    /// What it allows.
    pub grant: Arc<Grant>,
    /// From then on it does not count.
    pub expires_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
}

impl ValidApiKey {
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

    fn is_valid(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

/// Subjects of keys begin with this, and no others do.
pub const SUBJECT_PREFIX: &str = "api-key:";

struct Entry {
    /// `None`: there is no such key, or it is revoked.
    holder: Option<Arc<ValidApiKey>>,
    /// Before it was asked for.
    read_at: Instant,
    /// Since the loop came by.
    is_used: bool,
}

/// How fast a key that is not known yet is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// By a statement of its own.
    Immediate,
    /// Together with those of other suspects.
    Batched,
}

type Found = Result<Option<Arc<ValidApiKey>>, Arc<db::Error>>;

/// The keys. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeyCache(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    clock: Clock,
    entries: Mutex<HashMap<KeyName, Entry>>,
    batched_lookups: mpsc::Sender<(KeyName, oneshot::Sender<Found>)>,
}

impl ApiKeyCache {
    /// Starts the loop.
    #[must_use]
    pub fn start(pool: db::Pool, clock: Clock, lifecycle: &Lifecycle) -> Self {
        let (suspects, gathered) = mpsc::channel(MAX_BATCHED);
        let this = Self(Arc::new(Shared { pool, clock, entries: Mutex::default(), batched_lookups: suspects }));
        lifecycle.spawn("api-key-batch-lookup", this.clone().run_batched_lookups(gathered, lifecycle.soft_stop().clone()));
        let (ring, stop) = (this.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("api-key-cache", async move {
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
    pub async fn find(&self, name: KeyName, pace: impl FnOnce() -> Lookup) -> Found {
        let now = Timestamp::from(self.0.clock.now());
        if let Some(entry) = self.entries().get_mut(&name)
            && entry.read_at.elapsed() < LIFE
        {
            entry.is_used = true;
            return Ok(entry.holder.clone().filter(|holder| holder.is_valid(now)));
        }
        let holder = match pace() {
            Lookup::Immediate => self.look_up(vec![name]).await?.remove(&name).flatten(),
            Lookup::Batched => {
                let (answer, found) = oneshot::channel();
                // Whether the key is right cannot be told now, nor while the process ends.
                let busy = || Arc::new(db::Error::Unavailable(sqlx::Error::PoolTimedOut));
                self.0.batched_lookups.try_send((name, answer)).map_err(|_| busy())?;
                found.await.map_err(|_| busy())??
            }
        };
        Ok(holder.filter(|holder| holder.is_valid(now)))
    }

    /// Asks the database for these keys, and remembers what it said.
    async fn look_up(&self, names: Vec<KeyName>) -> Result<HashMap<KeyName, Option<Arc<ValidApiKey>>>, db::Error> {
        let read_at = Instant::now();
        let pool = self.0.pool.clone();
        // In a task of its own: whoever asks may hang up.
        let (names, rows) = db::bounded(async move {
            let rows = db::api_keys::find_many(&pool, &names).await?;
            Ok((names, rows))
        })
        .await?;
        let mut holders: HashMap<KeyName, Option<Arc<ValidApiKey>>> =
            names.into_iter().map(|name| (name, None)).collect();
        holders.extend(rows.iter().map(|(name, row)| (*name, ValidApiKey::read(row))));
        for (name, holder) in &holders {
            self.keep(*name, Entry { holder: holder.clone(), read_at, is_used: true });
        }
        Ok(holders)
    }

    /// See [`Pace::Gathered`].
    async fn run_batched_lookups(
        self,
        mut gathered: mpsc::Receiver<(KeyName, oneshot::Sender<Found>)>,
        stop: CancellationToken,
    ) {
        let mut suspects = Vec::new();
        loop {
            tokio::select! {
                first = gathered.recv() => suspects.extend(first),
                () = stop.cancelled() => return,
            }
            tokio::time::sleep(BATCH_DELAY).await;
            while let Ok(suspect) = gathered.try_recv() {
                suspects.push(suspect);
            }
            let found = self.look_up(suspects.iter().map(|(name, _)| *name).collect()).await.map_err(Arc::new);
            for (name, answer) in suspects.drain(..) {
                // Whoever hung up needs none.
                let _ =
                    answer.send(found.as_ref().map(|found| found.get(&name).cloned().flatten()).map_err(Arc::clone));
            }
        }
    }

    /// Has the keys read again before they are used again.
    pub fn invalidate(&self, ids: &[Uuid]) {
        self.entries().retain(|_, entry| entry.holder.as_ref().is_none_or(|holder| !ids.contains(&holder.id)));
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
        let now = Timestamp::now().as_naive_utc();
        self.entries().retain(|name, entry| {
            if !std::mem::take(&mut entry.is_used) {
                return entry.read_at.elapsed() < LIFE;
            }
            if let Some(holder) = &entry.holder {
                used.push(*name);
                let is_noted = |at: Timestamp| now - at.as_naive_utc() < NOTE_EVERY;
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
            let holder = rows.get(&name).and_then(ValidApiKey::read);
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
