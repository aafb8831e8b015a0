//! Sender of dead letters: a copy of each to the dead-letter topic, and redriven ones to their original topic. It runs
//! in every process. One process takes a letter; another one takes over if the result is not reported in time.
//!
//! After a crash: the letter is due again after half a minute, and is sent again. Duplicates can be recognised: a copy
//! by its headers, a request by its `event_id`, or without one by the state of its run.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rdkafka::error::KafkaResult;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::{self, Config},
    db::{
        self,
        dead_letters::{Due, Expired},
    },
    kafka::{
        Refusal,
        publisher::{self, Outgoing, Publisher},
    },
    lifecycle::Lifecycle,
};

/// Polling interval for due letters.
const SEND_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of letters taken at a time; each may have some megabytes.
const MAX_TAKEN: i64 = 20;
/// Number of polls between two deletions of expired or surplus letters.
const EXPIRE_EVERY: u32 = 60;
/// Delivery time-out of a record, well before another process takes its letter.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(20);

struct Sender {
    pool: db::Pool,
    topic: String,
    retention: config::DeadLetters,
    has_audit: bool,
    publisher: Arc<Publisher>,
}

/// Starts the loop. Neither the database nor Kafka need be up yet; invalid settings are an error.
pub fn start(config: &Config, pool: db::Pool, lifecycle: &Lifecycle) -> KafkaResult<()> {
    let publisher = Arc::new(Publisher::new("dead letters", &config.kafka, Some(DELIVERY_TIMEOUT))?);
    let (watched, soft_stop) = (Arc::clone(&publisher), lifecycle.soft_stop().clone());
    lifecycle.spawn("dead letters watch", async move { watched.watch(&soft_stop).await });
    // The series exist from the start, so that a rate includes the first deletion.
    for is_open in [true, false] {
        for reason in Expired::REASONS {
            deleted(is_open, reason).increment(0);
        }
    }
    let sender = Sender {
        pool,
        topic: config.kafka.dead_letter_topic.clone(),
        retention: config.dead_letters,
        has_audit: config.audit,
        publisher,
    };
    lifecycle.spawn("dead letters", sender.run(lifecycle.soft_stop().clone()));
    Ok(())
}

/// Counter of deleted letters.
fn deleted(is_open: bool, reason: &'static str) -> metrics::Counter {
    let status = if is_open { "open" } else { "resolved" };
    metrics::counter!("dead_letters_deleted_total", "status" => status, "reason" => reason)
}

impl Sender {
    async fn run(self, soft_stop: CancellationToken) {
        let mut looks = 0;
        loop {
            let turn = async {
                if looks % EXPIRE_EVERY == 0 {
                    self.expire().await?;
                }
                while self.send_some().await? {}
                Ok::<(), db::Error>(())
            };
            // Letters that are abandoned here become due again later.
            tokio::select! {
                biased;
                () = soft_stop.cancelled() => return,
                done = turn => if let Err(error) = done {
                    tracing::debug!(error = &error as &dyn std::error::Error, "dead letters could not be sent: {error}");
                },
            }
            looks += 1;
            tokio::select! {
                () = tokio::time::sleep(SEND_EVERY) => {}
                () = soft_stop.cancelled() => return,
            }
        }
    }

    /// Deletes expired and surplus letters. Open ones among them are logged as an error and recorded in the audit
    /// trail.
    async fn expire(&self) -> Result<(), db::Error> {
        let (pool, config::DeadLetters { days, most }, has_audit) = (self.pool.clone(), self.retention, self.has_audit);
        let (expired, open) =
            db::bounded(async move { db::dead_letters::expire_and_record(&pool, days, most, has_audit).await }).await?;
        metrics::gauge!("dead_letters_open").set(open as f64);
        for letters in expired {
            let reason = letters.reason();
            let Expired { organization_id, is_open, count, .. } = letters;
            deleted(is_open, reason).increment(count.unsigned_abs());
            if is_open {
                tracing::error!(
                    organization_id,
                    "{count} open dead letters were deleted ({reason}) without a decision on them"
                );
            } else {
                tracing::info!(organization_id, "{count} resolved dead letters were deleted ({reason})");
            }
        }
        Ok(())
    }

