//! The relay: from the outbox to Kafka, at least once, in order within a run.
//!
//! In the healthy case a message never leaves memory: whoever writes an outbox row offers its message to the relay
//! after the commit, and the relay deletes the rows, in batches, that the broker has acknowledged. Everything else
//! (a full queue, an error, a dead process, a broker that forgot) leads to a *free* row, which the sweep of any
//! process takes, making the message again from the run and its definition.
//!
//! If it dies here: before the commit, nothing happened; after it, the row is an orphan and freed by others; after
//! Kafka's acknowledgement and before the delete, the message is sent again with the same `event_id`.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    topic_partition_list::Offset,
};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    config,
    db::{
        self,
        outbox::{Kind, Taken},
        processes::{self, Registration},
    },
    input,
    kafka::{
        self, Refusal,
        message::{CancellationPayload, ExecutionPayload},
        producer::{Batching, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES, MAX_RECORD_BYTES, Producer, Report, Unsent},
        renewable::{Purpose, Renewable},
    },
    lifecycle::Lifecycle,
    timestamp::Timestamp,
    trace,
};

/// With so many rows waiting, new work is refused: Kafka has been away for long, and the table shall stay small
/// enough to be worked off.
pub const MAX_BACKLOG: i64 = 100_000;
/// Room that a payload leaves under the largest record, for what the client and the broker add.
pub const RECORD_HEADROOM_BYTES: usize = 16 << 10;

/// How often free rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often orphans, overdue runs and expired keys are looked for.
const UPKEEP_EVERY: Duration = Duration::from_secs(3);
/// Rows taken at a time.
const SWEEP_BATCH: usize = 500;
/// Rows of the first batch, before it is known how large they are.
const FIRST_BATCH: usize = 16;
/// Plans and inputs taken at a time, as far as their size can be foreseen.
const SWEEP_BATCH_BYTES: usize = 4 << 20;
/// A run that is still PENDING after this, although Kafka acknowledged its message and the executors have read
/// everything, was lost by the broker.
const OVERDUE_SECS: f64 = 10.0;
/// The same, if the executors have *not* read everything: then it most likely waits in Kafka.
const OVERDUE_IN_QUEUE_SECS: f64 = 600.0;
/// Between two deletes of acknowledged rows, so that one statement deletes many.
const SETTLE_PAUSE: Duration = Duration::from_millis(5);
/// Before a failed settling is tried again.
const SETTLE_RETRY: Duration = Duration::from_millis(500);
/// At the end of the process, for what is still queued.
const FLUSH: Duration = Duration::from_secs(5);
/// A broker that answers later is not asked further.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A message that was refused in a batch is taken by a sweep long before that.
const KEEP_REFUSED: Duration = Duration::from_mins(10);
/// The producer of messages that were refused in a batch.
const SINGLE: Purpose = Purpose { name: "single runs", meaning: None };
/// What the relay does without brokers.
const PURPOSE: Purpose =
    Purpose { name: "runs", meaning: Some("requests are accepted, and dispatched when it is back") };

/// Where messages are offered. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    kafka: config::Kafka,
    /// How long idempotency keys are kept.
    key_ttl_hours: i32,
    pool: db::Pool,
    registration: Registration,
    producer: Renewable<Producer>,
    /// For messages that a broker has refused in a batch with others; made when there is the first one.
    single: OnceLock<Renewable<Producer>>,
    /// Those messages, by event id, with the moment of their refusal.
    refused: Mutex<HashMap<Uuid, Instant>>,
    drained: CancellationToken,
    reports: UnboundedSender<Report>,
    /// Messages and bytes reserved or queued, to stay within what the producer's queue takes.
    held: AtomicUsize,
    held_bytes: AtomicUsize,
    /// The messages whose rows this process knows to own.
    known: Mutex<HashSet<Uuid>>,
    backlog: AtomicI64,
    topics_checked: AtomicBool,
    /// The producer has refused a message since the last sweep.
    is_full: AtomicBool,
}

