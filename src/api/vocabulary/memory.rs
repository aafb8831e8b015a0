//! Memory limits of request bodies and of answers, by permits of one byte each.
//!
//! The permit of a body grows with its bytes, and is held until its handler has ended. The permit of an answer is
//! taken when the answer is complete, and held until its last byte is written, so a slow client holds memory longer.
//! An answer may exceed the remaining permits, since it could not be sent otherwise; later ones have to wait, or are
//! refused.

use axum::{
    body::{Body, HttpBody as _},
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::error::ApiError;
use crate::{
    config,
    permits::{Exhausted, Owners, Permit, Permits, Scope},
};

/// Smaller answers are not counted: they fit into the buffers of a connection.
const COUNTED_FROM_BYTES: u64 = 64 << 10;
/// Maximum number of rows with large content that are read at a time.
const LARGE_READS: u64 = 8;

/// Memory limits of a process.
pub struct Memory {
    /// Permits for bytes of request bodies.
    pub bodies: Permits,
    /// Permits for bytes of answers.
    answers: Permits,
    /// Permits for reading rows with large content: their size is known only afterwards.
    large_reads: Permits,
}

impl Memory {
    /// Creates the limits from the settings.
    #[must_use]
    pub fn new(settings: &config::Limits) -> Self {
        let shares = |all: u64| {
            let most = [
                (Scope::Organization, all / 2),
                (Scope::Caller, all / 4),
                (Scope::Anonymous, all / 4),
                (Scope::Address, all / 16),
            ];
            Permits::new(all, most)
        };
        Self {
            bodies: shares(settings.max_request_memory_bytes),
            answers: shares(settings.max_response_memory_bytes),
            large_reads: Permits::new(LARGE_READS, [(Scope::Organization, LARGE_READS / 2)]),
        }
    }

    /// Refuses a request whose answer would need memory, while pending answers fill the share of the same owner.
    pub fn check_answer(&self, owners: Owners) -> Result<(), ApiError> {
        self.answers.check(owners, 1).map_err(refusal)
    }

    /// Waits for memory for a further piece of a started answer.
    pub async fn room_for_piece(&self, owners: Owners) {
        self.answers.room(owners, 1).await;
    }

    /// Permit to read a row with large content.
    pub async fn large_read(&self, owners: Owners) -> Permit {
        let mut permit = self.large_reads.take(owners, 0);
        permit.grow(1).await;
        permit
    }

    /// Counts these bytes until the last of them is written.
    #[must_use]
    pub fn piece(&self, owners: Owners, bytes: Vec<u8>) -> Bytes {
        self.count(owners, bytes.into())
    }

    fn count(&self, owners: Owners, bytes: Bytes) -> Bytes {
        let permit = self.answers.take(owners, bytes.len() as u64);
        Bytes::from_owner(Counted { bytes, _permit: permit })
    }

    /// Counts the answer until its last byte is written. An answer to a change is always sent; any other is refused
    /// if the share has been filled meanwhile.
    pub async fn answer(&self, owners: Owners, is_safe: bool, response: Response) -> Result<Response, ApiError> {
        let size = response.body().size_hint().exact().unwrap_or_default();
        if size < COUNTED_FROM_BYTES {
            return Ok(response);
        }
        if is_safe {
            self.check_answer(owners)?;
        }
        let (parts, body) = response.into_parts();
        // The body is in memory, so this does not wait.
        let bytes = body.collect().await.map_err(|_| ApiError::internal())?.to_bytes();
        Ok(Response::from_parts(parts, Body::from(self.count(owners, bytes))))
    }
}

/// Bytes of an answer with their permit.
struct Counted {
    bytes: Bytes,
    _permit: Permit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn refusal(limit: Exhausted) -> ApiError {
    ApiError::exhausted(limit, "too_many_response_bytes", "bytes of answers that are not read yet")
}
