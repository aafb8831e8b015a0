//! Monitoring updates: notifies observers of steps and runs, on a topic of their own, at least once and at little cost.
//!
//! The journal's statement leaves a row in `monitoring_outbox` with all the updates that it causes, for however many
//! runs it writes. After the commit the updates are sent from memory, and the rows are deleted in batches. If the
//! process dies, or has no room in memory for the updates, another executor takes the row and sends it again. An
//! observer may see an update twice, and then later ones before it.
//!
//! Runs never wait for updates. While Kafka is down rows collect; above [`MAX_BACKLOG`] further updates are dropped.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::error::KafkaResult;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    config,
    db::{self, executions::Change, monitoring::Outgoing as Row, processes::Registration},
    kafka::{
        message::{self, MonitoringMetadata, MonitoringPayload},
        publisher::{self, Outgoing, Publisher},
    },
    lifecycle::Lifecycle,
    run::RunStatus,
    timestamp::Timestamp,
    trace,
};

/// Maximum number of rows kept for observers. A row has the updates of one statement, up to some hundred kilobytes.
pub(super) const MAX_BACKLOG: i64 = 100_000;
/// Maximum number of updates that this process has in memory. Further ones wait in the table.
const MAX_HELD: usize = 10_000;
/// Maximum number of updates sent at a time.
const MAX_SENT: usize = 2000;
/// Minimum time between the begins of two sends. Meanwhile updates collect: they share requests to the brokers, and
/// their rows a statement that deletes them. An update after a pause is sent at once.
const SEND_EVERY: Duration = Duration::from_millis(50);
/// Maximum number of rows taken at a time.
const MAX_TAKEN: i64 = 50;
/// Interval of the sweeps for unowned rows.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Number of sweeps between two counts of the rows.
const COUNT_EVERY: u32 = 5;
/// Pause after a failed attempt to send or to delete.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Time at the end of the process for updates that are still to be sent.
const FLUSH: Duration = Duration::from_secs(2);

/// Handle of the monitoring updates. Cheap to clone.
#[derive(Clone)]
pub(super) struct Monitoring(Arc<Shared>);

struct Shared {
    topic: String,
    pool: db::Pool,
    registration: Registration,
    publisher: Publisher,
    queue: UnboundedSender<Batch>,
    held: AtomicUsize,
    /// Rows that this process has in memory, or is about to write.
    known: Mutex<HashSet<Uuid>>,
    is_full: AtomicBool,
}

/// Updates of one row.
struct Batch {
    id: Uuid,
    /// Updates in memory; `None`: they must be read from the row, if it exists.
    updates: Option<Vec<Update>>,
}

impl Batch {
    fn len(&self) -> usize {
        self.updates.as_ref().map_or(0, Vec::len)
    }
}

struct Update {
    run_id: String,
    traceparent: String,
    value: String,
}

/// Updates that a statement is about to write.
pub(super) struct PreparedUpdates {
    pub(super) row: Arc<Row>,
    updates: Vec<Update>,
}

impl PreparedUpdates {
    /// Updates to send after the statement has written the changes of these runs; `None`: there are none. A repeated
    /// statement may have written more the first time, for runs that it ended then, so its row must be read.
    fn into_batch(self, held: &[&str], is_repeated: bool) -> Option<Batch> {
        let Self { row, mut updates } = self;
        if is_repeated {
            return Some(Batch { id: row.id, updates: None });
        }
        updates.retain(|update| held.contains(&update.run_id.as_str()));
        (!updates.is_empty()).then_some(Batch { id: row.id, updates: Some(updates) })
    }
}

impl Monitoring {
    /// Starts the loops; `None` if there is no topic of monitoring updates. The loops end once `settled` is cancelled.
    pub(super) fn start(
        kafka: &config::Kafka,
        pool: db::Pool,
        registration: Registration,
        lifecycle: &Lifecycle,
        settled: &CancellationToken,
    ) -> KafkaResult<Option<Self>> {
        let Some(topic) = kafka.monitoring_topic.clone() else { return Ok(None) };
        let (queue, batches) = unbounded_channel();
        let monitoring = Self(Arc::new(Shared {
            topic,
            pool,
            registration,
            publisher: Publisher::new("monitoring updates", kafka, None)?,
            queue,
            held: AtomicUsize::new(0),
            known: Mutex::default(),
            is_full: AtomicBool::new(false),
        }));
        let (watched, settling) = (monitoring.clone(), settled.clone());
        lifecycle.spawn("monitoring watch", async move { watched.0.publisher.watch(&settling).await });
        lifecycle.spawn("monitoring updates", monitoring.clone().send_all(batches, settled.clone()));
        lifecycle.spawn("monitoring sweep", monitoring.clone().sweep_all(settled.clone()));
        Ok(Some(monitoring))
    }

