//! Consumer lag: the records in the partitions of a group member that are not processed yet.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use rdkafka::{Statistics, statistics::Partition};

/// Number of partitions of a topic with a series of their own. Further ones share a series.
const MAX_PARTITIONS: i32 = 256;

/// Consumer lag by topic and partition, exported as `kafka_consumer_lag`. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub struct Lag(Arc<Mutex<BTreeMap<(String, String), i64>>>);

impl Lag {
    /// Takes over the lag, and sets the gauges. Those of partitions that belong to another member now are set to 0, so that the sum over all
    /// executors is right.
    pub(super) fn update(&self, statistics: &Statistics) {
        let mut exported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exported.values_mut().for_each(|lag| *lag = 0);
        for topic in statistics.topics.values() {
            for partition in topic.partitions.values() {
                let Some(lag) = lag_of(partition) else { continue };
                let number = partition.partition;
                let label = if number < MAX_PARTITIONS { number.to_string() } else { "other".to_owned() };
                *exported.entry((topic.topic.clone(), label)).or_default() += lag;
            }
        }
        for ((topic, partition), lag) in &*exported {
            metrics::gauge!("kafka_consumer_lag", "topic" => topic.clone(), "partition" => partition.clone())
                .set(*lag as f64);
        }
    }

    /// Records of all partitions; `None` before the first statistics.
    #[must_use]
    pub fn total(&self) -> Option<i64> {
        let lag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!lag.is_empty()).then(|| lag.values().sum())
    }
}

/// Lag of a partition of this member; `None`: it belongs to another one, or the lag is not known yet.
pub(super) fn lag_of(partition: &Partition) -> Option<i64> {
    // The partition -1 is internal.
    if partition.partition < 0 || matches!(partition.fetch_state.as_str(), "none" | "stopping" | "stopped") {
        return None;
    }
    let lag = [partition.consumer_lag_stored, partition.consumer_lag].into_iter().find(|lag| *lag >= 0);
    // Before the first commit of the group all records count.
    let all = (partition.hi_offset >= 0 && partition.lo_offset >= 0).then(|| partition.hi_offset - partition.lo_offset);
    lag.or(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(state: &str, stored: i64, committed: i64) -> Partition {
        Partition {
            fetch_state: state.to_owned(),
            consumer_lag_stored: stored,
            consumer_lag: committed,
            lo_offset: 10,
            hi_offset: 30,
            ..Partition::default()
        }
    }

    #[test]
    fn the_lag_is_counted_from_what_was_processed() {
        assert_eq!(lag_of(&partition("active", 2, 5)), Some(2));
        assert_eq!(lag_of(&partition("active", -1, 5)), Some(5));
        assert_eq!(lag_of(&partition("active", -1, -1)), Some(20));
        assert_eq!(lag_of(&partition("none", 2, 5)), None);
        assert_eq!(lag_of(&Partition { partition: -1, ..partition("active", 2, 5) }), None);
    }
}
