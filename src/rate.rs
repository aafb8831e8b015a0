//! Rate limiter: token buckets for any number of keys, in bounded memory and time.
//!
//! A bucket is one number: the instant at which it is full again (the generic cell rate algorithm). Buckets are in a
//! table of fixed size, in sets of `WAYS`. If a set is full, its fullest bucket is replaced. So a client with made-up
//! keys only replaces its own buckets: it can neither fill the memory nor remove the bucket of a client that is over
//! its limit. A secret of the process determines which keys share a set.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Sets of the table. With `WAYS` these are 16 384 buckets in a quarter of a megabyte.
const SETS: usize = 2048;
/// Buckets of a set.
const WAYS: usize = 8;

const MINUTE_NS: u64 = 60_000_000_000;

/// Permitted rate of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Long-term rate; from 1 to [`Rate::MAX`].
    pub per_minute: u32,
    /// Burst of a key that was not used for long; from 1 to [`Rate::MAX`].
    pub burst: u32,
}

impl Rate {
    /// Maximum of both, a million a second: the arithmetic is exact up to there.
    pub const MAX: u32 = 60_000_000;
}

/// State of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Amount that may be taken at once now.
    pub remaining: u32,
    /// Time until the bucket is full.
    pub full_in: Duration,
    /// Time until something may be taken again; `None` if something was taken.
    pub refused_for: Option<Duration>,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    /// Hash of the key, of 64 bits, so that no two keys in the table have the same.
    key: u64,
    /// Nanoseconds from the start of the table until the bucket is full; in the past for a full bucket.
    full_at: u64,
}

/// Table of token buckets.
pub struct Buckets {
    rate: Rate,
    started: Instant,
    secret: RandomState,
    sets: Box<[Mutex<[Bucket; WAYS]>]>,
}

impl Buckets {
    /// A table in which all buckets are full at `now`.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        let sets = (0..SETS).map(|_| Mutex::default()).collect();
        Self { rate, started: now, secret: RandomState::new(), sets }
    }

    /// The rate of the table.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one token of the key's bucket, if it is not empty.
    pub fn take(&self, key: impl Hash, now: Instant) -> State {
        self.at(key, now.saturating_duration_since(self.started), true)
    }

    /// Reads the key's bucket: refused if it is empty.
    pub fn look(&self, key: impl Hash, now: Instant) -> State {
        self.at(key, now.saturating_duration_since(self.started), false)
    }

    fn at(&self, key: impl Hash, since_start: Duration, takes: bool) -> State {
        let now = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX / 2);
        let (interval, depth) = (self.interval_ns(), self.interval_ns() * u64::from(self.rate.burst));
        let key = self.secret.hash_one(key);
        let set = usize::try_from(key % SETS as u64).unwrap_or_default();
        let mut set = self.sets[set].lock().unwrap_or_else(PoisonError::into_inner);
        let found = set.iter_mut().find(|bucket| bucket.key == key && bucket.full_at > now);
        let debt = found.as_ref().map_or(0, |bucket| bucket.full_at - now);
        let after = debt + interval;
        let is_refused = after > depth;
        if takes && !is_refused {
            let fullest = |set: &'_ mut [Bucket; WAYS]| -> usize {
                (0..WAYS).min_by_key(|index| set[*index].full_at).unwrap_or_default()
            };
            let bucket = Bucket { key, full_at: now + after };
            if let Some(found) = found {
                *found = bucket;
            } else {
                let index = fullest(&mut set);
                set[index] = bucket;
            }
        }
        let debt = if takes && !is_refused { after } else { debt };
        State {
            remaining: u32::try_from((depth - debt.min(depth)) / interval).unwrap_or(u32::MAX),
            full_in: Duration::from_nanos(debt),
            refused_for: is_refused.then(|| Duration::from_nanos(after - depth)),
        }
    }

    fn interval_ns(&self) -> u64 {
        MINUTE_NS / u64::from(self.rate.per_minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(per_minute: u32, burst: u32) -> Buckets {
        Buckets::new(Rate { per_minute, burst }, Instant::now())
    }

    /// Number of 1000 attempts that are accepted at that second.
    fn accepted(buckets: &Buckets, key: &str, second: f64) -> usize {
        let at = Duration::from_secs_f64(second);
        (0..1000).filter(|_| buckets.at(key, at, true).refused_for.is_none()).count()
    }

    #[test]
    fn a_burst_is_accepted_and_then_the_rate() {
        let buckets = buckets(60, 5);
        assert_eq!(accepted(&buckets, "a", 1.0), 5);
        assert_eq!(accepted(&buckets, "b", 1.0), 5);
        for (second, expected) in [(1.9, 0), (2.0, 1), (4.5, 2), (5.0, 1), (100.0, 5), (100.5, 0)] {
            assert_eq!(accepted(&buckets, "a", second), expected, "at {second} s");
        }
        let a_minute_long: usize = (1000..1600).map(|tenth| accepted(&buckets, "c", f64::from(tenth) / 10.0)).sum();
        assert_eq!(a_minute_long, 5 + 59);
    }

    #[test]
    fn the_state_says_what_is_left_and_when_there_is_more() {
        let buckets = buckets(30, 3);
        let at = |second| buckets.at("k", Duration::from_secs(second), true);
        let state = |remaining, full_in, refused_for: Option<u64>| State {
            remaining,
            full_in: Duration::from_secs(full_in),
            refused_for: refused_for.map(Duration::from_secs),
        };
        assert_eq!(at(10), state(2, 2, None));
        assert_eq!(at(10), state(1, 4, None));
        assert_eq!(at(11), state(0, 5, None));
        assert_eq!(at(11), state(0, 5, Some(1)));
        assert_eq!(buckets.at("k", Duration::from_secs(11), false), state(0, 5, Some(1)));
        // A refused attempt costs nothing.
        assert_eq!(at(12), state(0, 6, None));
        assert_eq!(buckets.at("other", Duration::from_secs(12), false), state(3, 0, None));
    }

    #[test]
    fn the_greatest_numbers_do_not_overflow() {
        for (per_minute, burst) in [(1, 1), (1, Rate::MAX), (Rate::MAX, 1), (Rate::MAX, Rate::MAX)] {
            let buckets = buckets(per_minute, burst);
            let century = Duration::from_hours(24 * 365 * 100);
            assert_eq!(buckets.at("k", century, true).refused_for, None);
            assert_eq!(buckets.at("k", century, true).remaining, burst.saturating_sub(2));
        }
    }

    #[test]
    fn made_up_keys_do_not_replace_a_key_that_is_over_its_limit() {
        let buckets = buckets(60, 10);
        let at = Duration::from_secs(1);
        assert_eq!(accepted(&buckets, "victim", 1.0), 10);
        for made_up in 0..200_000 {
            assert_eq!(buckets.at(made_up, at, true).refused_for, None);
        }
        assert_eq!(accepted(&buckets, "victim", 1.0), 0, "its bucket is the emptiest");
    }

    #[test]
    fn threads_share_a_bucket() {
        let (buckets, now) = (buckets(1, 1000), Instant::now());
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..500).filter(|_| buckets.take("k", now).refused_for.is_none()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
        });
        assert_eq!(total, 1000);
    }
}
