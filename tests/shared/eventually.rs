//! Wait of all tests for a condition.

use std::time::Duration;

/// Time limit of a wait. It only ends tests that hang; no test checks it.
const HANGING: Duration = Duration::from_mins(5);
/// Duration of one poll of a topic, and the maximum number of empty polls.
pub const POLL: Duration = Duration::from_millis(200);
pub const MAX_POLLS: usize = 1500;
/// Pause between two checks of the condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` yields something, and ends as soon as it does.
pub async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let holds = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(HANGING, holds).await.unwrap_or_else(|_| panic!("this did not happen: {what}"))
}
