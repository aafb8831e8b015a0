//! Cache of a JSON Web Key Set: read at the start, periodically, and when a token names an unknown key.

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
    clock::Clock,
    config::JwksSource,
    lifecycle::Lifecycle,
};

/// Interval at which the set is read even without demand, so that a removed key is not used for longer.
const READ_EVERY: Duration = Duration::from_mins(5);
/// Minimum time between two reads, whatever tokens arrive.
const REST: Duration = Duration::from_secs(5);
/// Time-out of a read.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum size of the document.
const MAX_BYTES: usize = 256 << 10;

/// Key set that is read in the background. Cheap to clone.
#[derive(Clone)]
pub struct Jwks(Arc<Shared>);

struct Shared {
    /// Latest set; `None` until the first one was read. Marked as changed by every read, even by a failed one.
    set: watch::Sender<Option<Arc<Set>>>,
    refresh_requested: Notify,
    /// Whether the minimum time since the last read has not passed.
    is_resting: AtomicBool,
}

/// Version of the set.
pub struct Set {
    /// Keys of the set.
    pub keys: Vec<VerifyingKey>,
    /// SHA-256 of the document.
    digest: [u8; 32],
}

/// Reason why the set could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the key set cannot be fetched")]
    Http(#[from] reqwest::Error),
    #[error("the key set's address answered {0}")]
    Status(StatusCode),
    #[error("the key set cannot be read")]
    File(#[from] std::io::Error),
    #[error("the key set is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    NotAKeySet(#[from] NotAKeySet),
}

impl Jwks {
    /// Starts the background reads.
    pub fn start(source: JwksSource, http: reqwest::Client, clock: Clock, lifecycle: &Lifecycle) -> Self {
        let (set, _) = watch::channel(None);
        let this = Self(Arc::new(Shared { set, refresh_requested: Notify::new(), is_resting: AtomicBool::new(false) }));
        let (reading, stop) = (this.clone(), lifecycle.soft_stop().clone());
        lifecycle.spawn("jwks", async move {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = reading.read(&source, &http) => {}
                    () = stop.cancelled() => return,
                }
                tokio::select! {
                    () = clock.sleep(REST) => {}
                    () = stop.cancelled() => return,
                }
                reading.0.is_resting.store(false, Ordering::Release);
                tokio::select! {
                    () = reading.0.refresh_requested.notified() => {}
                    () = clock.sleep(READ_EVERY) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        this
    }

    /// The latest set.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Set>> {
        self.0.set.borrow().clone()
    }

    /// Reads the set again and waits for it, unless it was just read.
    pub async fn refresh(&self) {
        let mut set = self.0.set.subscribe();
        if self.0.is_resting.load(Ordering::Acquire) {
            return;
        }
        self.0.refresh_requested.notify_one();
        // After both outcomes the caller uses the latest set.
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
        // Set before the waiting tasks are notified: if the set is unchanged, they must not request another read at
        // once.
        self.0.is_resting.store(true, Ordering::Release);
        self.0.set.send_modify(|current| match read {
            Ok(new) if current.as_ref().is_some_and(|current| current.digest == new.digest) => {}
            Ok(new) => {
                tracing::info!(keys = new.keys.len(), "the key set was read: {} keys", new.keys.len());
                *current = Some(Arc::new(new));
            }
            // The previous set stays in use: a temporary outage of the provider must not lock all callers out.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "JWT_JWKS: {error}"),
        });
    }
}

async fn fetch(url: &url::Url, http: &reqwest::Client) -> Result<Vec<u8>, ReadError> {
    let mut answer = http.get(url.clone()).timeout(READ_TIMEOUT).send().await?;
    // A redirect is not followed, and is not an error of the client library.
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
