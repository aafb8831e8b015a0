//! Replaceable clients: a Kafka client that no broker answers, or that keeps messages, is replaced by a new one.
//!
//! librdkafka can lose its brokers for good: one metadata answer with topics and without brokers, as a fenced single
//! broker gives, ends its broker threads (its issue 5301). It reports no fatal error, and never connects again.
//! Therefore each client requests metadata once a second. A client without an answer for [`config::Kafka::renew_after`]
//! is replaced if a new test client gets one. While the brokers are down for all clients, none is replaced, and queued
//! messages stay queued.
//!
//! A producer is also replaced if a message has had no delivery report for [`config::Kafka::stalled_after`] while
//! brokers answered (see `kafka::stall`).

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    client::Client as NativeClient,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    metadata::MetadataTopic,
    producer::{Producer, ProducerContext, PurgeConfig},
};
use tokio::sync::{Notify, futures::Notified, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    callbacks::{CLUSTER, Callbacks},
    problem::{Connection, Outage, Trouble, is_denied},
    stall::{StallDetector, Token},
};
use crate::config::{self, Clients};

/// Interval of metadata requests.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Time-out of a metadata request.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Time without an answer after which an outage is logged: a single late answer is not.
const LOG_AFTER: Duration = Duration::from_secs(2);
/// Interval of further log lines about the outage.
const LOG_EVERY: Duration = Duration::from_mins(1);
/// Minimum time between two replacements of clients with fatal errors.
const FATAL_PAUSE: Duration = Duration::from_secs(5);
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

/// Role of a client.
#[derive(Clone, Copy)]
pub struct ClientRole {
    /// Name in logs and metrics.
    pub name: &'static str,
    /// Effect of an outage for the log; `None` if another client of the process logs it.
    pub meaning: Option<&'static str>,
}

type Make<T> = dyn Fn(&config::Kafka, Callbacks) -> KafkaResult<T> + Send + Sync;

/// Client that is replaced if no broker answers it.
pub struct ReplaceableClient<T> {
    purpose: ClientRole,
    settings: config::Kafka,
    make: Box<Make<T>>,
    callbacks: Callbacks,
    current: RwLock<Arc<T>>,
    /// Messages of the current client.
    stall: StallDetector,
    /// Settings that the current client was created with.
    clients: Mutex<Arc<Clients>>,
    renewed: Notify,
}

impl<T: Client> ReplaceableClient<T> {
    /// Creates the first client. Brokers need not be up yet; invalid settings are an error.
    pub fn new(
        purpose: ClientRole,
        settings: &config::Kafka,
        make: impl Fn(&config::Kafka, Callbacks) -> KafkaResult<T> + Send + Sync + 'static,
    ) -> KafkaResult<Self> {
        let callbacks = Callbacks::new(purpose.name, settings);
        let clients = Mutex::new(settings.clients.current());
        // It exists from the start, so that a rate includes the first replacement.
        metrics::counter!("kafka_clients_renewed_total", "client" => purpose.name).increment(0);
        let current = RwLock::new(Arc::new(make(settings, callbacks.clone())?));
        Ok(Self {
            purpose,
            settings: settings.clone(),
            make: Box::new(make),
            callbacks,
            current,
            stall: StallDetector::default(),
            clients,
            renewed: Notify::new(),
        })
    }

    /// Current client.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls a function that does not block, never at the same time as a replacement.
    pub fn with<R>(&self, act: impl FnOnce(&T) -> R) -> R {
        act(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Passes messages to a producer, as [`Self::with`]: they are either reported by it, or belong to its successor. The
    /// token is to be held until their delivery reports.
    pub fn queue<R>(&self, send: impl FnOnce(&T, Token) -> R) -> R {
        self.with(|client| send(client, self.stall.token()))
    }

    /// Resolves at the next replacement after this call.
    pub fn renewed(&self) -> Notified<'_> {
        self.renewed.notified()
    }

    /// Connection state: whether brokers answer.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        self.callbacks.connection()
    }

    /// Callbacks of the client and of its successors.
    #[must_use]
    pub fn callbacks(&self) -> &Callbacks {
        &self.callbacks
    }