    /// Updates for these changes, of which some may be absent; `None`: there are none, or there is no room for them.
    pub(super) fn prepare<'a>(
        &self,
        changes: impl ExactSizeIterator<Item = Option<&'a Change>>,
    ) -> Option<PreparedUpdates> {
        let (mut texts, mut updates) = (Vec::with_capacity(changes.len()), Vec::new());
        for change in changes {
            let Some(change) = change else {
                texts.push(None);
                continue;
            };
            let values = values(change);
            texts.push((!values.is_empty()).then(|| format!("[{}]", values.join(","))));
            updates.extend(values.into_iter().map(|value| Update {
                run_id: change.run_id.clone(),
                traceparent: change.of.traceparent.clone(),
                value,
            }));
        }
        if updates.is_empty() {
            return None;
        }
        if self.0.is_full.load(Ordering::Relaxed) {
            metrics::counter!("executor_monitoring_updates_dropped_total").increment(updates.len() as u64);
            return None;
        }
        let has_room = self.0.held.load(Ordering::Relaxed) < MAX_HELD;
        let owner = self.0.registration.current().filter(|_| has_room);
        let id = Uuid::now_v7();
        if owner.is_some() {
            self.known().insert(id);
        }
        Some(PreparedUpdates { row: Arc::new(Row { id, owner, updates: texts }), updates })
    }

    /// Sends the updates of a committed statement for these runs. `is_repeated`: an earlier commit may have had other
    /// runs.
    pub(super) fn committed(&self, prepared: PreparedUpdates, held: &[&str], is_repeated: bool) {
        let (id, owner) = (prepared.row.id, prepared.row.owner);
        if owner.is_none() {
            return;
        }
        match prepared.into_batch(held, is_repeated) {
            Some(batch) => self.enqueue(batch),
            None => _ = self.known().remove(&id),
        }
    }

    /// Drops the updates of a failed statement. If it was committed nevertheless, a sweep finds the row.
    pub(super) fn failed(&self, prepared: &PreparedUpdates) {
        self.known().remove(&prepared.row.id);
    }

    fn enqueue(&self, batch: Batch) {
        self.0.held.fetch_add(batch.len(), Ordering::Relaxed);
        // The receiver ends with the process.
        drop(self.0.queue.send(batch));
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_all(self, mut batches: UnboundedReceiver<Batch>, settled: CancellationToken) {
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                biased;
                _ = batches.recv_many(&mut waiting, MAX_SENT) => {}
                () = settled.cancelled() => return,
            }
            let next = tokio::time::Instant::now() + SEND_EVERY;
            let count: usize = waiting.iter().map(Batch::len).sum();
            tokio::select! {
                biased;
                () = async { self.read(&mut waiting).await; self.send(&waiting).await } => {}
                // Rows with updates that are not sent by then are unowned.
                () = async { settled.cancelled().await; tokio::time::sleep(FLUSH).await } => return,
            }
            self.0.held.fetch_sub(count, Ordering::Relaxed);
            {
                let mut known = self.known();
                for batch in waiting {
                    known.remove(&batch.id);
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = settled.cancelled() => {}
            }
        }
    }

    /// Reads updates that are only in the table, however long it takes.
    async fn read(&self, batches: &mut [Batch]) {
        for batch in batches.iter_mut().filter(|batch| batch.updates.is_none()) {
            batch.updates = loop {
                let (pool, id) = (self.0.pool.clone(), batch.id);
                let found = db::bounded(async move {
                    let texts = db::monitoring::find(&pool, id).await?;
                    stored(&pool, &texts).await
                });
                match found.await {
                    Ok(updates) => break Some(updates),
                    Err(error) => tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "monitoring updates are read later: {error}"
                    ),
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            };
        }
    }

    /// Sends batches and deletes their rows, however long it takes.
    async fn send(&self, batches: &[Batch]) {
        let mut left: Vec<&Update> = batches.iter().filter_map(|batch| batch.updates.as_ref()).flatten().collect();
        while !left.is_empty() {
            let mut failed = Vec::new();
            for updates in left.chunks(MAX_SENT) {
                let records: Vec<Outgoing<'_>> = updates.iter().map(|update| self.record(update)).collect();
                let outcomes = self.0.publisher.publish(&records).await;
                for (update, outcome) in updates.iter().zip(outcomes) {
                    match outcome {
                        Ok(()) => metrics::counter!("executor_monitoring_updates_total").increment(1),
                        Err(error) if publisher::refusal(&error).is_some() => {
                            tracing::warn!(run_id = update.run_id, "Kafka refuses a monitoring update: {error}");
                        }
                        Err(error) => {
                            tracing::debug!("a monitoring update is sent later: {error}");
                            failed.push(*update);
                        }
                    }
                }
            }
            if !failed.is_empty() {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            left = failed;
        }
        let ids: Vec<Uuid> = batches.iter().map(|batch| batch.id).collect();
        loop {
            let (pool, ids) = (self.0.pool.clone(), ids.clone());
            match db::bounded(async move { db::monitoring::delete(&pool, &ids).await }).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "monitoring updates are deleted later: {error}"
                ),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn record<'a>(&'a self, update: &'a Update) -> Outgoing<'a> {
        Outgoing {
            topic: &self.0.topic,
            key: Some(update.run_id.as_bytes()),
            value: Some(update.value.as_bytes()),
            headers: message::headers(&update.traceparent)
                .map(|(name, value)| (name, Some(value.as_bytes().to_vec())))
                .into(),
        }
    }

    async fn sweep_all(self, settled: CancellationToken) {
        let mut sweeps = 0;
        while !settled.is_cancelled() {
            if let Err(error) = self.sweep_once(sweeps % COUNT_EVERY == 0).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the monitoring outbox could not be swept: {error}"
                );
            }
            sweeps += 1;
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = settled.cancelled() => {}
            }
        }
    }

    async fn sweep_once(&self, is_counting: bool) -> Result<(), db::Error> {
        if is_counting {
            let pool = self.0.pool.clone();
            let rows = db::bounded(async move { db::monitoring::backlog(&pool, MAX_BACKLOG).await }).await?;
            metrics::gauge!("executor_monitoring_backlog").set(rows as f64);
            let is_full = rows >= MAX_BACKLOG;
            if self.0.is_full.swap(is_full, Ordering::Relaxed) != is_full && is_full {
                tracing::error!("updates of {MAX_BACKLOG} statements wait for Kafka; further updates are dropped");
            }
        }
        let Some(owner) = self.0.registration.current() else { return Ok(()) };
        // Read before the sweep: a row that becomes known later is too young to be freed.
        let known: Vec<Uuid> = self.known().iter().copied().collect();
        let pool = self.0.pool.clone();
        db::bounded(async move { db::monitoring::free(&pool, owner, &known).await }).await?;
        while self.0.held.load(Ordering::Relaxed) < MAX_HELD / 2 {
            let Some(owner) = self.0.registration.current() else { break };
            let pool = self.0.pool.clone();
            let taken = db::bounded(async move {
                let mut taken = Vec::new();
                for row in db::monitoring::take(&pool, owner, MAX_TAKEN).await? {
                    taken.push((row.id, stored(&pool, &row.updates).await?));
                }
                Ok(taken)
            })
            .await?;
            let is_last = taken.is_empty();
            for (id, updates) in taken {
                self.known().insert(id);
                self.enqueue(Batch { id, updates: Some(updates) });
            }
            if is_last {
                break;
            }
        }
        Ok(())
    }
}

