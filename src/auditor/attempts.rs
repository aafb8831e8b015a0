//! Buffer of denied attempts for the audit trail. The first ones of each caller become entries of their own, the others
//! are counted, so that neither the trail nor the memory grows with the number of requests.
//!
//! Counts are per minute and per source: an authenticated caller, or the network of an unauthenticated one.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use serde_json::json;
use uuid::Uuid;

use crate::{
    access::{Actor, OrganizationId},
    db::audit::DeniedEntry,
    input,
    timestamp::Timestamp,
};

/// Length of a counting window.
const WINDOW: Duration = Duration::from_mins(1);
/// Maximum number of entries of an authenticated caller in a window. Further attempts become one count.
const MAX_OF_CALLER: u32 = 30;
/// The same for a network with missing or invalid credentials.
const MAX_OF_NETWORK: u32 = 5;
/// The same for all such networks together.
const MAX_OF_NETWORKS: u32 = 30;
/// Maximum number of authenticated callers with a count of their own in a window. The others share a count.
const MAX_CALLERS: usize = 256;
/// The same for networks without valid credentials.
const MAX_NETWORKS: usize = 8;
/// Maximum number of queued entries.
pub const MAX_WAITING: usize = 512;
/// Maximum number of stored characters of a method. The column has room for 50.
const MAX_METHOD_CHARS: usize = 20;

/// Denied attempt.
#[derive(Debug)]
pub struct Denied {
    /// Actor of the attempt; without a subject if unknown.
    pub actor: Actor,
    /// HTTP method as sent.
    pub method: String,
    /// Route as a template.
    pub route: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// Code of the error.
    pub code: String,
}

/// Source of attempts that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    /// Caller of an organisation, by a key or a token.
    Caller(OrganizationId, String, Option<Uuid>),
    /// Unauthenticated network: an address, or the 64-bit prefix of an IPv6 address, which belongs to one customer.
    Network(Option<IpAddr>),
    /// Further callers.
    OtherCaller,
    /// Further networks.
    OtherNetwork,
}

impl Source {
    fn of(actor: &Actor) -> Self {
        if !actor.subject.is_empty() {
            return Self::Caller(actor.organization.clone(), actor.subject.clone(), actor.key_id);
        }
        Self::Network(actor.address.map(|address| match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        }))
    }

    /// Actor of the entry for all attempts of the source.
    fn actor(&self) -> Actor {
        let nobody = Actor { subject: String::new(), ..Actor::system() };
        match self.clone() {
            Self::Caller(organization, subject, key_id) => Actor { subject, organization, key_id, ..nobody },
            Self::Network(address) => Actor { address, ..nobody },
            Self::OtherCaller | Self::OtherNetwork => nobody,
        }
    }
}

/// Counts of a source in a window.
#[derive(Debug, Default)]
struct Count {
    /// Number of entries of their own.
    queued: u32,
    /// Number of attempts without an entry.
    omitted: u64,
    /// Time of the first attempt without an entry.
    since: Option<Timestamp>,
}

/// Entries to write, and counts.
#[derive(Debug, Default)]
pub struct Attempts {
    waiting: Vec<DeniedEntry>,
    window_ends: Option<Instant>,
    counts: HashMap<Source, Count>,
    /// Number of entries of all networks in the window.
    queued_of_networks: u32,
}

impl Attempts {
    /// Queues an attempt as an entry, or counts it.
    pub fn add(&mut self, denied: Denied, now: Instant, at: Timestamp) {
        self.window_ends.get_or_insert(now + WINDOW);
        let source = self.source_key(Source::of(&denied.actor));
        let room = self.waiting.len() < MAX_WAITING;
        let room_for_network = self.queued_of_networks < MAX_OF_NETWORKS;
        let count = self.counts.entry(source.clone()).or_default();
        let is_told = room
            && match source {
                Source::Caller(..) => count.queued < MAX_OF_CALLER,
                Source::Network(_) => count.queued < MAX_OF_NETWORK && room_for_network,
                Source::OtherCaller | Source::OtherNetwork => false,
            };
        if !is_told {
            count.omitted += 1;
            count.since.get_or_insert(at);
            return;
        }
        count.queued += 1;
        if matches!(source, Source::Network(_)) {
            self.queued_of_networks += 1;
        }
        let Denied { actor, method, route, status, code } = denied;
        let action = method.chars().take(MAX_METHOD_CHARS).collect();
        let after = input::to_raw(&json!({"status": status, "code": code}));
        self.waiting.push(DeniedEntry { id: Uuid::now_v7(), actor, action, route, after, at, attempts: 1 });
    }

    /// Source itself, or the shared one if there are too many.
    fn source_key(&self, source: Source) -> Source {
        let (is_caller, most) = match source {
            Source::Caller(..) => (true, MAX_CALLERS),
            _ => (false, MAX_NETWORKS),
        };
        let is_alike = |other: &&Source| matches!(other, Source::Caller(..)) == is_caller;
        if self.counts.contains_key(&source) || self.counts.keys().filter(is_alike).count() < most {
            source
        } else if is_caller {
            Source::OtherCaller
        } else {
            Source::OtherNetwork
        }
    }

