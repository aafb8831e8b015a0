//! The key set of whoever else signs tokens: read at the start, now and then, and when a token names an unknown key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::{
    access::verifying_key::{NotAKeySet, VerifyingKey},
    config::JwksSource,
    lifecycle::Lifecycle,
};

/// The set is read so often even if nobody asks for it, so that a key that was taken out is not used for longer.
const READ_EVERY: Duration = Duration::from_mins(5);
/// After each reading there is none for so long, whatever tokens come.
const REST: Duration = Duration::from_secs(5);
/// The set has to be there after this.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// A longer document is refused.
const MAX_BYTES: usize = 256 << 10;

/// A set that is read in the background. Cheap to clone.
#[derive(Clone)]
pub struct Jwks(Arc<Shared>);

struct Shared {
    /// The latest set; `None` until the first one was read. Marked as changed by every reading, also by one that fails.
    set: watch::Sender<Option<Arc<Set>>>,
    asked: Notify,
    /// There was a reading just now.
    is_resting: AtomicBool,
}

/// One version of the set.
pub struct Set {
    /// Its keys.
    pub keys: Vec<VerifyingKey>,
    /// SHA-256 of the document.
    digest: [u8; 32],
}

/// Why the set could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the key set cannot be fetched")]
    Http(#[from] reqwest::Error),
    #[error("the key set's address answers {0}")]
    Status(StatusCode),
    #[error("the key set cannot be read")]
    File(#[from] std::io::Error),
    #[error("the key set is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    NotAKeySet(#[from] NotAKeySet),
}

impl Jwks {
    /// Starts reading.
    pub fn start(source: JwksSource, http: reqwest::Client, lifecycle: &Lifecycle) -> Self {
        let (set, _) = watch::channel(None);
        let this = Self(Arc::new(Shared { set, asked: Notify::new(), is_resting: AtomicBool::new(false) }));
        let (reading, stop) = (this.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("jwks", async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = reading.read(&source, &http) => {}
                    () = stop.cancelled() => return,
                }
                tokio::select! {
                    () = tokio::time::sleep(REST) => {}
                    () = stop.cancelled() => return,
                }
                reading.0.is_resting.store(false, Ordering::Release);
                tokio::select! {
                    () = reading.0.asked.notified() => {}
                    () = tokio::time::sleep(READ_EVERY) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        this
    }

    /// The set as it was read last.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Set>> {
        self.0.set.borrow().clone()
    }

    /// Has the set read again and waits for it, unless that was done just now.
    pub async fn refresh(&self) {
        let mut set = self.0.set.subscribe();
        if self.0.is_resting.load(Ordering::Acquire) {
            return;
        }
        self.0.asked.notify_one();
        // Both outcomes end in a look at what is there.
        let _ = tokio::time::timeout(READ_TIMEOUT, set.changed()).await;
    }

    async fn read(&self, source: &JwksSource, http: &reqwest::Client) {
        let read = match source {
            JwksSource::Url(url) => fetch(url, http).await,
            JwksSource::File(path) => tokio::fs::read(path).await.map_err(ReadError::from),
        };
        let read = read.and_then(|json| {
            let digest = Sha256::digest(&json).into();
            Ok(Set { keys: VerifyingKey::from_jwks(&json)?, digest })
        });
        // Before the waiting ones are told: who finds nothing new must not ask again at once.
        self.0.is_resting.store(true, Ordering::Release);
        self.0.set.send_modify(|current| match read {
            Ok(new) if current.as_ref().is_some_and(|current| current.digest == new.digest) => {}
            Ok(new) => {
                tracing::info!(keys = new.keys.len(), "the key set was read: {} keys", new.keys.len());
                *current = Some(Arc::new(new));
            }
            // The former set goes on being used: a provider that is away for a while must not lock everybody out.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "JWT_JWKS: {error}"),
        });
    }
}

async fn fetch(url: &url::Url, http: &reqwest::Client) -> Result<Vec<u8>, ReadError> {
    let mut answer = http.get(url.clone()).timeout(READ_TIMEOUT).send().await?;
    // A redirect is not followed, and is no error to the client.
    if answer.status() != StatusCode::OK {
        return Err(ReadError::Status(answer.status()));
    }
    let mut json = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        json.extend_from_slice(&chunk);
        if json.len() > MAX_BYTES {
            return Err(ReadError::TooLarge);
        }
    }
    Ok(json)
}
