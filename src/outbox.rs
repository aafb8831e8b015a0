//! Relay of the outbox: publishes messages to Kafka, at least once, in order within a run.
//!
//! Normally a message never leaves memory: the writer of an outbox row passes its message to the relay after the
//! commit, and the relay deletes acknowledged rows in batches. The messages of runs that are started together share one
//! row. Every other case (a full queue, an error, a dead process, a broker that lost data) leads to a *free* row for
//! the message, which the sweep of any process takes; the message is then rebuilt from the run and its definition.
//!
//! After a crash: before the commit, nothing has happened. After it, the row is an orphan and is freed by others. After
//! Kafka's acknowledgement and before the delete, the message is sent again with the same `event_id`.

mod admission;
mod maintenance;
mod settle;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde_json::value::RawValue;
use tokio::{
    sync::{
        Notify,
        mpsc::{UnboundedSender, unbounded_channel},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    config,
    db::{self, processes::Registration},
    input,
    kafka::{
        message::{CancellationPayload, ExecutionPayload},
        problem::Connection,
        producer::{
            Batching, DeliveryError, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES, MAX_RECORD_BYTES, Producer, Report,
        },
        replaceable::{ClientRole, ReplaceableClient},
    },
    lifecycle::Lifecycle,
    telemetry::spans::{self, Kind, Span},
    timestamp::Timestamp,
    trace::{self, SpanContext},
};

/// Bytes reserved in the largest record for the overhead of client and broker.
pub const RECORD_HEADROOM_BYTES: usize = 16 << 10;

/// Number of free rows taken at a time.
const SWEEP_BATCH: usize = 2000;
/// Polling interval for free rows.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Role of the client in logs, and the effect of an outage.
const ROLE: ClientRole =
    ClientRole { name: "runs", meaning: Some("requests are accepted, and dispatched when it is back") };

/// Handle of the relay. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    kafka: config::Kafka,
    /// Retention of idempotency keys.
    key_ttl_hours: i32,
    pool: db::Pool,
    registration: Registration,
    producer: ReplaceableClient<Producer>,
    /// Producer of messages that a broker has rejected in a batch; created for the first one.
    single: OnceLock<ReplaceableClient<Producer>>,
    /// Those messages by event id, with the time of the rejection.
    refused: Mutex<HashMap<Uuid, Instant>>,
    /// Recorded spans of messages that are not acknowledged yet, by event.
    spans: Mutex<HashMap<Uuid, Span>>,
    drained: CancellationToken,
    reports: UnboundedSender<Report>,
    /// Number and bytes of reserved or queued messages, bounded by the producer's queue.
    held: AtomicUsize,
    held_bytes: AtomicUsize,
    /// Rows that this process knows that it owns.
    known: Mutex<KnownRows>,
    /// Batches whose commit is uncertain, to be freed if they exist.
    uncertain: Mutex<Vec<Uuid>>,
    backlog: AtomicI64,
    /// Age of the oldest row in milliseconds.
    oldest_ms: AtomicU64,
    topics_checked: AtomicBool,
    /// Whether a message could not be delivered since the last sweep.
    has_failed: AtomicBool,
    /// Notified after each settling.
    settled: Notify,
    /// Notified when there may be held runs to admit.
    admit: Notify,
    /// Notified when there are free rows.
    freed: Notify,
}

/// Owned outbox rows.
#[derive(Default)]
struct KnownRows {
    /// Messages with rows of their own.
    events: HashSet<Uuid>,
    /// Batches, each with the number of its messages without a delivery report.
    batches: HashMap<Uuid, usize>,
}

/// Run of an execution message, besides plan and input.
#[derive(Clone, Copy)]
pub struct ExecutedRun<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Correlation id of the request that started it.
    pub correlation_id: Option<&'a str>,
    /// `traceparent` of the same request, if it had one.
    pub traceparent: Option<&'a str>,
    /// Priority from 0 to 9.
    pub priority: i16,
    /// Organisation of the run.
    pub organization: &'a OrganizationId,
    /// Whether the run was executed before, and is retried.
    pub is_retry: bool,
}

/// Cancelled run of a message.
#[derive(Clone, Copy)]
pub struct CancelledRun<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Correlation id of the request that started it.
    pub correlation_id: Option<&'a str>,
    /// `traceparent` of the same request, if it had one.
    pub traceparent: Option<&'a str>,
    /// Actor of the cancellation.
    pub cancelled_by: Option<&'a str>,
    /// Reason, if one was given.
    pub reason: Option<&'a str>,
}

/// Message to send, besides its payload.
#[derive(Clone, Copy)]
struct About<'a> {
    run_id: &'a str,
    event_id: Uuid,
    batch: Option<Uuid>,
    traceparent: Option<&'a str>,
    /// Whether the message is the run's first one. Its sending is the run's own span.
    is_first: bool,
}

