//! Replaceable clients: a Kafka client that no broker answers is replaced by a new one.
//!
//! librdkafka can lose its brokers for good: one metadata answer with topics and without brokers, as a fenced single
//! broker gives, ends its broker threads (its issue 5301). It reports no fatal error, and never connects again.
//! Therefore each client requests metadata once a second. A client without an answer for [`config::Kafka::renew_after`]
//! is replaced if a new test client gets one. While the brokers are down for all clients, none is replaced, and queued
//! messages stay queued.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    client::Client as NativeClient,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{Producer, ProducerContext, PurgeConfig},
};
use tokio::sync::{Notify, futures::Notified, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config;

/// Interval of metadata requests.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Time-out of a metadata request.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Time without an answer after which an outage is logged: a single late answer is not.
const LOG_AFTER: Duration = Duration::from_secs(2);
/// Interval of further log lines about the outage.
const LOG_EVERY: Duration = Duration::from_mins(1);
/// Time-out of a closed producer for reporting its queued messages.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// Polling interval for the last reference to a replaced client.
const REFERENCE_POLL: Duration = Duration::from_millis(20);

/// Common interface of the clients.
pub trait Client: Send + Sync + Sized + 'static {
    /// Context type of the client.
    type Context: ClientContext;

    /// Native client.
    fn native(&self) -> &NativeClient<Self::Context>;

    /// Closes the client. This may block the thread for long.
    fn end(self) {}
}

/// Closes a producer: queued and in-flight messages are reported as not sent.
pub(super) fn end_producer<C: ProducerContext>(producer: &impl Producer<C>) {
    producer.purge(PurgeConfig::default().queue().inflight());
    if let Err(error) = producer.flush(REPORT_WITHIN) {
        let messages = producer.in_flight_count();
        tracing::error!(messages, "a Kafka producer was closed without reports on all its messages: {error}");
    }
}

/// Last connection error of a client. Cheap to clone.
#[derive(Clone, Default)]
pub struct LastError(Arc<Mutex<Option<String>>>);

impl LastError {
    /// Records an error of [`ClientContext::error`].
    pub fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!("{error}: {reason}");
        // An error of a single broker is more specific than the one that all are down.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }

    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Context of a client without other callbacks.
#[derive(Clone, Default)]
pub struct Context(pub LastError);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

/// Connection state: whether the last metadata request was answered. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connection(Arc<LastAnswer>);

#[derive(Default)]
struct LastAnswer {
    is_up: AtomicBool,
    response_us: AtomicU64,
}

impl Connection {
    /// State, at most two seconds old.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Relaxed)
    }

    /// Time that the last request took, answered or not.
    #[must_use]
    pub fn response(&self) -> Duration {
        Duration::from_micros(self.0.response_us.load(Ordering::Relaxed))
    }

