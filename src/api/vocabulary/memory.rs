//! The memory of request bodies and of answers, by permits of one byte each.
//!
//! A body takes its permit as its bytes come, and holds it until its handler has ended. An answer takes its own when it is
//! there, and holds it until its last byte was written: a client that takes it slowly holds memory for as long. An answer
//! may be larger than what is left, since none could be given otherwise; what follows has to wait, or is refused.

use axum::{
    body::{Body, HttpBody as _},
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::error::ApiError;
use crate::{
    config,
    permits::{Exhausted, Holders, Permit, Permits, Scope},
};

/// Smaller answers are not counted: they fit into the buffers that a connection has anyway.
const COUNTED_FROM_BYTES: u64 = 64 << 10;
/// Rows with large content that are read at a time.
const LARGE_READS: u64 = 8;

/// The limits of a process.
pub struct Memory {
    /// Bytes of request bodies.
    pub bodies: Permits,
    /// Bytes of answers.
    answers: Permits,
    /// Rows with large content that are being read: their size is known only afterwards.
    large_reads: Permits,
}

impl Memory {
    /// With the limits of the settings.
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

    /// Refuses a request for an answer while answers to the same holder wait that fill its share.
    pub fn check_answer(&self, holders: Holders) -> Result<(), ApiError> {
        self.answers.check(holders, 1).map_err(refusal)
    }

    /// Returns when there is room for a further piece of an answer that has begun.
    pub async fn room_for_piece(&self, holders: Holders) {
        self.answers.room(holders, 1).await;
    }

    /// A permit to read a row with large content.
    pub async fn large_read(&self, holders: Holders) -> Permit {
        let mut permit = self.large_reads.take(holders, 0);
        permit.grow(1).await;
        permit
    }

    /// These bytes, counted until the last of them was written.
    #[must_use]
    pub fn piece(&self, holders: Holders, bytes: Vec<u8>) -> Bytes {
        self.count(holders, bytes.into())
    }

    fn count(&self, holders: Holders, bytes: Bytes) -> Bytes {
        let permit = self.answers.take(holders, bytes.len() as u64);
        Bytes::from_owner(Counted { bytes, _permit: permit })
    }

    /// The answer, counted until its last byte was written. An answer to a change is given whatever waits; any other is
    /// refused if others have filled the share meanwhile.
    pub async fn answer(&self, holders: Holders, is_safe: bool, response: Response) -> Result<Response, ApiError> {
        let size = response.body().size_hint().exact().unwrap_or_default();
        if size < COUNTED_FROM_BYTES {
            return Ok(response);
        }
        if is_safe {
            self.check_answer(holders)?;
        }
        let (parts, body) = response.into_parts();
        // It is in memory, so this waits for nothing.
        let bytes = body.collect().await.map_err(|_| ApiError::internal())?.to_bytes();
        Ok(Response::from_parts(parts, Body::from(self.count(holders, bytes))))
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
    ApiError::exhausted(limit, "too_many_response_bytes", "bytes of answers that wait to be read")
}
