//! Clients that are made anew when no broker answers them any more.
//!
//! librdkafka can lose its brokers for good: one metadata answer with topics and without brokers, as a single broker
//! gives that was fenced, ends its broker threads (its issue 5301). It reports no fatal error, and never connects again.
//! So each client is asked for metadata once a second. One that has had no answer for [`config::Kafka::renew_after`],
//! while a client made for the purpose gets one, is replaced. While the brokers are away for all, nothing is replaced,
//! and what is queued stays where it is.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
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

/// How often a client is asked.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A broker that answers later counts as away.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// No answer for so long is told in the log: a single one that is late is not worth a line.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// And told again after that.
const TELL_EVERY: Duration = Duration::from_mins(1);
/// How long a producer that is given up may take to report what it had queued.
const REPORT_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether anybody still uses a client that is given up.
const SOLE_PAUSE: Duration = Duration::from_millis(20);

/// What the clients have in common.
pub trait Client: Send + Sync + Sized + 'static {
    /// Of the client.
    type Context: ClientContext;

    /// The client itself.
    fn native(&self) -> &NativeClient<Self::Context>;

    /// Ends it. May block the thread for long.
    fn end(self) {}
}

/// Ends a producer: what it has queued or in flight is reported as not sent.
pub(super) fn end_producer<C: ProducerContext>(producer: &impl Producer<C>) {
    producer.purge(PurgeConfig::default().queue().inflight());
    if let Err(error) = producer.flush(REPORT_WITHIN) {
        let messages = producer.in_flight_count();
        tracing::error!(messages, "a Kafka producer was given up without reports on all its messages: {error}");
    }
}

/// The last reason that a client gave for having no connection. Cheap to clone.
#[derive(Clone, Default)]
pub struct LastError(Arc<Mutex<Option<String>>>);

impl LastError {
    /// For [`ClientContext::error`].
    pub fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!("{error}: {reason}");
        // That all are down says less than why one of them is.
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

/// The context of a client that needs no other.
#[derive(Clone, Default)]
pub struct Context(pub LastError);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.note(&error, reason);
    }
}

/// Whether a client's last question was answered. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connection(Arc<AtomicBool>);