    fn note(&self, is_up: bool, response: Duration) {
        self.0.response_us.store(u64::try_from(response.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.is_up.store(is_up, Ordering::Relaxed);
    }
}

/// Role of a client.
#[derive(Clone, Copy)]
pub struct ClientRole {
    /// Name in logs and metrics.
    pub name: &'static str,
    /// Effect of an outage for the log; `None` if another client of the process logs it.
    pub meaning: Option<&'static str>,
}

type Make<T> = dyn Fn(&config::Kafka, LastError) -> KafkaResult<T> + Send + Sync;

/// Client that is replaced if no broker answers it.
pub struct ReplaceableClient<T> {
    purpose: ClientRole,
    settings: config::Kafka,
    make: Box<Make<T>>,
    last_error: LastError,
    current: RwLock<Arc<T>>,
    renewed: Notify,
    connection: Connection,
}

impl<T: Client> ReplaceableClient<T> {
    /// Creates the first client. Brokers need not be up yet; invalid settings are an error.
    pub fn new(
        purpose: ClientRole,
        settings: &config::Kafka,
        make: impl Fn(&config::Kafka, LastError) -> KafkaResult<T> + Send + Sync + 'static,
    ) -> KafkaResult<Self> {
        let last_error = LastError::default();
        // It exists from the start, so that a rate includes the first replacement.
        metrics::counter!("kafka_clients_renewed_total", "client" => purpose.name).increment(0);
        let current = RwLock::new(Arc::new(make(settings, last_error.clone())?));
        Ok(Self {
            purpose,
            settings: settings.clone(),
            make: Box::new(make),
            last_error,
            current,
            renewed: Notify::new(),
            connection: Connection::default(),
        })
    }

    /// Current client.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls a function that does not block, never at the same time as a replacement: a message passed to a producer
    /// here is either reported by it, or belongs to its successor.
    pub fn with<R>(&self, act: impl FnOnce(&T) -> R) -> R {
        act(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves at the next replacement after this call.
    pub fn renewed(&self) -> Notified<'_> {
        self.renewed.notified()
    }

    /// Connection state: whether brokers answer.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns the client and drops everything else.
    pub fn into_current(self) -> Arc<T> {
        self.current.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls and replaces the client, and logs outages, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        let mut outage = Outage::new(Instant::now());
        let mut probe: Option<oneshot::Receiver<bool>> = None;
        loop {
            let asked_at = Instant::now();
            let answer = tokio::select! {
                answer = self.ask() => answer,
                () = stop.cancelled() => return,
            };
            let now = Instant::now();
            self.connection.note(answer.is_ok(), now - asked_at);
            metrics::gauge!("kafka_connected", "client" => self.purpose.name).set(f64::from(u8::from(answer.is_ok())));
            self.tell(outage.note(answer.is_ok(), now), &answer);
            if answer.is_ok() {
                self.last_error.forget();
            }
            if self.with(|client| client.native().fatal_error().is_some()) {
                self.replace("it met a fatal error");
            } else if outage.lasts(now) >= self.settings.renew_after {
                probe = match probe.take() {
                    None => Some(probing(self.settings.clone())),
                    Some(mut probe) => match probe.try_recv() {
                        Err(oneshot::error::TryRecvError::Empty) => Some(probe),
                        Ok(true) => {
                            self.replace("no broker answers it, but one answers a new client");
                            outage = Outage { since: now, ..outage };
                            None
                        }
                        Ok(false) | Err(oneshot::error::TryRecvError::Closed) => None,
                    },
                };
            } else {
                probe = None;
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn ask(&self) -> KafkaResult<()> {
        let (client, topic) = (self.current(), self.settings.execution_topic.clone());
        let asked = tokio::task::spawn_blocking(move || ask(client.native(), &topic, ANSWER_WITHIN).map(drop));
        asked.await.unwrap_or(Err(KafkaError::Canceled))
    }

    fn tell(&self, news: News, answer: &KafkaResult<()>) {
        let Some(meaning) = self.purpose.meaning else { return };
        let reason = || match (self.last_error.get(), answer) {
            (Some(reason), _) => reason,
            (None, Err(error)) => error.to_string(),
            (None, Ok(())) => String::new(),
        };
        let brokers = &self.settings.brokers;
        match news {
            News::Nothing => {}
            News::Up => tracing::info!("Kafka is connected"),
            News::Down => {
                tracing::error!("Kafka is disconnected: no broker of {brokers} answers ({}); {meaning}", reason());
            }
            News::StillDown(outage) => {
                let secs = outage.as_secs();
                tracing::error!(
                    "Kafka has been disconnected for {secs} s: no broker of {brokers} answers ({})",
                    reason()
                );
            }
        }
    }

    /// Replaces the client. The old one is closed in a background thread.
    fn replace(&self, reason: &str) {
        let name = self.purpose.name;
        let fresh = match (self.make)(&self.settings, self.last_error.clone()) {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => return tracing::error!("the Kafka client for {name} cannot be replaced: {error}"),
        };
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), fresh);
        self.renewed.notify_waiters();
        metrics::counter!("kafka_clients_renewed_total", "client" => name).increment(1);
        tracing::warn!("the Kafka client for {name} is replaced: {reason}");
        close_in_background(old);
    }
}

/// Closes a client after its last use, in a background thread: librdkafka may block there forever.
pub(super) fn close_in_background<T: Client>(client: Arc<T>) {
    let spawned =
        thread::Builder::new().name("kafka-end".to_owned()).spawn(move || wait_for_last_reference(client).end());
    if let Err(error) = spawned {
        // The closure, and with it the client, is dropped here.
        tracing::error!("no thread could be started to close a Kafka client: {error}");
    }
}

/// Waits for the last reference. Blocks the thread.
pub(super) fn wait_for_last_reference<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(sole) => return sole,
            Err(again) => shared = again,
        }
        thread::sleep(REFERENCE_POLL);
    }
}

/// Tests in a background thread whether a new client gets an answer.
fn probing(settings: config::Kafka) -> oneshot::Receiver<bool> {
    let (done, answered) = oneshot::channel();
    // Without a thread the sender is dropped, the receiver gets an error, and the test is repeated.
    let _thread = thread::Builder::new().name("kafka-probe".to_owned()).spawn(move || {
        // The receiver may have been dropped.
        done.send(super::ping(&settings).is_ok()).ok();
    });
    answered
}

/// Number of brokers in the metadata; none is an error. Blocks the thread.
pub(super) fn ask<C: ClientContext>(client: &NativeClient<C>, topic: &str, at_most: Duration) -> KafkaResult<usize> {
    // The request is about one topic, since the answer about all may be large.
    match client.fetch_metadata(Some(topic), at_most)?.brokers().len() {
        0 => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable)),
        count => Ok(count),
    }
}

