//! Loops around the events for other programs: their partitions, and the Kafka topic.

mod topic;

use std::time::Duration;

use rdkafka::error::KafkaResult;

use crate::{
    config::Config,
    db::{self, processes::Registration, webhook_events},
    lifecycle::Lifecycle,
};

/// Interval of making and dropping partitions, and pause after a failure.
const PARTITIONS_EVERY: Duration = Duration::from_mins(10);
const PARTITIONS_AGAIN: Duration = Duration::from_secs(30);

/// Starts the loops. Neither the database nor Kafka need be up yet; invalid settings are an error.
pub fn start(config: &Config, pool: &db::Pool, registration: &Registration, lifecycle: &Lifecycle) -> KafkaResult<()> {
    let kept_days = config.webhooks.retention_days;
    let events_topic = config.kafka.events_topic.clone();
    lifecycle.spawn("event partitions", keep_partitions(pool.clone(), kept_days, events_topic, lifecycle.clone()));
    topic::start(config, pool, registration, lifecycle)
}

async fn keep_partitions(pool: db::Pool, kept_days: i32, topic: Option<String>, lifecycle: Lifecycle) {
    let stop = lifecycle.soft_stop();
    while !stop.is_cancelled() {
        let mut pause = PARTITIONS_EVERY;
        let (pool, topic) = (pool.clone(), topic.clone());
        let kept = db::bounded(async move {
            webhook_events::keep_partitions(&pool, kept_days).await?;
            webhook_events::forget_topics(&pool, topic.as_deref()).await
        });
        if let Err(error) = kept.await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "partitions of events could not be maintained: {error}"
            );
            pause = PARTITIONS_AGAIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
        }
    }
}