    /// Entries to write now. At the end of a window, or with `is_last`, they include the counts.
    pub fn take(&mut self, now: Instant, is_last: bool) -> Vec<DeniedEntry> {
        let mut entries = std::mem::take(&mut self.waiting);
        if is_last || self.window_ends.is_some_and(|end| end <= now) {
            (self.window_ends, self.queued_of_networks) = (None, 0);
            let counts = self.counts.drain().filter(|(_, count)| count.omitted > 0);
            entries.extend(counts.map(|(source, count)| DeniedEntry {
                id: Uuid::now_v7(),
                actor: source.actor(),
                action: "omitted".to_owned(),
                route: "(many)".to_owned(),
                after: input::to_raw(&json!({"attempts": count.omitted})),
                at: count.since.unwrap_or_else(Timestamp::now),
                attempts: count.omitted,
            }));
        }
        entries
    }

    /// Queues entries again that could not be written, as far as there is room. Returns the number of lost attempts.
    pub fn requeue(&mut self, mut entries: Vec<DeniedEntry>) -> u64 {
        let room = MAX_WAITING.saturating_sub(self.waiting.len());
        let lost = entries.drain(room.min(entries.len())..).map(|entry| entry.attempts).sum();
        self.waiting.append(&mut entries);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(subject: &str, address: &str) -> Denied {
        let address = Some(address.parse().expect(address));
        let actor = Actor { subject: subject.to_owned(), address, ..Actor::system() };
        let text = |text: &str| text.to_owned();
        Denied { actor, method: text("GET"), route: text("/x"), status: 401, code: text("unauthorized") }
    }

    /// Subject or address of each entry, and its number of attempts.
    fn summary(entries: &[DeniedEntry]) -> Vec<(String, u64)> {
        let mut queued: Vec<_> = entries
            .iter()
            .map(|entry| {
                let address = entry.actor.address.map(|address| address.to_string()).unwrap_or_default();
                let source = if entry.actor.subject.is_empty() { address } else { entry.actor.subject.clone() };
                (source, entry.attempts)
            })
            .collect();
        queued.sort();
        queued
    }

    #[test]
    fn the_first_attempts_of_a_source_are_entries_and_the_others_one_number() {
        let (mut attempts, start, at) = (Attempts::default(), Instant::now(), Timestamp::now());
        for _ in 0..100 {
            attempts.add(attempt("", "192.0.2.1"), start, at);
            attempts.add(attempt("key", "192.0.2.1"), start, at);
        }
        attempts.add(attempt("", "192.0.2.2"), start, at);
        let first = attempts.take(start + Duration::from_secs(1), false);
        assert_eq!(first.len(), 5 + 30 + 1);
        assert_eq!(first.iter().map(|entry| entry.attempts).sum::<u64>(), 36);
        assert!(attempts.take(start + Duration::from_secs(59), false).is_empty());
        let sums = attempts.take(start + WINDOW, false);
        assert_eq!(summary(&sums), [("192.0.2.1".to_owned(), 95), ("key".to_owned(), 70)]);
        assert_eq!(sums[0].after.get(), format!(r#"{{"attempts":{}}}"#, sums[0].attempts));
        // The next window has room again.
        attempts.add(attempt("", "192.0.2.1"), start + WINDOW, at);
        assert_eq!(attempts.take(start + WINDOW, false).len(), 1);
    }

    #[test]
    fn no_number_of_addresses_makes_more_than_so_many_entries() {
        let (mut attempts, start, at) = (Attempts::default(), Instant::now(), Timestamp::now());
        for number in 0..10_000_u32 {
            let address = Ipv6Addr::from_bits(u128::from(number) << 64 | 0x2001 << 112 | 7);
            attempts.add(attempt("", &address.to_string()), start, at);
        }
        let mut entries = attempts.take(start, false);
        assert_eq!(entries.len(), MAX_NETWORKS);
        entries.extend(attempts.take(start, true));
        assert_eq!(entries.iter().map(|entry| entry.attempts).sum::<u64>(), 10_000);
        assert_eq!(entries.len(), MAX_NETWORKS + 1);
        // The addresses of one customer are one source.
        for low in 0..50_u128 {
            attempts.add(attempt("", &Ipv6Addr::from_bits(0x2001 << 112 | low).to_string()), start, at);
        }
        let entries = summary(&attempts.take(start, true));
        assert!(entries.len() == 6 && entries.contains(&("2001::".to_owned(), 45)), "{entries:?}");
    }

    #[test]
    fn a_method_is_kept_as_far_as_the_column_has_room() {
        let mut attempts = Attempts::default();
        attempts.add(Denied { method: "X".repeat(5000), ..attempt("", "192.0.2.1") }, Instant::now(), Timestamp::now());
        assert_eq!(attempts.take(Instant::now(), false)[0].action, "X".repeat(MAX_METHOD_CHARS));
    }

    #[test]
    fn what_could_not_be_written_waits_as_far_as_there_is_room() {
        let (mut attempts, now, at) = (Attempts::default(), Instant::now(), Timestamp::now());
        for number in 0..600 {
            attempts.add(attempt(&format!("caller {}", number % 30), "192.0.2.1"), now, at);
        }
        let entries = attempts.take(now, false);
        assert_eq!(entries.len(), MAX_WAITING);
        attempts.add(attempt("late", "192.0.2.1"), now, at);
        assert_eq!(attempts.requeue(entries), 1);
        assert_eq!(attempts.take(now, false).len(), MAX_WAITING);
    }
}
