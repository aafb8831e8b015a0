//! Kafka: what a topic contains, and the controls without this service.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use rdkafka::{
    ClientConfig, ClientContext, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, DeliveryResult},
    producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer},
};
use uuid::Uuid;

use crate::statistics::Latencies;

/// Time limit of a request to the broker.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Queue of the producer, as in the service.
const QUEUED_MESSAGES: usize = 20_000;
/// Payload of the controls: an execution request of the suite's workflow is as long.
const PAYLOAD: &str = concat!(
    r#"{"run_id":"run-01a223b8-15bb-772c-aa40-d9ec46a0a67a","workflow_plan":{"start_step":"a","steps":{"a":{"id":"a","#,
    r#""agent_name":"bench","input_mapping":{"text":"${workflow.input.text}"}}},"name":"bench","version":1,"agents":{"#,
    r#""bench":{"url":"http://127.0.0.1:9010/upper"}}},"input_data":{"text":"hello"},"timestamp":"2026-11-29T01:02:03"#,
    r#".123456Z","message_type":"execution_request","event_id":"01a223b8-15bb-772c-aa40-d9ec46a0a67b","correlation_id"#,
    r#"":"01a223b8-15bb-772c-aa40-d9ec46a0a67c","priority":5}"#
);

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn admin(brokers: &str) -> Result<AdminClient<DefaultClientContext>> {
    Ok(config(brokers).create()?)
}

/// Creates a topic, if it does not exist.
pub async fn create_topic(brokers: &str, topic: &str, partitions: i32) -> Result<()> {
    let topics = [NewTopic::new(topic, partitions, TopicReplication::Fixed(1))];
    for result in admin(brokers)?.create_topics(&topics, &AdminOptions::new()).await? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, error)) => bail!("topic {topic}: {error}"),
        }
    }
    Ok(())
}

/// Deletes the topics whose names begin like that.
pub async fn delete_topics(brokers: &str, prefix: String) -> Result<()> {
    let admin = admin(brokers)?;
    let metadata = admin.inner().fetch_metadata(None, TIMEOUT)?;
    let topics: Vec<&str> = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name).collect();
    let topics: Vec<&str> = topics.into_iter().filter(|topic| topic.starts_with(&prefix)).collect();
    if !topics.is_empty() {
        admin.delete_topics(&topics, &AdminOptions::new()).await?;
    }
    Ok(())
}

/// Consumer of a whole topic, without a group.
fn consumer(brokers: &str, topic: &str, from: Offset) -> Result<(BaseConsumer, Vec<i32>)> {
    let settings = [("group.id", "suite"), ("enable.auto.commit", "false"), ("fetch.wait.max.ms", "100")];
    let mut config = config(brokers);
    for (name, value) in settings {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let found = metadata.topics().first().context("the broker does not know the topic")?;
    let partitions: Vec<i32> = found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect();
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, from)?;
    }
    consumer.assign(&assignment)?;
    Ok((consumer, partitions))
}

/// Content of a topic of execution requests.
#[derive(Debug, Default)]
pub struct Content {
    /// Runs that have a message.
    pub run_ids: HashSet<Uuid>,
    /// Number of messages.
    pub messages: usize,
}

/// Reads a topic from the beginning to its present end.
pub async fn content(brokers: &str, topic: &str) -> Result<Content> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let (consumer, partitions) = consumer(&brokers, &topic, Offset::Beginning)?;
        let mut missing = 0;
        for partition in partitions {
            let (low, high) = consumer.fetch_watermarks(&topic, partition, TIMEOUT)?;
            missing += usize::try_from(high - low)?;
        }
        let mut content = Content::default();
        while content.messages < missing {
            let message = consumer.poll(TIMEOUT).ok_or_else(|| anyhow!("{topic}: no message within 10 s"))??;
            content.run_ids.extend(run_of(&message));
            content.messages += 1;
        }
        Ok(content)
    })
    .await?
}

