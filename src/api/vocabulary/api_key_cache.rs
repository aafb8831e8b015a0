//! Cache of API keys, as the database returned them in the last seconds.
//!
//! An entry lives for `LIFE`, so that a revoked key becomes invalid everywhere within that time, even if the
//! background loop of this process fails. The loop refreshes the keys in use before that, with one statement, so that
//! requests find them in the cache. It also records when keys were used.
//!
//! Look-ups from networks with many wrong keys are delayed by `BATCH_DELAY` and sent as one batch. Guessing
//! therefore costs the database ten statements a second at most, and a valid key is still accepted.

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

/// Lifetime of an entry. It is shorter than the 5 s after which a revoked key must be invalid.
const LIFE: Duration = Duration::from_secs(4);
/// Interval at which the keys in use are refreshed.
const REFRESH_EVERY: Duration = Duration::from_millis(1500);
/// Maximum number of entries, including keys that do not exist.
const MAX_ENTRIES: usize = 4096;
/// Minimum time between two records of a key's use.
const RECORD_EVERY: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// Time for which batched look-ups are collected.
const BATCH_DELAY: Duration = Duration::from_millis(100);
/// Maximum number of look-ups in a batch; further ones are refused with a retry.
const MAX_BATCHED: usize = 1024;

/// Valid API key.
#[derive(Debug)]
pub struct ValidApiKey {
    /// Id of the API key.
    pub id: Uuid,
    /// Subject of the key in logs, audit rows and `…_by` columns: `api-key:<name>`.
    pub subject: String,
    /// Organisation of the key.
    pub organization: OrganizationId,
    /// Rights of the key.
    pub grant: Arc<Grant>,
    /// Expiry: from then on the key is invalid.
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

/// Prefix of the subjects of API keys; no other subjects have it.
pub const SUBJECT_PREFIX: &str = "api-key:";

struct Entry {
    /// `None`: the key does not exist, or is revoked.
    key: Option<Arc<ValidApiKey>>,
    /// Time before the query was sent.
    read_at: Instant,
    /// Whether the key was used since the last refresh.
    is_used: bool,
}

/// Kind of look-up of a key that is not in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Immediate, by a statement of its own.
    Immediate,
    /// Batched with other look-ups.
    Batched,
}

type Found = Result<Option<Arc<ValidApiKey>>, Arc<db::Error>>;

/// Cache of API keys. Cheap to clone.
#[derive(Clone)]
pub struct ApiKeyCache(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    clock: Clock,
    entries: Mutex<HashMap<KeyName, Entry>>,
    batched_lookups: mpsc::Sender<(KeyName, oneshot::Sender<Found>)>,
}

impl Shared {
    fn is_recent(&self, entry: &Entry) -> bool {
        self.clock.since(entry.read_at) < LIFE
    }
}