/// What a message says of its run, beside plan and input.
#[derive(Clone, Copy)]
pub struct ExecutedRun<'a> {
    /// The run.
    pub run_id: &'a str,
    /// Of the request that started it.
    pub correlation_id: Option<&'a str>,
    /// Of the same request, if it had one.
    pub traceparent: Option<&'a str>,
    /// From 0 to 9.
    pub priority: i16,
    /// Whose run it is.
    pub organization: &'a OrganizationId,
}

/// What a message says of a cancelled run.
#[derive(Clone, Copy)]
pub struct CancelledRun<'a> {
    /// The run.
    pub run_id: &'a str,
    /// Of the request that started it.
    pub correlation_id: Option<&'a str>,
    /// Of the same request, if it had one.
    pub traceparent: Option<&'a str>,
    /// Who cancelled it.
    pub cancelled_by: Option<&'a str>,
    /// Why, if they said.
    pub reason: Option<&'a str>,
}

/// The right to own an outbox row, with room for its message. Dropped unused, it gives the room back.
pub struct Reservation {
    relay: Relay,
    owner: Uuid,
    bytes: usize,
    kept: bool,
}

impl Reservation {
    /// The owner to write into the row.
    #[must_use]
    pub fn owner(&self) -> Uuid {
        self.owner
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.relay.0.held.fetch_sub(1, Ordering::Relaxed);
            self.relay.0.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Relay {
    /// Starts the relay's loops. `drained` is cancelled by the caller when nobody offers anything any more; the
    /// loops then send what is left, give the rest back and end.
    pub fn start(
        settings: &config::Config,
        pool: db::Pool,
        registration: Registration,
        lifecycle: &Lifecycle,
        drained: &CancellationToken,
    ) -> Result<Self, KafkaError> {
        let kafka = &settings.kafka;
        let (reports, received) = unbounded_channel();
        let reporting = reports.clone();
        let producer = Renewable::new(PURPOSE, kafka, move |kafka, last_error| {
            Producer::new(kafka, Batching::Many, reporting.clone(), last_error)
        })?;
        let relay = Self(Arc::new(Shared {
            kafka: kafka.clone(),
            key_ttl_hours: settings.idempotency_key_ttl_hours,
            pool,
            registration,
            producer,
            single: OnceLock::new(),
            refused: Mutex::default(),
            drained: drained.clone(),
            reports,
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            known: Mutex::default(),
            backlog: AtomicI64::new(0),
            topics_checked: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
        }));
        let settled = CancellationToken::new();
        lifecycle.spawn("outbox settling", relay.clone().settle_all(received, settled.clone()));
        lifecycle.spawn("outbox sweep", relay.clone().sweep_all(drained.clone(), settled));
        lifecycle.spawn("idempotency keys", relay.clone().expire_keys(drained.clone()));
        lifecycle.spawn("kafka topics", relay.clone().keep_topics(drained.clone()));
        let (watched, drained) = (relay.clone(), drained.clone());
        lifecycle.spawn("kafka watch", async move { watched.0.producer.watch(&drained).await });
        Ok(relay)
    }

    /// Room for a message of that payload size. `None`: write the row without owner, and a sweep will send it.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> Option<Reservation> {
        let owner = self.0.registration.current()?;
        let reservation = Reservation { relay: self.clone(), owner, bytes, kept: false };
        let messages = self.0.held.fetch_add(1, Ordering::Relaxed);
        let held_bytes = self.0.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        (messages < MAX_QUEUED_MESSAGES && held_bytes + bytes <= MAX_QUEUED_BYTES).then_some(reservation)
    }

    /// Sends an execution request whose row is committed and owned by the reservation.
    pub fn execute(
        &self,
        reservation: Reservation,
        event_id: Uuid,
        run: ExecutedRun<'_>,
        plan: &RawValue,
        input: &RawValue,
    ) {
        let ExecutedRun { run_id, correlation_id, traceparent, priority, organization } = run;
        let payload = ExecutionPayload::new(run_id, event_id, correlation_id, priority, organization, plan, input);
        let about = (run_id, event_id, traceparent);
        self.send(reservation, &self.0.kafka.execution_topic, about, &encode(&payload));
    }

    /// Sends a cancellation whose row is committed and owned by the reservation.
    pub fn cancel(&self, reservation: Reservation, event_id: Uuid, run: CancelledRun<'_>) {
        let CancelledRun { run_id, correlation_id, traceparent, cancelled_by, reason } = run;
        let payload = CancellationPayload {
            run_id,
            cancelled_by,
            reason,
            timestamp: Timestamp::now(),
            message_type: "cancellation_request",
            event_id,
            correlation_id,
        };
        let about = (run_id, event_id, traceparent);
        self.send(reservation, &self.0.kafka.cancellation_topic, about, &encode(&payload));
    }

    /// Gives a row back that may or may not have been committed as owned by us: the answer to the commit was lost.
    pub fn abandon(&self, reservation: Reservation, event_id: Uuid, run_id: String) {
        self.give_up(reservation, event_id, run_id, Unsent::Undelivered(RDKafkaErrorCode::PurgeQueue));
    }

    /// Settles a message without sending it.
    fn give_up(&self, mut reservation: Reservation, event_id: Uuid, run_id: String, why: Unsent) {
        reservation.kept = true;
        self.known().insert(event_id);
        let report = Report { run_id, event_id, bytes: reservation.bytes, outcome: Err(why), is_alone: true };
        // The receiver ends after the last user of the relay.
        drop(self.0.reports.send(report));
    }

    /// Rows in the outbox, counted up to [`MAX_BACKLOG`], as of a second ago at most.
    #[must_use]
    pub fn backlog(&self) -> i64 {
        self.0.backlog.load(Ordering::Relaxed)
    }

    /// Whether Kafka answered when it was last asked, which is every second.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.producer.connection().is_up()
    }

