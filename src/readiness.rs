//! Whether the service can do its work, asked in the background so that the answer is always at hand.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::Connection as _;
use tokio::task::JoinHandle;

use crate::{
    db::{self, migrations},
    lifecycle::Lifecycle,
    outbox::Relay,
};

/// How often the database is asked.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A database that gives no sign of life for so long has not answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// One that has not answered so often, one after the other, is away: a single time may be load.
const UNANSWERED: u32 = 2;
/// While all connections are in use, the database is away if none of them was answered for so long. More than statements
/// wait for a lock.
const SILENCE: Duration = Duration::from_secs(3);
/// How often an executor looks whether the schema is there.
const SCHEMA_POLL: Duration = Duration::from_secs(1);
/// The check does not wait longer to learn whether the schema is current, which a lock on its table may keep back.
const SCHEMA_TIMEOUT: Duration = Duration::from_millis(250);

/// What the last check found.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four findings, independent of each other")]
pub struct HealthStatus {
    /// The database answered.
    pub database: bool,
    /// The schema is as new as the program.
    pub migrated: bool,
    /// Kafka answered.
    pub kafka: bool,
    /// The process is stopping.
    pub draining: bool,
    /// How long the database took.
    pub database_response: Duration,
}

/// The latest findings. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    latest: Arc<Mutex<HealthStatus>>,
    relay: Relay,
    lifecycle: Lifecycle,
}

impl Readiness {
    /// Starts checking.
    #[must_use]
    pub fn start(pool: db::Pool, relay: Relay, lifecycle: &Lifecycle) -> Self {
        let latest = Arc::new(Mutex::new(HealthStatus {
            database: false,
            migrated: false,
            kafka: false,
            draining: false,
            database_response: Duration::ZERO,
        }));
        let this = Self { latest, relay, lifecycle: lifecycle.clone() };
        let checking = this.clone();
        let stop = lifecycle.soft_stop().clone();
        lifecycle.spawn("readiness", async move {
            let mut last = LastCheck::default();
            while !stop.is_cancelled() {
                checking.check(&pool, &mut last).await;
                tokio::select! {
                    () = tokio::time::sleep(CHECK_EVERY) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        this
    }

    /// Asks for a sign of life, and with the same connection whether the schema is current.
    async fn check(&self, pool: &db::Pool, last: &mut LastCheck) {
        let started = Instant::now();
        let connection = match ask(pool).await {
            Ok(connection) => Ok(connection),
            Err(NoAnswer::Failed(error)) => Err(error),
            Err(NoAnswer::Silent { since }) => {
                last.unanswered += 1;
                if last.unanswered < UNANSWERED || !pool.note_silence(since) {
                    return;
                }
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database does not answer").into())
            }
        };
        last.unanswered = 0;
        let response = started.elapsed();
        let was_there = last.was_there.replace(connection.is_ok());
        match connection {
            Ok(connection) => {
                if was_there != Some(true) {
                    tracing::info!("the database is connected");
                }
                let migrated = last.ask_for_schema(connection).await;
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                (latest.database, latest.database_response) = (true, response);
                latest.migrated = migrated.unwrap_or(latest.migrated);
            }
            Err(error) => {
                if was_there != Some(false) {
                    let error = db::Error::from(error);
                    tracing::error!(error = &error as &dyn std::error::Error, "database connection failed");
                }
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                (latest.database, latest.database_response) = (false, response);
            }
        }
    }

    /// The latest findings, half a second old at most while the database answers.
    #[must_use]
    pub fn findings(&self) -> HealthStatus {
        let mut findings = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        findings.kafka = self.relay.is_connected();
        findings.draining = self.lifecycle.is_stopping();
        findings
    }
}

/// Why a check found nothing.
enum NoAnswer {
    Failed(sqlx::Error),
    /// Nobody has answered since then.
    Silent {
        since: tokio::time::Instant,
    },
}

/// A connection that has just given a sign of life.
async fn ask(pool: &db::Pool) -> Result<db::PooledConnection, NoAnswer> {
    let started = tokio::time::Instant::now();
    let acquired = tokio::time::timeout(ANSWER_TIMEOUT, pool.acquire()).await;
    let mut connection = match acquired {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(NoAnswer::Failed(error)),
        Err(_) => return Err(NoAnswer::Silent { since: started + ANSWER_TIMEOUT - SILENCE }),
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, connection.ping()).await {
        Ok(Ok(())) => Ok(connection),
        Ok(Err(error)) => Err(NoAnswer::Failed(error)),
        Err(_) => Err(NoAnswer::Silent { since: started }),
    }
}

/// What the checks before have left.
#[derive(Default)]
struct LastCheck {
    was_there: Option<bool>,
    unanswered: u32,
    /// The question whether the schema is current, until it is answered.
    schema: Option<JoinHandle<Result<bool, db::Error>>>,
}

impl LastCheck {
    /// Whether the schema is current, if that can be told at the moment.
    async fn ask_for_schema(&mut self, mut connection: db::PooledConnection) -> Option<bool> {
        let asked = self
            .schema
            .get_or_insert_with(|| tokio::spawn(async move { migrations::is_current(&mut *connection).await }));
        let answer = tokio::time::timeout(SCHEMA_TIMEOUT, asked).await.ok()?;
        self.schema = None;
        answer.ok()?.ok()
    }
}

/// Runs the migrations, as soon as the database is there.
pub async fn migrate_when_possible(pool: db::Pool, lifecycle: Lifecycle) {
    let mut failures = Failures::default();
    loop {
        match migrations::run(&pool).await {
            Ok(0) => return,
            Ok(count) => {
                tracing::info!(count, "{count} migrations were run");
                return;
            }
            Err(migrations::MigrationError::Database(error @ db::Error::Unavailable(_))) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "not migrated yet: {error}");
                failures = Failures::default();
            }
            Err(error) => failures.tell(&error),
        }
        tokio::select! {
            () = tokio::time::sleep(failures.pause()) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}

/// Failures of the migrations in a row.
#[derive(Default)]
struct Failures {
    count: u32,
    /// What was told last.
    told: String,
}

impl Failures {
    /// Tells of a failure that was not told just before.
    fn tell(&mut self, error: &migrations::MigrationError) {
        self.count += 1;
        let text = format!("{error:?}");
        if text != self.told {
            let error = error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the migrations failed; they are tried again, and the same failure is not told again"
            );
            self.told = text;
        }
    }

    /// From a second to half a minute.
    fn pause(&self) -> Duration {
        Duration::from_secs(1 << self.count.saturating_sub(1).min(5)).min(Duration::from_secs(30))
    }
}

/// Waits until the schema is there that this program needs. Whoever finds no database need not wait for its schema.
pub async fn wait_for_schema(pool: &db::Pool, lifecycle: &Lifecycle) {
    let mut is_told = false;
    loop {
        let asked = pool.clone();
        if !matches!(db::bounded(async move { migrations::is_current(&asked).await }).await, Ok(false)) {
            return;
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                "waiting for the schema: it is older than this program, or not there yet; an API brings it up \
                            to date at its start, or `workflow-api migrate up` does"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(SCHEMA_POLL) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}
