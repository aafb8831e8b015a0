//! Looks for missed deadlines and for silence, once a second, and cancels the runs whose deadlines say so.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    access::{Actor, OrganizationId},
    actions::{
        Context,
        cancel_run::{CancelRunError, cancel_run},
    },
    config::Config,
    db::{
        self,
        watches::{self, DueRun, MAX_DUE},
    },
    lifecycle::Lifecycle,
    outbox::Relay,
};

/// Interval of the looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause after a failure.
const WAIT: Duration = Duration::from_secs(5);

/// Starts the loop.
pub fn start(config: &Config, pool: &db::Pool, relay: &Relay, lifecycle: &Lifecycle) {
    let watch = Watch { pool: pool.clone(), relay: relay.clone(), config: config.clone() };
    lifecycle.spawn("deadlines", watch.run(lifecycle.soft_stop().clone()));
}

/// What the loop needs.
struct Watch {
    pool: db::Pool,
    relay: Relay,
    config: Config,
}

impl Watch {
    async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = match self.look().await {
                Ok(true) => Duration::ZERO,
                Ok(false) => LOOK_EVERY,
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "deadlines could not be checked: {error}"
                    );
                    WAIT
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    /// Looks once. Returns whether there may be more.
    async fn look(&self) -> Result<bool, db::Error> {
        let pool = self.pool.clone();
        let (due, silences) =
            db::bounded(
                async move { Ok((watches::miss_deadlines(&pool).await?, watches::find_silence(&pool).await?)) },
            )
            .await?;
        for run in &due {
            if run.is_new {
                metrics::counter!("run_deadlines_missed_total").increment(1);
                tracing::warn!(run_id = run.run_id, "run {} has missed its deadline", run.run_id);
            }
            if run.is_cancelled {
                self.cancel(run).await?;
            }
        }
        let limit = MAX_DUE.unsigned_abs();
        Ok(u64::try_from(due.len()).is_ok_and(|count| count == limit) || silences == limit)
    }

    /// Cancels the run as a caller would. A run that cannot be cancelled now is due again soon.
    async fn cancel(&self, run: &DueRun) -> Result<(), db::Error> {
        let actor = Actor { organization: OrganizationId::stored(&run.organization_id), ..Actor::system() };
        let (pool, relay, config) = (self.pool.clone(), self.relay.clone(), self.config.clone());
        let (run_id, seconds) = (run.run_id.clone(), run.deadline_seconds);
        db::bounded(async move {
            let context = Context {
                actor: &actor,
                quotas: &config.quotas,
                max_run_steps: config.executor.run_budget.steps,
                audit: config.audit,
                vault: &config.vault,
                egress: &config.egress,
                kafka_triggers: &config.kafka.triggers,
                sees_secrets: false,
                workflows: None,
                key: None,
                if_match: None,
            };
            let reason = format!("the deadline of {seconds} s was missed");
            match cancel_run(&pool, &relay, context, &run_id, Some(&reason)).await {
                Ok(_) | Err(CancelRunError::NotFound | CancelRunError::WrongState(_)) => Ok(()),
                Err(CancelRunError::Db(error)) => Err(error),
            }
        })
        .await
    }
}
