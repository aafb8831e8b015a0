//! Consumer of a trigger: one topic in a consumer group of the trigger's own. All processes are members of it.
//!
//! Where a group without offsets begins is settled before a member joins it ([`begin`]), so that no record is missed between
//! that and the first commit. From then on, partitions without an offset are new ones, and are read from their beginning.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::AdminOptions,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _, Message as _},
    metadata::MetadataTopic,
    statistics::Statistics,
};
use tokio_util::sync::CancellationToken;

use super::{
    REQUEST_TIMEOUT, SHORT_TIMEOUT,
    callbacks::{Callbacks, Context, Role},
    lag,
    replaceable::{self, ClientRole, ReplaceableClient},
    topics,
};
use crate::{
    config,
    trigger::kafka::{Record, Start},
};

/// Role of the clients in metrics.
const ROLE: ClientRole = ClientRole { name: "triggers", meaning: None };
/// Maximum time between two polls before the group removes this member. It is longer than a batch takes.
pub const MAX_POLL_INTERVAL: Duration = Duration::from_mins(1);
/// Interval at which the lag is measured while reading is paused.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Number of no assignment.
const NONE: u64 = u64::MAX;

struct State {
    /// Number of rebalances. A record of an earlier one is read again by the member that has its partition now.
    assignment: AtomicU64,
    /// Assignment under which reading is paused. A later one has resumed it.
    paused: AtomicU64,
    /// Records that wait in the partitions of this member.
    lag: Arc<AtomicI64>,
}

impl State {
    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed) == self.assignment.load(Ordering::Relaxed)
    }
}

impl Role for Arc<State> {
    fn statistics(&self, statistics: &Statistics) {
        // They have the ends of partitions from the answers to fetches, of which there are none then.
        if self.is_paused() {
            return;
        }
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        self.lag.store(partitions.filter_map(lag::lag_of).sum(), Ordering::Relaxed);
    }
}

impl ConsumerContext for Context<Arc<State>> {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, _: &Rebalance<'_>) {
        self.role.assignment.fetch_add(1, Ordering::Relaxed);
    }
}

type Member = StreamConsumer<Context<Arc<State>>>;

/// Member of the group of a trigger.
pub struct TriggerConsumer {
    client: ReplaceableClient<Member>,
    state: Arc<State>,
    topic: String,
}

impl TriggerConsumer {
    /// Joins the group. Brokers need not be up yet; invalid settings are an error. `lag` gets the number of records that wait
    /// in the partitions of this member.
    pub fn new(kafka: &config::Kafka, (topic, group): (&str, &str), lag: &Arc<AtomicI64>) -> KafkaResult<Self> {
        // The client is watched by requests about this topic, which is the one that the service may not be allowed to read.
        let kafka = config::Kafka { execution_topic: topic.to_owned(), ..kafka.clone() };
        let (assignment, paused) = (AtomicU64::default(), AtomicU64::new(NONE));
        let state = Arc::new(State { assignment, paused, lag: Arc::clone(lag) });
        let (of_client, group) = (Arc::clone(&state), group.to_owned());
        let join = move |kafka: &config::Kafka, callbacks| {
            let client = join(kafka, &group, Context { callbacks, role: Arc::clone(&of_client) })?;
            of_client.assignment.fetch_add(1, Ordering::Relaxed);
            Ok(client)
        };
        Ok(Self { client: ReplaceableClient::new(ROLE, &kafka, join)?, state, topic: topic.to_owned() })
    }

