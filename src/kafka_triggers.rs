//! Readers of Kafka triggers, in every `serve` process: a client for each trigger that is not paused. The processes share
//! the partitions of a topic, as members of the trigger's consumer group.
//!
//! Records wait in memory in their order, up to a bound, and then in Kafka. A batch of them is one transaction
//! ([`receive_records`]); then their offsets are stored. While the database is away or the backlog is full, nothing is taken
//! and polling goes on, so that the group keeps its members.
//!
//! After a crash: what has no stored offset is read again, and finds its runs.

mod reader;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use metrics::SharedString;
use rdkafka::error::KafkaError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::reader::Reader;
use crate::{
    access::Quotas,
    actions::{
        fire_trigger::{FireError, Firer},
        receive_records::{self, Taken},
        start_run::Definitions,
    },
    config,
    db::{self, triggers::TriggerRow},
    kafka::trigger_consumer::{self, TriggerConsumer},
    lifecycle::Lifecycle,
    offload::Offload,
    outbox::Relay,
    telemetry::catalogue,
    trigger::{Config, KafkaTrigger, kafka::Record},
};

/// Interval of the query for triggers.
const EVERY: Duration = Duration::from_secs(1);
/// Number of these between two looks for groups to delete.
const DELETE_EVERY: u32 = 5;
/// Number of groups that are deleted at a time.
const MAX_DELETED: i64 = 20;
/// Time for a client to leave its group.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Time to settle where a group begins. The lease of the process that does it is longer.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// Number of failures after which the reason is shown to the owner of the trigger.
const SHOWN_FAILURES: u32 = 5;

/// Reads the topics of triggers. Cheap to clone.
#[derive(Clone)]
pub struct KafkaTriggers {
    /// Pool of the process.
    pub pool: db::Pool,
    /// Cache of definitions.
    pub definitions: Arc<Definitions>,
    /// Threads that check inputs.
    pub offload: Offload,
    /// Default quotas of organisations.
    pub quotas: Quotas,
    /// Whether audit rows are written.
    pub audit: bool,
    /// Settings of the clients.
    pub kafka: config::Kafka,
    /// The relay, for its backlog.
    pub relay: Relay,
}

/// Reader of a trigger.
struct Running {
    revision: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
    lag: Arc<AtomicI64>,
}

impl KafkaTriggers {
    /// Starts the loop.
    pub fn start(self, lifecycle: &Lifecycle) {
        if self.kafka.triggers.most == 0 {
            return;
        }
        let stop = lifecycle.soft_stop().clone();
        lifecycle.spawn("kafka triggers", self.run(stop));
    }

    async fn run(self, stop: CancellationToken) {
        let (mut all, mut shown) = (HashMap::<Uuid, Running>::new(), HashMap::new());
        let mut looks = 0_u32;
        while !stop.is_cancelled() {
            let pool = self.pool.clone();
            let most = self.kafka.triggers.most;
            match db::bounded(async move { db::kafka_triggers::enabled(&pool, most).await }).await {
                Ok(rows) => self.adjust(&mut all, rows).await,
                // The readers wait for the database themselves.
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "Kafka triggers were not read: {error}");
                }
            }
            if looks.is_multiple_of(DELETE_EVERY)
                && let Err(error) = self.delete_groups().await
            {
                tracing::debug!(error = &*error, "consumer groups were not deleted: {error}");
            }
            looks = looks.wrapping_add(1);
            show_lag(&all, &mut shown);
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        for running in all.values() {
            running.stop.cancel();
        }
        for running in all.into_values() {
            // The reader bounds its end by itself; a panic was logged by the panic hook.
            drop(tokio::time::timeout(2 * CLOSE_WITHIN, running.task).await);
        }
    }

    /// Stops the readers of triggers that are paused, changed or gone, and starts those of others.
    async fn adjust(&self, all: &mut HashMap<Uuid, Running>, rows: Vec<TriggerRow>) {
        let wanted: HashMap<Uuid, TriggerRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        for (id, running) in &*all {
            if wanted.get(id).is_none_or(|row| row.revision() != running.revision) {
                running.stop.cancel();
            }
        }
        all.retain(|_, running| !running.task.is_finished());
        for (id, row) in wanted {
            if all.contains_key(&id) {
                continue;
            }
            let Some(Config::Kafka(config)) = Config::from_stored(&row.kind, &row.config.0) else {
                tracing::debug!(trigger_id = %id, "the trigger is of another release");
                continue;
            };
            if let Err(why) = self.kafka.triggers.check(&config.topic, &row.organization()) {
                self.note(id, Some(&format!("the topic {why}"))).await;
                continue;
            }
            let (stop, lag) = (CancellationToken::new(), Arc::<AtomicI64>::default());
            let revision = row.revision();
            let member = Member {
                group: config.group(id),
                config: Arc::from(config),
                trigger: Arc::new(row),
                parts: self.clone(),
                stop: stop.clone(),
                lag: Arc::clone(&lag),
            };
            all.insert(id, Running { revision, stop, task: tokio::spawn(member.run()), lag });
        }
    }

    /// Shows the owner of a trigger why its topic cannot be read; `None`: it can.
    async fn note(&self, id: Uuid, error: Option<&str>) {
        let (pool, error) = (self.pool.clone(), error.map(str::to_owned));
        let noted = db::bounded(async move { db::kafka_triggers::note_error(&pool, id, error.as_deref()).await }).await;
        if let Err(error) = noted {
            tracing::debug!(error = &error as &dyn std::error::Error, "the state of a trigger was not noted: {error}");
        }
    }

    /// Deletes the groups of deleted triggers.
    async fn delete_groups(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let pool = self.pool.clone();
        let due = db::bounded(async move { db::kafka_triggers::groups_to_delete(&pool, MAX_DELETED).await }).await?;
        if due.is_empty() {
            return Ok(());
        }
        let (gone, reason) = trigger_consumer::delete_groups(&self.kafka, &due).await?;
        if let Some(reason) = reason {
            // Members that leave are the usual reason.
            tracing::debug!("{} consumer groups are not deleted yet: {reason}", due.len() - gone.len());
        }
        let pool = self.pool.clone();
        Ok(db::bounded(async move { db::kafka_triggers::groups_deleted(&pool, &gone).await }).await?)
    }
}