    /// Returns the client and drops everything else.
    pub fn into_current(self) -> Arc<T> {
        self.current.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls and replaces the client, and logs outages, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        let mut outage = Silence::new(Instant::now());
        let mut probe: Option<oneshot::Receiver<bool>> = None;
        let mut fatal_at = None;
        loop {
            let asked_at = Instant::now();
            let answer = tokio::select! {
                answer = self.ask() => answer,
                () = stop.cancelled() => return,
            };
            let now = Instant::now();
            let last_error = self.callbacks.last_error();
            let kind = last_error.as_ref().map_or(Outage::Unreachable, |(kind, _)| *kind);
            self.connection().set_answer(answer.is_err().then_some(kind), now - asked_at);
            metrics::gauge!("kafka_connected", "client" => self.purpose.name).set(f64::from(u8::from(answer.is_ok())));
            self.tell(outage.note(answer.is_ok().then_some(()).ok_or(kind), now), &answer, last_error);
            if let Ok(answer) = &answer {
                self.callbacks.forget();
                self.note_topic_error(answer.topic_error);
            }
            let waited = self.stall.waited(answer.is_ok(), now);
            if self.has_new_settings() {
                self.replace("its settings have changed");
                (outage.since, probe) = (now, None);
            } else if let Some((code, text)) = self.with(|client| client.native().fatal_error()) {
                if is_denied(code) {
                    self.connection().begin(Trouble::WriteDenied, CLUSTER, code);
                }
                if fatal_at.is_none_or(|at: Instant| now.duration_since(at) >= FATAL_PAUSE) {
                    fatal_at = Some(now);
                    self.replace(&format!("it met a fatal error: {text}"));
                }
            } else if waited >= self.settings.stalled_after {
                let secs = waited.as_secs();
                self.replace(&format!("it has not sent messages for {secs} s although brokers answer"));
            } else if outage.lasts(now) >= self.settings.renew_after {
                probe = match probe.take() {
                    None => Some(probing(self.settings.clone())),
                    Some(mut probe) => match probe.try_recv() {
                        Err(oneshot::error::TryRecvError::Empty) => Some(probe),
                        Ok(true) => {
                            self.replace("no broker answers it, but one answers a new client");
                            outage = Silence { since: now, ..outage };
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

    async fn ask(&self) -> KafkaResult<Answer> {
        let (client, topic) = (self.current(), self.settings.execution_topic.clone());
        let asked = tokio::task::spawn_blocking(move || ask(client.native(), &topic, ANSWER_WITHIN));
        asked.await.unwrap_or(Err(KafkaError::Canceled))
    }

    fn note_topic_error(&self, error: Option<RDKafkaErrorCode>) {
        let topic = &self.settings.execution_topic;
        match error.filter(|code| is_denied(*code)) {
            Some(code) => self.connection().begin(Trouble::DescribeDenied, topic, code),
            None => self.connection().end(Trouble::DescribeDenied, topic),
        }
    }

    fn has_new_settings(&self) -> bool {
        let used = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        !Arc::ptr_eq(&used, &self.settings.clients.current())
    }

    fn tell(&self, news: News, answer: &KafkaResult<Answer>, last_error: Option<(Outage, String)>) {
        let Some(meaning) = self.purpose.meaning else { return };
        let reason = || match (last_error, answer) {
            (Some((_, reason)), _) => reason,
            (None, Err(error)) => error.to_string(),
            (None, Ok(_)) => String::new(),
        };
        let brokers = &self.settings.brokers;
        let cause = |kind| match kind {
            Outage::Unreachable => format!("no broker of {brokers} answers"),
            kind => format!("{}: {brokers}", kind.text()),
        };
        match news {
            News::Nothing => {}
            News::Up => tracing::info!("Kafka is connected"),
            News::Down(kind) => {
                tracing::error!("Kafka is disconnected: {} ({}); {meaning}", cause(kind), reason());
            }
            News::StillDown(kind, outage) => {
                let secs = outage.as_secs();
                tracing::error!("Kafka has been disconnected for {secs} s: {} ({})", cause(kind), reason());
            }
        }
    }

    /// Replaces the client. The old one is closed in a background thread.
    fn replace(&self, reason: &str) {
        let name = self.purpose.name;
        // Read before the client is created: if they change meanwhile, it is replaced again.
        let clients = self.settings.clients.current();
        let fresh = match (self.make)(&self.settings, self.callbacks.clone()) {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => return tracing::error!("the Kafka client for {name} cannot be replaced: {error}"),
        };
        let old = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            self.stall.reset();
            std::mem::replace(&mut *current, fresh)
        };
        *self.clients.lock().unwrap_or_else(PoisonError::into_inner) = clients;
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

/// Answer to a metadata request about one topic.
pub(super) struct Answer {
    /// Number of brokers, at least one.
    pub(super) brokers: usize,
    /// Error of the topic.
    pub(super) topic_error: Option<RDKafkaErrorCode>,
}

/// Requests metadata; an answer without brokers is an error. Blocks the thread.
pub(super) fn ask<C: ClientContext>(client: &NativeClient<C>, topic: &str, at_most: Duration) -> KafkaResult<Answer> {
    // The request is about one topic, since the answer about all may be large.
    let metadata = client.fetch_metadata(Some(topic), at_most)?;
    let topic_error = metadata.topics().first().and_then(MetadataTopic::error).map(RDKafkaErrorCode::from);
    match metadata.brokers().len() {
        0 => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable)),
        brokers => Ok(Answer { brokers, topic_error }),
    }
}

/// Events that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    Up,
    Down(Outage),
    StillDown(Outage, Duration),
}

/// Time without an answer, and what was logged about it. Pure.
#[derive(Clone, Copy)]
struct Silence {
    /// Last answer, or the start of the client.
    since: Instant,
    /// Start of the outage for the log; a new client may have none either.
    began: Instant,
    /// Last log line about the outage, and the kind that it named.
    logged: Option<(Instant, Outage)>,
    was_ever_up: bool,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { since: now, began: now, logged: None, was_ever_up: false }
    }

    fn note(&mut self, answer: Result<(), Outage>, now: Instant) -> News {
        let kind = match answer {
            Ok(()) => {
                (self.since, self.began) = (now, now);
                let is_first = !std::mem::replace(&mut self.was_ever_up, true);
                return if self.logged.take().is_some() || is_first { News::Up } else { News::Nothing };
            }
            Err(kind) => kind,
        };
        let outage = now.duration_since(self.began);
        match self.logged {
            None if outage >= LOG_AFTER => {
                self.logged = Some((now, kind));
                News::Down(kind)
            }
            Some((_, logged)) if logged != kind && kind != Outage::Unreachable => {
                self.logged = Some((now, kind));
                News::Down(kind)
            }
            Some((logged_at, _)) if now.duration_since(logged_at) >= LOG_EVERY => {
                self.logged = Some((now, kind));
                News::StillDown(kind, outage)
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
        let mut outage = Silence::new(start);
        let mut at = |(second, is_answered): (u64, bool)| {
            let answer = is_answered.then_some(()).ok_or(Outage::Unreachable);
            (second, outage.note(answer, start + Duration::from_secs(second)))
        };
        (1..).zip(answers).map(&mut at).filter(|(_, news)| *news != News::Nothing).collect()
    }

    #[test]
    fn an_outage_is_logged_from_the_start_and_once_a_minute() {
        let down = News::Down(Outage::Unreachable);
        let still = |secs| News::StillDown(Outage::Unreachable, Duration::from_secs(secs));
        let outage = std::iter::repeat_n(false, 130).chain([true, true]);
        assert_eq!(news(outage), [(2, down), (62, still(62)), (122, still(122)), (131, News::Up)]);
        assert_eq!(news([true, false, true, false, true]), [(1, News::Up)], "one late answer is not worth a line");
        assert_eq!(news([true, false, false, true]), [(1, News::Up), (3, down), (4, News::Up)]);
    }

    #[test]
    fn a_more_specific_reason_of_an_outage_is_logged_when_it_becomes_known() {
        let start = Instant::now();
        let mut outage = Silence::new(start);
        let mut note = |secs, kind| outage.note(Err(kind), start + Duration::from_secs(secs));
        assert_eq!(note(2, Outage::Unreachable), News::Down(Outage::Unreachable));
        assert_eq!(note(3, Outage::Credentials), News::Down(Outage::Credentials));
        assert_eq!(note(4, Outage::Credentials), News::Nothing);
        assert_eq!(note(5, Outage::Unreachable), News::Nothing, "the error is forgotten between two attempts");
    }

    #[test]
    fn an_outage_lasts_from_the_last_answer() {
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut outage = Silence::new(start);
        outage.note(Err(Outage::Unreachable), after(7));
        assert_eq!(outage.lasts(after(7)), Duration::from_secs(7));
        outage.note(Ok(()), after(9));
        outage.note(Err(Outage::Unreachable), after(12));
        assert_eq!(outage.lasts(after(12)), Duration::from_secs(3));
    }
}