    fn send(
        &self,
        mut reservation: Reservation,
        topic: &str,
        (run_id, event_id, traceparent): (&str, Uuid, Option<&str>),
        payload: &[u8],
    ) {
        // What was reserved was an estimate; from here the payload's size counts.
        reservation.kept = true;
        self.0.held_bytes.fetch_add(payload.len(), Ordering::Relaxed);
        self.0.held_bytes.fetch_sub(reservation.bytes, Ordering::Relaxed);
        self.known().insert(event_id);
        let traceparent = trace::of_run(run_id, traceparent);
        let sent =
            self.producer_for(event_id).with(|producer| producer.send(topic, run_id, event_id, &traceparent, payload));
        if let Err(error) = sent {
            let outcome = Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail).into());
            let report = Report { run_id: run_id.to_owned(), event_id, bytes: payload.len(), outcome, is_alone: true };
            drop(self.0.reports.send(report));
            self.0.is_full.store(true, Ordering::Relaxed);
        }
    }

    /// The usual producer, or for a message that was refused in a batch one that sends it alone.
    fn producer_for(&self, event_id: Uuid) -> &Renewable<Producer> {
        if !self.refused().contains_key(&event_id) {
            return &self.0.producer;
        }
        self.0.single.get().unwrap_or(&self.0.producer)
    }

    /// Makes the producer of single messages, if there is none yet.
    fn make_single(&self) {
        if self.0.single.get().is_some() {
            return;
        }
        let reports = self.0.reports.clone();
        let made = Renewable::new(SINGLE, &self.0.kafka, move |kafka, last_error| {
            Producer::new(kafka, Batching::One, reports.clone(), last_error)
        });
        match made {
            Ok(single) => {
                // Only the settling makes one, so it was not there.
                if self.0.single.set(single).is_ok() {
                    let relay = self.clone();
                    tokio::spawn(async move {
                        if let Some(single) = relay.0.single.get() {
                            single.watch(&relay.0.drained).await;
                        }
                    });
                }
            }
            Err(error) => tracing::error!("a Kafka producer of single messages cannot be made: {error}"),
        }
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles what the producer reports until there is nothing left to come.
    async fn settle_all(self, mut reports: UnboundedReceiver<Report>, settled: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = reports.recv_many(&mut batch, 2000) => if count == 0 { return },
                () = settled.cancelled() => return,
            }
            while let Err(error) = self.settle(&mut batch).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "outbox rows are settled later: {error}");
                tokio::select! {
                    () = tokio::time::sleep(SETTLE_RETRY) => {}
                    () = settled.cancelled() => return,
                }
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
    }

    /// Deletes what was delivered, gives back what was not, ends runs whose message can never be sent.
    async fn settle(&self, batch: &mut Vec<Report>) -> Result<(), db::Error> {
        use RDKafkaErrorCode as Code;
        let (mut done_runs, mut done_events) = (Vec::new(), Vec::new());
        let (mut back_runs, mut back_events) = (Vec::new(), Vec::new());
        for report in &*batch {
            match report.outcome {
                Ok(()) => {}
                Err(Unsent::Refused(Refusal::TooLarge)) if !report.is_alone => {
                    // Perhaps the batch was too large, not this message. The next sweep sends it alone.
                    tracing::debug!(run_id = report.run_id, "refused in a batch, will be sent alone");
                    self.make_single();
                    self.refused().insert(report.event_id, Instant::now());
                    back_runs.push(report.run_id.clone());
                    back_events.push(report.event_id);
                    continue;
                }
                Err(Unsent::Undelivered(code)) => {
                    if matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) {
                        self.0.topics_checked.store(false, Ordering::Relaxed);
                    }
                    tracing::debug!(run_id = report.run_id, "not sent, will be tried again: {code}");
                    back_runs.push(report.run_id.clone());
                    back_events.push(report.event_id);
                    continue;
                }
                Err(why @ (Unsent::Refused(_) | Unsent::NoPlan)) => {
                    tracing::error!(run_id = report.run_id, "run {} cannot be dispatched: {why}", report.run_id);
                    let text = format!("the run could not be dispatched: {why}");
                    let (pool, run_id, event) = (self.0.pool.clone(), report.run_id.clone(), Some(report.event_id));
                    db::bounded(async move { db::runs::fail_pending(&pool, &run_id, event, &text).await }).await?;
                    metrics::counter!("workflow_execution_failures_total").increment(1);
                }
            }
            done_runs.push(report.run_id.clone());
            done_events.push(report.event_id);
        }
        if !done_runs.is_empty() {
            let (pool, count) = (self.0.pool.clone(), done_runs.len());
            db::bounded(async move { db::outbox::delete(&pool, &done_runs, &done_events).await }).await?;
            metrics::counter!("outbox_messages_published_total").increment(count as u64);
            tracing::debug!(messages = count, "Kafka has acknowledged messages, their outbox rows are deleted");
        }
        // Without an id, whatever this process had is an orphan, and freed as such.
        if let Some(owner) = self.0.registration.current().filter(|_| !back_runs.is_empty()) {
            let pool = self.0.pool.clone();
            db::bounded(async move { db::outbox::release(&pool, owner, &back_runs, &back_events).await }).await?;
        }
        {
            let mut known = self.known();
            for report in &*batch {
                known.remove(&report.event_id);
            }
        }
        {
            let mut refused = self.refused();
            for report in batch.iter().filter(|report| report.is_alone) {
                refused.remove(&report.event_id);
            }
        }
        let bytes: usize = batch.iter().map(|report| report.bytes).sum();
        self.0.held.fetch_sub(batch.len(), Ordering::Relaxed);
        self.0.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        batch.clear();
        Ok(())
    }

    /// Sweeps until drained; then flushes, gives the rest back and retires the process.
    async fn sweep_all(self, drained: CancellationToken, settled: CancellationToken) {
        let mut next_upkeep = Instant::now();
        while !drained.is_cancelled() {
            if let Err(error) = self.sweep_once(&drained).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "no sweep: {error}");
            }
            if next_upkeep <= Instant::now() {
                next_upkeep = Instant::now() + UPKEEP_EVERY;
                if let Err(error) = self.upkeep().await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "no upkeep: {error}");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
        let producer = self.0.producer.current();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH)).await;
        let deadline = Instant::now() + FLUSH;
        if matches!(flushed, Ok(Ok(()))) {
            while self.0.held.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let pool = self.0.pool.clone();
        if let Some(id) = self.0.registration.current()
            && let Err(error) = db::bounded(async move { processes::retire(&pool, id).await }).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "not retired; what is left waits a little longer");
        }
        settled.cancel();
    }

    /// Sends free rows while there are any, there is room, and nobody wants to stop. Returns how many were taken.
    pub async fn sweep_once(&self, drained: &CancellationToken) -> Result<usize, db::Error> {
        let pool = self.0.pool.clone();
        let counted = db::bounded(async move { db::outbox::backlog(&pool, MAX_BACKLOG).await });
        let (backlog, oldest_secs) = counted.await?;
        self.0.backlog.store(backlog, Ordering::Relaxed);
        metrics::gauge!("outbox_events_pending").set(backlog as f64);
        metrics::gauge!("outbox_oldest_age_seconds").set(oldest_secs);
        self.0.is_full.store(false, Ordering::Relaxed);
        let (mut taken, mut limit) = (0, FIRST_BATCH);
        // As many at most as the queue takes: what comes back meanwhile is for the next sweep.
        while let Some(owner) = self.0.registration.current().filter(|_| taken < MAX_QUEUED_MESSAGES) {
            if drained.is_cancelled() || self.is_half_full() {
                break;
            }
            let pool = self.0.pool.clone();
            let rows = db::bounded(async move { db::outbox::take(&pool, owner, limit).await }).await?;
            let (count, bytes) = (rows.len(), rows.iter().map(Taken::payload_len).sum::<usize>());
            for row in rows {
                self.send_taken(row, owner);
            }
            taken += count;
            if count < limit {
                break;
            }
            limit = (SWEEP_BATCH_BYTES * count / bytes.max(1)).clamp(1, SWEEP_BATCH);
        }
        Ok(taken)
    }

    /// Half of the queue stays for those who write new rows, so that these keep their short way.
    fn is_half_full(&self) -> bool {
        self.0.is_full.load(Ordering::Relaxed)
            || self.0.held.load(Ordering::Relaxed) > MAX_QUEUED_MESSAGES / 2
            || self.0.held_bytes.load(Ordering::Relaxed) > MAX_QUEUED_BYTES / 2
    }

    fn send_taken(&self, row: Taken, owner: Uuid) {
        // Compact, as the message had to fit when the run was accepted.
        let compacted = |text: String| RawValue::from_string(text).ok().map(|raw| input::compact(&raw));
        let plan = row.workflow_plan.and_then(compacted);
        let input = row.input_data.and_then(compacted);
        let (correlation_id, traceparent) = (row.correlation_id.as_deref(), row.traceparent.as_deref());
        self.0.held.fetch_add(1, Ordering::Relaxed);
        let reservation = Reservation { relay: self.clone(), owner, bytes: 0, kept: false };
        match (row.kind, plan) {
            (Kind::Execution, Some(plan)) => {
                let input = input.filter(|input| input.get() != "null").unwrap_or_else(|| input::object_of([]));
                let organization = &OrganizationId::stored(&row.organization_id);
                let (run_id, priority) = (row.run_id.as_str(), row.priority);
                let run = ExecutedRun { run_id, correlation_id, traceparent, priority, organization };
                self.execute(reservation, row.event_id, run, &plan, &input);
            }
            (Kind::Execution, None) => {
                // Its definition is gone: nobody can ever make this message.
                self.give_up(reservation, row.event_id, row.run_id, Unsent::NoPlan);
            }
            (Kind::Cancellation, _) => {
                let (cancelled_by, reason) = (row.cancelled_by.as_deref(), row.reason.as_deref());
                let run = CancelledRun { run_id: &row.run_id, correlation_id, traceparent, cancelled_by, reason };
                self.cancel(reservation, row.event_id, run);
            }
        }
    }

    /// Frees orphans, sends lost requests again, drops what has expired.
    async fn upkeep(&self) -> Result<(), db::Error> {
        // Another process may have sent them.
        self.refused().retain(|_, refused_at| refused_at.elapsed() < KEEP_REFUSED);
        let pool = self.0.pool.clone();
        let mine = self.0.registration.current();
        // Asked before the rows are: one that comes to be known meanwhile is too young to be freed.
        let known: Vec<Uuid> = self.known().iter().copied().collect();
        let cleaned = db::bounded(async move {
            let orphans = db::outbox::free_orphans(&pool).await?;
            let forgotten = match mine {
                Some(owner) => db::outbox::free_forgotten(&pool, owner, &known).await?,
                None => 0,
            };
            processes::bury(&pool).await?;
            Ok(orphans + forgotten)
        });
        let freed = cleaned.await?;
        if freed > 0 {
            tracing::info!(freed, "{freed} outbox rows that nobody had in memory were freed");
        }
        let pool = self.0.pool.clone();
        let any_overdue = db::bounded(async move { db::outbox::any_overdue(&pool, OVERDUE_SECS).await });
        if self.is_connected() && any_overdue.await? {
            let kafka = self.0.kafka.clone();
            let drained = tokio::task::spawn_blocking(move || queue_is_drained(&kafka)).await;
            let older_than = if matches!(drained, Ok(Ok(true))) { OVERDUE_SECS } else { OVERDUE_IN_QUEUE_SECS };
            let pool = self.0.pool.clone();
            let again = db::bounded(async move { db::outbox::redispatch(&pool, older_than, SWEEP_BATCH).await });
            let again = again.await?;
            if again > 0 {
                tracing::warn!(runs = again, "{again} runs were still pending and are dispatched again");
            }
        }
        Ok(())
    }

    /// Deletes idempotency keys that are too old.
    async fn expire_keys(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if let Err(error) = db::idempotency::expire(&self.0.pool, self.0.key_ttl_hours).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "idempotency keys do not expire: {error}");
            }
            tokio::select! {
                () = tokio::time::sleep(UPKEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }

    /// Makes the topics once Kafka is there, and again when one has gone.
    async fn keep_topics(self, drained: CancellationToken) {
        while !drained.is_cancelled() {
            if self.is_connected() && !self.0.topics_checked.load(Ordering::Relaxed) {
                match kafka::ensure_topics(&self.0.kafka).await {
                    Ok(()) => self.0.topics_checked.store(true, Ordering::Relaxed),
                    Err(error) => tracing::warn!("the topics cannot be made yet: {error}"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => {}
                () = drained.cancelled() => {}
            }
        }
    }
}

/// Whether plan and input with what is around them can be dispatched, also when the message has to be made again from
/// what the database has stored.
#[must_use]
pub fn fits_a_record(plan: &RawValue, input: &RawValue) -> bool {
    input::stored_len(plan) + input::stored_len(input) <= MAX_RECORD_BYTES - RECORD_HEADROOM_BYTES
}

fn encode<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).expect("strings and well-formed raw JSON always serialise")
}

/// Whether the executors' group has read all there is on the execution topic. Blocks the thread.
fn queue_is_drained(kafka: &config::Kafka) -> Result<bool, KafkaError> {
    let client: BaseConsumer = kafka::client_config(kafka).set("group.id", &kafka.group_id).create()?;
    let metadata = client.fetch_metadata(Some(&kafka.execution_topic), ANSWER_WITHIN)?;
    let mut asked = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(rdkafka::metadata::MetadataTopic::partitions) {
        asked.add_partition(&kafka.execution_topic, partition.id());
    }
    for committed in client.committed_offsets(asked, ANSWER_WITHIN)?.elements() {
        let (low, high) = client.fetch_watermarks(&kafka.execution_topic, committed.partition(), ANSWER_WITHIN)?;
        let read = if let Offset::Offset(offset) = committed.offset() { offset } else { low };
        if read < high {
            return Ok(false);
        }
    }
    Ok(true)
}
