//! Push notifications of A2A tasks, which are sent as deliveries of webhooks.

use sha2::{Digest as _, Sha256};
use url::Url;

/// Maximum number of configurations of a task.
pub const MAX_PUSHES: usize = 8;
/// Number of queues of an organisation, as many as it may have webhooks.
const LANES: u8 = 32;
/// Header with the token of the client.
pub const TOKEN_HEADER: &str = "x-a2a-notification-token";

/// Queue of a receiver, by its host and port: one that is slow delays those in its queue only.
#[must_use]
pub fn lane_of(url: &str) -> i16 {
    let origin = Url::parse(url).map_or_else(|_| url.to_owned(), |url| url.origin().ascii_serialization());
    (Sha256::digest(origin)[0] % LANES).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_queue_depends_on_host_and_port_and_there_are_few() {
        assert_eq!(lane_of("https://a.example/1?task=1"), lane_of("https://a.example:443/2"));
        let lanes: BTreeSet<i16> = (0..1000).map(|port| lane_of(&format!("https://a.example:{port}/"))).collect();
        assert_eq!(lanes, (0..32).collect());
    }
}
