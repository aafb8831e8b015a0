//! Request bodies: which routes accept one, and reading it within its limits.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use http_body_util::BodyExt;
use utoipa::openapi::OpenApi;

use crate::{
    api::vocabulary::{error::ApiError, request_limits::MAX_URI_BYTES},
    clock::Clock,
    permits::{Owners, Permit, Permits},
};

/// Time-out for a complete body.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time that a body waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(2);
/// Drain time: how long the rest of an unwanted body may arrive, up to [`MAX_DRAINED_BYTES`].
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of the rest, see [`DRAIN_TIMEOUT`].
const MAX_DRAINED_BYTES: usize = 32 << 20;
/// Maximum length of a body that may count as empty; see [`BodyPolicy::Nothing`].
const MAX_EMPTY_BYTES: usize = 64;

/// Policy for the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyPolicy {
    /// The handler reads the body.
    Handler,
    /// The handler reads the body as it was received, in any content coding.
    Coded,
    /// The route accepts no body. Many clients send `{}` with every request, which counts as none.
    Nothing,
    /// The route does not exist, and the answer says so; or its body does not matter.
    Dropped,
}

impl BodyPolicy {
    /// Policy for the body of a request with this method and route, as the OpenAPI document describes it.
    #[must_use]
    pub fn of(document: &OpenApi, method: &Method, route: &str, takes_any_coding: bool) -> Self {
        let operation = document.paths.paths.get(route).and_then(|path| match *method {
            Method::GET | Method::HEAD => path.get.as_ref(),
            Method::PUT => path.put.as_ref(),
            Method::POST => path.post.as_ref(),
            Method::DELETE => path.delete.as_ref(),
            Method::PATCH => path.patch.as_ref(),
            _ => None,
        });
        match operation {
            None => Self::Dropped,
            Some(operation) if operation.request_body.is_some() && takes_any_coding => Self::Coded,
            Some(operation) if operation.request_body.is_some() => Self::Handler,
            Some(_) => Self::Nothing,
        }
    }
}

/// Complete body, with the permit for its bytes.
pub struct ReadBody {
    /// Bytes of the body.
    pub bytes: Bytes,
    /// Permit, to be held as long as the bytes.
    pub permit: Permit,
    /// Time spent waiting for the client.
    pub sending: Duration,
}

/// Reads the whole body, of `limit` bytes at most. `fault` is an error that was found before.
///
/// After an error the rest of the body is read and dropped: a client that is still sending when the connection is
/// closed would never see the answer.
pub async fn read(
    parts: &Parts,
    mut body: Body,
    (used, limit): (BodyPolicy, usize),
    clock: &Clock,
    (memory, owners): (&Permits, Owners),
    fault: Option<ApiError>,
) -> Result<ReadBody, ApiError> {
    let mut fault = fault.or_else(|| fault_of_head(&parts.uri, &parts.headers, (used, limit)));
    // A client that sends `Expect` waits for the answer before it sends the body.
    if parts.headers.contains_key(header::EXPECT)
        && let Some(fault) = fault
    {
        return Err(fault);
    }
    let is_unwanted = fault.is_some() || used == BodyPolicy::Dropped;
    let mut deadline = clock.instant() + if is_unwanted { DRAIN_TIMEOUT } else { BODY_TIMEOUT };
    let mut kept = Kept::Nothing;
    let mut permit = memory.take(owners, 0);
    let mut length = 0;
    let mut sending = Duration::ZERO;
    loop {
        let waiting = clock.instant();
        let frame = match clock.timeout_at(deadline, body.frame()).await {
            Some(None) => break,
            Some(Some(Ok(frame))) => frame,
            Some(Some(Err(_))) => {
                let detail = "The request body could not be read to its end";
                return Err(fault.unwrap_or_else(|| ApiError::bad_request("incomplete_body", detail)));
            }
            None if used == BodyPolicy::Dropped && fault.is_none() => break,
            None => {
                let detail = "The request body did not arrive in time";
                let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail);
                return Err(fault.unwrap_or_else(late));
            }
        };
        sending += clock.since(waiting);
        let Ok(chunk) = frame.into_data() else { continue };
        length += chunk.len();
        if fault.is_some() || used == BodyPolicy::Dropped {
            if length > MAX_DRAINED_BYTES {
                break;
            }
            continue;
        }
        let found = match used {
            BodyPolicy::Nothing if length > MAX_EMPTY_BYTES => Some(unexpected()),
            _ if length > limit => Some(too_large(limit)),
            _ => grow(&mut permit, chunk.len() as u64).await.err(),
        };
        match found {
            None => kept.push(chunk),
            Some(found) => {
                fault = Some(found);
                kept = Kept::Nothing;
                permit = memory.take(owners, 0);
                deadline = clock.instant() + DRAIN_TIMEOUT;
            }
        }
    }
    let bytes = kept.into_bytes();
    match fault {
        Some(fault) => Err(fault),
        None if used == BodyPolicy::Nothing && !is_empty_body(&bytes) => Err(unexpected()),
        None => Ok(ReadBody { bytes, permit, sending }),
    }
}

