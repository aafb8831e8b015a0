//! The relay: from the outbox to Kafka, at least once, in order within a run.
//!
//! In the healthy case a message never leaves memory: whoever writes an outbox row offers its message to the relay
//! after the commit, and the relay deletes the rows, in batches, that the broker has acknowledged. Everything else
//! (a full queue, an error, a dead process, a broker that forgot) leads to a *free* row, which the sweep of any
//! process takes, making the message again from the run and its definition.
//!
//! If it dies here: before the commit, nothing happened; after it, the row is an orphan and freed by others; after
//! Kafka's acknowledgement and before the delete, the message is sent again with the same `event_id`.

mod maintenance;
mod settle;
mod sweep;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde_json::value::RawValue;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
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
        producer::{
            Batching, DeliveryError, MAX_QUEUED_BYTES, MAX_QUEUED_MESSAGES, MAX_RECORD_BYTES, Producer, Report,
        },
        replaceable::{ClientRole, ReplaceableClient},
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

/// Free rows taken at a time.
const SWEEP_BATCH: usize = 500;
/// How often free rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// What the relay does without brokers.
const PURPOSE: ClientRole =
    ClientRole { name: "runs", meaning: Some("requests are accepted, and dispatched when it is back") };

/// Where messages are offered. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Shared>);

struct Shared {
    kafka: config::Kafka,
    /// How long idempotency keys are kept.
    key_ttl_hours: i32,
    pool: db::Pool,
    registration: Registration,
    producer: ReplaceableClient<Producer>,
    /// For messages that a broker has refused in a batch with others; made when there is the first one.
    single: OnceLock<ReplaceableClient<Producer>>,
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
        let producer = ReplaceableClient::new(PURPOSE, kafka, move |kafka, last_error| {
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
        self.give_up(reservation, event_id, run_id, DeliveryError::Undelivered(RDKafkaErrorCode::PurgeQueue));
    }

    /// Settles a message without sending it.
    fn give_up(&self, mut reservation: Reservation, event_id: Uuid, run_id: String, why: DeliveryError) {
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
    fn producer_for(&self, event_id: Uuid) -> &ReplaceableClient<Producer> {
        if !self.refused().contains_key(&event_id) {
            return &self.0.producer;
        }
        self.0.single.get().unwrap_or(&self.0.producer)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// what the database has stored.
#[must_use]
pub fn fits_a_record(plan: &RawValue, input: &RawValue) -> bool {
    input::stored_len(plan) + input::stored_len(input) <= MAX_RECORD_BYTES - RECORD_HEADROOM_BYTES
}

fn encode<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).expect("strings and well-formed raw JSON always serialise")
}