/// Permit to own an outbox row, with reserved queue space for its message. An unused one releases the space when
/// dropped.
pub struct Reservation {
    relay: Relay,
    owner: Uuid,
    bytes: usize,
    kept: bool,
}

impl Reservation {
    /// Owner id for the row.
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
    /// Starts the relay's loops. The caller cancels `drained` when no more messages come; the loops then send the
    /// remaining ones, release the rest and end.
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
        let producer = ReplaceableClient::new(ROLE, kafka, move |kafka, callbacks| {
            Producer::new(kafka, Batching::Many, reporting.clone(), callbacks)
        })?;
        let relay = Self(Arc::new(Shared {
            kafka: kafka.clone(),
            key_ttl_hours: settings.idempotency_key_ttl_hours,
            pool,
            registration,
            producer,
            single: OnceLock::new(),
            refused: Mutex::default(),
            spans: Mutex::default(),
            drained: drained.clone(),
            reports,
            held: AtomicUsize::new(0),
            held_bytes: AtomicUsize::new(0),
            known: Mutex::default(),
            uncertain: Mutex::default(),
            backlog: AtomicI64::new(0),
            oldest_ms: AtomicU64::new(0),
            topics_checked: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            settled: Notify::new(),
            admit: Notify::new(),
            freed: Notify::new(),
        }));
        let settled = CancellationToken::new();
        lifecycle.spawn("outbox settling", relay.clone().settle_all(received, settled.clone()));
        lifecycle.spawn("outbox sweep", relay.clone().sweep_all(drained.clone(), settled));
        lifecycle.spawn("admission of runs", relay.clone().admit_all(drained.clone()));
        lifecycle.spawn("idempotency keys", relay.clone().expire_keys(drained.clone()));
        lifecycle.spawn("kafka topics", relay.clone().keep_topics(drained.clone()));
        let (watched, drained) = (relay.clone(), drained.clone());
        lifecycle.spawn("kafka watch", async move { watched.0.producer.watch(&drained).await });
        Ok(relay)
    }

    /// Reserves space for a message of that payload size. `None`: write the row without owner, and a sweep will send
    /// it.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> Option<Reservation> {
        // While Kafka takes no messages, rows wait for the sweep from the start.
        if self.kafka().is_troubled() {
            return None;
        }
        let owner = self.0.registration.current()?;
        let reservation = Reservation { relay: self.clone(), owner, bytes, kept: false };
        let messages = self.0.held.fetch_add(1, Ordering::Relaxed);
        let held_bytes = self.0.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        (messages < MAX_QUEUED_MESSAGES && held_bytes + bytes <= MAX_QUEUED_BYTES).then_some(reservation)
    }

    /// Announces that a batch with so many messages is committed. The messages are sent next.
    pub fn open_batch(&self, batch: Uuid, messages: usize) {
        if messages > 0 {
            self.known().batches.insert(batch, messages);
        }
    }

    /// Releases a batch whose commit is uncertain, because its answer was lost.
    pub fn abandon_batch(&self, batch: Uuid) {
        self.uncertain().push(batch);
    }

    /// Sends committed rows without owner at once, instead of with the next sweep.
    pub fn sweep_soon(&self) {
        self.0.freed.notify_one();
    }

    /// Sends an execution request whose row is committed and owned by the reservation: that of `batch`, or its own.
    pub fn execute(
        &self,
        reservation: Reservation,
        (event_id, batch): (Uuid, Option<Uuid>),
        run: ExecutedRun<'_>,
        plan: &RawValue,
        input: &RawValue,
    ) {
        let ExecutedRun { run_id, correlation_id, traceparent, priority, organization, is_retry } = run;
        let payload = ExecutionPayload::new(run_id, event_id, correlation_id, priority, organization, plan, input);
        let about = About { run_id, event_id, batch, traceparent, is_first: !is_retry };
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
        let about = About { run_id, event_id, batch: None, traceparent, is_first: false };
        self.send(reservation, &self.0.kafka.cancellation_topic, about, &encode(&payload));
    }

    /// Commits a transaction with a row, and returns the reservation if it owns the row: then the message can be sent.
    /// If the answer to the commit is lost, the row is released.
    pub async fn commit(
        &self,
        transaction: db::Transaction,
        (reservation, is_owner): (Option<Reservation>, bool),
        (run_id, event_id): (&str, Uuid),
    ) -> Result<Option<Reservation>, db::Error> {
        match (db::commit(transaction).await, reservation) {
            (Ok(()), reservation) => Ok(reservation.filter(|_| is_owner)),
            (Err(error), None) => Err(error),
            (Err(error), Some(reservation)) => {
                self.abandon(reservation, event_id, run_id.to_owned());
                Err(error)
            }
        }
    }

    /// Releases a row whose commit is uncertain, because its answer was lost.
    pub fn abandon(&self, reservation: Reservation, event_id: Uuid, run_id: String) {
        let why = DeliveryError::Undelivered(RDKafkaErrorCode::PurgeQueue);
        self.settle_unsent(reservation, (event_id, None), run_id, why);
    }

    /// Settles a message without sending it.
    fn settle_unsent(
        &self,
        mut reservation: Reservation,
        (event_id, batch): (Uuid, Option<Uuid>),
        run_id: String,
        why: DeliveryError,
    ) {
        reservation.kept = true;
        if batch.is_none() {
            self.known().events.insert(event_id);
        }
        let bytes = reservation.bytes;
        let report = Report { run_id, event_id, batch, bytes, outcome: Err(why), is_alone: true };
        // The receiver ends after the last handle of the relay.
        drop(self.0.reports.send(report));
    }

    /// Whether new runs are refused, because as many messages as `MAX_BACKLOG` allows wait for Kafka.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.backlog() >= self.0.kafka.max_backlog
    }

    /// Number of rows in the outbox, counted up to `MAX_BACKLOG`, at most a second old.
    #[must_use]
    pub fn backlog(&self) -> i64 {
        self.0.backlog.load(Ordering::Relaxed)
    }

    /// Age of the oldest row in the outbox, as old as [`Self::backlog`].
    #[must_use]
    pub fn lag(&self) -> Duration {
        Duration::from_millis(self.0.oldest_ms.load(Ordering::Relaxed))
    }

    /// Kafka connection of the producer, which sends a request every second.
    #[must_use]
    pub fn kafka(&self) -> &Connection {
        self.0.producer.connection()
    }

    fn send(
        &self,
        mut reservation: Reservation,
        topic: &str,
        About { run_id, event_id, batch, traceparent, is_first }: About<'_>,
        payload: &[u8],
    ) {
        // The reservation was an estimate; from here on the payload's size is used.
        reservation.kept = true;
        self.0.held_bytes.fetch_add(payload.len(), Ordering::Relaxed);
        self.0.held_bytes.fetch_sub(reservation.bytes, Ordering::Relaxed);
        if batch.is_none() {
            self.known().events.insert(event_id);
        }
        self.begin_span(topic, (run_id, event_id), traceparent, is_first);
        let traceparent = trace::of_run(run_id, traceparent);
        let sent = self
            .producer_for(event_id)
            .queue(|producer, token| producer.send(topic, (run_id, event_id, batch), &traceparent, payload, token));
        if let Err(error) = sent {
            let outcome = Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail).into());
            let (run_id, bytes) = (run_id.to_owned(), payload.len());
            let report = Report { run_id, event_id, batch, bytes, outcome, is_alone: true };
            drop(self.0.reports.send(report));
        }
    }

    /// Begins the span of sending a message. It ends with the acknowledgement; a message that is sent again has another.
    fn begin_span(&self, topic: &str, (run_id, event_id): (&str, Uuid), traceparent: Option<&str>, is_first: bool) {
        let Some(request) = traceparent.filter(|_| spans::is_on()).and_then(SpanContext::parse) else { return };
        let run = trace::span_of_run(run_id);
        let parent = if is_first { request } else { SpanContext { span_id: run, ..request } };
        let span = spans::child(Some(parent), Kind::Producer, || format!("send {topic}"));
        if !span.is_recorded() {
            return;
        }
        let mut span = if is_first { span.with_id(run) } else { span };
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.type", "send");
        span.set("messaging.destination.name", topic);
        span.set("messaging.message.id", &event_id.to_string());
        span.set("workflow_api.run.id", run_id);
        if let Some(unsent) = self.spans().insert(event_id, span) {
            unsent.discard();
        }
    }

    /// Ends the span of sending a message, if it was recorded.
    fn end_span(&self, event_id: Uuid, is_sent: bool) {
        if let Some(span) = spans::is_on().then(|| self.spans().remove(&event_id)).flatten()
            && !is_sent
        {
            span.discard();
        }
    }

    fn spans(&self) -> MutexGuard<'_, HashMap<Uuid, Span>> {
        self.0.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The usual producer, or for a message that was rejected in a batch the one that sends it alone.
    fn producer_for(&self, event_id: Uuid) -> &ReplaceableClient<Producer> {
        if !self.refused().contains_key(&event_id) {
            return &self.0.producer;
        }
        self.0.single.get().unwrap_or(&self.0.producer)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, KnownRows> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uncertain(&self) -> MutexGuard<'_, Vec<Uuid>> {
        self.0.uncertain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether plan and input fit into a Kafka record, in the form in which the database stores them.
#[must_use]
pub fn fits_a_record(plan: &RawValue, input: &RawValue) -> bool {
    input::stored_len(plan) + input::stored_len(input) <= MAX_RECORD_BYTES - RECORD_HEADROOM_BYTES
}

fn encode<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).expect("strings and well-formed raw JSON always serialise")
}