/// Counts the messages that the broker has acknowledged.
#[derive(Clone, Default)]
struct Acknowledged(Arc<AtomicUsize>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Producer with the settings of the service, without the service.
struct BareProducer {
    producer: ThreadedProducer<Acknowledged>,
    acknowledged: Acknowledged,
    topic: String,
}

impl BareProducer {
    fn new(brokers: &str, topic: &str) -> Result<Self> {
        let acknowledged = Acknowledged::default();
        let producer = config(brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", QUEUED_MESSAGES.to_string())
            .create_with_context(acknowledged.clone())?;
        Ok(Self { producer, acknowledged, topic: topic.to_owned() })
    }

    /// Queues a message; waits while the queue is full.
    fn send(&self) -> Result<()> {
        let key = format!("run-{}", Uuid::new_v4());
        let mut record = BaseRecord::to(&self.topic).key(&key).payload(PAYLOAD);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
}

/// Messages per second of a bare producer that sends so many, until the last is acknowledged.
pub async fn bare_producer(brokers: &str, topic: &str, messages: usize) -> Result<f64> {
    create_topic(brokers, topic, crate::stack::PARTITIONS).await?;
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let bare = BareProducer::new(&brokers, &topic)?;
        let started = Instant::now();
        for _ in 0..messages {
            bare.send()?;
        }
        bare.producer.flush(Duration::from_mins(1))?;
        Ok(bare.acknowledged.0.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
    })
    .await?
}

/// Messages per second from a bare producer to a bare consumer.
pub async fn bare_rate(brokers: &str, topic: &str, length: Duration) -> Result<f64> {
    create_topic(brokers, topic, crate::stack::PARTITIONS).await?;
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let (consumer, _) = consumer(&brokers, &topic, Offset::Beginning)?;
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let counting = thread::spawn(move || {
            let mut count = 0_usize;
            while !is_ended.load(Ordering::Relaxed) {
                if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                    message?;
                    count += 1;
                }
            }
            anyhow::Ok(count)
        });
        let bare = BareProducer::new(&brokers, &topic)?;
        let started = Instant::now();
        while started.elapsed() < length {
            bare.send()?;
        }
        ended.store(true, Ordering::Relaxed);
        let seconds = started.elapsed().as_secs_f64();
        let count = counting.join().map_err(|_| anyhow!("the consumer has died"))??;
        bare.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        Ok(count as f64 / seconds)
    })
    .await?
}

/// Arrivals of new messages at a consumer of its own.
pub struct Arrivals {
    is_ended: Arc<AtomicBool>,
    consuming: thread::JoinHandle<Result<HashMap<Uuid, Instant>>>,
}

impl Arrivals {
    /// Begins with the next message of a topic.
    pub async fn watch(brokers: &str, topic: &str) -> Result<Self> {
        let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
        tokio::task::spawn_blocking(move || {
            let (consumer, _) = consumer(&brokers, &topic, Offset::End)?;
            // The consumer begins at the end that it finds with its first poll.
            consumer.poll(Duration::from_secs(1));
            let is_ended = Arc::new(AtomicBool::new(false));
            let ended = Arc::clone(&is_ended);
            let consuming = thread::spawn(move || {
                let mut arrivals = HashMap::new();
                while !ended.load(Ordering::Relaxed) {
                    if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                        arrivals.extend(run_of(&message?).map(|run_id| (run_id, Instant::now())));
                    }
                }
                Ok(arrivals)
            });
            Ok(Self { is_ended, consuming })
        })
        .await?
    }

    /// Times of arrival by run, of the messages so far.
    pub fn end(self) -> Result<HashMap<Uuid, Instant>> {
        self.is_ended.store(true, Ordering::Relaxed);
        self.consuming.join().map_err(|_| anyhow!("the consumer has died"))?
    }
}

/// Run of an execution request, from the message's key.
fn run_of(message: &BorrowedMessage<'_>) -> Option<Uuid> {
    Uuid::try_parse(std::str::from_utf8(message.key()?).ok()?.strip_prefix("run-")?).ok()
}

/// Times from the production of a single message to its consumption.
pub async fn bare_latency(brokers: &str, topic: &str, messages: usize) -> Result<Latencies> {
    create_topic(brokers, topic, crate::stack::PARTITIONS).await?;
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let (consumer, _) = consumer(&brokers, &topic, Offset::End)?;
        let bare = BareProducer::new(&brokers, &topic)?;
        // The consumer begins at the end that it finds with its first poll.
        consumer.poll(Duration::from_secs(1));
        let mut latencies = Latencies::default();
        for message in 0..messages + messages / 10 {
            let sent = Instant::now();
            bare.send()?;
            consumer.poll(TIMEOUT).ok_or_else(|| anyhow!("{topic}: no message within 10 s"))??;
            // The first tenth is the warm-up.
            if message >= messages / 10 {
                latencies.add(sent.elapsed());
            }
        }
        Ok(latencies)
    })
    .await?
}
