//! Durations of calls in a histogram of fixed buckets, which can be added up over hours and executors.

use std::time::Duration;

/// Number of buckets.
pub const BUCKETS: usize = 34;
/// Upper bound of the first bucket in milliseconds. Each further one is larger by the square root of 2; the last one
/// takes all that is longer, which is above the longest time-out.
const FIRST_MS: f64 = 5.0;

/// Number of calls in each bucket.
pub type Buckets = [u64; BUCKETS];

/// Upper bound of a bucket in milliseconds.
fn bound(bucket: usize) -> f64 {
    FIRST_MS * std::f64::consts::SQRT_2.powi(i32::try_from(bucket).unwrap_or(i32::MAX))
}

/// Bucket of a duration.
#[must_use]
pub fn bucket(duration: Duration) -> usize {
    let ms = duration.as_secs_f64() * 1e3;
    (0..BUCKETS - 1).find(|bucket| ms <= bound(*bucket)).unwrap_or(BUCKETS - 1)
}

/// The duration in milliseconds that this share of the calls did not exceed; `None` without calls. It is within the
/// bucket of the right one, so at most 41 % off.
#[must_use]
pub fn quantile(buckets: &Buckets, share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = (total as f64 * share).ceil().max(1.0);
    let mut before = 0.0;
    for (bucket, count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let count = *count as f64;
        if before + count >= rank {
            let from = if bucket == 0 { 0.0 } else { bound(bucket - 1) };
            let ms = from + (bound(bucket) - from) * (rank - before) / count;
            return Some((ms * 10.0).round() / 10.0);
        }
        before += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(durations: impl IntoIterator<Item = u64>) -> Buckets {
        let mut buckets = [0; BUCKETS];
        durations.into_iter().for_each(|ms| buckets[bucket(Duration::from_millis(ms))] += 1);
        buckets
    }

    #[test]
    fn quantiles_are_near_those_of_the_durations() {
        assert_eq!(quantile(&of([]), 0.5), None);
        for (durations, share, expected) in [
            ((1..=1000).collect::<Vec<u64>>(), 0.5, 500.0),
            ((1..=1000).collect(), 0.95, 950.0),
            (vec![200; 99], 0.5, 200.0),
            ([vec![20; 94], vec![30_000; 6]].concat(), 0.5, 20.0),
            ([vec![20; 94], vec![30_000; 6]].concat(), 0.95, 30_000.0),
            (vec![300_000], 0.95, 300_000.0),
        ] {
            let found = quantile(&of(durations), share).expect("a duration");
            assert!((found / expected - 1.0).abs() < 0.42, "{share}: {found} instead of {expected}");
        }
    }

    #[test]
    fn the_longest_time_out_has_a_bucket_and_so_has_all_beyond() {
        assert_eq!(bucket(Duration::ZERO), 0);
        assert!(bucket(Duration::from_mins(5)) < BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!((bucket(Duration::from_millis(5)), bucket(Duration::from_micros(5001))), (0, 1));
    }
}
