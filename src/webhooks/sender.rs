//! Sender: takes due deliveries, sends them at the same time, and writes what became of them, many in one transaction.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::{self, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Webhooks, attempted};
use crate::{
    db::{
        self, webhooks as rows,
        webhooks::sending::{Outcome, Places},
    },
    lifecycle::Lifecycle,
};

/// Polling interval for due deliveries.
const SEND_EVERY: Duration = Duration::from_millis(250);
/// Time limit of an attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of deliveries that a process sends at a time.
const MAX_UNDER_WAY: usize = 512;
/// Maximum number of deliveries that are taken together, and of outcomes that are written together.
const BATCH: usize = 128;

pub(super) struct Sender {
    webhooks: Webhooks,
    /// Attempts under way, and the endpoints and organisations that have their places.
    attempts: JoinSet<Outcome>,
    holders: HashMap<task::Id, (Uuid, String)>,
    /// Attempts that have ended and are not written yet.
    ended: Vec<Outcome>,
    soft_stop: CancellationToken,
    hard_stop: CancellationToken,
}

impl Sender {
    pub(super) fn new(webhooks: Webhooks, lifecycle: &Lifecycle) -> Self {
        let (soft_stop, hard_stop) = (lifecycle.soft_stop().clone(), lifecycle.hard_stop().clone());
        let (attempts, holders) = (JoinSet::new(), HashMap::new());
        Self { webhooks, attempts, holders, ended: Vec::new(), soft_stop, hard_stop }
    }

    pub(super) async fn run(mut self) {
        let mut may_be_more = true;
        loop {
            let is_stopping = self.soft_stop.is_cancelled();
            if !self.ended.is_empty() {
                self.write().await;
            }
            // While outcomes cannot be written, nothing more is sent: it would be sent again.
            if self.ended.is_empty() && may_be_more && !is_stopping {
                may_be_more = self.take().await;
            }
            if is_stopping && self.attempts.is_empty() && self.ended.is_empty() || self.hard_stop.is_cancelled() {
                // What is not written is sent again when its lease is over.
                return;
            }
            let clock = &self.webhooks.0.clock;
            tokio::select! {
                Some(joined) = self.attempts.join_next_with_id() => {
                    self.keep(joined);
                    may_be_more = true;
                }
                () = self.webhooks.0.due.notified() => may_be_more = true,
                // Deliveries become due by the clock, which tests advance.
                () = clock.sleep(SEND_EVERY) => may_be_more = true,
                () = tokio::time::sleep(SEND_EVERY), if !clock.is_systems() => may_be_more = true,
                () = self.soft_stop.cancelled(), if !is_stopping => {}
                () = self.hard_stop.cancelled() => return,
            }
            while self.ended.len() < BATCH
                && let Some(joined) = self.attempts.try_join_next_with_id()
            {
                self.keep(joined);
            }
        }
    }

    fn keep(&mut self, joined: Result<(task::Id, Outcome), JoinError>) {
        match joined {
            Ok((id, outcome)) => {
                self.holders.remove(&id);
                attempted(outcome.ended.as_str()).increment(1);
                self.ended.push(outcome);
            }
            // The panic itself was logged by the panic hook. The delivery is due again when its lease is over.
            Err(error) => {
                self.holders.remove(&error.id());
                tracing::error!("an attempt to send a delivery has crashed: {error}");
            }
        }
    }

    /// Places of this process, and who has them. A claim leaves half of the free ones, so that those who come later
    /// find some.
    fn places(&self) -> Places {
        let free = MAX_UNDER_WAY.saturating_sub(self.attempts.len());
        let limit = free.div_ceil(2).min(BATCH);
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let mut places = Places { limit: count(limit), free: count(free), ..Places::default() };
        for holder in self.holders.values() {
            *places.held.entry(holder.clone()).or_default() += 1;
        }
        places
    }

    /// Takes due deliveries and begins to send them. Returns whether there may be more.
    async fn take(&mut self) -> bool {
        let places = self.places();
        if places.limit == 0 {
            return false;
        }
        let parts = Arc::clone(&self.webhooks.0);
        let limit = usize::try_from(places.limit).unwrap_or(usize::MAX);
        let claimed =
            db::bounded(
                async move { rows::sending::claim(&parts.pool, parts.clock.lead(), Uuid::new_v4(), &places).await },
            );
        match claimed.await {
            Ok(claimed) => {
                let is_full = claimed.len() == limit;
                for delivery in claimed {
                    let sending = self.webhooks.0.sending.clone();
                    let holder = (delivery.webhook_id, delivery.organization_id.clone());
                    let attempt = async move { sending.attempt(&delivery, ATTEMPT_TIMEOUT).await };
                    self.holders.insert(self.attempts.spawn(attempt).id(), holder);
                }
                is_full
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "deliveries could not be taken: {error}");
                false
            }
        }
    }

    /// Writes the outcomes; those that cannot be written stay.
    async fn write(&mut self) {
        let outcomes = self.ended.clone();
        let parts = Arc::clone(&self.webhooks.0);
        let written =
            db::bounded(
                async move { rows::sending::record(&parts.pool, parts.clock.lead(), &outcomes, parts.rules).await },
            );
        match written.await {
            Ok(given_up) => {
                for outcome in self.ended.drain(..).filter(|outcome| outcome.state() != "pending") {
                    metrics::counter!("webhook_deliveries_total", "outcome" => outcome.state()).increment(1);
                }
                for webhook in given_up {
                    metrics::counter!("webhooks_given_up_total").increment(1);
                    tracing::error!(
                        webhook_id = %webhook.id, organization_id = webhook.organization_id,
                        "the webhook {:?} was disabled: its receiver does not take deliveries", webhook.name
                    );
                }
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(error = &error as &dyn std::error::Error, "attempts could not be recorded: {error}");
                tokio::time::sleep(SEND_EVERY).await;
            }
            Err(error) => {
                // A bug: the same would fail for ever. The deliveries are due again when their leases are over.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "{} attempts could not be recorded: {error}",
                    self.ended.len()
                );
                self.ended.clear();
            }
        }
    }
}
