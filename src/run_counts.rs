//! Loop that adds changes to the maintained counts of runs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    db::{
        self,
        run_counts::{self, Fold},
    },
    lifecycle::Lifecycle,
};

/// Interval of folds. Each list reads the changes since the last one.
const FOLD_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of changes of one fold, which takes a third of a second.
const MAX_FOLDED: i64 = 50_000;
/// Timeout of a recount of all runs.
const RECOUNT_TIMEOUT: Duration = Duration::from_mins(5);

/// Starts the loop.
pub fn start(pool: db::Pool, lifecycle: &Lifecycle) {
    let stop = lifecycle.soft_stop().clone();
    lifecycle.spawn("run counts", async move {
        while !stop.is_cancelled() {
            match fold(&pool, &stop).await {
                Ok(Fold::More) => continue,
                Ok(Fold::Done | Fold::Foreign) => {}
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "changes of run counts were not added up: {error}"
                    );
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FOLD_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    });
}

/// Folds once. In a database that was copied from another server, it counts all runs instead, unless the process stops.
async fn fold(pool: &db::Pool, stop: &CancellationToken) -> Result<Fold, db::Error> {
    let folding = pool.clone();
    let fold = db::bounded(async move { run_counts::fold(&folding, MAX_FOLDED).await }).await?;
    if fold == Fold::Foreign {
        let counting = pool.clone();
        let recount = db::bounded_by(RECOUNT_TIMEOUT, async move { run_counts::recount(&counting).await });
        tokio::select! {
            result = recount => result?,
            () = stop.cancelled() => {}
        }
    }
    Ok(fold)
}
