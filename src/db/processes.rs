//! Process registry with heartbeats: one statement per process, however much work it owns. It uses a connection of its
//! own, so that load that exhausts the pool does not make a living process look dead.
//!
//! A process without a heartbeat for [`DEAD_AFTER`] is dead: others take over its outbox rows and runs. This is final
//! for its id. A process that was only suspended or cut off notices that its row is gone (or that it could not send a
//! heartbeat for that long), drops its work and registers again under a new id.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use super::{Error, Pool, no_answer};
use crate::lifecycle::Lifecycle;

/// Interval of the heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// Time-out of a heartbeat. It is retried twice on a new connection before the process is dead.
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time without a heartbeat, by the database's clock, after which a process is dead: somewhat more than three
/// heartbeats.
pub const DEAD_AFTER: Duration = Duration::from_secs(8);
/// [`DEAD_AFTER`] for SQL statements.
pub const DEAD_AFTER_SECS: f64 = 8.0;

/// Registration of this process.
#[derive(Clone, Debug)]
pub struct Registration {
    current: watch::Receiver<Option<Uuid>>,
    response_us: Arc<AtomicU64>,
}

impl Registration {
    /// Registers the process, and sends heartbeats until it ends. The database need not be up yet. At the end (after
    /// the soft stop and all other tasks) the row is deleted, so that others need not wait for its work.
    #[must_use]
    pub fn start(pool: Pool, role: &'static str, lifecycle: &Lifecycle) -> Self {
        let (sender, current) = watch::channel(None);
        let hard_stop = lifecycle.hard_stop().clone();
        let response_us = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&response_us);
        // This is not among the tasks that are waited for: heartbeats must continue while those end.
        tokio::spawn(async move {
            let mut connection = None;
            let mut last_beat = Instant::now();
            let mut turn = tokio::time::interval(BEAT_EVERY);
            turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !hard_stop.is_cancelled() {
                turn.tick().await;
                let before = Instant::now();
                let held = *sender.borrow();
                let own = connection.take();
                let beat = timeout(BEAT_TIMEOUT, async {
                    let mut own = match own {
                        Some(own) => own,
                        None => pool.connect().await?,
                    };
                    let id = match held {
                        Some(id) => beat(&mut own, id).await?.then_some(id),
                        None => Some(register(&mut own, role).await?),
                    };
                    Ok((id, own))
                });
                let beaten = beat.await.unwrap_or_else(|_| Err(no_answer()));
                noted.store(u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                match beaten {
                    Ok((id, own)) => {
                        connection = Some(own);
                        if id.is_none() {
                            tracing::warn!("this process was declared dead; its work was taken over");
                        }
                        last_beat = before;
                        sender.send_if_modified(|current| std::mem::replace(current, id) != id);
                    }
                    Err(error) => {
                        if error.is_read_only() {
                            pool.note_read_only();
                        }
                        tracing::debug!(error = &error as &dyn std::error::Error, "the heartbeat failed: {error}");
                        if last_beat.elapsed() >= DEAD_AFTER {
                            sender.send_if_modified(|current| current.take().is_some());
                        }
                    }
                }
            }
        });
        Self { current, response_us }
    }

    /// Current id of the process; `None` while it may not own any work.
    #[must_use]
    pub fn current(&self) -> Option<Uuid> {
        *self.current.borrow()
    }

    /// Time that the last heartbeat took, answered or not. The first one includes the connection.
    #[must_use]
    pub fn response(&self) -> Duration {
        Duration::from_micros(self.response_us.load(Ordering::Relaxed))
    }

    /// Watches [`Self::current`].
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Uuid>> {
        self.current.clone()
    }
}

async fn register(conn: &mut PgConnection, role: &str) -> Result<Uuid, Error> {
    let id = Uuid::now_v7();
    sqlx::query("INSERT INTO processes (id, role) VALUES ($1, $2)").bind(id).bind(role).execute(conn).await?;
    Ok(id)
}

async fn beat(conn: &mut PgConnection, id: Uuid) -> Result<bool, Error> {
    let beaten = sqlx::query("UPDATE processes SET heartbeat_at = now() WHERE id = $1").bind(id).execute(conn).await?;
    Ok(beaten.rows_affected() == 1)
}

/// Deletes the row of the process: its work is free at once. The takeovers of its runs are not counted as failures.
pub async fn deregister(pool: &Pool, id: Uuid) -> Result<(), Error> {
    let sql = "WITH retired AS (DELETE FROM processes WHERE id = $1)
               UPDATE workflow_runs SET takeovers = takeovers - 1 WHERE executor_id = $1 AND status = 'RUNNING'";
    sqlx::query(sql).bind(id).execute(pool).await?;
    Ok(())
}

/// Deletes the rows of dead processes. An unknown id means a dead process everywhere else.
pub async fn bury(pool: &Pool) -> Result<u64, Error> {
    let dead = sqlx::query("DELETE FROM processes WHERE heartbeat_at < now() - make_interval(secs => $1)")
        .bind(DEAD_AFTER_SECS)
        .execute(pool)
        .await?;
    Ok(dead.rows_affected())
}
