//! Loop that deletes expired sessions of the console.

use std::time::Duration;

use crate::{db, lifecycle::Lifecycle};

/// Interval of deletions. An expired session is refused at once, by the clock of the process.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);

/// Starts the loop.
pub fn start(pool: db::Pool, lifecycle: &Lifecycle) {
    let stop = lifecycle.soft_stop().clone();
    lifecycle.spawn("console sessions", async move {
        while !stop.is_cancelled() {
            if let Err(error) = db::console_sessions::expire(&pool).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "expired sessions of the console were not deleted: {error}"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(EXPIRE_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
    });
}