    /// Sends due letters. Returns whether there may be more.
    async fn send_some(&self) -> Result<bool, db::Error> {
        let pool = self.pool.clone();
        let due = db::bounded(async move { db::dead_letters::take(&pool, MAX_TAKEN).await }).await?;
        let copies: Vec<&Due> = due.iter().filter(|letter| letter.is_copy).collect();
        let again: Vec<&Due> = due.iter().filter(|letter| letter.is_redrive).collect();
        let (mut copied, refused) = self.publish(&copies, |letter| self.copy(letter)).await;
        copied.extend(refused.iter().map(|(id, _)| *id));
        let (redriven, returned) = self.publish(&again, redrive).await;
        let is_progress = !copied.is_empty() || !redriven.is_empty() || !returned.is_empty();
        let pool = self.pool.clone();
        db::bounded(async move {
            db::dead_letters::copied(&pool, &copied).await?;
            db::dead_letters::redriven(&pool, &redriven, None).await?;
            for (id, why) in returned {
                db::dead_letters::redriven(&pool, &[id], Some(&format!("redriven, but rejected by Kafka: {why}")))
                    .await?;
            }
            Ok(())
        })
        .await?;
        Ok(is_progress)
    }

    /// Sends letters as records. Returns the ids of the delivered ones, and of those that Kafka rejects for good, with
    /// the reason.
    async fn publish<'a>(
        &self,
        letters: &[&'a Due],
        record: impl Fn(&'a Due) -> Outgoing<'a>,
    ) -> (Vec<Uuid>, Vec<(Uuid, Refusal)>) {
        let records: Vec<Outgoing<'_>> = letters.iter().map(|letter| record(letter)).collect();
        let (mut sent, mut refused) = (Vec::new(), Vec::new());
        for (letter, outcome) in letters.iter().zip(self.publisher.publish(&records).await) {
            match outcome.map_err(|error| (publisher::refusal(&error), error)) {
                Ok(()) => sent.push(letter.id),
                Err((Some(why), _)) => {
                    tracing::error!(dead_letter_id = %letter.id, "Kafka rejected a dead letter: {why}");
                    refused.push((letter.id, why));
                }
                Err((None, error)) => {
                    tracing::debug!(dead_letter_id = %letter.id, "the dead letter is sent later: {error}");
                }
            }
        }
        (sent, refused)
    }

    /// Copy of a record: key and value unchanged, origin and reason in headers.
    fn copy<'a>(&'a self, letter: &'a Due) -> Outgoing<'a> {
        let mut headers = headers(letter);
        let mut told = |name, value: String| headers.push((name, Some(value.into_bytes())));
        told("dead-letter-id", letter.id.to_string());
        told("dead-letter-reason", letter.reason.clone());
        told("dead-letter-detail", letter.detail.clone());
        told("dead-letter-topic", letter.topic.clone());
        told("dead-letter-partition", letter.partition.to_string());
        told("dead-letter-offset", letter.record_offset.to_string());
        if let Some(sent_at) = letter.sent_at {
            told("dead-letter-timestamp", sent_at.to_string());
        }
        told("dead-letter-time", letter.created_at.to_string());
        Outgoing { topic: &self.topic, key: letter.key.as_deref(), value: letter.value.as_deref(), headers }
    }
}

fn redrive(letter: &Due) -> Outgoing<'_> {
    let value = letter.corrected.as_deref().or(letter.value.as_deref());
    Outgoing { topic: &letter.topic, key: letter.key.as_deref(), value, headers: headers(letter) }
}

/// Headers of the original record.
fn headers(letter: &Due) -> Vec<(&str, Option<Vec<u8>>)> {
    let decoded = |value: &String| STANDARD.decode(value).ok();
    letter.headers.0.iter().map(|(name, value)| (name.as_str(), value.as_ref().and_then(decoded))).collect()
}