/// Errors that can be found without the body.
fn fault_of_head(uri: &Uri, headers: &HeaderMap, (used, limit): (BodyPolicy, usize)) -> Option<ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let exceeds = |limit: usize| announced.is_some_and(|length| length > limit as u64);
    if uri.path_and_query().map_or(0, |uri| uri.as_str().len()) > MAX_URI_BYTES {
        let detail = "The request's URI is longer than 8 KiB";
        Some(ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail))
    } else if used == BodyPolicy::Nothing && exceeds(MAX_EMPTY_BYTES) {
        Some(unexpected())
    } else if matches!(used, BodyPolicy::Handler | BodyPolicy::Coded) && exceeds(limit) {
        Some(too_large(limit))
    } else if used == BodyPolicy::Handler && is_encoded(headers) {
        // RFC 9110, 15.5.16: the header names the accepted codings.
        let detail = "The request body has a Content-Encoding; it is expected as it is";
        let fault = ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_content_encoding", detail);
        Some(fault.with_header(header::ACCEPT_ENCODING, HeaderValue::from_static("identity")))
    } else {
        None
    }
}

/// Whether the body has a content coding. `identity` counts as none.
fn is_encoded(headers: &HeaderMap) -> bool {
    let is_none = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    values.any(|value| !value.as_bytes().split(|byte| *byte == b',').all(|coding| is_none(coding.trim_ascii())))
}

/// Waits up to [`MEMORY_TIMEOUT`] for memory, so that a short burst of large bodies is not refused.
async fn grow(permit: &mut Permit, amount: u64) -> Result<(), ApiError> {
    // The common case needs no timer.
    if permit.try_grow(amount).is_ok() || tokio::time::timeout(MEMORY_TIMEOUT, permit.grow(amount)).await.is_ok() {
        return Ok(());
    }
    permit.try_grow(amount).map_err(|limit| {
        ApiError::exhausted(limit, "too_many_request_bytes", "bytes of request bodies that are worked on")
    })
}

/// Bytes that have arrived.
enum Kept {
    Nothing,
    /// A single chunk, uncopied: most bodies arrive at once.
    One(Bytes),
    /// Copied, since a chunk may keep a much larger buffer alive.
    Several(Vec<u8>),
}

impl Kept {
    fn push(&mut self, chunk: Bytes) {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Self::One(chunk),
            Self::One(first) => Self::Several([first, chunk].concat()),
            Self::Several(mut bytes) => {
                bytes.extend_from_slice(&chunk);
                Self::Several(bytes)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Several(bytes) => bytes.into(),
        }
    }
}

/// Whether the body is empty, an empty object or null.
fn is_empty_body(body: &[u8]) -> bool {
    let mut rest = body.iter().filter(|byte| !byte.is_ascii_whitespace()).copied();
    let start: Vec<u8> = rest.by_ref().take(5).collect();
    matches!(start.as_slice(), b"" | b"{}" | b"null")
}

fn unexpected() -> ApiError {
    ApiError::bad_request("unexpected_body", "The route takes no request body")
}

fn too_large(limit: usize) -> ApiError {
    let detail = format!("The request body is larger than {} MiB", limit >> 20);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", detail)
}
