//! Reads of lists and exports from a streaming replica (`DATABASE_REPLICA_URL`), which are as new as those from the primary.
//!
//! A read uses the replica if two things are shown after the request has arrived; [ADR
//! 21](../../docs/adr/0021-reads-from-a-replica.md) proves that they suffice:
//!
//! - **Position.** The replica has replayed the write-ahead log up to the position that the primary had. Reads that wait
//!   share one question to the primary.
//! - **Heartbeat.** Positions of two servers can be compared only if their logs are the same. The replica shows the latest
//!   heartbeat of this process, and the primary has the timeline on which it was committed.
//!
//! A replica that is behind gets a few milliseconds. Otherwise the read uses the primary, and so do all further ones until
//! a check, once a second, finds the replica in order. A read that fails on the replica is repeated on the primary.

use std::{
    io,
    panic::Location,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sqlx::PgConnection;
use tokio::time::{Instant, timeout};

use super::{
    Error, Pool, PooledConnection, SNAPSHOT, Transaction,
    processes::{Heartbeat, Registration},
};
use crate::{config, lifecycle::Lifecycle, shared_reads::SharedReads};

/// Pauses in milliseconds after which a read looks again whether the replica has everything.
const PAUSES_MS: [u64; 5] = [1, 2, 4, 8, 16];
/// A read that gets no connection of the replica within this time uses the primary.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(250);
/// Interval of the checks of the replica.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Time-out of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// While all connections to the replica are in use, it is lost if none of them was answered for this long.
const SILENCE: Duration = Duration::from_secs(3);
/// Number of checks in a row without a result after which the replica counts as behind. At the start and after a failover
/// the next heartbeat has to come first.
const CHECKS_WITHOUT_RESULT: u32 = 10;
/// Number of checks in a row that find the replica behind, after which another one of several hosts is tried.
const CHECKS_BEHIND: u32 = 5;
/// Minimum interval between log lines about changes.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Key of the only kind of shared reads here.
const POSITION: [u8; 32] = [0; 32];

/// Where lists and exports are read. Cheap to clone.
#[derive(Clone)]
pub struct Reads {
    primary: Pool,
    replica: Option<Arc<Replica>>,
}

struct Replica {
    pool: Pool,
    registration: Registration,
    /// Position of the primary, asked after the call.
    positions: SharedReads<Option<Position>>,
    standing: Mutex<Standing>,
}

/// What is known of the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It was not checked yet.
    Unknown,
    /// It is used.
    Current,
    /// It cannot be shown to have everything.
    Behind,
    /// It does not answer, or is no standby.
    Lost,
}

impl Standing {
    /// State in one word, for `/health/detailed`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Current => "connected",
            Self::Behind => "behind",
            Self::Lost => "disconnected",
        }
    }
}

/// Position of the primary in the write-ahead log.
#[derive(Clone, Debug, sqlx::FromRow)]
struct Position {
    lsn: String,
    timeline: String,
}

/// Reason why a read does not use the replica.
enum Refusal {
    /// Nothing could be compared: no position, no heartbeat on the primary's timeline yet, or recovery was in the way.
    Incomparable,
    /// All its connections are in use.
    Busy,
    Behind,
    Lost(Error),
}

/// State of the replica for `/health/detailed`.
pub struct ReplicaState {
    /// State in one word.
    pub status: &'static str,
    /// Number of connections, and number of idle ones.
    pub size: (usize, usize),
    /// Maximum number of connections.
    pub max: usize,
}

impl Reads {
    /// Starts the checks of the replica, if the settings name one. `registration`: its heartbeats are compared.
    #[must_use]
    pub fn start(
        primary: Pool,
        settings: &config::Database,
        registration: Registration,
        lifecycle: &Lifecycle,
    ) -> Self {
        let replica = settings.replica.as_ref().map(|connect| {
            Arc::new(Replica {
                pool: super::pool_of(connect, settings),
                registration,
                positions: SharedReads::default(),
                standing: Mutex::new(Standing::Unknown),
            })
        });
        if let Some(replica) = &replica {
            lifecycle.spawn("replica", check_regularly(Arc::clone(replica), primary.clone(), lifecycle.clone()));
        }
        Self { primary, replica }
    }

