//! Requests that wait for the end of a run. Whoever ends it writes its row (our executor, the reference one, a caller
//! that cancels), so the rows are asked; one loop asks for all that wait, and asks nothing while nobody does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::PgPool;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{db, lifecycle::Lifecycle};

/// How often the rows are asked while somebody waits.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Requests that wait at a time; further ones are answered at once.
const MAX_WAITING: usize = 1024;

/// The runs that are waited for. Cheap to clone.
#[derive(Clone)]
pub struct Waiting(Arc<Shared>);

struct Shared {
    runs: Mutex<HashMap<String, Vec<oneshot::Sender<()>>>>,
    arrived: Notify,
    stop: CancellationToken,
}

impl Waiting {
    /// Starts the loop.
    #[must_use]
    pub fn start(pool: PgPool, lifecycle: &Lifecycle) -> Self {
        let stop = lifecycle.soft_stop().clone();
        let this = Self(Arc::new(Shared { runs: Mutex::default(), arrived: Notify::new(), stop }));
        lifecycle.spawn("waiting", this.clone().ask_for_all(pool));
        this
    }

    /// Returns when the run has ended, or after that time, or when the process stops. Which of them it is the caller
    /// finds by a look at the run.
    pub async fn until_ended(&self, run_id: &str, at_most: Duration) {
        let Some(ended) = self.enter(run_id) else { return };
        tokio::select! {
            _ = ended => {}
            () = tokio::time::sleep(at_most) => {}
            () = self.0.stop.cancelled() => {}
        }
    }

    fn enter(&self, run_id: &str) -> Option<oneshot::Receiver<()>> {
        let (ends, ended) = oneshot::channel();
        let mut runs = self.runs();
        if runs.values().map(Vec::len).sum::<usize>() >= MAX_WAITING {
            return None;
        }
        runs.entry(run_id.to_owned()).or_default().push(ends);
        drop(runs);
        self.0.arrived.notify_one();
        Some(ended)
    }

    async fn ask_for_all(self, pool: PgPool) {
        while !self.0.stop.is_cancelled() {
            let run_ids = self.awaited();
            if run_ids.is_empty() {
                tokio::select! {
                    () = self.0.arrived.notified() => {}
                    () = self.0.stop.cancelled() => {}
                }
                continue;
            }
            match db::runs::ended(&pool, &run_ids).await {
                Ok(ended) => {
                    let mut runs = self.runs();
                    for sender in ended.iter().filter_map(|run_id| runs.remove(run_id)).flatten() {
                        // Whoever has waited long enough is gone.
                        let _ = sender.send(());
                    }
                }
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "not asked: {error}"),
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = self.0.stop.cancelled() => {}
            }
        }
    }

    /// The runs that somebody still waits for.
    fn awaited(&self) -> Vec<String> {
        let mut runs = self.runs();
        runs.retain(|_, waiting| {
            waiting.retain(|ends| !ends.is_closed());
            !waiting.is_empty()
        });
        runs.keys().cloned().collect()
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<String, Vec<oneshot::Sender<()>>>> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
