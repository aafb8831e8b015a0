//! Callbacks of librdkafka that all clients share: errors, tokens, deliveries and statistics.

use std::{
    error::Error as StdError,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rdkafka::{
    ClientContext,
    client::OAuthToken,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    statistics::Statistics,
};

use super::{
    Refusal, oauth,
    problem::{Connection, Outage, Trouble},
};
use crate::config::{self, Clients, Live};

/// Subject of a trouble that is not about one topic or group.
pub(super) const CLUSTER: &str = "cluster";

/// Callbacks of a client. Cheap to clone; clones share the last error.
#[derive(Clone)]
pub struct Callbacks {
    name: &'static str,
    clients: Live<Clients>,
    last_error: Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>,
    connection: Connection,
    is_throttled: Arc<AtomicBool>,
}

impl Callbacks {
    /// Callbacks of a client with these settings. `name` is that of the client in metrics.
    #[must_use]
    pub fn new(name: &'static str, kafka: &config::Kafka) -> Self {
        Self {
            name,
            clients: kafka.clients.clone(),
            last_error: Arc::default(),
            connection: Connection::default(),
            is_throttled: Arc::default(),
        }
    }

    /// Records an error of [`ClientContext::error`].
    pub fn error(&self, error: &KafkaError, reason: &str) {
        tracing::debug!("{error}: {reason}");
        // An error of a single broker is more specific than the one that all are down.
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
        if code != RDKafkaErrorCode::AllBrokersDown {
            *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, reason.to_owned()));
        }
    }

    /// Token for [`ClientContext::generate_oauth_token`].
    pub fn token(&self) -> Result<OAuthToken, Box<dyn StdError>> {
        let clients = self.clients.current();
        let oauth = clients.oauth.as_ref().ok_or("KAFKA_SASL_MECHANISM is not OAUTHBEARER")?;
        Ok(oauth::token(oauth)?)
    }

    /// Connection state of the client.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Records whether a message to this topic was taken. `is_batched`: other messages were sent with it, so it may be
    /// their size that was refused.
    pub fn delivery(&self, topic: &str, result: Result<(), RDKafkaErrorCode>, is_batched: bool) {
        let Err(code) = result else {
            self.connection.end(Trouble::WriteDenied, topic);
            self.connection.end(Trouble::WriteDenied, CLUSTER);
            self.connection.end(Trouble::NotEnoughReplicas, topic);
            return;
        };
        if let Some(trouble) = Trouble::of_sender(code) {
            self.connection.begin(trouble, topic, code);
        }
        if let Some(reason) = failure_reason(code, is_batched) {
            metrics::counter!("kafka_send_failures_total", "reason" => reason).increment(1);
        }
    }

    /// Reads the statistics: how long brokers delay this client because of a quota.
    pub fn statistics(&self, statistics: &Statistics) {
        let delays = statistics.brokers.values().filter_map(|broker| broker.throttle.as_ref());
        let longest_ms = delays.map(|window| window.max).max().unwrap_or_default().max(0);
        metrics::gauge!("kafka_throttle_seconds", "client" => self.name).set(longest_ms as f64 / 1000.0);
        let is_throttled = longest_ms > 0;
        if self.is_throttled.swap(is_throttled, Ordering::Relaxed) != is_throttled {
            let client = self.name;
            if is_throttled {
                tracing::warn!(client, "a quota of Kafka slows the client for {client} down: by up to {longest_ms} ms");
            } else {
                tracing::info!(client, "no quota of Kafka slows the client for {client} down any more");
            }
        }
    }

    pub(super) fn forget(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The last error since the last answer: its kind, and its text.
    pub(super) fn last_error(&self) -> Option<(Outage, String)> {
        let last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        last.map(|(code, reason)| (Outage::of(code), reason))
    }
}

/// Label of a message that was not taken; `None`: that was no decision of a broker.
fn failure_reason(code: RDKafkaErrorCode, is_batched: bool) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    match (Refusal::of(code), Trouble::of_sender(code)) {
        (Some(Refusal::TooLarge), _) => (!is_batched).then_some("too_large"),
        (Some(Refusal::Invalid), _) => Some("invalid"),
        (_, Some(Trouble::NotEnoughReplicas)) => Some("not_enough_replicas"),
        (_, Some(_)) => Some("denied"),
        _ => match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => Some("unknown_topic"),
            Code::PurgeQueue | Code::PurgeInflight | Code::QueueFull => None,
            _ => Some("other"),
        },
    }
}

/// Context of a client: what all clients have in common, and what this one has besides.
pub struct Context<R = ()> {
    /// Callbacks of all clients.
    pub callbacks: Callbacks,
    /// What this client has besides.
    pub role: R,
}

impl Context {
    /// Context of a client that has nothing besides.
    #[must_use]
    pub fn new(callbacks: Callbacks) -> Self {
        Self { callbacks, role: () }
    }
}

/// What a client does with its statistics besides.
pub trait Role: Send + Sync + 'static {
    /// Reads the statistics.
    fn statistics(&self, _: &Statistics) {}
}

impl Role for () {}

impl<R: Role> ClientContext for Context<R> {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        self.callbacks.error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.callbacks.token()
    }

    fn stats(&self, statistics: Statistics) {
        self.callbacks.statistics(&statistics);
        self.role.statistics(&statistics);
    }
}

impl ConsumerContext for Context {}
