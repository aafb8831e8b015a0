//! Statements of a run that are repeated until the database answers.

use super::retry;
use crate::db;

/// Number of statement time-outs after which the run fails.
const MAX_TIMEOUTS: u32 = 3;

/// Reason why a statement has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The statement timed out again and again.
    Slow,
    /// A defect of this program or the schema. It was logged.
    Broken,
}

/// Error of a run whose statements are too slow.
pub(super) fn too_slow() -> String {
    "the database took longer than its statement time-out, again and again, to read or to write the inputs and outputs \
     of the run's steps"
        .to_owned()
}

/// Repeats `attempt` until the database answers, however long it is down. An `attempt` is bounded in time. `pause` runs
/// before each repeat, and its error ends the wait.
pub(super) async fn answer<T, F, P, E>(run_id: &str, attempt: impl Fn() -> F, pause: impl Fn(u32) -> P) -> Result<T, E>
where
    F: Future<Output = Result<T, db::Error>>,
    P: Future<Output = Result<(), E>>,
    E: From<Unanswered>,
{
    let (mut failures, mut timeouts) = (0, 0);
    loop {
        match attempt().await {
            Ok(result) => return Ok(result),
            Err(error) if error.is_retryable() => {
                timeouts += u32::from(error.is_statement_timeout());
                if timeouts == MAX_TIMEOUTS {
                    return Err(Unanswered::Slow.into());
                }
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "run {run_id} cannot be read or parked: {error}"
                );
                return Err(Unanswered::Broken.into());
            }
        }
        pause(failures).await?;
        failures += 1;
    }
}

/// Pause after that number of failures.
pub(super) async fn pause(failures: u32) {
    tokio::time::sleep(retry::database_pause(failures)).await;
}