    /// Reads on the replica if it has everything that was committed before this call, else on the primary. `work` is
    /// called again on the primary if it fails on the replica, so it must not write.
    #[track_caller]
    pub fn read<T, F>(&self, work: impl Fn(PooledConnection) -> F) -> impl Future<Output = Result<T, Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.read_for(Location::caller(), work)
    }

    async fn read_for<T, F>(
        &self,
        reader: &'static Location<'static>,
        work: impl Fn(PooledConnection) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        if let Some(replica) = &self.replica
            && let Some(connection) = replica.connection(&self.primary).await
        {
            match replica.pool.unless_silent(work(connection.held_by(reader))).await {
                // They would be the same on the primary, or take as long again.
                Err(error) if !matches!(error, Error::Refused(_)) && !error.is_statement_timeout() => {
                    tracing::debug!("a read is repeated on the primary: {error}");
                    count("repeated");
                }
                result => {
                    count("replica");
                    return result;
                }
            }
        }
        work(self.primary.acquire_for(reader).await?).await
    }

    /// As [`Self::read`], in a transaction that sees one snapshot. It ends when it is dropped.
    #[track_caller]
    pub fn read_snapshot<T, F>(&self, work: impl Fn(Transaction) -> F) -> impl Future<Output = Result<T, Error>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let reader = Location::caller();
        async move {
            let work = &work;
            let begin = |connection: PooledConnection| async move {
                let mut transaction = connection.into_transaction().await?;
                sqlx::query(SNAPSHOT).execute(&mut *transaction).await?;
                work(transaction).await
            };
            self.read_for(reader, begin).await
        }
    }

    /// Uses these settings for connections that are opened from now on.
    pub fn adopt(&self, settings: &config::Database) {
        if let (Some(replica), Some(connect)) = (&self.replica, &settings.replica) {
            replica.pool.adopt(connect, settings.echo);
        }
    }

    /// State of the replica, if there is one.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaState> {
        let replica = self.replica.as_ref()?;
        Some(ReplicaState { status: replica.standing().as_str(), size: replica.pool.size(), max: replica.pool.max() })
    }

    /// Closes the connections to the replica.
    pub async fn close(&self) {
        if let Some(replica) = &self.replica {
            super::close(&replica.pool).await;
        }
    }
}

impl Replica {
    fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, found: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = found;
        metrics::gauge!("db_replica_used").set(f64::from(u8::from(found == Standing::Current)));
    }

    /// A connection to the replica on which reads see everything that was committed before this call. `None`: the
    /// primary has to be read.
    async fn connection(&self, primary: &Pool) -> Option<PooledConnection> {
        match self.standing() {
            Standing::Current => {}
            Standing::Behind => return refused("behind"),
            Standing::Unknown | Standing::Lost => return refused("unavailable"),
        }
        let found = match self.position(primary).await {
            Some(position) => self.at(&position).await,
            None => Err(Refusal::Incomparable),
        };
        match found {
            Ok(connection) => Some(connection),
            Err(Refusal::Incomparable) => refused("behind"),
            Err(Refusal::Busy) => refused("busy"),
            Err(Refusal::Behind) => {
                self.note(Standing::Behind);
                refused("behind")
            }
            Err(Refusal::Lost(error)) => {
                tracing::debug!("the replica cannot be read: {error}");
                self.note(Standing::Lost);
                refused("unavailable")
            }
        }
    }

    /// Position of the primary after this call; `None` if it cannot be had.
    async fn position(&self, primary: &Pool) -> Option<Position> {
        let primary = primary.clone();
        let ask = move || {
            let primary = primary.clone();
            async move {
                let found = position(&primary).await;
                found.inspect_err(|error| tracing::debug!("the primary's position is not known: {error}")).ok()
            }
        };
        self.positions.get(POSITION, ask).await.flatten()
    }

    /// A connection to the replica that has replayed everything up to the position.
    async fn at(&self, position: &Position) -> Result<PooledConnection, Refusal> {
        let mut connection = match timeout(ACQUIRE_TIMEOUT, self.pool.acquire()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(Refusal::Lost(error.into())),
            Err(_) => return Err(Refusal::Busy),
        };
        let mut pauses = PAUSES_MS.into_iter();
        loop {
            // Read again each time, because the next heartbeat may have come meanwhile.
            let heartbeat = self.registration.latest().filter(|latest| latest.timeline == position.timeline);
            let heartbeat = heartbeat.ok_or(Refusal::Incomparable)?;
            let looking = self.pool.unless_silent(look(&mut connection, position, &heartbeat));
            let found = looking.await.map_err(|error| match error {
                // Recovery cancels statements now and then.
                Error::Collision(_) => Refusal::Incomparable,
                error => Refusal::Lost(error),
            })?;
            if !found.is_standby {
                self.pool.note_promoted();
                let promoted = io::Error::new(io::ErrorKind::Unsupported, "it is no standby any more");
                return Err(Refusal::Lost(sqlx::Error::from(promoted).into()));
            }
            metrics::gauge!("db_replica_lag_bytes").set(found.missing_bytes.unwrap_or_default().max(0) as f64);
            if found.has_heartbeat && found.missing_bytes.is_some_and(|bytes| bytes <= 0) {
                return Ok(connection);
            }
            let pause = pauses.next().ok_or(Refusal::Behind)?;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Checks the replica; `None` if there is nothing to compare, or no connection.
    async fn check(&self, primary: &Pool) -> Option<Result<(), Refusal>> {
        let position = self.position(primary).await?;
        let began = Instant::now();
        let silent = || Refusal::Lost(super::no_answer());
        Some(match timeout(CHECK_TIMEOUT, self.at(&position)).await {
            Ok(Err(Refusal::Incomparable)) => return None,
            Ok(Err(Refusal::Busy)) => {
                let is_silent = began.checked_sub(SILENCE).is_some_and(|since| self.pool.note_silence(since));
                Err(is_silent.then(silent)?)
            }
            Ok(found) => found.map(drop),
            Err(_) => {
                // What waits for an answer of the replica goes to the primary.
                let _ = self.pool.note_silence(began);
                Err(silent())
            }
        })
    }
}

/// What a standby shows.
#[derive(sqlx::FromRow)]
struct Shown {
    is_standby: bool,
    /// Bytes of the log up to the position that it has not replayed; `None` if it has replayed nothing.
    missing_bytes: Option<i64>,
    has_heartbeat: bool,
}

/// Position up to which everything is written to disk; every commit that was acknowledged, or that another session can
/// see, is before it. Without `synchronous_commit` that holds only for the position up to which log was inserted.
async fn position(primary: &Pool) -> Result<Position, Error> {
    let sql = "
        SELECT (CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()
                ELSE pg_current_wal_flush_lsn() END)::text AS lsn,
            left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) AS timeline";
    Ok(sqlx::query_as(sql).fetch_one(primary).await?)
}

