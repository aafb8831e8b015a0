//! Whether the service can do its work, asked in the background so that the answer is always at hand.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::PgPool;

use crate::{
    config,
    db::{self, migrations},
    lifecycle::Lifecycle,
    outbox::Relay,
};

/// How often the database is asked.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// What the last check found.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four findings, independent of each other")]
pub struct Findings {
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
    latest: Arc<Mutex<Findings>>,
    relay: Relay,
    lifecycle: Lifecycle,
}

impl Readiness {
    /// Starts checking.
    #[must_use]
    pub fn start(pool: PgPool, relay: Relay, lifecycle: &Lifecycle) -> Self {
        let latest = Arc::new(Mutex::new(Findings {
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
            let mut was_there = None;
            while !stop.is_cancelled() {
                checking.check(&pool, &mut was_there).await;
                tokio::select! {
                    () = tokio::time::sleep(CHECK_EVERY) => {}
                    () = stop.cancelled() => {}
                }
            }
        });
        this
    }

    async fn check(&self, pool: &PgPool, was_there: &mut Option<bool>) {
        let started = Instant::now();
        // In a task of its own, so that an answer that does not come is given up without tearing the statement.
        let asked = tokio::spawn({
            let pool = pool.clone();
            async move { migrations::is_current(&pool).await }
        });
        let answer = tokio::time::timeout(Duration::from_secs(1), asked).await;
        let (database, migrated, error) = match answer {
            Ok(Ok(Ok(migrated))) => (true, migrated, None),
            Ok(Ok(Err(error))) => (false, false, Some(error)),
            Ok(Err(_)) | Err(_) => (false, false, None),
        };
        if *was_there != Some(database) {
            match (database, &error) {
                (true, _) => tracing::info!("the database is connected"),
                (false, Some(error)) => {
                    tracing::error!(error = error as &dyn std::error::Error, "database connection failed");
                }
                (false, None) => tracing::error!("database connection failed: no answer within a second"),
            }
            *was_there = Some(database);
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.database = database;
        latest.migrated = migrated;
        latest.database_response = started.elapsed();
    }

    /// The latest findings, half a second old at most while the database answers.
    #[must_use]
    pub fn findings(&self) -> Findings {
        let mut findings = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        findings.kafka = self.relay.is_connected();
        findings.draining = self.lifecycle.soft_stop().is_cancelled();
        findings
    }
}

/// Runs the migrations, as soon as the database is there.
pub async fn migrate_when_possible(settings: config::Database, lifecycle: Lifecycle) {
    loop {
        match migrations::up(&settings).await {
            Ok(0) => return,
            Ok(count) => {
                tracing::info!(count, "{count} migrations were run");
                return;
            }
            Err(migrations::MigrationError::Database(error @ db::Error::Unavailable(_))) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "not migrated yet: {error}");
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the migrations failed and are tried again");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = lifecycle.soft_stop().cancelled() => return,
        }
    }
}
