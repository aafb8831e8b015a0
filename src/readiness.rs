//! Readiness: background checks of database, schema and Kafka, so that the status is available at once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::Connection as _;
use tokio::task::JoinHandle;

use crate::{
    db::{self, migrations},
    health,
    lifecycle::Lifecycle,
    outbox::Relay,
};

/// Interval of the checks of the database.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Time-out of a check: the database has shown no activity for this long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of time-outs in a row after which the database is unavailable: a single one may be due to load.
const UNANSWERED: u32 = 2;
/// While all connections are in use, the database is unavailable if none of them was answered for this long. This is
/// longer than statements wait for a lock.
const SILENCE: Duration = Duration::from_secs(3);
/// Interval at which an executor polls for the schema.
const SCHEMA_POLL: Duration = Duration::from_secs(1);
/// Number of checks in a row with an old schema after which it is logged: migrations at the start may just be running.
const OUTDATED: u32 = 6;
/// Time-out for reading whether the schema is current, since a lock on its table can delay the answer.
const SCHEMA_TIMEOUT: Duration = Duration::from_millis(250);

/// Result of the last check.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four findings, independent of each other")]
pub struct HealthStatus {
    /// Whether the database answered.
    pub database: bool,
    /// Whether the schema is as new as the program.
    pub migrated: bool,
    /// Whether Kafka answered.
    pub kafka: bool,
    /// Problems with Kafka that an operator has to solve.
    pub kafka_problems: Vec<&'static str>,
    /// Whether the process is stopping.
    pub draining: bool,
    /// Response time of the database.
    pub database_response: Duration,
}

impl HealthStatus {
    /// Whether requests can be answered, with or without Kafka.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.database && self.migrated && !self.draining
    }

    /// Whether Kafka takes messages.
    #[must_use]
    pub fn can_dispatch(&self) -> bool {
        self.kafka && self.kafka_problems.is_empty()
    }

    /// Status in one word.
    #[must_use]
    pub fn readiness(&self) -> &'static str {
        health::readiness(self.can_serve(), self.can_dispatch())
    }
}

/// Latest health status. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    latest: Arc<Mutex<HealthStatus>>,
    relay: Relay,
    lifecycle: Lifecycle,
}