/// Later statements on the connection see at least what this one shows.
async fn look(conn: &mut PgConnection, position: &Position, heartbeat: &Heartbeat) -> Result<Shown, Error> {
    let sql = "
        SELECT pg_is_in_recovery() AS is_standby,
            pg_wal_lsn_diff($1::text::pg_lsn, pg_last_wal_replay_lsn())::bigint AS missing_bytes,
            EXISTS (SELECT FROM processes WHERE id = $2 AND heartbeat = $3) AS has_heartbeat";
    let query = sqlx::query_as(sql).bind(&position.lsn).bind(heartbeat.process).bind(heartbeat.number);
    Ok(query.fetch_one(conn).await?)
}

/// Counts a read by the server that it uses, or why it uses the primary.
fn count(outcome: &'static str) {
    metrics::counter!("db_replica_reads_total", "outcome" => outcome).increment(1);
}

fn refused(outcome: &'static str) -> Option<PooledConnection> {
    count(outcome);
    None
}

/// Checks the replica until the process stops, and logs changes.
async fn check_regularly(replica: Arc<Replica>, primary: Pool, lifecycle: Lifecycle) {
    let (mut without_result, mut behind) = (0, 0);
    let mut logged = Standing::Unknown;
    let mut logged_at: Option<Instant> = None;
    while !lifecycle.soft_stop().is_cancelled() {
        let checked = replica.check(&primary).await;
        without_result = if checked.is_none() { without_result + 1 } else { 0 };
        let found = match &checked {
            None if without_result < CHECKS_WITHOUT_RESULT => replica.standing(),
            Some(Ok(())) => Standing::Current,
            Some(Err(Refusal::Lost(_))) => Standing::Lost,
            Some(Err(_)) | None => Standing::Behind,
        };
        replica.note(found);
        behind = if found == Standing::Behind { behind + 1 } else { 0 };
        if behind >= CHECKS_BEHIND {
            behind = 0;
            replica.pool.use_next_host();
        }
        if found != logged && logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            (logged, logged_at) = (found, Some(Instant::now()));
            match (found, checked) {
                (Standing::Current, _) => tracing::info!("lists and exports are read from the replica"),
                (Standing::Lost, Some(Err(Refusal::Lost(error)))) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the replica cannot be used: lists and exports are read from the primary");
                }
                _ => tracing::warn!(
                    "the replica cannot be shown to have everything: lists and exports are read from the primary"
                ),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK_EVERY) => {}
            () = lifecycle.soft_stop().cancelled() => {}
        }
    }
}
