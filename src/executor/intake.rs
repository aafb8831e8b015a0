//! Consumer loop: from Kafka's records to claimed runs.
//!
//! A record's offset is stored once its effect is committed: the claim, the result that there is nothing to claim, or
//! the dead letter of an unusable record together with the failure of the run that waits for it. If the process dies
//! before, the record is redelivered, and the condition of the claim makes the repeat harmless. While no slot is free,
//! or the database is down, records wait here and then in Kafka; the group membership and the cancellations continue.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    Executor,
    active::Slots,
    assignment::{Assignment, FirstAttempt, Origin, Progress, input_or_empty, limits_of, stored},
    cancellations::Cancellations,
    dead_letters::DeadLetters,
    first_attempt,
    own_connection::OwnConnection,
    plans::RunOrigin,
    queue::Queue,
    request::{InvalidRecord, PendingRequest, columns, plan_of},
    retry,
};
use crate::{
    access::OrganizationId,
    db::{
        self,
        executions::{self, ClaimBatch, Claimed},
        monitoring::Outgoing,
    },
    kafka::{
        consumer::{Consumer, Position, Record, Topic, traceparent},
        message::Message,
        problem::{self, Trouble},
    },
    telemetry::catalogue,
};

/// Maximum number of runs claimed in one statement.
const MAX_CLAIMED: usize = 200;
/// Maximum bytes of plans and inputs claimed in one statement, unless a single record is larger.
const MAX_CLAIMED_BYTES: usize = 4 << 20;
/// Maximum records, and bytes, held in memory. Above either limit reading is paused; below half of both it resumes.
/// Half is enough work for the half second that librdkafka takes to read again after a pause. The workflows of held
/// records take turns, so a burst of one workflow up to this size delays no other.
const MAX_HELD: usize = 100_000;
const MAX_HELD_BYTES: usize = 32 << 20;
/// Maximum number of records read before they are processed.
const MAX_READ: usize = 500;
/// Smallest pool of which the intake keeps a connection.
const MIN_POOL: usize = 8;
/// Statement time-out of the claims.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Explanation for a record that the database refuses.
const REFUSED: &str = "the database refuses its plan, input or ids";
/// Pause after errors of the consumer. It is short: while brokers are down the consumer reports many errors, and later
/// events in its queue, such as assigned partitions, wait until they are read.
const KAFKA_PAUSE: Duration = Duration::from_millis(10);

/// Consumer loop for execution requests and cancellations.
pub(super) struct Intake {
    executor: Executor,
    consumer: Arc<Consumer>,
    queue: Queue,
    /// Requests that are next to be claimed.
    waiting: VecDeque<PendingRequest>,
    /// Future of the next slot. It is kept until it is ready, since resuming parked runs waits for slots too.
    next_slots: Option<BoxFuture<'static, Slots>>,
    /// Slots that became free.
    slots: Option<Slots>,
    /// Connection for the claims.
    connection: OwnConnection,
    executions: Flow,
    cancels: Flow,
    cancellations: Cancellations,
    dead_letters: DeadLetters,
    /// Records that the database refused, until they are read again to become dead letters.
    refused: HashSet<Position>,
    /// Number of requests that are still claimed one by one, because the database refused one of them.
    singles: usize,
    failures: u32,
    retry_at: Option<Instant>,
    is_broken: bool,
}

impl Intake {
    pub(super) fn new(executor: Executor, consumer: Arc<Consumer>) -> Self {
        let connection = OwnConnection::new(executor.pool.clone(), STATEMENT_TIMEOUT);
        Self {
            executor,
            consumer,
            queue: Queue::default(),
            waiting: VecDeque::new(),
            next_slots: None,
            slots: None,
            connection,
            executions: Flow::new(Topic::Executions),
            cancels: Flow::new(Topic::Cancellations),
            cancellations: Cancellations::default(),
            dead_letters: DeadLetters::default(),
            refused: HashSet::new(),
            singles: 0,
            failures: 0,
            retry_at: None,
            is_broken: false,
        }
    }