impl Readiness {
    /// Starts the checks.
    #[must_use]
    pub fn start(pool: db::Pool, relay: Relay, lifecycle: &Lifecycle) -> Self {
        let latest = Arc::new(Mutex::new(HealthStatus {
            database: false,
            migrated: false,
            kafka: false,
            kafka_problems: Vec::new(),
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

    /// Checks that the database answers and, on the same connection, whether the schema is current.
    async fn check(&self, pool: &db::Pool, last: &mut LastCheck) {
        let started = Instant::now();
        let connection = match answering_connection(pool).await {
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
        let was_available = last.was_available.replace(connection.is_ok());
        match connection {
            Ok(connection) => {
                if was_available != Some(true) {
                    tracing::info!("the database is connected");
                }
                let migrated = last.is_schema_current(connection).await;
                if let Some(is_current) = migrated {
                    last.log_schema(is_current);
                }
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                (latest.database, latest.database_response) = (true, response);
                latest.migrated = migrated.unwrap_or(latest.migrated);
            }
            Err(error) => {
                if was_available != Some(false) {
                    let error = db::Error::from(error);
                    tracing::error!(error = &error as &dyn std::error::Error, "database connection failed");
                }
                let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
                (latest.database, latest.database_response) = (false, response);
            }
        }
    }

    /// The latest health status. It is at most half a second old while the database answers.
    #[must_use]
    pub fn findings(&self) -> HealthStatus {
        let mut findings = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        findings.kafka = self.relay.kafka().is_up();
        findings.kafka_problems = self.relay.kafka().problems();
        findings.draining = self.lifecycle.is_stopping();
        findings
    }
}

/// Reason why a check has no result.
enum NoAnswer {
    Failed(sqlx::Error),
    /// No answer since then.
    Silent {
        since: tokio::time::Instant,
    },
}

/// Returns a connection on which the database has just answered.
async fn answering_connection(pool: &db::Pool) -> Result<db::PooledConnection, NoAnswer> {
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

/// State that is kept between checks.
#[derive(Default)]
struct LastCheck {
    was_available: Option<bool>,
    unanswered: u32,
    /// Checks in a row that found an old schema.
    outdated: u32,
    /// The running query whether the schema is current.
    schema: Option<JoinHandle<Result<bool, db::Error>>>,
}

impl LastCheck {
    /// Whether the schema is current; `None` if there is no answer yet.
    async fn is_schema_current(&mut self, mut connection: db::PooledConnection) -> Option<bool> {
        let query = self
            .schema
            .get_or_insert_with(|| tokio::spawn(async move { migrations::is_current(&mut *connection).await }));
        let answer = tokio::time::timeout(SCHEMA_TIMEOUT, query).await.ok()?;
        self.schema = None;
        answer.ok()?.ok()
    }

    /// Logs once that the schema stays old, and once that it is current again.
    fn log_schema(&mut self, is_current: bool) {
        if is_current {
            if self.outdated >= OUTDATED {
                tracing::info!("the schema is current");
            }
            self.outdated = 0;
        } else {
            self.outdated = self.outdated.saturating_add(1);
            if self.outdated == OUTDATED {
                warn_about_schema();
            }
        }
    }
}

fn warn_about_schema() {
    tracing::warn!(
        "waiting for the schema: it is older than this program, or missing; an API brings it up to date at its start, or \
         `workflow-api migrate up` does"
    );
}

/// Runs the migrations as soon as the database is available, and again if another server answers later that lacks some of
/// them: a standby that was promoted before it had them, or a restored backup. What is reverted by command while the server
/// goes on stays reverted.
pub async fn keep_migrated(pool: db::Pool, lifecycle: Lifecycle) {
    let mut migrated_on = None;
    loop {
        if let Some(server) = migrate_when_possible(&pool, &lifecycle).await {
            migrated_on = Some(server);
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(SCHEMA_POLL) => {}
                () = lifecycle.soft_stop().cancelled() => return,
            }
            let checked_pool = pool.clone();
            let check = async move {
                // One connection, so that both are about the same server.
                let mut connection = checked_pool.acquire().await?;
                let is_current = migrations::is_current(&mut *connection).await?;
                Ok::<_, db::Error>((is_current, migrations::server_start(&mut *connection).await?))
            };
            // While the database is unavailable, nothing is known.
            let Ok((is_current, server)) = db::bounded(check).await else { continue };
            if is_current {
                migrated_on = Some(server);
            } else if migrated_on != Some(server) {
                tracing::warn!("another server of the database lacks migrations that were run; they are run again");
                break;
            }
        }
    }
}

/// Runs the migrations as soon as the database is available. Returns when its server was started; `None` if the process
/// stops.
async fn migrate_when_possible(pool: &db::Pool, lifecycle: &Lifecycle) -> Option<DateTime<Utc>> {
    let mut failures = Failures::default();
    loop {
        match migrate(pool).await {
            Ok(Some(server)) => return Some(server),
            // It was replaced meanwhile.
            Ok(None) => failures = Failures::default(),
            Err(migrations::MigrationError::Database(error @ db::Error::Unavailable(_))) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "not migrated yet: {error}");
                failures = Failures::default();
            }
            Err(error) => failures.log(&error),
        }
        tokio::select! {
            () = tokio::time::sleep(failures.pause()) => {}
            () = lifecycle.soft_stop().cancelled() => return None,
        }
    }
}

/// Runs the migrations. Returns when the server was started; `None` if it was another one before than after.
async fn migrate(pool: &db::Pool) -> Result<Option<DateTime<Utc>>, migrations::MigrationError> {
    let before = migrations::server_start(pool).await?;
    let count = migrations::run(pool, &migrations::WaitLimit::none()).await?;
    if count > 0 {
        tracing::info!(count, "{count} migrations were run");
    }
    let after = migrations::server_start(pool).await?;
    Ok((before == after).then_some(after))
}

/// Consecutive failures of the migrations.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Text of the failure that was logged last.
    last_logged: String,
}

impl Failures {
    /// Logs a failure unless the previous one was the same.
    fn log(&mut self, error: &migrations::MigrationError) {
        self.count += 1;
        let text = format!("{error:?}");
        if text != self.last_logged {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "the migrations failed; they are retried, and the same failure is not logged again");
            self.last_logged = text;
        }
    }

    /// Pause before the next attempt: from one second to half a minute.
    fn pause(&self) -> Duration {
        Duration::from_secs(1 << self.count.saturating_sub(1).min(5)).min(Duration::from_secs(30))
    }
}

/// Waits for the schema that this program needs. Returns at once if the database is unavailable.
pub async fn wait_for_schema(pool: &db::Pool, lifecycle: &Lifecycle) {
    let mut is_logged = false;
    loop {
        let checked_pool = pool.clone();
        if !matches!(db::bounded(async move { migrations::is_current(&checked_pool).await }).await, Ok(false)) {
            return;
        }
        if !std::mem::replace(&mut is_logged, true) {
            warn_about_schema();
        }
        tokio::select! {
            () = tokio::time::sleep(SCHEMA_POLL) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}
