//! Outgoing webhooks, in every `serve` process: the fan-out of events to deliveries, the sender, recoveries, and the
//! partitions. All of them can run in any number of processes.
//!
//! After a crash: what a process was sending is leased for 25 s, and then sent by another one. A transaction that was not
//! committed has done nothing, and its events and recoveries are taken again.

mod attempt;
mod sender;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::attempt::Sending;
use self::sender::Sender;
use crate::{
    clock::Clock,
    config::Config,
    db::{
        self,
        webhooks::{
            self as rows,
            sending::{Claimed, GiveUp, Outcome},
        },
    },
    egress::Hooks,
    lifecycle::Lifecycle,
    telemetry::catalogue,
};

/// Polling interval for events.
const FAN_OUT_EVERY: Duration = Duration::from_millis(200);
/// Polling interval for recoveries.
const REPLAY_EVERY: Duration = Duration::from_secs(1);
/// Interval of the partitions, the clean-up, and the metrics; pause after a failure.
const MAINTAIN_EVERY: Duration = Duration::from_mins(10);
const MAINTAIN_AGAIN: Duration = Duration::from_secs(30);
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of disabled endpoints that metrics name.
const MAX_NAMED: i64 = 100;
/// Outcomes of attempts, as the metrics name them.
const OUTCOMES: [&str; 5] = ["success", "status", "timeout", "network", "not_allowed"];

/// Handle of the webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Webhooks(Arc<Parts>);

struct Parts {
    pool: db::Pool,
    sending: Sending,
    rules: GiveUp,
    /// Address of the API.
    api: String,
    clock: Clock,
    due: Notify,
}

impl Webhooks {
    /// Starts the loops. The database need not be up yet.
    pub fn start(config: &Config, pool: db::Pool, lifecycle: &Lifecycle, clock: Clock) -> anyhow::Result<Self> {
        catalogue::register(catalogue::WEBHOOKS);
        for outcome in OUTCOMES {
            attempted(outcome).increment(0);
        }
        for outcome in ["delivered", "failed"] {
            metrics::counter!("webhook_deliveries_total", "outcome" => outcome).increment(0);
        }
        let settings = &config.webhooks;
        let sending = Sending {
            hooks: Hooks::new(&config.egress)?,
            vault: Arc::clone(&config.vault),
            clock: clock.clone(),
            schedule: settings.retry.clone(),
        };
        let rules = GiveUp { after: settings.disable_after, has_audit: config.audit };
        let api = format!("{}{}", config.api.public_url, config.api.prefix);
        let this = Self(Arc::new(Parts { pool, sending, rules, api, clock, due: Notify::new() }));
        let stop = || lifecycle.soft_stop().clone();
        lifecycle.spawn("webhook-events", this.clone().fan_out(stop()));
        lifecycle.spawn("webhook-sender", Sender::new(this.clone(), lifecycle).run());
        lifecycle.spawn("webhook-recoveries", this.clone().recover(stop()));
        lifecycle.spawn("webhook-partitions", this.clone().maintain(settings.retention_days, stop()));
        lifecycle.spawn("webhook-counts", this.clone().count(stop()));
        Ok(this)
    }

    /// Looks for due deliveries at once.
    pub fn wake(&self) {
        self.0.due.notify_one();
    }

    /// Address of the API, for links.
    #[must_use]
    pub fn api(&self) -> &str {
        &self.0.api
    }

    /// Number of deliveries that a recovery would send again, and whether all were counted.
    pub async fn count_replay(&self, replay: &rows::replays::Replay) -> Result<(i64, bool), db::Error> {
        rows::replays::count(&self.0.pool, replay, &self.0.api).await
    }

    /// Sends a test that the caller has leased, within that time, and records the attempt. It is not retried.
    pub async fn test(&self, claimed: &Claimed, within: Duration) -> Result<Outcome, db::Error> {
        let outcome = self.0.sending.attempt(claimed, within).await;
        let outcome = Outcome { pause: None, ..outcome };
        attempted(outcome.ended.as_str()).increment(1);
        rows::sending::record(&self.0.pool, self.0.clock.lead(), std::slice::from_ref(&outcome), self.0.rules).await?;
        Ok(outcome)
    }

    async fn fan_out(self, stop: CancellationToken) {
        self.repeat("events could not be fanned out", FAN_OUT_EVERY, stop, async |parts: Arc<Parts>| {
            let taken = db::bounded({
                let parts = Arc::clone(&parts);
                async move { rows::fan_out::fan_out(&parts.pool, &parts.api).await }
            });
            let taken = taken.await?;
            if taken > 0 {
                parts.due.notify_one();
            }
            Ok(taken > 0)
        })
        .await;
    }

    async fn recover(self, stop: CancellationToken) {
        self.repeat("a recovery could not go on", REPLAY_EVERY, stop, async |parts: Arc<Parts>| {
            let advanced = db::bounded({
                let parts = Arc::clone(&parts);
                async move { rows::replays::advance(&parts.pool, &parts.api).await }
            });
            let is_advanced = advanced.await?;
            if is_advanced {
                parts.due.notify_one();
            }
            Ok(is_advanced)
        })
        .await;
    }

    /// Repeats a turn until the stop: at once while there is more to do, otherwise after a pause.
    async fn repeat<F>(
        self,
        problem: &'static str,
        pause: Duration,
        stop: CancellationToken,
        turn: impl Fn(Arc<Parts>) -> F + Send,
    ) where
        F: Future<Output = Result<bool, db::Error>> + Send,
    {
        loop {
            let more = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                more = turn(Arc::clone(&self.0)) => more,
            };
            match more {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "{problem}: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn maintain(self, kept_days: i32, stop: CancellationToken) {
        loop {
            let pool = self.0.pool.clone();
            let maintained = db::bounded(async move {
                rows::keep_partitions(&pool, kept_days).await?;
                rows::replays::clean_up(&pool, kept_days).await?;
                rows::pushes::clean_up(&pool).await
            });
            let pause = match maintained.await {
                Ok(()) => MAINTAIN_EVERY,
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "the partitions of webhooks could not be maintained: {error}"
                    );
                    MAINTAIN_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Keeps the gauges current.
    async fn count(self, stop: CancellationToken) {
        let mut named: Vec<Uuid> = Vec::new();
        loop {
            let pool = self.0.pool.clone();
            let counted = db::bounded(async move {
                let counts = rows::counts(&pool).await?;
                let ids = if counts.disabled > 0 { rows::disabled_ids(&pool, MAX_NAMED).await? } else { Vec::new() };
                Ok((counts, ids))
            });
            match counted.await {
                Ok((counts, ids)) => {
                    let state = |state| metrics::gauge!("webhooks", "state" => state);
                    state("enabled").set(counts.enabled as f64);
                    state("failing").set(counts.failing as f64);
                    state("disabled").set(counts.disabled as f64);
                    metrics::gauge!("webhook_oldest_due_seconds").set(counts.oldest_due_seconds);
                    let disabled = |id: &Uuid| metrics::gauge!("webhook_disabled", "webhook_id" => id.to_string());
                    for id in named.iter().filter(|id| !ids.contains(id)) {
                        disabled(id).set(0.0);
                    }
                    for id in &ids {
                        disabled(id).set(1.0);
                    }
                    named = ids;
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "webhooks could not be counted: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(COUNT_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Counter of attempts with that outcome.
fn attempted(outcome: &'static str) -> metrics::Counter {
    metrics::counter!("webhook_attempts_total", "outcome" => outcome)
}
