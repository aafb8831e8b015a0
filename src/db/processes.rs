//! Process registry with heartbeats: one statement per process, however much work it owns. It uses a connection of its
//! own, so that load that exhausts the pool does not make a living process look dead.
//!
//! A process without a heartbeat for [`DEAD_AFTER`] is dead: others take over its outbox rows and runs. This is final
//! for its id. A process that was only suspended or cut off notices that its row is gone (or that it could not send a
//! heartbeat for that long), drops its work and registers again under a new id.
//!
//! Each heartbeat has a number, so that a replica can show that it has replayed it ([`super::replica`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgExecutor};
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

/// Maximum number of processes in a list.
const MAX_LISTED: i64 = 1000;

/// Maximum age of a heartbeat that is compared with a replica: somewhat more than an interval and a slow answer.
const COMPARED_FOR: Duration = Duration::from_secs(4);

/// Registration of this process.
#[derive(Clone, Debug)]
pub struct Registration {
    current: watch::Receiver<Option<Uuid>>,
    latest: watch::Receiver<Option<Heartbeat>>,
    response_us: Arc<AtomicU64>,
    figures: Arc<Figures>,
}

/// What the heartbeats of an executor tell besides; negative: not known.
#[derive(Debug)]
struct Figures {
    active_runs: AtomicI64,
    consumer_lag: AtomicI64,
}

impl Figures {
    fn of(figure: &AtomicI64) -> Option<i64> {
        Some(figure.load(Ordering::Relaxed)).filter(|figure| *figure >= 0)
    }
}

/// Heartbeat that the primary has committed.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Id of the process.
    pub process: Uuid,
    /// Its number, which this process has not used before on any server.
    pub number: i64,
    /// Timeline of the server that has committed it.
    pub timeline: String,
    sent_at: Instant,
}