/// Sets the gauges of the records that wait for triggers in this process; `shown` has those that were set before.
fn show_lag(all: &HashMap<Uuid, Running>, shown: &mut HashMap<SharedString, i64>) {
    for lag in shown.values_mut() {
        *lag = 0;
    }
    for (id, running) in all {
        let lag = running.lag.load(Ordering::Relaxed);
        *shown.entry(catalogue::KAFKA_TRIGGERS.of(&id.to_string())).or_default() += lag;
    }
    for (id, lag) in shown {
        metrics::gauge!("kafka_trigger_lag", "trigger_id" => id.clone()).set(*lag as f64);
    }
}

/// Reason why it is not settled yet where a group begins.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error(transparent)]
    Db(#[from] db::Error),
    #[error("{0}")]
    Kafka(#[from] KafkaError),
    #[error("the brokers have not answered in time")]
    Silent,
}

/// Reader of a trigger in this process.
#[derive(Clone)]
struct Member {
    parts: KafkaTriggers,
    trigger: Arc<TriggerRow>,
    config: Arc<KafkaTrigger>,
    group: String,
    stop: CancellationToken,
    lag: Arc<AtomicI64>,
}

impl Member {
    /// Reads until it is stopped, or the trigger was changed.
    async fn run(self) {
        if !self.begin().await {
            return;
        }
        let consumer = match TriggerConsumer::new(&self.parts.kafka, (&self.config.topic, &self.group), &self.lag) {
            Ok(consumer) => Arc::new(consumer),
            Err(error) => {
                let trigger_id = self.trigger.id;
                return tracing::error!(%trigger_id, "the Kafka client for a trigger cannot be created: {error}");
            }
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            () = consumer.watch(&self.stop) => {}
            () = consumer.measure() => {}
            () = Reader::new(&self, &consumer).run() => {}
        }
        let closing = tokio::task::spawn_blocking(move || consumer.close());
        if tokio::time::timeout(CLOSE_WITHIN, closing).await.is_err() {
            tracing::debug!("the Kafka client for a trigger is still being closed");
        }
    }

    /// Settles where the group begins. Returns whether its topic is to be read.
    async fn begin(&self) -> bool {
        let mut failures = 0;
        loop {
            if self.stop.is_cancelled() {
                return false;
            }
            // To its end, which is bounded: it gives back the right to do this.
            match self.try_begin().await {
                Ok(Some(true)) => return true,
                Ok(Some(false)) => {}
                Ok(None) => return false,
                Err(error) => {
                    tracing::debug!(trigger_id = %self.trigger.id, "a Kafka trigger waits: {error}");
                    failures += 1;
                    if failures == SHOWN_FAILURES && matches!(error, BeginError::Kafka(_) | BeginError::Silent) {
                        self.parts.note(self.trigger.id, Some(&error.to_string())).await;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// `Some(false)`: another process does it at this moment. `None`: the trigger is gone.
    async fn try_begin(&self) -> Result<Option<bool>, BeginError> {
        let (pool, id) = (self.parts.pool.clone(), self.trigger.id);
        let state = db::bounded(async move {
            if !db::kafka_triggers::begin_start(&pool, id).await? {
                return Ok(None);
            }
            db::kafka_triggers::find(&pool, id).await
        });
        let Some(state) = state.await? else {
            let pool = self.parts.pool.clone();
            let found = db::bounded(async move { db::kafka_triggers::find(&pool, id).await }).await?;
            return Ok(found.map(|_| false));
        };
        let (kafka, topic, group) = (self.parts.kafka.clone(), self.config.topic.clone(), self.group.clone());
        let (start, has_begun) = (self.config.start, state.started_at.is_some());
        let settling =
            tokio::task::spawn_blocking(move || trigger_consumer::begin(&kafka, (&topic, &group), start, has_begun));
        let settled = match tokio::time::timeout(BEGIN_WITHIN, settling).await {
            Ok(Ok(settled)) => settled.map_err(BeginError::from),
            // A panic was logged by the panic hook.
            Ok(Err(_)) | Err(_) => Err(BeginError::Silent),
        };
        let (pool, is_applied) = (self.parts.pool.clone(), matches!(settled, Ok(true)));
        db::bounded(async move { db::kafka_triggers::end_start(&pool, id, is_applied).await }).await?;
        settled?;
        if state.error.is_some() {
            self.parts.note(id, None).await;
        }
        Ok(Some(true))
    }

    /// Receives records in one transaction.
    async fn receive(&self, records: Vec<Arc<Record>>) -> Result<Taken, FireError> {
        let this = self.clone();
        let done = db::bounded(async move {
            let KafkaTriggers { pool, definitions, offload, quotas, audit, .. } = &this.parts;
            let firer = Firer { definitions, offload, quotas, audit: *audit };
            Ok(receive_records::receive(pool, firer, (&this.trigger, &this.config), &records).await)
        });
        done.await.unwrap_or_else(|error| Err(error.into()))
    }
}