    /// Replaces the client whenever necessary, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        self.client.watch(stop).await;
    }

    /// Next record, with the number of the assignment under which it was read. It must be polled regularly, even if no record
    /// is needed, or the group removes this member. Dropping the future loses nothing.
    pub async fn recv(&self) -> KafkaResult<(u64, Record)> {
        self.client.recv(|record| (self.assignment(), read(record))).await
    }

    /// Next record, if one is available already.
    pub fn try_recv(&self) -> Option<KafkaResult<(u64, Record)>> {
        self.recv().now_or_never()
    }

    /// Number of the current assignment of partitions.
    pub fn assignment(&self) -> u64 {
        self.state.assignment.load(Ordering::Relaxed)
    }

    /// Whether this member has partitions.
    pub fn has_partitions(&self) -> bool {
        self.client.current().assignment().is_ok_and(|partitions| partitions.count() > 0)
    }

    /// Stores that this record and all before it in its partition are done with.
    pub fn done(&self, partition: i32, offset: i64) {
        if let Err(error) = self.client.with(|client| client.store_offset(&self.topic, partition, offset)) {
            // The partition belongs to another member now, which reads the record again and finds its run.
            tracing::debug!(topic = self.topic, partition, "the offset is not stored: {error}");
        }
    }

    /// Pauses or resumes reading the partitions of this member; a rebalance resumes.
    pub fn set_paused(&self, is_paused: bool) -> KafkaResult<()> {
        let (client, assignment) = (self.client.current(), self.assignment());
        let partitions = client.assignment()?;
        let changed = if is_paused { client.pause(&partitions) } else { client.resume(&partitions) };
        changed?;
        self.state.paused.store(if is_paused { assignment } else { NONE }, Ordering::Relaxed);
        Ok(())
    }

    /// Measures the lag whenever reading is paused. Does not end.
    pub async fn measure(&self) {
        loop {
            tokio::time::sleep(MEASURE_EVERY).await;
            if !self.state.is_paused() {
                continue;
            }
            let client = self.client.current();
            match tokio::task::spawn_blocking(move || waiting(&client)).await {
                Ok(Ok(lag)) if self.state.is_paused() => self.state.lag.store(lag, Ordering::Relaxed),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(topic = self.topic, "the lag was not measured: {error}"),
                Err(error) => tracing::debug!(topic = self.topic, "the lag was not measured: {error}"),
            }
        }
    }

    /// Commits stored offsets and leaves the group. Blocks the thread until no other reference to the consumer exists.
    pub fn close(self: Arc<Self>) {
        replaceable::wait_for_last_reference(self).client.leave();
    }
}

fn read(record: &BorrowedMessage<'_>) -> Record {
    let headers = record.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect()
    });
    Record {
        topic: record.topic().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        timestamp: record.timestamp().to_millis(),
        key: record.key().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        value: record.payload().map(<[u8]>::to_vec),
    }
}

fn join(kafka: &config::Kafka, group: &str, context: Context<Arc<State>>) -> KafkaResult<Member> {
    let mut config = super::client_config(kafka);
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "range")
        // Of partitions that are new, and of topics that were created again. See `begin`.
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1500")
        .set("max.poll.interval.ms", MAX_POLL_INTERVAL.as_millis().to_string())
        .set("topic.metadata.refresh.interval.ms", "5000")
        .set("fetch.wait.max.ms", "100")
        // There is a client for each trigger: what it holds in memory is bounded by these.
        .set("fetch.message.max.bytes", "1048576")
        .set("fetch.max.bytes", "4194304")
        .set("receive.message.max.bytes", "67108864")
        .set("queued.max.messages.kbytes", "4096")
        .set("queued.min.messages", "500");
    let topic = kafka.execution_topic.clone();
    let client: Member = super::create(kafka, &mut config, context)?;
    client.subscribe(&[&topic])?;
    Ok(client)
}

/// Records of the client's partitions that the group has not committed, as the brokers know them. Blocks the thread for at
/// most three seconds.
fn waiting(client: &Member) -> KafkaResult<i64> {
    let partitions = client.assignment()?;
    if partitions.count() == 0 {
        return Ok(0);
    }
    let by_partition = |list: TopicPartitionList| -> HashMap<i32, i64> {
        let elements = list.elements();
        let places = elements.iter().filter(|element| is_place(element.offset()));
        places.filter_map(|element| Some((element.partition(), element.offset().to_raw()?))).collect()
    };
    let committed = by_partition(client.committed_offsets(partitions.clone(), SHORT_TIMEOUT)?);
    let begins = by_partition(offsets(client, &partitions, Offset::Beginning, SHORT_TIMEOUT)?);
    let ends = by_partition(offsets(client, &partitions, Offset::End, SHORT_TIMEOUT)?);
    let waiting = ends.iter().map(|(partition, end)| {
        let begin = begins.get(partition).max(committed.get(partition)).unwrap_or(end);
        (end - begin).max(0)
    });
    Ok(waiting.sum())
}

