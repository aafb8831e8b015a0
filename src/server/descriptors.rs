//! File descriptors: the limit of the process, and the share of connections.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for everything except connections of clients and of the database: Kafka, agents, key sets,
/// files, the runtime.
const OTHERS: u64 = 64;
/// Maximum number of regular connections, even with more descriptors.
const MAX_REGULAR: u64 = 10_000;
/// Maximum number of spare connections above that, for one request each.
const MAX_SPARE: u64 = 256;
/// Minimum number of connections of each kind, however few descriptors there are.
const MIN: u64 = 16;

/// Time for which an idle connection is kept, unless a setting says otherwise. Load balancers keep their idle connections
/// for 60 s, and send the next request on them: the side that sends requests has to close first.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Regular connections, which are served.
    pub regular: usize,
    /// Spare connections, for one request each: health and metrics are answered, all else is refused. Further
    /// connections wait in the listener's queue.
    pub spare: usize,
    /// Time for which a regular connection without a request is kept.
    pub keep_alive: Duration,
}

impl Bounds {
    /// Limits for a process with `limit` descriptors, of which the database uses `database`.
    #[must_use]
    pub fn within(limit: u64, database: usize) -> Self {
        let left = limit.saturating_sub(OTHERS + database as u64).max(2 * MIN);
        let spare = (left / 8).clamp(MIN, MAX_SPARE);
        let regular = (left - spare).min(MAX_REGULAR);
        let bound = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        Self { regular: bound(regular), spare: bound(spare), keep_alive: KEEP_ALIVE }
    }
}

/// Raises the soft limit of descriptors to the hard limit, and returns the new limit.
#[must_use]
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the limit of file descriptors could not be raised: {error}"
            );
            current.unwrap_or(u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_get_the_remaining_descriptors() {
        for (limit, database, regular, spare) in [
            (256, 30, 142, 20),
            (1024, 30, 814, 116),
            (20_000, 30, 10_000, 256),
            (u64::MAX, 30, 10_000, 256),
            (64, 30, 16, 16),
        ] {
            let expected = Bounds { regular, spare, keep_alive: KEEP_ALIVE };
            assert_eq!(Bounds::within(limit, database), expected, "{limit}");
        }
    }
}