impl Connection {
    /// As of two seconds ago at most.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a client is for.
#[derive(Clone, Copy)]
pub struct ClientRole {
    /// In logs and metrics.
    pub name: &'static str,
    /// What it means that no broker answers, for the log; `None`: another client of the process tells it.
    pub meaning: Option<&'static str>,
}

type Make<T> = dyn Fn(&config::Kafka, LastError) -> KafkaResult<T> + Send + Sync;

/// See the module.
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
    /// Makes the first client. Brokers need not be there yet; wrong settings are an error.
    pub fn new(
        purpose: ClientRole,
        settings: &config::Kafka,
        make: impl Fn(&config::Kafka, LastError) -> KafkaResult<T> + Send + Sync + 'static,
    ) -> KafkaResult<Self> {
        let last_error = LastError::default();
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

    /// The client as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something that does not block, before or after a renewal and not beside it: what is handed to a producer
    /// here is either reported by it, or belongs to the next one.
    pub fn with<R>(&self, act: impl FnOnce(&T) -> R) -> R {
        act(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Comes with the next renewal, seen from this call.
    pub fn renewed(&self) -> Notified<'_> {
        self.renewed.notified()
    }

    /// Whether brokers answer.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The client, of which nothing else is wanted.
    pub fn into_current(self) -> Arc<T> {
        self.current.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the client, tells the log, and renews it, until `stop` is cancelled.
    pub async fn watch(&self, stop: &CancellationToken) {
        let mut silence = Silence::new(Instant::now());
        let mut probe: Option<oneshot::Receiver<bool>> = None;
        loop {
            let answer = tokio::select! {
                answer = self.ask() => answer,
                () = stop.cancelled() => return,
            };
            let now = Instant::now();
            self.connection.0.store(answer.is_ok(), Ordering::Relaxed);
            metrics::gauge!("kafka_connected", "client" => self.purpose.name).set(f64::from(u8::from(answer.is_ok())));
            self.tell(silence.note(answer.is_ok(), now), &answer);
            if answer.is_ok() {
                self.last_error.forget();
            }
            if self.with(|client| client.native().fatal_error().is_some()) {
                self.renew("it met a fatal error");
            } else if silence.lasts(now) >= self.settings.renew_after {
                probe = match probe.take() {
                    None => Some(probing(self.settings.clone())),
                    Some(mut probe) => match probe.try_recv() {
                        Err(oneshot::error::TryRecvError::Empty) => Some(probe),
                        Ok(true) => {
                            self.renew("no broker answers it, and one answers others");
                            silence = Silence { since: now, ..silence };
                            None
                        }
                        Ok(false) | Err(oneshot::error::TryRecvError::Closed) => None,
                    },
                };
            } else {
                probe = None;
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
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
            News::StillDown(silence) => {
                let secs = silence.as_secs();
                tracing::error!(
                    "Kafka has been disconnected for {secs} s: no broker of {brokers} answers ({})",
                    reason()
                );
            }
        }
    }

    /// Replaces the client. The old one ends in a thread that nobody waits for.
    fn renew(&self, reason: &str) {
        let name = self.purpose.name;
        let fresh = match (self.make)(&self.settings, self.last_error.clone()) {
            Ok(fresh) => Arc::new(fresh),
            Err(error) => return tracing::error!("the Kafka client for {name} cannot be made anew: {error}"),
        };
        let old = std::mem::replace(&mut *self.current.write().unwrap_or_else(PoisonError::into_inner), fresh);
        self.renewed.notify_waiters();
        metrics::counter!("kafka_clients_renewed_total", "client" => name).increment(1);
        tracing::warn!("the Kafka client for {name} is made anew: {reason}");
        close_in_background(old);
    }
}

/// Ends a client once nobody uses it, in a thread that nobody waits for: whether it ends at all is up to librdkafka.
pub(super) fn close_in_background<T: Client>(client: Arc<T>) {
    let spawned =
        thread::Builder::new().name("kafka-end".to_owned()).spawn(move || wait_for_last_reference(client).end());
    if let Err(error) = spawned {
        // The closure is dropped, and the client with it, here.
        tracing::error!("no thread to end a Kafka client in: {error}");
    }
}

/// Waits until nobody else has it. Blocks the thread.
pub(super) fn wait_for_last_reference<T>(mut shared: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(shared) {
            Ok(sole) => return sole,
            Err(again) => shared = again,
        }
        thread::sleep(SOLE_PAUSE);
    }
}

/// Whether a client made for the purpose is answered, in a thread that nobody waits for.
fn probing(settings: config::Kafka) -> oneshot::Receiver<bool> {
    let (done, answered) = oneshot::channel();
    // Without a thread the receiver is told that nobody will answer, and asks again.
    let _thread = thread::Builder::new().name("kafka-probe".to_owned()).spawn(move || {
        // Whoever asked may have stopped.
        done.send(super::ping(&settings).is_ok()).ok();
    });
    answered
}

/// How many brokers there are, as one of them says. That there is none is an error, too. Blocks the thread.
pub(super) fn ask<C: ClientContext>(client: &NativeClient<C>, topic: &str, at_most: Duration) -> KafkaResult<usize> {
    // Of one topic, since the answer about all may be large.
    match client.fetch_metadata(Some(topic), at_most)?.brokers().len() {
        0 => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::BrokerNotAvailable)),
        count => Ok(count),
    }
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Nothing,
    Up,
    Down,
    StillDown(Duration),
}

/// For how long a client has had no answer, and what was told of it. Pure.
#[derive(Clone, Copy)]
struct Silence {
    /// The last answer, or the begin.
    since: Instant,
    /// When the last silence began, for the log: also a new client may hear nothing.
    began: Instant,
    told: Option<Instant>,
    was_ever_up: bool,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { since: now, began: now, told: None, was_ever_up: false }
    }

    fn note(&mut self, is_answered: bool, now: Instant) -> News {
        if is_answered {
            (self.since, self.began) = (now, now);
            let is_first = !std::mem::replace(&mut self.was_ever_up, true);
            return if self.told.take().is_some() || is_first { News::Up } else { News::Nothing };
        }
        let silence = now.duration_since(self.began);
        match self.told {
            None if silence >= TELL_AFTER => {
                self.told = Some(now);
                News::Down
            }
            Some(told) if now.duration_since(told) >= TELL_EVERY => {
                self.told = Some(now);
                News::StillDown(silence)
            }
            _ => News::Nothing,
        }
    }

    /// Of this client.
    fn lasts(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told second by second.
    fn told(answers: impl IntoIterator<Item = bool>) -> Vec<(u64, News)> {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let at = |(second, answer)| (second, silence.note(answer, start + Duration::from_secs(second)));
        (1..).zip(answers).map(at).filter(|(_, news)| *news != News::Nothing).collect()
    }

    #[test]
    fn an_outage_is_told_from_the_start_and_once_a_minute() {
        let still = |secs| News::StillDown(Duration::from_secs(secs));
        let outage = std::iter::repeat_n(false, 130).chain([true, true]);
        assert_eq!(told(outage), [(2, News::Down), (62, still(62)), (122, still(122)), (131, News::Up)]);
        assert_eq!(told([true, false, true, false, true]), [(1, News::Up)], "one late answer is not worth a line");
        assert_eq!(told([true, false, false, true]), [(1, News::Up), (3, News::Down), (4, News::Up)]);
    }

    #[test]
    fn a_silence_lasts_from_the_last_answer() {
        let start = Instant::now();
        let after = |secs| start + Duration::from_secs(secs);
        let mut silence = Silence::new(start);
        silence.note(false, after(7));
        assert_eq!(silence.lasts(after(7)), Duration::from_secs(7));
        silence.note(true, after(9));
        silence.note(false, after(12));
        assert_eq!(silence.lasts(after(12)), Duration::from_secs(3));
    }
}