impl ApiKeyCache {
    /// Creates the cache and starts its background tasks.
    #[must_use]
    pub fn start(pool: db::Pool, clock: Clock, lifecycle: &Lifecycle) -> Self {
        let (batched_lookups, receiver) = mpsc::channel(MAX_BATCHED);
        let this = Self(Arc::new(Shared { pool, clock, entries: Mutex::default(), batched_lookups }));
        lifecycle
            .spawn("api-key-batch-lookup", this.clone().run_batched_lookups(receiver, lifecycle.soft_stop().clone()));
        let (cache, stop) = (this.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("api-key-cache", async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(REFRESH_EVERY) => {}
                    () = stop.cancelled() => {}
                }
                // Also runs when the process stops: the last uses are recorded.
                if let Err(error) = cache.refresh().await {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "API keys could not be refreshed: {error}"
                    );
                }
            }
        });
        this
    }

    /// Finds the key of that name, if it is valid.
    pub async fn find(&self, name: KeyName, lookup: impl FnOnce() -> Lookup) -> Found {
        let now = Timestamp::from(self.0.clock.now());
        if let Some(entry) = self.entries().get_mut(&name)
            && self.0.is_recent(entry)
        {
            entry.is_used = true;
            return Ok(entry.key.clone().filter(|key| key.is_valid(now)));
        }
        let key = match lookup() {
            Lookup::Immediate => self.look_up(vec![name]).await?.remove(&name).flatten(),
            Lookup::Batched => {
                let (answer, found) = oneshot::channel();
                // The validity of the key cannot be decided while the batch is full or the process stops.
                let busy = || Arc::new(db::Error::Unavailable(sqlx::Error::PoolTimedOut));
                self.0.batched_lookups.try_send((name, answer)).map_err(|_| busy())?;
                found.await.map_err(|_| busy())??
            }
        };
        Ok(key.filter(|key| key.is_valid(now)))
    }

    /// Reads these keys from the database and stores the result in the cache.
    async fn look_up(&self, names: Vec<KeyName>) -> Result<HashMap<KeyName, Option<Arc<ValidApiKey>>>, db::Error> {
        let read_at = self.0.clock.instant();
        let pool = self.0.pool.clone();
        // A task of its own, since the client may disconnect.
        let (names, rows) = db::bounded(async move {
            let rows = db::api_keys::find_many(&pool, &names).await?;
            Ok((names, rows))
        })
        .await?;
        let mut keys: HashMap<KeyName, Option<Arc<ValidApiKey>>> = names.into_iter().map(|name| (name, None)).collect();
        keys.extend(rows.iter().map(|(name, row)| (*name, ValidApiKey::read(row))));
        for (name, key) in &keys {
            self.keep(*name, Entry { key: key.clone(), read_at, is_used: true });
        }
        Ok(keys)
    }

    /// Runs the look-ups of [`Lookup::Batched`].
    async fn run_batched_lookups(
        self,
        mut receiver: mpsc::Receiver<(KeyName, oneshot::Sender<Found>)>,
        stop: CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                first = receiver.recv() => batch.extend(first),
                () = stop.cancelled() => return,
            }
            tokio::time::sleep(BATCH_DELAY).await;
            while let Ok(lookup) = receiver.try_recv() {
                batch.push(lookup);
            }
            let found = self.look_up(batch.iter().map(|(name, _)| *name).collect()).await.map_err(Arc::new);
            for (name, answer) in batch.drain(..) {
                // Fails only if the client has disconnected.
                let _ =
                    answer.send(found.as_ref().map(|found| found.get(&name).cloned().flatten()).map_err(Arc::clone));
            }
        }
    }

    /// Removes these keys, so that the next use reads them again.
    pub fn invalidate(&self, ids: &[Uuid]) {
        self.entries().retain(|_, entry| entry.key.as_ref().is_none_or(|key| !ids.contains(&key.id)));
    }

    fn keep(&self, name: KeyName, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| entry.key.is_some() && self.0.is_recent(entry));
        }
        if entries.len() < MAX_ENTRIES {
            entries.insert(name, entry);
        }
    }

    /// Refreshes the keys used since the last refresh, removes the others, and records the uses.
    async fn refresh(&self) -> Result<(), db::Error> {
        let mut used = Vec::new();
        let mut to_record = Vec::new();
        let now = Timestamp::from(self.0.clock.now()).as_naive_utc();
        self.entries().retain(|name, entry| {
            if !std::mem::take(&mut entry.is_used) {
                return self.0.is_recent(entry);
            }
            if let Some(key) = &entry.key {
                used.push(*name);
                let is_recorded = |at: Timestamp| now - at.as_naive_utc() < RECORD_EVERY;
                if !key.last_used_at.is_some_and(is_recorded) {
                    to_record.push(key.id);
                }
            }
            true
        });
        if used.is_empty() {
            return Ok(());
        }
        let pool = self.0.pool.clone();
        let read_at = self.0.clock.instant();
        let (names, rows) = db::bounded(async move {
            if !to_record.is_empty() {
                db::api_keys::touch(&pool, &to_record).await?;
            }
            Ok((used.clone(), db::api_keys::find_many(&pool, &used).await?))
        })
        .await?;
        let rows: HashMap<KeyName, ApiKeyRow> = rows.into_iter().collect();
        let mut entries = self.entries();
        for name in names {
            let key = rows.get(&name).and_then(ValidApiKey::read);
            // An entry that was invalidated meanwhile stays invalid.
            if let Some(entry) = entries.get_mut(&name)
                && entry.read_at < read_at
            {
                (entry.key, entry.read_at) = (key, read_at);
            }
        }
        Ok(())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<KeyName, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