impl Registration {
    /// Registers the process, and sends heartbeats until it ends. The database need not be up yet. At the end (after
    /// the soft stop and all other tasks) the row is deleted, so that others need not wait for its work.
    /// `is_compared`: the heartbeats are compared with a replica.
    #[must_use]
    pub fn start(pool: Pool, role: &'static str, is_compared: bool, lifecycle: &Lifecycle) -> Self {
        let (sender, current) = watch::channel(None);
        let (latest_sender, latest) = watch::channel(None);
        let hard_stop = lifecycle.hard_stop().clone();
        let response_us = Arc::new(AtomicU64::new(0));
        let noted = Arc::clone(&response_us);
        let figures = Arc::new(Figures { active_runs: AtomicI64::new(-1), consumer_lag: AtomicI64::new(-1) });
        let told = Arc::clone(&figures);
        // This is not among the tasks that are waited for: heartbeats must continue while those end.
        tokio::spawn(async move {
            let mut connection = None;
            let mut number = 0;
            let mut last_beat = Instant::now();
            let mut turn = tokio::time::interval(BEAT_EVERY);
            turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while !hard_stop.is_cancelled() {
                turn.tick().await;
                let before = Instant::now();
                let held = *sender.borrow();
                let own = connection.take();
                number += 1;
                let beat = timeout(BEAT_TIMEOUT, async {
                    let mut own = match own {
                        Some(own) => own,
                        None => pool.connect().await?,
                    };
                    let id = match held {
                        Some(id) => beat(&mut own, id, number, &told).await?.then_some(id),
                        None => Some(register(&mut own, role, number).await?),
                    };
                    let timeline = if is_compared { timeline(&mut own).await } else { None };
                    Ok((id, timeline, own))
                });
                let beaten = beat.await.unwrap_or_else(|_| Err(no_answer()));
                noted.store(u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                match beaten {
                    Ok((id, timeline, own)) => {
                        connection = Some(own);
                        let heartbeat = |(process, timeline)| Heartbeat { process, number, timeline, sent_at: before };
                        latest_sender.send_replace(id.zip(timeline).map(heartbeat));
                        if id.is_none() {
                            tracing::warn!("this process was declared dead; its work was taken over");
                        }
                        last_beat = before;
                        sender.send_if_modified(|current| std::mem::replace(current, id) != id);
                    }
                    Err(error) => {
                        latest_sender.send_replace(None);
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
        Self { current, latest, response_us, figures }
    }

    /// Notes what the next heartbeats tell of an executor: the runs that it drives, and the records that wait for it.
    pub fn note(&self, active_runs: usize, consumer_lag: Option<i64>) {
        self.figures.active_runs.store(i64::try_from(active_runs).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.figures.consumer_lag.store(consumer_lag.unwrap_or(-1), Ordering::Relaxed);
    }

    /// Current id of the process; `None` while it may not own any work.
    #[must_use]
    pub fn current(&self) -> Option<Uuid> {
        *self.current.borrow()
    }

    /// Latest heartbeat, unless it failed, is old, or is not to be compared.
    #[must_use]
    pub(super) fn latest(&self) -> Option<Heartbeat> {
        self.latest.borrow().clone().filter(|latest| latest.sent_at.elapsed() < COMPARED_FOR)
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

async fn register(conn: &mut PgConnection, role: &str, number: i64) -> Result<Uuid, Error> {
    let id = Uuid::now_v7();
    let sql = "INSERT INTO processes (id, role, heartbeat, version, host) VALUES ($1, $2, $3, $4, $5)";
    let query = sqlx::query(sql).bind(id).bind(role).bind(number);
    query.bind(env!("CARGO_PKG_VERSION")).bind(host()).execute(conn).await?;
    Ok(id)
}

/// Name of this host, as its kernel tells it; `None`: it does not.
fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

async fn beat(conn: &mut PgConnection, id: Uuid, number: i64, told: &Figures) -> Result<bool, Error> {
    let sql = "UPDATE processes SET heartbeat_at = now(), heartbeat = $2, active_runs = $3, consumer_lag = $4
               WHERE id = $1";
    let query = sqlx::query(sql).bind(id).bind(number);
    let query = query.bind(Figures::of(&told.active_runs)).bind(Figures::of(&told.consumer_lag));
    let beaten = query.execute(conn).await?;
    Ok(beaten.rows_affected() == 1)
}

/// Process with a heartbeat, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migrations")]
pub struct ProcessRow {
    pub id: Uuid,
    pub role: String,
    pub version: Option<String>,
    pub host: Option<String>,
    pub started_at: DateTime<Utc>,
    pub heartbeat_at: DateTime<Utc>,
    pub active_runs: Option<i64>,
    pub consumer_lag: Option<i64>,
    /// Whether it counts as alive, by the database's clock.
    pub is_alive: bool,
}

/// The processes that have a row, the oldest of each role first. That of a dead one is deleted soon.
pub async fn list(db: impl PgExecutor<'_>) -> Result<Vec<ProcessRow>, Error> {
    let sql = "SELECT id, role, version, host, started_at, heartbeat_at, active_runs, consumer_lag,
                   heartbeat_at >= now() - make_interval(secs => $1) AS is_alive
               FROM processes ORDER BY role DESC, started_at, id LIMIT $2";
    Ok(sqlx::query_as(sql).bind(DEAD_AFTER_SECS).bind(MAX_LISTED).fetch_all(db).await?)
}

/// Timeline of the server. It does not change while the server accepts writes. `None`: the server has none to tell, as
/// some that are only compatible with PostgreSQL.
async fn timeline(conn: &mut PgConnection) -> Option<String> {
    let sql = "SELECT left(pg_walfile_name(pg_current_wal_flush_lsn()), 8)";
    let found = sqlx::query_scalar(sql).fetch_one(conn).await;
    found.inspect_err(|error| tracing::debug!("the timeline of the database is not known: {error}")).ok()
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
