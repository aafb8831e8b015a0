//! What the audit trail needs beside the changes that write it: entries of denied attempts, seals, and the end of what
//! is too old.
//!
//! If it dies here: an entry is committed with its change, and waits in `audit_unsealed` for whoever seals next. Denied
//! attempts that are not written yet are lost; nothing was answered on the strength of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sqlx::PgPool;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use uuid::Uuid;

use crate::{
    access::Actor,
    db::{
        self,
        audit::{self, Entry},
    },
    input,
    lifecycle::Lifecycle,
    timestamp::Timestamp,
};

/// Denied attempts that wait to be written. Of more than that in one turn, only their number is written.
const MAX_WAITING: usize = 256;
/// Pause after a turn that wrote denied attempts: what an attacker can have written is bounded by that.
const DENIED_EVERY: Duration = Duration::from_secs(1);
/// Pause after a turn that sealed, so that many entries share a seal.
const SEAL_EVERY: Duration = Duration::from_millis(100);
/// Entries that another program or a lost process has left are sealed after this.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often partitions are made and dropped, and how soon again after a failure.
const PARTITIONS_EVERY: Duration = Duration::from_hours(1);
const PARTITIONS_AGAIN: Duration = Duration::from_secs(30);

/// An attempt that was denied.
#[derive(Debug)]
pub struct Denied {
    /// Who tried; without a subject if nobody knows.
    pub actor: Actor,
    /// The method.
    pub method: String,
    /// The route, as a template.
    pub route: String,
    /// The answer.
    pub status: u16,
    /// The error's code.
    pub code: String,
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Auditor {
    denied: mpsc::Sender<Denied>,
    omitted: Arc<AtomicU64>,
    fresh: Arc<Notify>,
}

impl Auditor {
    /// Starts the loops.
    #[must_use]
    pub fn start(pool: &PgPool, kept_days: i32, lifecycle: &Lifecycle) -> Self {
        let (denied, waiting) = mpsc::channel(MAX_WAITING);
        let this = Self { denied, omitted: Arc::default(), fresh: Arc::default() };
        lifecycle.spawn("audit-denied", this.clone().write_denied(waiting, pool.clone(), lifecycle.clone()));
        lifecycle.spawn("audit-seals", this.clone().seal(pool.clone(), lifecycle.clone()));
        lifecycle.spawn("audit-partitions", keep_partitions(pool.clone(), kept_days, lifecycle.clone()));
        this
    }

    /// Has the attempt written.
    pub fn denied(&self, denied: Denied) {
        if self.denied.try_send(denied).is_err() {
            self.omitted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Entries may have been written: they are sealed soon.
    pub fn nudge(&self) {
        self.fresh.notify_one();
    }

    async fn write_denied(self, mut waiting: mpsc::Receiver<Denied>, pool: PgPool, lifecycle: Lifecycle) {
        let stop = lifecycle.soft_stop();
        let mut turn = Vec::with_capacity(MAX_WAITING);
        loop {
            tokio::select! {
                _ = waiting.recv_many(&mut turn, MAX_WAITING) => {}
                () = stop.cancelled() => {
                    // What is there already; no request that is still under way waits for it.
                    while turn.len() < MAX_WAITING && let Ok(denied) = waiting.try_recv() {
                        turn.push(denied);
                    }
                }
            }
            let attempts = std::mem::take(&mut turn);
            let omitted = self.omitted.swap(0, Ordering::Relaxed);
            let count = attempts.len();
            let pool = pool.clone();
            if let Err(error) = db::bounded(async move { insert(&pool, &attempts, omitted).await }).await {
                metrics::counter!("audit_denied_attempts_lost_total").increment(count as u64 + omitted);
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "{count} denied attempts are not in the audit trail: {error}"
                );
            }
            self.nudge();
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(DENIED_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn seal(self, pool: PgPool, lifecycle: Lifecycle) {
        let stop = lifecycle.soft_stop();
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.fresh.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // What was written last is sealed too, or by the next process.
                () = stop.cancelled() => {}
            }
            let started = Instant::now();
            let pool = pool.clone();
            match db::bounded(async move { audit::seal(&pool).await }).await {
                Ok(true) => self.nudge(),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "entries were not sealed: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(started + SEAL_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

async fn insert(pool: &PgPool, attempts: &[Denied], omitted: u64) -> Result<(), db::Error> {
    let mut transaction = pool.begin().await?;
    let at = Timestamp::now();
    for Denied { actor, method, route, status, code } in attempts {
        let after = input::to_raw(&json!({"status": status, "code": code}));
        audit::insert(&mut transaction, actor, denied(method, route, &after), at).await?;
    }
    if omitted > 0 {
        let after = input::to_raw(&json!({"attempts": omitted}));
        audit::insert(&mut transaction, &Actor::system(), denied("omitted", "(many)", &after), at).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn denied<'a>(action: &'a str, entity_name: &'a str, after: &'a serde_json::value::RawValue) -> Entry<'a> {
    let after = Some(after);
    Entry { entity_type: "request", entity_id: Uuid::nil(), entity_name, action, is_denied: true, before: None, after }
}

async fn keep_partitions(pool: PgPool, kept_days: i32, lifecycle: Lifecycle) {
    let stop = lifecycle.soft_stop();
    while !stop.is_cancelled() {
        let mut pause = PARTITIONS_EVERY;
        let pool = pool.clone();
        if let Err(error) = db::bounded(async move { audit::keep_partitions(&pool, kept_days).await }).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "no audit partitions yet: {error}");
            pause = PARTITIONS_AGAIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