/// Settles where the group begins, as far as it has no offsets. It must have no members, unless it `has_begun`. Returns whether anything was
/// settled. Blocks the thread for at most half a minute.
///
/// With `has_begun`, partitions without an offset are new ones and stay as they are, unless there is no offset at all: then
/// the broker has forgotten them.
pub fn begin(kafka: &config::Kafka, (topic, group): (&str, &str), start: Start, has_begun: bool) -> KafkaResult<bool> {
    let mut config = super::client_config(kafka);
    config.set("group.id", group);
    let client = super::open(kafka, config, Callbacks::new(ROLE.name, kafka))?;
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let mut all = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(MetadataTopic::partitions) {
        all.add_partition(topic, partition.id());
    }
    let count = all.count();
    if count == 0 {
        // A topic that does not exist is read from its beginning when it does.
        return Ok(!has_begun);
    }
    let mut missing = TopicPartitionList::new();
    for committed in client.committed_offsets(all, REQUEST_TIMEOUT)?.elements() {
        if committed.offset() == Offset::Invalid {
            missing.add_partition(topic, committed.partition());
        }
    }
    if missing.count() == 0 || (has_begun && missing.count() < count) {
        return Ok(!has_begun);
    }
    let begins = match start {
        Start::Earliest => offsets(&client, &missing, Offset::Beginning, REQUEST_TIMEOUT)?,
        Start::Latest => offsets(&client, &missing, Offset::End, REQUEST_TIMEOUT)?,
        Start::At(at) => {
            let found = offsets(&client, &missing, Offset::Offset(at.timestamp_millis()), REQUEST_TIMEOUT)?;
            let mut later = TopicPartitionList::new();
            for element in found.elements().iter().filter(|element| !is_place(element.offset())) {
                later.add_partition(topic, element.partition());
            }
            let ends = match later.count() {
                0 => later,
                _ => offsets(&client, &later, Offset::End, REQUEST_TIMEOUT)?,
            };
            let mut begins = TopicPartitionList::new();
            let known = found.elements();
            for element in known.iter().filter(|element| is_place(element.offset())).chain(&ends.elements()) {
                begins.add_partition_offset(topic, element.partition(), element.offset())?;
            }
            begins
        }
    };
    match client.commit(&begins, CommitMode::Sync) {
        // The group has members, which have begun to read: nothing is left to settle.
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId)) if has_begun => Ok(false),
        done => done.map(|()| true),
    }
}

fn is_place(offset: Offset) -> bool {
    matches!(offset, Offset::Offset(offset) if offset >= 0)
}

/// Offsets at this time, or of the beginning or the end, of all partitions of the list.
fn offsets<C: ConsumerContext>(
    client: &impl Consumer<C>,
    partitions: &TopicPartitionList,
    at: Offset,
    within: Duration,
) -> KafkaResult<TopicPartitionList> {
    let mut asked = partitions.clone();
    asked.set_all_offsets(at)?;
    let found = client.offsets_for_times(asked, within)?;
    for element in found.elements() {
        element.error()?;
    }
    Ok(found)
}

/// Deletes groups. Returns those that are gone, and a reason why others are not.
pub async fn delete_groups(
    kafka: &config::Kafka,
    groups: &[String],
) -> KafkaResult<(Vec<String>, Option<RDKafkaErrorCode>)> {
    // The brokers forget groups without members after a while.
    if !kafka.triggers.deletes_groups {
        return Ok((groups.to_vec(), None));
    }
    // With OAUTHBEARER the library has no client for this.
    let Some(admin) = topics::admin(kafka)? else { return Ok((groups.to_vec(), None)) };
    let names: Vec<&str> = groups.iter().map(String::as_str).collect();
    let options = AdminOptions::new().operation_timeout(Some(REQUEST_TIMEOUT)).request_timeout(Some(REQUEST_TIMEOUT));
    let (mut gone, mut reason) = (Vec::new(), None);
    for result in admin.delete_groups(&names, &options).await? {
        match result {
            Ok(group) | Err((group, RDKafkaErrorCode::GroupIdNotFound)) => gone.push(group),
            Err((_, code)) => reason = Some(code),
        }
    }
    Ok((gone, reason))
}