    /// Reads and claims until the soft stop, then leaves the group.
    pub(super) async fn run(mut self) {
        let soft_stop = self.executor.soft_stop.clone();
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                biased;
                () = soft_stop.cancelled() => break,
                () = tokio::time::sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    self.retry_at = None;
                }
                slots = next(&mut self.next_slots) => {
                    self.next_slots = None;
                    self.slots = Some(slots);
                }
                received = self.consumer.recv() => self.receive_all(received).await,
            }
            if self.retry_at.is_none() {
                // No statement runs inside the select above.
                let outcome = self.process().await;
                match outcome {
                    Ok(()) => self.failures = 0,
                    Err(error) => self.postpone(&error),
                }
            }
            self.pause_or_resume();
        }
        let closed = tokio::task::spawn_blocking(move || self.consumer.close()).await;
        if closed.is_err() {
            tracing::warn!("the Kafka consumer could not be closed");
        }
    }

    /// Processes the records that were read, as far as possible.
    async fn process(&mut self) -> Result<(), db::Error> {
        self.cancellations.process(&self.executor, &self.consumer).await?;
        self.claim_waiting().await?;
        self.dead_letters.process(&self.executor, &self.consumer).await
    }

    fn postpone(&mut self, error: &db::Error) {
        if self.failures == 0 {
            tracing::warn!(error = error as &dyn std::error::Error, "requests wait for the database: {error}");
        }
        self.retry_at = Some(Instant::now() + retry::database_pause(self.failures));
        self.failures += 1;
    }

    async fn receive_all(&mut self, first: KafkaResult<Record>) {
        let mut next = Some(first);
        let mut is_failing = false;
        for _ in 0..MAX_READ {
            match next.take() {
                None => break,
                Some(Ok(record)) => self.receive(record),
                Some(Err(error)) => {
                    self.note_broken(&error);
                    is_failing = true;
                }
            }
            next = self.consumer.try_recv();
        }
        if let Some(Ok(record)) = next {
            self.receive(record);
        }
        if is_failing {
            tokio::time::sleep(KAFKA_PAUSE).await;
        }
    }

    fn note_broken(&mut self, error: &KafkaError) {
        if let Some(code) = error.rdkafka_error_code().filter(|code| problem::is_denied(*code)) {
            self.is_broken = true;
            return self.consumer.note_denied(code);
        }
        // The watch of the client reports that no broker answers.
        let is_reported =
            matches!(error.rdkafka_error_code(), Some(Code::AllBrokersDown | Code::BrokerTransportFailure));
        if is_reported || std::mem::replace(&mut self.is_broken, true) {
            tracing::debug!("Kafka cannot be read: {error}");
        } else {
            tracing::warn!("Kafka cannot be read, retrying: {error}");
        }
    }

    fn receive(&mut self, record: Record) {
        if std::mem::take(&mut self.is_broken) {
            self.consumer.connection().end_all(Trouble::ReadDenied);
            tracing::info!("Kafka is read again");
        }
        let Record { position, sent_at, bytes, message, raw } = record;
        let request = match message {
            Ok(Message::Execution(request)) => request,
            Ok(Message::Cancellation(request)) => return self.cancellations.push(position, bytes, request),
            Err(error) => {
                let fault = InvalidRecord { code: error.code(), text: error.to_string() };
                return self.dead_letters.push(position, &raw, &fault, None);
            }
        };
        let plan = if self.refused.remove(&position) {
            Err(InvalidRecord { code: "refused_by_database", text: REFUSED.to_owned() })
        } else {
            plan_of(&self.executor.plans, &request, bytes)
        };
        match plan {
            Ok(plan) => self.queue.push(PendingRequest::new(position, sent_at, traceparent(&raw), request, plan)),
            Err(fault) => {
                // A request without a run id has no run, whatever its key says.
                let request = Some(&request).filter(|request| !request.run_id.is_empty());
                self.dead_letters.push(position, &raw, &fault, request);
            }
        }
    }

    /// Claims waiting requests, as far as there are slots.
    async fn claim_waiting(&mut self) -> Result<(), db::Error> {
        loop {
            if self.is_empty() {
                // Without requests the slots are released.
                (self.slots, self.next_slots) = (None, None);
                return Ok(());
            }
            let Some(owner) = self.executor.registration.current() else {
                self.retry_at = Some(Instant::now() + retry::database_pause(0));
                return Ok(());
            };
            let Some(slots) = self.slots.take().or_else(|| self.executor.active.free(MAX_CLAIMED)) else {
                let executor = self.executor.clone();
                let next = async move { executor.active.next_free(MAX_CLAIMED).await };
                self.next_slots.get_or_insert_with(|| next.boxed());
                return Ok(());
            };
            // From here on no end of a run is missed.
            let mut ends = self.executor.active.ends();
            let mut shares = self.executor.active.shares(&slots);
            self.waiting.iter().for_each(|waiting| shares.give(&waiting.organization));
            while self.waiting.len() < slots.count()
                && let Some(next) = self.queue.pop(|organization| shares.take(organization))
            {
                self.waiting.push_back(next);
            }
            if self.waiting.is_empty() {
                // The organisations of all waiting requests have used up their shares.
                let executor = self.executor.clone();
                let next = async move {
                    ends.changed().await.ok();
                    executor.active.next_free(MAX_CLAIMED).await
                };
                self.next_slots = Some(next.boxed());
                return Ok(());
            }
            let limit = if self.singles > 0 { 1 } else { slots.count() };
            let count = self.batch_size(limit);
            let since = self.executor.clock.instant();
            let batch = self.next_batch(count);
            match self.claim_batch(owner, &batch).await {
                Ok(claimed) => {
                    tracing::debug!(requests = count, runs = claimed.len(), "runs were claimed");
                    self.singles = self.singles.saturating_sub(count);
                    self.start(&batch, since, claimed, owner, slots).await?;
                }
                Err(error) if error.is_retryable() => return Err(error),
                // Alone and without its first attempt it shows which request is refused.
                Err(_) if count > 1 || batch.first.iter().any(Option::is_some) => self.singles = count,
                Err(error) => {
                    self.singles = self.singles.saturating_sub(1);
                    tracing::error!(error = &error as &dyn std::error::Error, "a request is refused: {error}");
                    self.refuse();
                }
            }
        }
    }

    /// Batch of the first `count` requests, with their first attempts.
    fn next_batch(&self, count: usize) -> Arc<ClaimBatch> {
        // If the database refuses a request, its first attempt is not the reason.
        let first_of = |request| if self.singles > 0 { None } else { first_attempt::of(request) };
        Arc::new(columns(self.waiting.iter().take(count).map(|request| (request, first_of(request)))))
    }

    /// Claims the requests of the batch, and passes the updates of their first attempts on.
    async fn claim_batch(&mut self, owner: Uuid, batch: &Arc<ClaimBatch>) -> Result<Vec<Claimed>, db::Error> {
        let monitoring = self.executor.monitoring.clone();
        let updates =
            monitoring.and_then(|to| to.prepare(batch.first.iter().map(Option::as_ref)).map(|made| (to, made)));
        let outgoing = updates.as_ref().map(|(_, prepared)| Arc::clone(&prepared.row));
        let claimed = self.claim(owner, Arc::clone(batch), outgoing).await;
        if let Some((monitoring, prepared)) = updates {
            match &claimed {
                Ok(claimed) => {
                    let begun = claimed.iter().filter(|run| run.has_begun);
                    let begun: Vec<&str> = begun.map(|run| run.run_id.as_str()).collect();
                    monitoring.committed(prepared, &begun, false);
                }
                // If the claim was committed nevertheless, a sweep finds the row.
                Err(_) => monitoring.failed(&prepared),
            }
        }
        claimed
    }

    /// Claims the requests of the batch with the intake's own connection, unless the pool is small.
    async fn claim(
        &mut self,
        owner: Uuid,
        batch: Arc<ClaimBatch>,
        outgoing: Option<Arc<Outgoing>>,
    ) -> Result<Vec<Claimed>, db::Error> {
        let pool = self.executor.pool.clone();
        let keeps = pool.max() >= MIN_POOL;
        let own = if keeps { Some(self.connection.take().await?) } else { None };
        let (connection, claimed) = db::bounded(async move {
            let mut connection = match own {
                Some(connection) => connection,
                None => pool.acquire().await?,
            };
            let claim = executions::claim(&mut connection, owner, &batch, outgoing.as_deref());
            let claimed = pool.unless_silent(claim).await;
            Ok((connection, claimed))
        })
        .await?;
        if keeps {
            self.connection.keep(connection, &claimed);
        }
        claimed
    }

    /// Number of the first requests that go into one statement, each run once.
    fn batch_size(&self, limit: usize) -> usize {
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        let fitting = self.waiting.iter().take(limit).take_while(|request| {
            bytes += request.payload_bytes();
            let is_first = seen.is_empty();
            seen.insert(request.run_id.as_str()) && (is_first || bytes <= MAX_CLAIMED_BYTES)
        });
        fitting.count()
    }

    /// Starts the runs of the batch that were claimed, and removes the requests of the batch. `since`: the instant before
    /// the claim.
    async fn start(
        &mut self,
        batch: &ClaimBatch,
        since: std::time::Instant,
        claimed: Vec<Claimed>,
        owner: Uuid,
        mut slots: Slots,
    ) -> Result<(), db::Error> {
        let mut claimed: HashMap<String, Claimed> =
            claimed.into_iter().map(|claimed| (claimed.run_id.clone(), claimed)).collect();
        catalogue::count_transition("PENDING", "RUNNING", claimed.len() as u64);
        let mut cancelled = Vec::new();
        for first in &batch.first {
            let Some(request) = self.waiting.pop_front() else { break };
            self.consumer.done(request.position);
            let Some(row) = claimed.remove(&request.run_id) else {
                let run_id = &request.run_id;
                tracing::debug!(run_id, "the request is a duplicate, or run {run_id} must not be executed");
                continue;
            };
            if self.cancellations.take_pending(&row.run_id) {
                cancelled.push(row.run_id);
                continue;
            }
            // There are at least as many slots as requests.
            let Some(slot) = slots.take_one() else { break };
            let organization = OrganizationId::stored(&row.organization_id);
            request.plan.set_last_origin(RunOrigin {
                organization: organization.clone(),
                workflow_id: row.workflow_id.clone(),
                workflow_name: row.workflow_name.clone(),
            });
            let agent_version = row.agent_version;
            let first = first.as_ref().and_then(|first| first.begun.clone()).filter(|_| row.has_begun);
            let assignment = Assignment {
                run_id: row.run_id,
                lease_token: request.lease_token,
                organization,
                workflow_id: row.workflow_id,
                workflow_name: row.workflow_name,
                correlation_id: row.correlation_id,
                traceparent: row.traceparent,
                origin: Origin::Message,
                plan: Ok(Arc::clone(&request.plan.plan)),
                input: input_or_empty(request.input.or_else(|| stored(row.input_data))),
                before: if row.has_steps { Progress::Interrupted } else { Progress::Nothing },
                first: first.map(|row| FirstAttempt { row, since, agent_version }),
                takeovers: 0,
                elapsed: Duration::ZERO,
                limits: limits_of(row.limits.as_deref()),
            };
            self.executor.start_run(assignment, owner, slot);
        }
        if !cancelled.is_empty() {
            // If this fails, the sweep resumes the run. Such a cancellation without a row was not guaranteed anyway.
            let unknown = vec![None; cancelled.len()];
            let pool = self.executor.pool.clone();
            db::bounded(async move {
                executions::cancel(&mut *pool.acquire().await?, &cancelled, &unknown, &unknown).await
            })
            .await?;
        }
        Ok(())
    }

    /// Reads the first request again, so that it becomes a dead letter as it was sent. The records behind it in its
    /// partition are read again too, and found to be claimed.
    fn refuse(&mut self) {
        let Some(PendingRequest { position, .. }) = self.waiting.pop_front() else { return };
        if self.refused.len() >= MAX_HELD {
            // The refused records of partitions that belong to other members now.
            self.refused.clear();
        }
        self.refused.insert(position);
        self.consumer.seek_back(position);
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.queue.len() == 0
    }

    /// Limits the waiting records by pausing topics. Requests wait for slots, all others only for the database.
    fn pause_or_resume(&mut self) {
        let records = self.cancellations.len() + self.dead_letters.len();
        let bytes = self.cancellations.bytes() + self.dead_letters.bytes();
        self.cancels.turn(&self.consumer, records, bytes);
        self.executions.turn(&self.consumer, self.queue.len() + records, self.queue.bytes() + bytes);
    }
}

/// Flow control of a topic.
struct Flow {
    topic: Topic,
    is_paused: bool,
}

impl Flow {
    fn new(topic: Topic) -> Self {
        Self { topic, is_paused: false }
    }

    /// Pauses reading while too much is held, and resumes it at half of that. Repeats the pause on every record above
    /// the limit, since a rebalance resumes reading.
    fn turn(&mut self, consumer: &Consumer, records: usize, bytes: usize) {
        let is_full = records >= MAX_HELD || bytes >= MAX_HELD_BYTES;
        let has_room = records <= MAX_HELD / 2 && bytes <= MAX_HELD_BYTES / 2;
        let wanted = is_full || (self.is_paused && !has_room);
        if wanted == self.is_paused && !is_full {
            return;
        }
        match consumer.set_paused(self.topic, wanted) {
            Ok(()) => self.is_paused = wanted,
            Err(error) => tracing::debug!("reading cannot be paused or resumed: {error}"),
        }
    }
}

/// Awaits the future, if there is one.
async fn next(slots: &mut Option<BoxFuture<'static, Slots>>) -> Slots {
    match slots {
        Some(slots) => slots.await,
        None => std::future::pending().await,
    }
}
