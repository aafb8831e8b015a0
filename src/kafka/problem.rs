//! Problems with Kafka that an operator has to solve: credentials, certificates, access rights, replicas.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rdkafka::types::RDKafkaErrorCode;

/// Reason why no broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// No connection, or no answer.
    Unreachable,
    /// The brokers refuse the credentials, or there is no token.
    Credentials,
    /// No TLS connection can be opened.
    Tls,
}

impl Outage {
    /// Classifies the last error of a connection.
    #[must_use]
    pub fn of(code: RDKafkaErrorCode) -> Self {
        use RDKafkaErrorCode as Code;
        match code {
            Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => Self::Credentials,
            Code::SSL => Self::Tls,
            _ => Self::Unreachable,
        }
    }

    /// Text for logs and for readiness.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Unreachable => "no broker answers",
            Self::Credentials => "Kafka refuses the credentials",
            Self::Tls => "no TLS connection to Kafka can be opened",
        }
    }
}

/// Use of Kafka that brokers reject for now, although they answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// An ACL for describing a topic is missing.
    DescribeDenied,
    /// An ACL for sending messages is missing.
    WriteDenied,
    /// An ACL for receiving messages, as a member of the group, is missing.
    ReadDenied,
    /// A topic has fewer replicas in sync than `min.insync.replicas`.
    NotEnoughReplicas,
}

impl Trouble {
    /// Text for logs and for readiness.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::DescribeDenied => "Kafka denies access: describing a topic is not allowed, an ACL is missing",
            Self::WriteDenied => "Kafka denies access: sending messages is not allowed, an ACL is missing",
            Self::ReadDenied => "Kafka denies access: receiving messages is not allowed, an ACL is missing",
            Self::NotEnoughReplicas => "Kafka takes no messages: not enough replicas are in sync",
        }
    }

    /// Trouble of a sender whose message was not taken for this reason.
    #[must_use]
    pub fn of_sender(code: RDKafkaErrorCode) -> Option<Self> {
        use RDKafkaErrorCode as Code;
        match code {
            Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => Some(Self::NotEnoughReplicas),
            code => is_denied(code).then_some(Self::WriteDenied),
        }
    }
}

/// Whether the error says that an ACL is missing.
#[must_use]
pub fn is_denied(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed)
}

/// Connection state of a client: whether the last metadata request was answered, and its problems. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connection(Arc<State>);

#[derive(Default)]
struct State {
    is_up: AtomicBool,
    response_us: AtomicU64,
    outage: Mutex<Option<Outage>>,
    /// Troubles, each with the topic or group.
    troubles: Mutex<BTreeSet<(Trouble, String)>>,
    is_troubled: AtomicBool,
}

impl Connection {
    /// Whether brokers answer. It is at most two seconds old.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Relaxed)
    }

    /// Whether there is a trouble. Costs little.
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.0.is_troubled.load(Ordering::Acquire)
    }

    /// Texts of the problems.
    #[must_use]
    pub fn problems(&self) -> Vec<&'static str> {
        let outage = *self.0.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let outage = outage.filter(|_| !self.is_up()).map(Outage::text);
        let mut problems: Vec<&str> =
            outage.into_iter().chain(self.troubles().iter().map(|(trouble, _)| trouble.text())).collect();
        problems.dedup();
        problems
    }

    /// Time that the last metadata request took, answered or not.
    #[must_use]
    pub fn response(&self) -> Duration {
        Duration::from_micros(self.0.response_us.load(Ordering::Relaxed))
    }

    /// Records the result of the last metadata request, and its time; `None`: it was answered.
    pub(super) fn set_answer(&self, outage: Option<Outage>, response: Duration) {
        self.0.response_us.store(u64::try_from(response.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        *self.0.outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
        self.0.is_up.store(outage.is_none(), Ordering::Relaxed);
    }

    /// Records and logs a trouble with a topic or group.
    pub fn begin(&self, trouble: Trouble, subject: &str, code: RDKafkaErrorCode) {
        let is_new = self.troubles().insert((trouble, subject.to_owned()));
        self.0.is_troubled.store(true, Ordering::Release);
        if is_new {
            tracing::error!(subject, "{}: {subject} ({code:?}); it is tried again", trouble.text());
        }
    }

    /// Records and logs the end of a trouble. Without one it costs little.
    pub fn end(&self, trouble: Trouble, subject: &str) {
        if !self.is_troubled() {
            return;
        }
        let mut troubles = self.troubles();
        if troubles.remove(&(trouble, subject.to_owned())) {
            tracing::info!(subject, "this is over: {}: {subject}", trouble.text());
        }
        self.0.is_troubled.store(!troubles.is_empty(), Ordering::Release);
    }

    /// As [`Connection::end`], for all topics and groups.
    pub fn end_all(&self, trouble: Trouble) {
        let subjects: Vec<String> = {
            let troubles = self.troubles();
            troubles.iter().filter(|(other, _)| *other == trouble).map(|(_, subject)| subject.clone()).collect()
        };
        for subject in subjects {
            self.end(trouble, &subject);
        }
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeSet<(Trouble, String)>> {
        self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
