//! The processes that own work, and their heartbeat: one statement a process, however much it owns. It has a connection of
//! its own: load that exhausts the pool does not make a living process dead.
//!
//! A process that has not beaten for [`DEAD_AFTER`] is dead to the others: its outbox rows and runs are taken over.
//! Being declared dead is final for an id. A process that was merely stopped or cut off notices that its row is
//! gone (or that it could not beat for as long), drops what it held and registers again under a new id.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::{sync::watch, time::timeout};
use uuid::Uuid;

use super::{Error, Pool, no_answer};
use crate::lifecycle::Lifecycle;

/// How often a process beats.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// A beat that takes longer is tried again on a new connection: twice before the process is dead.
const BEAT_TIMEOUT: Duration = Duration::from_secs(3);
/// Without a beat for this long, by the database's clock, a process is dead. Three missed beats and some.
pub const DEAD_AFTER: Duration = Duration::from_secs(8);
/// [`DEAD_AFTER`] for SQL.
pub const DEAD_AFTER_SECS: f64 = 8.0;

/// This process among the others.
#[derive(Clone, Debug)]
pub struct Registration {
    current: watch::Receiver<Option<Uuid>>,
}

impl Registration {
    /// Registers, and beats until the end of the process. The database need not be there yet. A retired process
    /// (soft stop, then everything else ended) takes its row away, so that others need not wait for its work.
    #[must_use]
    pub fn start(pool: Pool, role: &'static str, lifecycle: &Lifecycle) -> Self {
        let (sender, current) = watch::channel(None);
        let hard_stop = lifecycle.hard_stop().clone();
        // Not among the tasks that are waited for: it has to beat while they end.
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
                match beat.await.unwrap_or_else(|_| Err(no_answer())) {
                    Ok((id, own)) => {
                        connection = Some(own);
                        if id.is_none() {
                            tracing::warn!("this process was declared dead; what it held has gone to others");
                        }
                        last_beat = before;
                        sender.send_if_modified(|current| std::mem::replace(current, id) != id);
                    }
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no heartbeat: {error}");
                        if last_beat.elapsed() >= DEAD_AFTER {
                            sender.send_if_modified(|current| current.take().is_some());
                        }
                    }
                }
            }
        });
        Self { current }
    }

    /// The id under which this process may own things now; `None` while it must not.
    #[must_use]
    pub fn current(&self) -> Option<Uuid> {
        *self.current.borrow()
    }

    /// Follows [`Self::current`].
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

/// Takes the process out: what it still owns is free at once. That its runs are taken over is none of their fault.
pub async fn deregister(pool: &Pool, id: Uuid) -> Result<(), Error> {
    let sql = "WITH retired AS (DELETE FROM processes WHERE id = $1)
               UPDATE workflow_runs SET takeovers = takeovers - 1 WHERE executor_id = $1 AND status = 'RUNNING'";
    sqlx::query(sql).bind(id).execute(pool).await?;
    Ok(())
}

/// Deletes the rows of dead processes. Their ids are then unknown, which is how dead is told everywhere else.
pub async fn bury(pool: &Pool) -> Result<u64, Error> {
    let dead = sqlx::query("DELETE FROM processes WHERE heartbeat_at < now() - make_interval(secs => $1)")
        .bind(DEAD_AFTER_SECS)
        .execute(pool)
        .await?;
    Ok(dead.rows_affected())
}
