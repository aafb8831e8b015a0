//! The Kafka topic of events: sends rows of `webhook_events` in their order, at least once. One process does it at a
//! time, so that the events of a run keep their order; it is replaced when its heartbeat stops.
//!
//! After a crash: a row is marked only after the broker's acknowledgement, so its event is sent again, with the same id.
//! While no broker can be reached, rows wait.

use std::{collections::HashSet, sync::Arc, time::Duration};

use rdkafka::error::KafkaResult;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config::Config,
    db::{
        self,
        processes::Registration,
        webhook_events::{self, EventRow},
    },
    event::{self, cloud_event},
    kafka::publisher::{self, Outgoing, Publisher},
    lifecycle::Lifecycle,
    trace,
};

/// Pause between two looks for new events.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Pause of a process that is not the one that sends, and after a failure.
const WAIT: Duration = Duration::from_secs(1);
/// Maximum number of events sent at a time.
const MAX_SENT: i64 = 1000;

struct Sender {
    pool: db::Pool,
    registration: Registration,
    topic: String,
    /// Address of the API, for the links of events.
    api: String,
    publisher: Arc<Publisher>,
}

/// Starts the loop, if the settings have a topic.
pub(super) fn start(
    config: &Config,
    pool: &db::Pool,
    registration: &Registration,
    lifecycle: &Lifecycle,
) -> KafkaResult<()> {
    let Some(topic) = config.kafka.events_topic.clone() else { return Ok(()) };
    // Without a delivery time-out: after one, later events of a run could arrive before it.
    let publisher = Arc::new(Publisher::new("events", &config.kafka, None)?);
    let (watched, soft_stop) = (Arc::clone(&publisher), lifecycle.soft_stop().clone());
    lifecycle.spawn("events watch", async move { watched.watch(&soft_stop).await });
    let sender = Sender {
        pool: pool.clone(),
        registration: registration.clone(),
        topic,
        api: format!("{}{}", config.api.public_url, config.api.prefix),
        publisher,
    };
    lifecycle.spawn("events", sender.run(lifecycle.soft_stop().clone()));
    Ok(())
}

impl Sender {
    async fn run(self, soft_stop: CancellationToken) {
        while !soft_stop.is_cancelled() {
            let turn = async {
                match self.send_some().await {
                    Ok(pause) => pause,
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "events could not be sent: {error}");
                        WAIT
                    }
                }
            };
            // Events whose acknowledgement is not awaited here are sent again.
            let pause = tokio::select! {
                biased;
                () = soft_stop.cancelled() => break,
                pause = turn => pause,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = soft_stop.cancelled() => {}
            }
        }
        if let Some(process) = self.registration.current() {
            let pool = self.pool.clone();
            let released = db::bounded(async move { webhook_events::release_topic(&pool, process).await });
            if let Err(error) = released.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the topic was not released: {error}");
            }
        }
    }

    /// Sends the next events. Returns the pause until the next look.
    async fn send_some(&self) -> Result<Duration, db::Error> {
        let Some(process) = self.registration.current() else { return Ok(WAIT) };
        let (pool, topic) = (self.pool.clone(), self.topic.clone());
        let rows = db::bounded(async move {
            if !webhook_events::hold_topic(&pool, &topic, process).await? {
                return Ok(None);
            }
            webhook_events::unpublished(&pool, MAX_SENT).await.map(Some)
        });
        let Some(rows) = rows.await? else { return Ok(WAIT) };
        if rows.is_empty() {
            return Ok(LOOK_EVERY);
        }
        let since = rows.iter().map(|row| row.created_at).min();
        let done = self.publish(&rows).await;
        let is_all = done.len() == rows.len();
        if let Some(since) = since.filter(|_| !done.is_empty()) {
            let pool = self.pool.clone();
            db::bounded(async move { webhook_events::published(&pool, &done, since).await }).await?;
        }
        Ok(match is_all {
            true if i64::try_from(rows.len()).is_ok_and(|sent| sent == MAX_SENT) => Duration::ZERO,
            true => LOOK_EVERY,
            false => WAIT,
        })
    }

    /// Sends events. Returns the ids of those that are done with: of each key, those before the first failure.
    async fn publish(&self, rows: &[EventRow]) -> Vec<Uuid> {
        let values: Vec<Box<serde_json::value::RawValue>> = rows
            .iter()
            .map(|row| {
                let given = row.traceparent.as_deref();
                let traceparent = row.run_id.as_ref().map(|run_id| trace::of_run(run_id, given));
                cloud_event::render(&row.event(), &self.api, key(row), traceparent.as_deref())
            })
            .collect();
        let records: Vec<Outgoing<'_>> = rows
            .iter()
            .zip(&values)
            .map(|(row, value)| Outgoing {
                topic: &self.topic,
                key: Some(key(row).as_bytes()),
                value: Some(value.get().as_bytes()),
                headers: vec![
                    ("content-type", Some(cloud_event::CONTENT_TYPE.as_bytes().to_vec())),
                    // A trigger that gets the record goes on with the chain.
                    (event::DEPTH_HEADER, Some(event::depth(&row.data.0).to_string().into_bytes())),
                ],
            })
            .collect();
        let (mut done, mut failed) = (Vec::with_capacity(rows.len()), HashSet::new());
        for (row, outcome) in rows.iter().zip(self.publisher.publish(&records).await) {
            match outcome.map_err(|error| (publisher::refusal(&error), error)) {
                Ok(()) if failed.contains(key(row)) => {}
                Ok(()) => {
                    metrics::counter!("events_published_total").increment(1);
                    done.push(row.id);
                }
                // The same record would be refused again, and hold up all others.
                Err((Some(why), _)) => {
                    metrics::counter!("events_refused_total").increment(1);
                    tracing::error!(event_id = %row.id, event_type = row.event_type, "Kafka refuses an event: {why}");
                    done.push(row.id);
                }
                Err((None, error)) => {
                    tracing::debug!(event_id = %row.id, "the event is sent later: {error}");
                    failed.insert(key(row));
                }
            }
        }
        done
    }
}

/// Key of the record, which decides its partition, and thereby what it keeps its order with.
fn key(row: &EventRow) -> &str {
    row.run_id.as_deref().unwrap_or(&row.organization_id)
}