/// Events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    Up,
    Down,
    StillDown(Duration),
}

/// Outage tracker: time without an answer, and what was logged about it. Pure.
#[derive(Clone, Copy)]
struct Outage {
    /// Last answer, or the start of the client.
    since: Instant,
    /// Start of the outage for the log; a new client may have none either.
    began: Instant,
    logged_at: Option<Instant>,
    was_ever_up: bool,
}

impl Outage {
    fn new(now: Instant) -> Self {
        Self { since: now, began: now, logged_at: None, was_ever_up: false }
    }

    fn note(&mut self, is_answered: bool, now: Instant) -> News {
        if is_answered {
            (self.since, self.began) = (now, now);
            let is_first = !std::mem::replace(&mut self.was_ever_up, true);
            return if self.logged_at.take().is_some() || is_first { News::Up } else { News::Nothing };
        }
        let outage = now.duration_since(self.began);
        match self.logged_at {
            None if outage >= LOG_AFTER => {
                self.logged_at = Some(now);
                News::Down
            }
            Some(logged_at) if now.duration_since(logged_at) >= LOG_EVERY => {
                self.logged_at = Some(now);
                News::StillDown(outage)
            }
            _ => News::Nothing,
        }
    }

    /// Time without an answer of this client.
    fn lasts(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log events second by second.
    fn news(answers: impl IntoIterator<Item = bool>) -> Vec<(u64, News)> {
        let start = Instant::now();
        let mut outage = Outage::new(start);
        let at = |(second, answer)| (second, outage.note(answer, start + Duration::from_secs(second)));
        (1..).zip(answers).map(at).filter(|(_, news)| *news != News::Nothing).collect()
    }

    #[test]
    fn an_outage_is_logged_from_the_start_and_once_a_minute() {
        let still = |secs| News::StillDown(Duration::from_secs(secs));
        let outage = std::iter::repeat_n(false, 130).chain([true, true]);
        assert_eq!(news(outage), [(2, News::Down), (62, still(62)), (122, still(122)), (131, News::Up)]);
        assert_eq!(news([true, false, true, false, true]), [(1, News::Up)], "one late answer is not worth a line");
        assert_eq!(news([true, false, false, true]), [(1, News::Up), (3, News::Down), (4, News::Up)]);
    }

    #[test]
    fn an_outage_lasts_from_the_last_answer() {
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut outage = Outage::new(start);
        outage.note(false, after(7));
        assert_eq!(outage.lasts(after(7)), Duration::from_secs(7));
        outage.note(true, after(9));
        outage.note(false, after(12));
        assert_eq!(outage.lasts(after(12)), Duration::from_secs(3));
    }
}