/// Updates of a stored row: JSON arrays of record values, written by this service.
async fn stored(pool: &db::Pool, texts: &[String]) -> Result<Vec<Update>, db::Error> {
    #[derive(Deserialize)]
    struct Named {
        run_id: String,
    }
    let values = texts.iter().flat_map(|text| serde_json::from_str::<Vec<&RawValue>>(text).unwrap_or_default());
    let named = |value: &RawValue| {
        let named: Named = serde_json::from_str(value.get()).ok()?;
        Some((named.run_id, value.get().to_owned()))
    };
    let values: Vec<(String, String)> = values.filter_map(named).collect();
    let run_ids: Vec<&str> = values.iter().map(|(run_id, _)| run_id.as_str()).collect();
    let given: HashMap<String, String> = db::monitoring::traceparents(pool, &run_ids).await?.into_iter().collect();
    let update = |(run_id, value): (String, String)| {
        let traceparent = trace::of_run(&run_id, given.get(&run_id).map(String::as_str));
        Update { run_id, traceparent, value }
    };
    Ok(values.into_iter().map(update).collect())
}

/// Updates for a change, in the order of its events. Blocks have no agent and cause no updates.
fn values(change: &Change) -> Vec<String> {
    let timestamp = Timestamp::now();
    let payload = |step_id, step_name, status, metadata| {
        let payload = MonitoringPayload {
            run_id: &change.run_id,
            workflow_id: &change.of.workflow_id,
            workflow_name: &change.of.workflow_name,
            organization_id: change.of.organization.as_str(),
            step_id,
            step_name,
            status,
            timestamp,
            metadata: Some(metadata),
        };
        serde_json::to_string(&payload).expect("strings always serialise")
    };
    let begun = change.begun.as_ref().filter(|step| !step.agent_name.is_empty()).map(|step| {
        let metadata = MonitoringMetadata {
            step_execution_id: Some(&step.id),
            task_id: step.task_id.as_deref(),
            ..MonitoringMetadata::default()
        };
        payload(&step.step_id, &step.agent_name, RunStatus::Running.as_str(), metadata)
    });
    let ended = change.ended.as_ref().and_then(|step| {
        let (of, reason) = (step.of.as_ref()?, step.end.reason());
        let metadata = MonitoringMetadata {
            step_execution_id: Some(&step.id),
            task_id: of.task_id.as_deref().filter(|_| reason.is_none()),
            error: reason,
            error_message: reason,
            ..MonitoringMetadata::default()
        };
        let status = if reason.is_none() { RunStatus::Completed } else { RunStatus::Failed };
        Some(payload(&of.step_id, &of.agent_name, status.as_str(), metadata))
    });
    let finished = change.finished.as_ref().map(|run| {
        let failure = run.failure.as_ref();
        let cause = failure.map(|failure| failure.cause.as_str());
        let failed_step = failure.and_then(|failure| failure.step_id.as_deref());
        let metadata =
            MonitoringMetadata { failed_step, error: cause, error_message: cause, ..MonitoringMetadata::default() };
        payload(MonitoringPayload::WORKFLOW, &change.of.workflow_name, run.status.as_str(), metadata)
    });
    // If both are of one row, the begin comes first. Of two rows, the ended one made room for the other.
    let is_one_row = matches!((&change.ended, &change.begun), (Some(end), Some(begin)) if end.id == begin.id);
    let steps = if is_one_row { [begun, ended] } else { [ended, begun] };
    steps.into_iter().chain([finished]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared() -> PreparedUpdates {
        let update =
            |run_id: &str| Update { run_id: run_id.to_owned(), traceparent: String::new(), value: "{}".to_owned() };
        let row = Arc::new(Row { id: Uuid::now_v7(), owner: None, updates: Vec::new() });
        PreparedUpdates { row, updates: vec![update("ends"), update("goes-on")] }
    }

    /// Runs in the batch, or a note that the row must be read.
    fn pending_run_ids(batch: Option<Batch>) -> Vec<String> {
        let Some(batch) = batch else { return Vec::new() };
        let row = || vec!["as the row says".to_owned()];
        batch.updates.map_or_else(row, |updates| updates.into_iter().map(|update| update.run_id).collect())
    }

    #[test]
    fn written_updates_are_sent_also_if_the_statement_was_repeated() {
        let both = ["ends", "goes-on"];
        assert_eq!(pending_run_ids(prepared().into_batch(&both, false)), both);
        assert_eq!(pending_run_ids(prepared().into_batch(&both[..1], false)), both[..1]);
        assert!(pending_run_ids(prepared().into_batch(&[], false)).is_empty());
        // The answer to the first commit was lost, and the repeat does not know the run that it ended.
        for held in [&both[1..], &[]] {
            assert_eq!(pending_run_ids(prepared().into_batch(held, true)), ["as the row says"]);
        }
    }
}
